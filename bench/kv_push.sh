#!/bin/sh
# KV pushes between two processes of this machine, beside what UCX itself reaches for messages of the same size over the
# same transport, and what a core can do at all. Prints CSV; what is in one row was measured within seconds.
#
#   bench/kv_push.sh [BUILD_DIR]         REPEAT=3 BYTES=73728 PUSHES=10000
#
# kvt_push:   kvt_bench, whose header says what is inside the timed window: all messages, hashing on both sides, landing
#             in the KV pool. walk: the KV memory that is walked round; 2M: in the caches, as perftest's only buffer is;
#             64M: in none.
# am_bw:      ucx_perftest's ucp_am_bw: sends one buffer again and again, throws away; no check, no memory to land in.
#             With UCX's defaults, and with the fabric's own settings for eager messages (the faster on this machine).
# copy, land: one core over the same walk, alone: memcpy; kvt_push_copy(), which hashes and stores past the caches. The
#             least that a receiver must do is land; it may be a little faster here, where the sender has just read the
#             bytes into its own cache.
# of_*:       kvt_push's share of each.
set -eu
build=${1:-build}
repeat=${REPEAT:-3}
bytes=${BYTES:-73728} # one block of 64 tokens of DeepSeek-V3: 64 * 576 * 2
pushes=${PUSHES:-10000}
command -v ucx_perftest > /dev/null || { echo "kv_push.sh: ucx_perftest is missing (apt install ucx-utils)" >&2; exit 1; }

seg=$((4 * bytes + 1024)) # KVT_PUSH_BLOCKS
shm_seg=$seg
[ "$shm_seg" -gt 64000 ] && shm_seg=64000
export UCX_LOG_LEVEL=error UCX_POSIX_ERROR_HANDLING=y UCX_WARN_UNUSED_ENV_VARS=n
ours="UCX_TCP_TX_SEG_SIZE=$seg UCX_TCP_RX_SEG_SIZE=$seg UCX_POSIX_SEG_SIZE=$shm_seg UCX_RNDV_THRESH=inf"

am_bw() { # TRANSPORTS SETTINGS: MB/s
    port=$((20000 + $$ % 20000))
    # shellcheck disable=SC2086 # SETTINGS is a list
    env UCX_TLS="$1" $2 timeout 30 ucx_perftest -p $port -t ucp_am_bw > /dev/null 2>&1 &
    server=$!
    sleep 0.5
    # shellcheck disable=SC2086
    env UCX_TLS="$1" $2 timeout 30 ucx_perftest -p $port -t ucp_am_bw -s "$bytes" -n "$pushes" -f 127.0.0.1 2> /dev/null |
        awk 'END { print $6 * 1.048576 }' # it counts in MiB
    wait $server || true
}

commit=$(git -C "$(dirname "$0")" rev-parse --short HEAD)
cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1 | tr ' ' _)
echo "commit,cpu,cores,transport,way,bytes,walk,kvt_push_mb_s,probe_mb_s,copy_mb_s,land_mb_s,am_bw_default_mb_s,am_bw_mb_s,of_default,of_am_bw,of_copy,of_land"
for _ in $(seq "$repeat"); do
    for way in posix,tcp,self:pull posix,tcp,self:eager tcp,self:eager; do
        transports=${way%:*}
        default=$(am_bw "$transports" "")
        tuned=$(am_bw "$transports" "$ours")
        for walk in 2M 64M; do
            timeout 60 "$build/bin/kvt_bench" --transports "$transports" --way "${way#*:}" --width $((bytes / 128)) \
                --pushes "$pushes" --walk-bytes $walk |
                awk -F, -v machine="$commit,$cpu,$(nproc)" -v way="${way#*:}" -v walk=$walk -v default="$default" -v tuned="$tuned" \
                    '{ printf "%s,%s,%s,%s,%s,%s,%s,%s,%s,%.0f,%.0f,%.2f,%.2f,%.2f,%.2f\n", machine, $2, way, $3, walk, $4, $5, $6, $7,
                       default, tuned, $4 / default, $4 / tuned, $4 / $6, $4 / $7 }'
        done
    done
done
