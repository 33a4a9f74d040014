#!/bin/bash
# Fails when a file includes what its layer must not know. The layers, lowest first (a folder may include itself and
# those before it): common; kernels; kvtransfer; worker; then prefill, decode and gateway, none of which includes another.
# Inside common: core; wire; then the others, each for itself. Third-party headers stay in the file that wraps them.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A may=(
    [common]="common"
    [kernels]="common kernels"
    [kvtransfer]="common kernels kvtransfer"
    [worker]="common kernels kvtransfer worker"
    [prefill]="common kernels kvtransfer worker prefill"
    [decode]="common kernels kvtransfer worker decode"
    [gateway]="common gateway"
    [tools]="common kernels tools"
    [bench]="common kernels kvtransfer worker prefill decode gateway bench"
)
code=0
complain() {
    echo "$1: $2"
    code=1
}

sources() { git ls-files -co --exclude-standard -- "$@" | grep -E '\.(c|h|def|cu)$' || true; }

for folder in "${!may[@]}"; do
    for file in $(sources "$folder/"); do
        while read -r path; do
            case $path in
            */*) ;;
            *) complain "$file" "#include \"$path\" is not from the repository root" && continue ;;
            esac
            case " ${may[$folder]} " in
            *" ${path%%/*} "*) ;;
            *) complain "$file" "$folder must not include \"$path\"" ;;
            esac
            [ -e "$path" ] || complain "$file" "there is no \"$path\""
        done < <(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/p' "$file")
    done
done

# Below the other parts of common.
for file in $(sources common/core/ common/wire/); do
    if grep -nE '^ *# *include "common/(registry|control|text|model|kv)/' "$file" /dev/null; then
        complain "$file" "core and wire are below the rest of common"
    fi
done

# Inside gateway.
within() { # FOLDER MAY...: what a part of the gateway may include of the others
    local folder=$1 file
    shift
    for file in $(sources "gateway/$folder/"); do
        if grep -nE '^ *# *include "gateway/' "$file" /dev/null | grep -vE "\"gateway/($folder${*:+|}$(IFS='|' && echo "$*"))[/.]"; then
            complain "$file" "gateway/$folder may include: $folder $*"
        fi
    done
}
within core
within api
within text api
within http api config
within telemetry core api

# only HEADER ALLOWED...: who includes <HEADER...> besides the allowed files (patterns) is wrong.
only() {
    local header=$1 file pattern is_allowed
    shift
    for file in $(sources . ':!tests/e2e' | xargs grep -lE "^ *# *include *[<\"]$header" 2>/dev/null || true); do
        is_allowed=0
        for pattern in "$@"; do
            # shellcheck disable=SC2053 # a pattern on purpose
            [[ $file == $pattern ]] && is_allowed=1
        done
        [ $is_allowed = 1 ] || complain "$file" "includes <$header, which belongs to: $*"
    done
}
only 'h2o[./]' 'gateway/http/http*'
only 'uc[pts]/' 'kvtransfer/*'
only 'nng/' common/control/link_{conn.c,hub.c,impl.h}
only 'hiredis/' 'common/registry/redis_conn.c'

# The simulator links deciding files only: nothing that touches a socket, a thread or a clock.
for file in $(sources tests/sim/); do
    if grep -nE '^ *# *include *[<"](pthread|sys/socket|poll|nng|hiredis|uc[pts]|h2o|common/control|common/registry|kvtransfer|worker/wrk_[^gs])' \
        "$file" /dev/null; then
        complain "$file" "the simulator links cores only"
    fi
done
exit $code
