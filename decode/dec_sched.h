/* Decode's scheduler: who may land KV here, which sequences decode together, and when their blocks are free again.
 *
 * A plain state machine without sockets, threads, clocks or logs: the caller turns what happens into event calls, each
 * with the time, and then carries out the actions in their order until dec_sched_next() says that there are no more.
 * No event may be called before that, and what an action points to is valid until the next event. One thread.
 *
 *     RESERVE ─▶ LEASED ──COMMIT──▶ SETTLING ──closed, counts and checksum right──▶ WAITING ─▶ RUNNING ─▶ FINISHED
 *                  │ ABORT, expiry,     │ wrong, late: COMMIT_FAILED                   │          │ or preempted
 *                  ▼ prefill lost       ▼                                              ▼          ▼
 *              QUARANTINE ──closed──▶ free ◀──────────────── CANCEL, ABORT, gateway lost, end ────┘
 *
 * The transfer layer lands bytes by itself, on its own thread, from a table of leases: DEC_LEASE_OPEN tells it where a
 * lease's pushes may land, DEC_LEASE_CLOSE to let no further push begin. Its answer, dec_sched_lease_closed(), says
 * that no landing is in flight and what has landed. Until then blocks are not reused, whatever happened
 * to the request (kv_pool.h rule 3: quarantine).
 *
 * Full blocks of a prompt enter the prefix cache when its COMMIT is found right, and not before: bytes that no checksum
 * covers are nobody's. A RESERVE names its prompt's blocks; those that are here are the lease's at once, and its pushes
 * begin behind them.
 *
 * Owner: this worker, from the moment a COMMIT is found right until it sends FINISHED or FAILED.
 * Peers are known by incarnation. Hostile input: every message is checked, refused in one sentence or ignored. */
#ifndef BATON_DECODE_DEC_SCHED_H
#define BATON_DECODE_DEC_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/kv/kv_pool.h"
#include "common/wire/wire.h"
#include "kernels/backend.h"
#include "kernels/draw.h"

typedef struct dec_sched dec_sched;

typedef struct {
    kv_pool *pool; /* borrowed; nobody else takes blocks from it */
    uint32_t vocab_size;
    uint32_t max_model_len;    /* positions of a request; also bounded by the pool */
    uint32_t n_layers;         /* of KV */
    uint32_t max_num_seqs;     /* --max-num-seqs: rows of a step, at most; <= WIRE_MAX_STEP_TOKENS. With leases and
                                * waiting ones an eighth more */
    uint32_t max_leases;       /* reserved, settling, waiting and in quarantine together [max_num_seqs] */
    uint32_t watermark_blocks; /* stay free at a RESERVE, for sequences to grow into [1/64 of the pool, at least 1] */
    const uint32_t *eos_ids;   /* [n_eos_ids], copied */
    uint32_t n_eos_ids;
    bool has_prefix_cache; /* keep blocks of prompts: prefill need not push them again */

    /* In ms; 0: the default in brackets. */
    uint32_t lease_ms;  /* a lease's life without RENEW [5000] */
    uint32_t settle_ms; /* from COMMIT until its pushes must have landed [5000] */
    uint32_t status_ms; /* between two STATUS, at least [5] */
} dec_sched_options;

/* BT_BAD_REQUEST: an option is out of range. */
bt_status dec_sched_open(const dec_sched_options *options, dec_sched **out, bt_error *err);
void dec_sched_close(dec_sched *sched); /* NULL is accepted; blocks of requests that still live are released */

/* ---- actions ---------------------------------------------------------------------------------------------------- */

typedef enum {
    DEC_SEND_GATEWAY, /* message -> the link of gateway `peer` */
    DEC_BROADCAST,    /* message -> every gateway that is up (STATUS) */
    DEC_SEND_PREFILL, /* message -> KV connection of prefill `peer` */
    DEC_LEASE_OPEN,   /* lease_open: from now on, before any message that follows, its pushes may land */
    DEC_LEASE_CLOSE,  /* lease_close; answer: dec_sched_lease_closed(), exactly one per lease */
    DEC_DRAINED,      /* once, after dec_sched_drain(): nothing is left, exit */
} dec_action_kind;

/* A push (lease, layer, block, n_rows) from `peer` may land if layer < n_layers, block is in [first_block, n_blocks)
 * and n_rows is 64, or what n_tokens leaves for the last block; each (layer, block) once. It lands in blocks[block]. */
typedef struct {
    uint64_t lease;
    const uint32_t *blocks; /* [n_blocks] numbers in our pool; copy them */
    uint32_t first_block, n_blocks;
    uint32_t n_tokens;
} dec_lease_open;

