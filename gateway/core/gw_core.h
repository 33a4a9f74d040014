/* A request's life in the gateway: chosen workers, the attempt that is alive, the tokens so far, and every way it ends.
 *
 * A plain state machine without sockets, threads, clocks or logs: the caller turns what happens into event calls, each
 * with the time, and then carries out the actions in their order until gw_core_next() says that there are no more. One
 * thread. Anything may be called while walking (cancel, because a stop string was found in a token): its actions join
 * the end of the list. What an action points to is valid until the list is empty or a worker's message comes.
 *
 *              ┌──────────────────────────── replay: attempt + 1 ─────────────────────────────┐
 *              ▼                                                                              │ lost, failed, late
 *     submit ─▶ WAITING ─▶ SUBMITTED ─ACCEPTED─▶ ACCEPTED ─FIRST_TOKEN─▶ STARTED ─HANDED_OFF─▶ HANDED_OFF
 *              │     ▲            │                │                      │                     │ TOKENS...
 *              │     └─ no room ──┘                │                      │                     │
 *              ▼ too long, pushed out              ▼                      ▼                     ▼
 *          GW_FAILED                           GW_FAILED             GW_FINISHED           GW_FINISHED
 *
 * The queue. While no worker has room (gw_router.h) requests wait here, where they are still in order: by priority,
 * then as they came. It is bounded: if it is full, whoever would go last is failed. A request leaves it when a worker's
 * report or another request's end makes room, at its deadline, or with its client; if a worker refuses it after all for
 * want of room, it is back in its place; if no worker is left for it, it waits no_worker_ms, below. Every gateway hears
 * of room at the same time, so none starves another. Choices of one answer join it all or none, are pushed out
 * together, and once one of them has begun the others are neither pushed out nor late: what its client has of the
 * answer would be in vain.
 *
 * Where a decode worker's cache holds nearly all of a prompt, SUBMIT goes to that worker, which then does prefill's
 * part too: HANDED_OFF follows from its FIRST_TOKEN. If it refuses, the request goes the usual way at once.
 *
 * Each request gets GW_TOKENS in order of index, each token exactly once whatever the attempts, then exactly one of
 * GW_FINISHED and GW_FAILED; after gw_core_cancel() nothing. Messages of decode may overtake prefill's
 * (two links): they wait for the missing index. Messages of older attempts are ignored; a decode worker that still
 * computes for one is told CANCEL.
 *
 * A replay sends prompt + delivered tokens, so the client sees a pause. Lost workers, deadlines and internal failures
 * count against migration_limit; full, draining or missing workers do not, but a request that gets no further for
 * no_worker_ms because of them fails with BT_NO_CAPACITY. A replay does not queue: its client has waited already. */
#ifndef BATON_GATEWAY_CORE_GW_CORE_H
#define BATON_GATEWAY_CORE_GW_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/wire/wire.h"
#include "gateway/core/gw_router.h"

typedef struct gw_core gw_core;

typedef struct {
    uint64_t incarnation;                /* of this gateway loop; not 0 */
    uint64_t seed;                       /* of the router's generator */
    uint32_t saturation_ms, slo_ttft_ms; /* of strategies: gw_router_options */
    uint32_t max_worker_queue_ms;        /* likewise: who has room */
    uint32_t max_queued;                 /* requests that wait for room; 0: none */
    uint32_t max_requests;               /* alive at once */
    uint32_t vocab_size;                 /* tokens from workers are below it */
    uint32_t max_model_len;              /* prompt + output, at most */
    uint32_t migration_limit;            /* --migration-limit; 0: none is replayed */
    const uint32_t
        *eos_ids; /* [n_eos_ids], copied: a request whose last word was lost with its worker may have ended */
    uint32_t n_eos_ids;

    /* Deadlines in ms; 0: the default in brackets. */
    uint32_t accept_ms;      /* SUBMIT to ACCEPTED [10000] */
    uint32_t first_token_ms; /* ACCEPTED to FIRST_TOKEN: queue and prompt; HANDED_OFF to decode's first [600000] */
    uint32_t hand_off_ms;    /* FIRST_TOKEN to HANDED_OFF [60000] */
    uint32_t token_ms;       /* between two words of decode, tokens or "it is still mine" [60000] */
    uint32_t no_worker_ms;   /* without a worker that takes it [10000] */
} gw_core_options;

/* BT_BAD_REQUEST: an option is 0 or out of range. */
bt_status gw_core_open(const gw_core_options *options, gw_core **out, bt_error *err);
void gw_core_close(gw_core *core); /* NULL is accepted */

/* ---- requests --------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint32_t *tokens; /* [n_tokens] the prompt; copied */
    uint32_t n_tokens;
    uint32_t max_tokens; /* >= 1; cut to what max_model_len leaves */
    wire_sampling sampling;
    wire_constraint constraint;     /* copied */
    const uint32_t *stop_token_ids; /* [n_stop_token_ids <= WIRE_MAX_STOP_IDS]; copied */
    uint32_t n_stop_token_ids;
    const char *cache_salt;             /* "" or the client's; copied; at most WIRE_MAX_NAME bytes */
    const gw_strategy *strategy;        /* copied */
    const bt_selector *filter;          /* copied; NULL: every worker will do */
    uint64_t session_key, session_name; /* gw_strategy.h; 0: none */
    uint32_t slo_ttft_ms;               /* strategy slo: its own target; 0: the options' */
    int64_t priority;                   /* lower goes first */
    uint32_t queue_ms;                  /* how long it may wait for room */
    uint32_t choice, n_choices;         /* of one answer, submitted one behind another; n_choices 0: it is alone */
    void *user;                         /* comes back in the actions */
} gw_submit;

