/* Prefill's scheduler: which prompts are computed when, where their KV goes, and who owns a request meanwhile.
 *
 * A wrk_sched (worker/wrk_sched.h): its messages from gateways are SUBMIT, CANCEL and DRAIN, those from peers, which
 * are decode workers, RESERVED, REFUSED, COMMITTED and COMMIT_FAILED. Others are counted and ignored.
 *
 * What the prefix cache holds of a prompt when it begins is not computed, but for the last position, whose logits are
 * needed; decode gets those blocks as soon as it has room.
 *
 * A request computes and finds its decode worker at the same time; both sides meet in the hand-off:
 *
 *     SUBMIT ─▶ QUEUED ─▶ COMPUTING ──────────▶ COMPUTED (first token known, FIRST_TOKEN sent)
 *                 │           │ layer by layer       │  token ends the request: FINISHED, lease aborted
 *                 │           ▼ PUSH                 ▼
 *                 └─▶ NONE ─▶ CONNECTING ─▶ RESERVING ─▶ LEASED ─▶ COMMITTING ─▶ HANDED_OFF, gone
 *                       ▲         └─ refused, lost, late ─┘ │          │
 *                       └────── next candidate, or wait ◀───┘◀─────────┘ COMMIT_FAILED: once more
 *
 * Owner: this worker, from ACCEPTED until COMMIT is sent. Then the baton is in the air, and only COMMITTED (decode
 * owns) or COMMIT_FAILED (ours again) say where it is; if neither comes the attempt is given up (FAILED, ABORT), never
 * handed to a second decode worker. A request whose gateway, cancel or failure ended it keeps its blocks until
 * no step and no push reads them (kv_pool.h rule 3). */
#ifndef BATON_PREFILL_PRE_SCHED_H
#define BATON_PREFILL_PRE_SCHED_H

#include "worker/wrk_sched.h"

typedef struct {
    uint32_t max_requests;       /* queued, computing and handing off together: more are refused */
    uint32_t max_batched_tokens; /* --max-num-batched-tokens: rows of a step, at most */
    uint32_t max_batched_seqs;   /* sequences of a step, at most */

    /* Waiting, in ms; 0: the default in brackets. */
    uint32_t connect_ms;   /* for a decode worker's connection [5000] */
    uint32_t reserve_ms;   /* for RESERVED or REFUSED [3000] */
    uint32_t retry_ms;     /* before all candidates are asked again [25] */
    uint32_t no_decode_ms; /* how long to look for a decode worker at all [30000] */
    uint32_t commit_ms;    /* for COMMITTED or COMMIT_FAILED [10000] */
    uint32_t renew_ms;     /* between RENEWs [1000] */
} pre_sched_options;

/* BT_BAD_REQUEST: an option is 0 or out of range. */
bt_status pre_sched_open(const wrk_sched_options *shared, const pre_sched_options *options, wrk_sched **out,
                         bt_error *err);

/* What wrk_sched.counters points to: for metrics and tests. */
typedef struct {
    uint64_t n_submitted, n_refused; /* SUBMITs seen; refused at once */
    uint64_t n_finished, n_handed_off, n_failed;
    uint64_t n_canceled_queued, n_canceled_computing, n_canceled_computed, n_canceled_committing;
    uint64_t n_gateway_lost; /* requests dropped because their gateway is gone; also counted as canceled */
    uint64_t n_steps, n_rows, n_sampled, n_prompt_tokens;
    uint64_t n_prefix_queries, n_prefix_hits; /* prompt positions that began to be computed; of these, cached */
    uint64_t n_pushes, n_push_bytes;
    uint64_t n_reserve_refused, n_commit_failed, n_decode_lost, n_timeouts;
    uint64_t n_strange; /* messages that no honest peer sends */
} pre_counters;

static inline const pre_counters *pre_sched_counters(const wrk_sched *sched) { return sched->counters; }

#endif