/* Let pushes begin until n_pushes have landed in all, then none; 0: none from now on. May come a second time with 0, to
 * stop waiting. The answer comes when none is in flight any more. */
typedef struct {
    uint64_t lease;
    uint32_t n_pushes;
} dec_lease_close;

typedef struct {
    dec_action_kind kind;
    uint64_t peer; /* incarnation; of the lease's prefill in DEC_LEASE_* */
    union {
        wire_message message;
        dec_lease_open lease_open;
        dec_lease_close lease_close;
    };
} dec_action;

/* The next action, in order. false: none is left. */
bool dec_sched_next(dec_sched *sched, dec_action *out);

/* ---- events ----------------------------------------------------------------------------------------------------- */

/* A gateway's link. Up for one that is up: its old link is gone, and its requests with it. */
void dec_sched_gateway_up(dec_sched *sched, uint64_t gateway, int64_t now_ns);
void dec_sched_gateway_gone(dec_sched *sched, uint64_t gateway, int64_t now_ns);

/* CANCEL, DRAIN; others are counted and ignored. The message may be freed after the call. */
void dec_sched_gateway_message(dec_sched *sched, uint64_t gateway, const wire_message *message, int64_t now_ns);

/* A prefill worker's KV connection is gone. (There is no "up": who sends RESERVE is there.) */
void dec_sched_prefill_gone(dec_sched *sched, uint64_t prefill, int64_t now_ns);

/* RESERVE, COMMIT, ABORT, RENEW. */
void dec_sched_prefill_message(dec_sched *sched, uint64_t prefill, const wire_message *message, int64_t now_ns);

/* Nothing lands in the lease's blocks any more. n_pushes have, with this sum of kvt_push_hash(). Also comes without
 * DEC_LEASE_CLOSE when the transfer layer gave a lease up by itself. */
void dec_sched_lease_closed(dec_sched *sched, uint64_t lease, uint32_t n_pushes, uint64_t checksum, int64_t now_ns);

/* SIGTERM. grace_ms as in DRAIN. */
void dec_sched_drain(dec_sched *sched, uint32_t grace_ms, int64_t now_ns);

/* When dec_sched_tick() wants to be called, INT64_MAX: never. Calling it more often does no harm. */
int64_t dec_sched_deadline_ns(const dec_sched *sched);
void dec_sched_tick(dec_sched *sched, int64_t now_ns);

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* A token wanted from a step's logits: one for each sequence. */
typedef struct {
    krn_draw_args draw;
    uint64_t prefix_id; /* names the sequence in logs and tests: its request's serial */
} dec_sample;

typedef struct {
    const krn_sequence *sequences; /* [n_sequences], one row each, for krn_forward() */
    uint32_t n_sequences;
    const dec_sample *samples; /* [n_sequences] */
} dec_step;

/* What to compute next; false: nothing. Between a true answer and dec_sched_step_done() every event may come and *out
 * stays valid and unchanged; sequences that end meanwhile are computed in vain. Walk the actions after both. */
bool dec_sched_step_begin(dec_sched *sched, int64_t now_ns, dec_step *out);

/* tokens[n_sequences]: what was drawn. logprobs[n_sequences]: of those whose sampling asks for them; kept until the
 * actions are walked. */
void dec_sched_step_done(dec_sched *sched, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns);

/* ---- figures for metrics, STATUS and tests ------------------------------------------------------------------------
 */

typedef struct {
    uint64_t n_reserved, n_refused;
    uint64_t n_prefix_queries, n_prefix_hits; /* positions that were reserved; of these, held already */
    uint64_t n_committed, n_commit_failed;
    uint64_t n_lease_expired, n_lease_aborted, n_prefill_lost;
    uint64_t n_finished, n_failed, n_preempted;
    uint64_t n_canceled_leased, n_canceled_waiting, n_canceled_running;
    uint64_t n_gateway_lost; /* requests dropped because their gateway is gone; also counted as canceled */
    uint64_t n_steps, n_sampled;
    uint64_t n_stalled;     /* steps that a sequence had to sit out for want of a block */
    uint64_t n_quarantined; /* leases whose blocks waited for a landing */
    uint64_t n_strange;     /* messages that no honest peer sends */
} dec_counters;

const dec_counters *dec_sched_counters(const dec_sched *sched);
void dec_sched_load(const dec_sched *sched, wire_load *out);
uint32_t dec_sched_n_leases(const dec_sched *sched); /* reserved, not committed */

/* For tests: may this worker finish the request now? And: asserts that the books balance (linear in the slots). */
bool dec_sched_is_owner(const dec_sched *sched, const wire_request *request);
void dec_sched_check(const dec_sched *sched);

#endif
