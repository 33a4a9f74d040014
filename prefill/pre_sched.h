/* Prefill's scheduler: which prompts are computed when, where their KV goes, and who owns a request meanwhile.
 *
 * A plain state machine without sockets, threads, clocks or logs: the caller turns what happens into event calls, each
 * with the time, and then carries out the actions in their order until pre_sched_next() says that there are no more.
 * No event may be called before that, and what an action points to is valid until the next event. One thread.
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
 * no step and no push reads them (kv_pool.h rule 3).
 *
 * Peers are known by incarnation: a restarted process is a new peer. Hostile input: every message is checked; what no
 * honest peer sends is refused in one sentence or ignored, and counted. */
#ifndef BATON_PREFILL_PRE_SCHED_H
#define BATON_PREFILL_PRE_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/kv/kv_pool.h"
#include "common/wire/wire.h"
#include "kernels/backend.h"
#include "kernels/draw.h"

typedef struct pre_sched pre_sched;

typedef struct {
    kv_pool *pool;               /* borrowed; nobody else takes blocks from it */
    uint32_t vocab_size;         /* token ids are below it */
    uint32_t max_model_len;      /* positions of a request, prompt and output; also bounded by the pool */
    uint32_t n_layers;           /* of KV */
    uint32_t max_requests;       /* queued, computing and handing off together: more are refused */
    uint32_t max_batched_tokens; /* --max-num-batched-tokens: rows of a step, at most */
    uint32_t max_batched_seqs;   /* sequences of a step, at most */
    const uint32_t *eos_ids;     /* [n_eos_ids], copied */
    uint32_t n_eos_ids;
    bool has_prefix_cache; /* keep blocks of prompts, and name them to decode */
    uint64_t model_hash;   /* part of their names */

    /* Waiting, in ms; 0: the default in brackets. */
    uint32_t connect_ms;   /* for a decode worker's connection [5000] */
    uint32_t reserve_ms;   /* for RESERVED or REFUSED [3000] */
    uint32_t retry_ms;     /* before all candidates are asked again [25] */
    uint32_t no_decode_ms; /* how long to look for a decode worker at all [30000] */
    uint32_t commit_ms;    /* for COMMITTED or COMMIT_FAILED [10000] */
    uint32_t renew_ms;     /* between RENEWs [1000] */
    uint32_t status_ms;    /* between two STATUS, at least [5] */
} pre_sched_options;

/* BT_BAD_REQUEST: an option is 0 or out of range. */
bt_status pre_sched_open(const pre_sched_options *options, pre_sched **out, bt_error *err);
void pre_sched_close(pre_sched *sched); /* NULL is accepted; blocks of requests that still live are released */

/* ---- actions ---------------------------------------------------------------------------------------------------- */

typedef enum {
    PRE_SEND_GATEWAY, /* message -> the link of gateway `peer`; dropped by the caller if that link is gone */
    PRE_BROADCAST,    /* message -> every gateway that is up (STATUS) */
    PRE_CONNECT,      /* open a KV connection to candidate; answer: decode_up or decode_gone, exactly one */
    PRE_SEND_DECODE,  /* message -> KV connection of decode `peer`, in order with its pushes. In a COMMIT the caller
                       * fills the checksum: what the transfer layer summed up over the pushes of commit.lease */
    PRE_PUSH,         /* push; answer: pre_sched_push_done(), exactly one, also when the peer is gone */
    PRE_DRAINED,      /* once, after pre_sched_drain(): nothing is left, exit */
} pre_action_kind;

/* Blocks [first, first + n_blocks) of a request's table, of one layer: one wire PUSH each, n_rows 64 but in the last.
 */
typedef struct {
    uint64_t id;    /* for pre_sched_push_done() */
    uint64_t lease; /* of decode `peer` */
    uint32_t layer;
    uint32_t first_block;   /* index in the request's block table: wire_push.block of blocks[0] */
    const uint32_t *blocks; /* [n_blocks] numbers in our pool */
    uint32_t n_blocks;
    uint32_t n_last_rows; /* 1..64 */
} pre_push;

