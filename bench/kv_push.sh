#!/bin/sh
# KV pushes between two processes of this machine, beside what UCX itself reaches with the same settings. Prints CSV.
#
#   bench/kv_push.sh [BUILD_DIR]         REPEAT=3 BYTES=73728 PUSHES=20000
#
# kvt_push:   kvt_bench, whose header says what is inside the timed window (hashing on both sides, landing in the KV pool).
# am_bw:      ucx_perftest's ucp_am_bw with the fabric's own UCX settings: sends one buffer again and again, throws away.
# The last column is kvt_push's share of am_bw in the same round.
set -eu
build=${1:-build}
repeat=${REPEAT:-3}
bytes=${BYTES:-73728} # one block of 64 tokens of DeepSeek-V3: 64 * 576 * 2
pushes=${PUSHES:-20000}
command -v ucx_perftest > /dev/null || { echo "kv_push.sh: ucx_perftest is missing (apt install ucx-utils)" >&2; exit 1; }

seg=$((bytes + 1024))
shm_seg=$seg
[ "$shm_seg" -gt 64000 ] && shm_seg=64000
export UCX_TCP_TX_SEG_SIZE=$seg UCX_TCP_RX_SEG_SIZE=$seg UCX_POSIX_SEG_SIZE=$shm_seg UCX_LOG_LEVEL=error
export UCX_POSIX_ERROR_HANDLING=y UCX_WARN_UNUSED_ENV_VARS=n

am_bw() { # TRANSPORTS: MB/s
    port=$((20000 + $$ % 20000))
    UCX_TLS=$1 UCX_RNDV_THRESH=inf ucx_perftest -p $port -t ucp_am_bw > /dev/null 2>&1 &
    server=$!
    sleep 0.5
    UCX_TLS=$1 UCX_RNDV_THRESH=inf ucx_perftest -p $port -t ucp_am_bw -s "$bytes" -n "$pushes" -f 127.0.0.1 2> /dev/null |
        awk 'END { print $6 * 1.048576 }' # it counts in MiB
    wait $server || true
}

echo "# commit=$(git -C "$(dirname "$0")" rev-parse --short HEAD) cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1 | tr ' ' _) cores=$(nproc)"
echo "transport,bytes,pool_bytes,kvt_push_mb_s,probe_mb_s,am_bw_mb_s,share"
for transports in posix,tcp,self tcp,self; do
    for pool in 64M 0; do # 0: two leases of 16 blocks, in the caches as am_bw's only buffer is
        batch=$([ "$pool" = 0 ] && echo 2 || echo 16)
        for _ in $(seq "$repeat"); do
            ucx=$(am_bw "$transports")
            "$build/bin/kvt_bench" --transports "$transports" --width $((bytes / 128)) --pushes "$pushes" \
                --pool-bytes "$pool" --batch "$batch" |
                awk -F, -v ucx="$ucx" -v pool="$pool" '{ printf "%s,%s,%s,%s,%s,%.0f,%.2f\n", $2, $3, pool, $4, $5, ucx, $4 / ucx }'
        done
    done
done