/* *out_serial names the request until GW_FINISHED or GW_FAILED. BT_BAD_REQUEST: the request can never run.
 * BT_NO_CAPACITY: no usable worker of a role. BT_AGAIN: none has room and the queue is full, or max_requests are alive.
 * Both are a 503 with Retry-After. */
bt_status gw_core_submit(gw_core *core, const gw_submit *submit, int64_t now_ns, uint64_t *out_serial, bt_error *err);

/* The client is gone, or the edge found a stop string: whoever computes for it is told. Unknown serials are ignored. */
void gw_core_cancel(gw_core *core, uint64_t serial, int64_t now_ns);

/* ---- actions ---------------------------------------------------------------------------------------------------- */

typedef enum {
    GW_SEND,     /* message -> the link of worker `peer` */
    GW_PROMPT,   /* logprobs[n_tokens] of prompt tokens, the first at position `index`; before any GW_TOKENS */
    GW_TOKENS,   /* tokens[n_tokens], the first has index `index` */
    GW_FINISHED, /* reason, stop_token, n_output; the request is gone when the list is empty */
    GW_FAILED,   /* status, text for the client; likewise */
} gw_action_kind;

typedef struct {
    gw_action_kind kind;
    union {
        struct {
            uint64_t peer; /* incarnation */
            wire_message message;
        };
        struct {
            uint64_t serial;
            void *user;
            const uint32_t *tokens;
            const wire_ranked *logprobs; /* [n_tokens], if sampling.n_logprobs; GW_PROMPT: sampling.n_prompt_logprobs.
                                          * n_top is one less than that, or the vocabulary's size */
            uint32_t n_tokens, index;
            wire_finish reason;
            uint32_t stop_token, n_output;
            bt_status status;
            const char *text;
            /* GW_FAILED, for machines: "queue_full", "queue_timeout" (status BT_AGAIN: it waited for room in vain),
             * "no_worker"; NULL: another */
            const char *why;
        };
    };
} gw_action;

bool gw_core_next(gw_core *core, gw_action *out);

/* ---- events ----------------------------------------------------------------------------------------------------- */

/* A worker's link is up, or what the registry says of it changed (see gw_router_up). A link that was lost and came back
 * must be reported gone, then up. */
void gw_core_worker_up(gw_core *core, const gw_worker *known, int64_t now_ns);
void gw_core_worker_gone(gw_core *core, uint64_t incarnation, int64_t now_ns);

/* Whatever worker `peer` sent on its link. The message may be freed after the call. */
void gw_core_message(gw_core *core, uint64_t peer, const wire_message *message, int64_t now_ns);

/* When gw_core_tick() wants to be called, INT64_MAX: never. Calling it more often does no harm. */
int64_t gw_core_deadline_ns(const gw_core *core);
void gw_core_tick(gw_core *core, int64_t now_ns);

/* ---- looking ---------------------------------------------------------------------------------------------------- */

typedef enum { GW_WAITING, GW_SUBMITTED, GW_ACCEPTED, GW_STARTED, GW_HANDED_OFF } gw_phase;

/* What is known of a request, for headers, logs and metrics. Times in ns on the caller's clock, 0: not yet; those of
 * the first attempt that got there. */
typedef struct {
    gw_phase phase;
    uint32_t attempt, n_migrations;
    const gw_strategy *strategy;
    bool is_local;                   /* the latest attempt has no prefill worker: decode computes the prompt */
    char prefill[WIRE_MAX_NAME + 1]; /* of the latest attempt; "" while there is none */
    char decode[WIRE_MAX_NAME + 1];  /* the one that took it, before that the first candidate */
    char prefill_address[WIRE_MAX_NAME + 1], decode_address[WIRE_MAX_NAME + 1]; /* theirs: host:port */
    uint32_t n_prompt, n_output;                                                /* n_output: delivered */
    uint32_t cached_tokens;
    int64_t submit_ns, sent_ns, accepted_ns, first_token_ns, handed_off_ns, first_decode_ns, last_token_ns;
    uint32_t queue_us, compute_us; /* prefill's own figures of the first attempt */
    uint32_t transfer_us, exposed_us;
    uint64_t transfer_bytes;
} gw_info;

/* NULL: unknown serial. Valid until the next event; also for a request whose end is being walked. */
const gw_info *gw_core_info(gw_core *core, uint64_t serial);

gw_router *gw_core_router(gw_core *core); /* for /health, /metrics: look, do not touch */
uint32_t gw_core_n_alive(const gw_core *core);
uint32_t gw_core_n_queued(const gw_core *core); /* of these, in the queue */

typedef struct {
    uint64_t n_submitted, n_finished, n_failed, n_canceled;
    uint64_t n_tokens; /* delivered */
    uint64_t n_replays_lost, n_replays_failed, n_replays_late, n_replays_refused;
    uint64_t n_queued, n_queue_full, n_queue_late; /* joined the queue; found it full; waited in it for too long */
    uint64_t n_late;                               /* messages of attempts that are not alive */
    uint64_t n_strange;                            /* messages that no honest worker sends */
} gw_counters;

const gw_counters *gw_core_counters(const gw_core *core);

/* For tests: asserts that the books balance, and that nobody waits where there is room. Linear in slots and workers. */
void gw_core_check(gw_core *core);

#endif
