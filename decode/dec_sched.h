/* Decode's scheduler: who may land KV here, which sequences decode together, and when their blocks are free again.
 *
 * A wrk_sched (worker/wrk_sched.h): its messages from gateways are SUBMIT, CANCEL and DRAIN, those from peers, which
 * are prefill workers, RESERVE, COMMIT, ABORT and RENEW. Others are counted and ignored.
 *
 *     SUBMIT ──────────────────────────────ACCEPTED─────────────────────────────────┐
 *                                                                                   ▼
 *     RESERVE ─▶ LEASED ──COMMIT──▶ SETTLING ──closed, counts and checksum right──▶ WAITING ─▶ RUNNING ─▶ FINISHED
 *                  │ ABORT, expiry,     │ wrong, late: COMMIT_FAILED                   │ ◀ no block │
 *                  ▼ prefill lost       ▼                                              ▼            ▼
 *              QUARANTINE ──closed──▶ free ◀──────────────── CANCEL, ABORT, gateway lost, end ──────┘
 *
 * The transfer layer lands bytes by itself, on its own thread, from a table of leases: WRK_LEASE_OPEN tells it where a
 * lease's pushes may land, WRK_LEASE_CLOSE to let no further push begin. Its answer, lease_closed, says
 * that no landing is in flight and what has landed. Until then blocks are not reused, whatever happened
 * to the request (kv_pool.h rule 3: quarantine).
 *
 * Full blocks of a prompt enter the prefix cache when its COMMIT is found right, and not before: bytes that no checksum
 * covers are nobody's. A RESERVE names its prompt's blocks; those that are here are the lease's at once, and its pushes
 * begin behind them.
 *
 * When blocks run out the newest sequence gives its own back, keeps its tokens and waits; until it has got room again
 * RESERVEs are refused. Then it is computed again, in chunks beside the others' rows: prompt positions in the expanded
 * form of attention, generated ones in the absorbed form, as the first time, so its tokens are what they would have
 * been. While a sequence gets no token its gateway is told ACCEPTED from time to time: it pauses, and is not lost.
 *
 * A SUBMIT asks for a prompt to be computed here, which is done where the cache lacks little of it: ACCEPTED, and it is
 * WAITING. Otherwise FAILED, and the gateway asks a prefill worker.
 *
 * Owner: this worker, from the moment a COMMIT is found right, or from ACCEPTED, until it sends FINISHED or FAILED. */
#ifndef BATON_DECODE_DEC_SCHED_H
#define BATON_DECODE_DEC_SCHED_H

#include "worker/wrk_sched.h"

typedef struct {
    uint32_t max_num_seqs; /* --max-num-seqs: sequences of a step, at most; <= WIRE_MAX_STEP_TOKENS. With leases and
                            * waiting ones an eighth more */
    uint32_t max_batched_tokens; /* --max-num-batched-tokens: rows of a step, at most; >= max_num_seqs */
    uint32_t max_leases;         /* reserved, settling, waiting and in quarantine together [max_num_seqs] */
    uint32_t watermark_blocks; /* stay free, besides one for each running sequence, when blocks are taken for a request
                                * [1/64 of the pool, at least 1] */

    uint32_t local_prefill_tokens; /* --local-prefill-tokens: positions that a SUBMIT may leave to compute; 0: none */

    /* In ms; 0: the default in brackets. */
    uint32_t lease_ms;  /* a lease's life without RENEW [5000] */
    uint32_t settle_ms; /* from COMMIT until its pushes must have landed [5000] */
    uint32_t pause_ms; /* without a token for a sequence, until its gateway is told that it is here, at most twice that;
                        * several times less than the gateways' patience between tokens [10000] */
} dec_sched_options;

/* BT_BAD_REQUEST: an option is out of range. */
bt_status dec_sched_open(const wrk_sched_options *shared, const dec_sched_options *options, wrk_sched **out,
                         bt_error *err);

uint32_t dec_sched_n_leases(const wrk_sched *sched); /* reserved, not committed */

/* What wrk_sched.counters points to: for metrics and tests. */
typedef struct {
    uint64_t n_reserved, n_refused;
    uint64_t n_local, n_local_tokens;         /* prompts computed here, and their positions that were not cached */
    uint64_t n_prefix_queries, n_prefix_hits; /* positions that were reserved; of these, held already */
    uint64_t n_committed, n_commit_failed;
    uint64_t n_lease_expired, n_lease_aborted, n_prefill_lost;
    uint64_t n_finished, n_failed;
    uint64_t n_preempted, n_recomputed; /* sequences that gave way; positions computed once more for that */
    uint64_t n_canceled_leased, n_canceled_waiting, n_canceled_running;
    uint64_t n_gateway_lost; /* requests dropped because their gateway is gone; also counted as canceled */
    uint64_t n_steps, n_sampled;
    uint64_t n_stalled;     /* steps that a sequence had to sit out for want of a block */
    uint64_t n_quarantined; /* leases whose blocks waited for a landing */
    uint64_t n_strange;     /* messages that no honest peer sends */
} dec_counters;

static inline const dec_counters *dec_sched_counters(const wrk_sched *sched) { return sched->counters; }

#endif
