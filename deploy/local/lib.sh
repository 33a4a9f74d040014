# What up, down, status and restart share: where a local cluster keeps its files, and how one process is started,
# recognised, watched and stopped. Sourced by bash.
#
# For each process NAME (redis, gateway-0, prefill-0, decode-0, ...) the run directory holds
#   NAME.pid    its process id            NAME.log  what it writes
#   NAME.birth  its start time: a process id alone may belong to somebody else after a while
#   NAME.cmd    its command line, quoted  NAME.url  what answers when it is ready (not redis)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
run=$root/run/local

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Takes "--run DIR" from the arguments; the rest is left in `rest`.
take_run_flag() {
    rest=()
    while [ $# -gt 0 ]; do
        case $1 in
        --run)
            [ $# -ge 2 ] || fail "--run needs a directory"
            run=$(realpath -m "$2")
            shift 2
            ;;
        --run=*)
            run=$(realpath -m "${1#--run=}")
            shift
            ;;
        *)
            rest+=("$1")
            shift
            ;;
        esac
    done
}

# "state birth" of a process, from /proc/PID/stat after the name, which may hold anything.
stat_of() {
    local text fields
    text=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -ra fields <<<"${text##*) }"
    echo "${fields[0]} ${fields[19]}"
}

# Whether NAME runs: the recorded process lives, is no zombie, and is the one that was started.
is_running() {
    local pid state birth
    pid=$(cat "$run/$1.pid" 2>/dev/null) || return 1
    read -r state birth <<<"$(stat_of "$pid")"
    [ -n "$birth" ] && [ "$state" != Z ] && [ "$birth" = "$(cat "$run/$1.birth" 2>/dev/null)" ]
}

# All names of the cluster, in the order in which they are stopped.
names() {
    local kind
    for kind in gateway- prefill- decode- redis; do
        find "$run" -maxdepth 1 -name "$kind*.pid" -printf '%f\n' 2>/dev/null | sed 's/\.pid$//' | sort -V
    done
}

# start NAME: runs its NAME.cmd in the background, detached from this terminal.
start() {
    local command pid
    eval "command=($(cat "$run/$1.cmd"))"
    setsid "${command[@]}" >>"$run/$1.log" 2>&1 </dev/null 9>&- & # 9: the lock of up
    pid=$!
    echo "$pid" >"$run/$1.pid"
    stat_of "$pid" | cut -d' ' -f2 >"$run/$1.birth" || true
}

# signal_all SIGNAL NAME...: to those that run.
signal_all() {
    local signal=$1 name
    shift
    for name in "$@"; do
        if is_running "$name"; then kill -s "$signal" "$(cat "$run/$name.pid")" 2>/dev/null || true; fi
    done
}

# wait_gone SECONDS NAME...: true when none of them runs any more.
wait_gone() {
    local deadline=$((SECONDS + $1)) name
    shift
    for name in "$@"; do
        while is_running "$name"; do
            [ $SECONDS -lt $deadline ] || return 1
            sleep 0.05
        done
    done
}

# stop SECONDS NAME...: asks all of them to drain, then insists.
stop() {
    local grace=$1
    shift
    signal_all TERM "$@"
    if ! wait_gone "$grace" "$@"; then
        echo "still busy after $grace s, killing" >&2
        signal_all KILL "$@"
        wait_gone 10 "$@" || fail "a process does not die; see deploy/local/status --run $run"
    fi
}

# The HTTP status of a URL, 000 while nobody answers.
http_status() { curl -sk -o /dev/null -m 2 -w '%{http_code}' "$1" || true; }

# Whether NAME can do its work.
is_ready() {
    case $1 in
    redis) [ "$(redis-cli -s "$(cat "$run/redis.socket")" ping 2>/dev/null)" = PONG ] ;;
    *) [ "$(http_status "$(cat "$run/$1.url")/health")" = 200 ] ;;
    esac
}

# died NAME: says why, with the end of its log.
died() {
    echo "$1 died; the end of $run/$1.log:" >&2
    tail -n 15 "$run/$1.log" >&2
}

# wait_ready NAME...: until all are ready, showing what they log meanwhile. False as soon as one of `watched` dies.
wait_ready() {
    local name waiting=("$@") still line shown='' i=0
    while [ ${#waiting[@]} -gt 0 ]; do
        for name in "${watched[@]}"; do
            is_running "$name" || {
                died "$name"
                return 1
            }
        done
        still=()
        for name in "${waiting[@]}"; do is_ready "$name" || still+=("$name"); done
        waiting=("${still[@]}")
        [ ${#waiting[@]} -gt 0 ] || break
        i=$((i + 1))
        if [ $((i % 10)) = 0 ]; then
            line="waiting for ${waiting[*]}: $(tail -qn 1 "$run/${waiting[0]}.log" | cut -d' ' -f2- | cut -c-100)"
            [ "$line" = "$shown" ] || echo "$line"
            shown=$line
        fi
        sleep 0.1
    done
}