typedef struct {
    pre_action_kind kind;
    uint64_t peer; /* incarnation */
    union {
        wire_message message;
        wire_candidate candidate; /* PRE_CONNECT: of the candidate with incarnation `peer` */
        pre_push push;
    };
} pre_action;

/* The next action, in order. false: none is left. */
bool pre_sched_next(pre_sched *sched, pre_action *out);

/* ---- events ----------------------------------------------------------------------------------------------------- */

/* A gateway's link. Up for one that is up: its old link is gone, and its requests with it. */
void pre_sched_gateway_up(pre_sched *sched, uint64_t gateway, int64_t now_ns);
void pre_sched_gateway_gone(pre_sched *sched, uint64_t gateway, int64_t now_ns);

/* SUBMIT, CANCEL, DRAIN; others are counted and ignored. The message may be freed after the call. */
void pre_sched_gateway_message(pre_sched *sched, uint64_t gateway, const wire_message *message, int64_t now_ns);

/* A decode worker's KV connection: welcomed; or gone, refused, or another incarnation answered at that address. */
void pre_sched_decode_up(pre_sched *sched, uint64_t decode, int64_t now_ns);
void pre_sched_decode_gone(pre_sched *sched, uint64_t decode, int64_t now_ns);

/* RESERVED, REFUSED, COMMITTED, COMMIT_FAILED. */
void pre_sched_decode_message(pre_sched *sched, uint64_t decode, const wire_message *message, int64_t now_ns);

/* Nothing reads the push's blocks any more, and n_bytes were sent. */
void pre_sched_push_done(pre_sched *sched, uint64_t push_id, uint64_t n_bytes, int64_t now_ns);

/* SIGTERM. grace_ms as in DRAIN. */
void pre_sched_drain(pre_sched *sched, uint32_t grace_ms, int64_t now_ns);

/* When pre_sched_tick() wants to be called, INT64_MAX: never. Calling it more often does no harm. */
int64_t pre_sched_deadline_ns(const pre_sched *sched);
void pre_sched_tick(pre_sched *sched, int64_t now_ns);

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* What is wanted of a row of a step's logits: a token, or the logprobs of one that is given. */
typedef struct {
    bool is_given;
    uint32_t given; /* a prompt token: nothing is drawn */
    krn_draw_args draw;
    uint64_t prefix_id; /* names the sequence in logs and tests: its request's serial */
} pre_sample;

typedef struct {
    const krn_sequence *sequences; /* [n_sequences], for krn_forward() */
    uint32_t n_sequences, n_rows;
    const pre_sample *samples; /* [n_samples]: one for each row of logits, in their order */
    uint32_t n_samples;
} pre_step;

/* What to compute next; false: nothing. Between a true answer and pre_sched_step_done() every event may come (messages
 * are polled between layers) and *out stays valid and unchanged; requests that end meanwhile are computed in vain. */
bool pre_sched_step_begin(pre_sched *sched, int64_t now_ns, pre_step *out);

/* Layer `layer` of all of the step's rows is in the cache: 0, 1, ... n_layers - 1, before step_done. */
void pre_sched_layer_done(pre_sched *sched, uint32_t layer, int64_t now_ns);

/* tokens[n_samples]: what was drawn. logprobs[n_samples]: of those whose sampling asks for them; kept until the actions
 * are walked. */
void pre_sched_step_done(pre_sched *sched, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns);

/* ---- figures for metrics, STATUS and tests ------------------------------------------------------------------------
 */

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

const pre_counters *pre_sched_counters(const pre_sched *sched);
void pre_sched_load(const pre_sched *sched, wire_load *out); /* used: held by somebody */

/* For tests: may this worker finish the request now? And: asserts that the books balance (linear in the slots). */
bool pre_sched_is_owner(const pre_sched *sched, const wire_request *request);
void pre_sched_check(const pre_sched *sched);

#endif
