/* A worker's scheduler as the loop around it sees it: what happens goes in, what to do comes out. Prefill's and
 * decode's are two of a kind (prefill/pre_sched.h, decode/dec_sched.h say what each decides); what both need is here:
 * the list of actions, timers, the table of free slots, STATUS and drain.
 *
 * A plain state machine without sockets, threads, clocks or logs: the caller turns what happens into event calls, each
 * with the time, and then carries out the actions in their order until wrk_sched_next() says that there are no more.
 * No event may be called before that, and what an action points to is valid until the next event. One thread.
 *
 * Peers are known by incarnation: a restarted process is a new peer. Hostile input: every message is checked; what no
 * honest peer sends is refused in one sentence or ignored, and counted. */
#ifndef BATON_WORKER_WRK_SCHED_H
#define BATON_WORKER_WRK_SCHED_H

#include "common/core/clock.h"
#include "common/core/map.h"
#include "common/core/timers.h"
#include "common/kv/kv_prefix.h"
#include "common/wire/end_rule.h"
#include "kernels/backend.h"
#include "kernels/draw.h"
#include "kvtransfer/kvt.h"
#include "worker/wrk_rows.h"

/* ---- actions ---------------------------------------------------------------------------------------------------- */

typedef enum {
    WRK_SEND_GATEWAY, /* message -> the link of gateway `peer`; dropped by the caller if that link is gone */
    WRK_BROADCAST,    /* message -> every gateway that is up (STATUS, BLOCKS) */
    WRK_SEND_PEER,    /* message -> KV connection of `peer`, in order with its pushes. In a COMMIT the caller fills the
                       * checksum: what the transfer layer summed up over the pushes of commit.lease */
    WRK_DRAINED,      /* once, after wrk_sched_drain(): nothing is left, exit */
    WRK_CONNECT,      /* prefill: open a KV connection to candidate; answer: peer_up or peer_gone, exactly one */
    WRK_PUSH,         /* prefill: push to `peer`; answer: push_done, exactly one, also when the peer is gone */
    WRK_LEASE_OPEN,  /* decode: from now on, before any message that follows, the lease's pushes from `peer` may land */
    WRK_LEASE_CLOSE, /* decode: no push of the lease begins once n_pushes have landed; answer: lease_closed, one per
                      * lease */
} wrk_action_kind;

typedef struct {
    wrk_action_kind kind;
    uint64_t peer; /* incarnation; of the lease's prefill worker in WRK_LEASE_* */
    union {
        wire_message message;
        wire_candidate candidate; /* with incarnation `peer` */
        struct {
            kvt_push_args push;
            uint64_t push_id; /* for push_done */
        };
        kvt_lease_args lease_open; /* copy its blocks */
        struct {
            uint64_t lease;
            uint32_t n_pushes; /* as in kvt_lease_close() */
        } lease_close;
    };
} wrk_action;

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* What is wanted of a row of a step's logits: a token, or the logprobs of one that is given. */
typedef struct {
    bool is_given;
    uint32_t given; /* a prompt token: nothing is drawn */
    krn_draw_args draw;
    uint64_t prefix_id; /* names the sequence in logs and tests: its request's serial */
} wrk_sample;

typedef struct {
    const krn_sequence *sequences; /* [n_sequences], for krn_forward() */
    uint32_t n_sequences, n_rows;
    const wrk_sample *samples; /* [n_samples]: one for each row of logits, in their order */
    uint32_t n_samples;
} wrk_step;

/* ---- the scheduler ---------------------------------------------------------------------------------------------- */

typedef struct {
    kv_pool *pool;           /* borrowed; nobody else takes blocks from it */
    uint32_t vocab_size;     /* token ids are below it */
    uint32_t max_model_len;  /* positions of a request, prompt and output; also bounded by the pool */
    uint32_t n_layers;       /* of KV */
    const uint32_t *eos_ids; /* [n_eos_ids], copied */
    uint32_t n_eos_ids;
    bool has_prefix_cache; /* keep blocks of prompts, for later ones that begin alike */
    uint64_t model_hash;   /* part of their names */
    uint32_t status_ms;    /* between two STATUS, at least; 0: 5 */
} wrk_sched_options;

/* Events are called as sched->gateway_up(sched, ...). */
typedef struct wrk_sched wrk_sched;
struct wrk_sched {
    void (*close)(wrk_sched *sched); /* blocks of requests that still live are released */

    /* A gateway's link. Up for one that is up: its old link is gone, and its requests with it. */
    void (*gateway_up)(wrk_sched *sched, uint64_t gateway, int64_t now_ns);
    void (*gateway_gone)(wrk_sched *sched, uint64_t gateway, int64_t now_ns);
    /* The message may be freed after the call; likewise peer_message. */
    void (*gateway_message)(wrk_sched *sched, uint64_t gateway, const wire_message *message, int64_t now_ns);

    /* A KV connection with a worker of the other kind. Up for one that is up: the old connection is gone. Gone is also
     * the answer to WRK_CONNECT when it was refused or another incarnation answered. */
    void (*peer_up)(wrk_sched *sched, uint64_t peer, int64_t now_ns);
    void (*peer_gone)(wrk_sched *sched, uint64_t peer, int64_t now_ns);
    void (*peer_message)(wrk_sched *sched, uint64_t peer, const wire_message *message, int64_t now_ns);

    /* Prefill, else NULL: nothing reads the push's blocks any more, and n_bytes were sent. */
    void (*push_done)(wrk_sched *sched, uint64_t push_id, uint64_t n_bytes, int64_t now_ns);
    /* Decode, else NULL: nothing lands in the lease's blocks any more. n_pushes have, with this sum of kvt_push_hash().
     * Also comes without WRK_LEASE_CLOSE when the transfer layer gave a lease up by itself. */
    void (*lease_closed)(wrk_sched *sched, uint64_t lease, uint32_t n_pushes, uint64_t checksum, int64_t now_ns);

    /* What to compute next; false: nothing. Between a true answer and step_done every event may come (messages are
     * polled between layers) and *out stays valid and unchanged; requests that end meanwhile are computed in vain. */
    bool (*step_begin)(wrk_sched *sched, int64_t now_ns, wrk_step *out);
    /* Prefill, else NULL: all of the step's rows have this layer in the cache: 0, 1, ... n_layers - 1. */
    void (*layer_done)(wrk_sched *sched, uint32_t layer, int64_t now_ns);
    /* tokens[n_samples]: what was drawn. logprobs[n_samples]: of those whose sampling asks for them; kept until the
     * actions are walked. */
    void (*step_done)(wrk_sched *sched, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns);
    /* For wrk_sched_lose_group(): the step that runs came to nothing, and none of its requests lives any more. */
    void (*step_lost)(wrk_sched *sched, int64_t now_ns);

    void (*load)(const wrk_sched *sched, wire_load *out);
    const void *counters; /* pre_counters or dec_counters: all uint64_t, and they only grow */

    /* For wrk_sched_tick(): the timer of slot id, or the role's own one, is due. */
    void (*late)(wrk_sched *sched, uint32_t id, int64_t now_ns);
    /* What lives goes back to its gateway, which replays it elsewhere. text outlives the actions. */
    void (*give_back)(wrk_sched *sched, bt_status status, const char *text, int64_t now_ns);

    /* For tests: may this worker finish the request now? And: asserts that the books balance (linear in the slots). */
    bool (*is_owner)(const wrk_sched *sched, const wire_request *request);
    void (*check)(const wrk_sched *sched);

    /* What follows is touched by the role and by wrk_sched.c alone. */
    wrk_sched_options options; /* eos_ids owned */
    kv_prefix *prefix;         /* on top of the pool, owned */
    wire_block_name *told;     /* [blocks of the pool] scratch of wrk_gateway_greet() */
    uint32_t n_slots, n_free_slots;
    uint32_t *free_slots;
    bt_map by_request; /* -> slot, living ones only */
    bt_map by_gateway; /* gateways that are up -> whatever the role keeps of them */
    bt_timers timers;  /* ids: slots, then WRK_TIMER_* */
    int64_t next_status_ns;
    bool is_draining, is_drained;
    bool is_incomplete; /* no step begins, or none for anybody new: see wrk_sched_set_complete() */
    bool is_stepping;
    struct { /* of the last steps, fading: what load() says of their speed */
        int64_t begin_ns;
        double n_steps, n_rows, ns;
    } pace;
    uint32_t n_step;      /* sequences of the step that runs, or ran last */
    wrk_claim *claims;    /* [n_slots] scratch of step_begin */
    uint32_t *step_slots; /* [max_step_seqs]; so are those: */
    krn_sequence *sequences;
    wrk_sample *samples;
    wrk_action *actions; /* [cap_actions]; walked up to next_action */
    uint32_t n_actions, cap_actions, next_action;
};

/* The next action, in order. false: none is left. */
bool wrk_sched_next(wrk_sched *sched, wrk_action *out);

/* SIGTERM. grace_ms as in DRAIN. */
void wrk_sched_drain(wrk_sched *sched, uint32_t grace_ms, int64_t now_ns);

/* Whether the ranks of the worker's expert-parallel group are all there to stay; true unless said otherwise. While they
 * are not, what is new is refused, and gateways are told. */
void wrk_sched_set_complete(wrk_sched *sched, bool is_complete, int64_t now_ns);

/* A rank is gone: not complete, and what lives, with the step that runs if there is one, goes back to its gateways. */
void wrk_sched_lose_group(wrk_sched *sched, int64_t now_ns);

/* When wrk_sched_tick() wants to be called, INT64_MAX: never. Calling it more often does no harm. */
int64_t wrk_sched_deadline_ns(const wrk_sched *sched);
void wrk_sched_tick(wrk_sched *sched, int64_t now_ns);

/* ---- for the two roles ------------------------------------------------------------------------------------------ */

/* Behind the slots' timers. */
enum { WRK_TIMER_STATUS, WRK_TIMER_GRACE, WRK_TIMER_ROLE, WRK_N_TIMERS };

/* BT_BAD_REQUEST: an option is out of range. */
bt_status wrk_sched_options_check(const wrk_sched_options *options, bt_error *err);
/* At most max_step_seqs sequences share a step, and so many rows of it have logits. */
void wrk_sched_init(wrk_sched *sched, const wrk_sched_options *options, uint32_t n_slots, uint32_t max_step_seqs);
void wrk_sched_fini(wrk_sched *sched);

/* The contract of every event: the actions of the one before it have been carried out. */
void wrk_begin_event(const wrk_sched *sched);

wrk_action *wrk_act(wrk_sched *sched, wrk_action_kind kind, uint64_t peer);
void wrk_status_changed(wrk_sched *sched, int64_t now_ns);  /* STATUS goes out soon, and BLOCKS if they have changed */
void wrk_gateway_greet(wrk_sched *sched, uint64_t gateway); /* a new link: STATUS, and BLOCKS with all names */

/* A step begins, is done (not: lost); for load(): how fast they went lately. */
void wrk_step_began(wrk_sched *sched, int64_t now_ns);
void wrk_step_ended(wrk_sched *sched, uint32_t n_rows, int64_t now_ns);
uint32_t wrk_pace_rows_per_s(const wrk_sched *sched); /* 0: there was no step yet */
uint32_t wrk_pace_step_us(const wrk_sched *sched);    /* likewise */

/* Why a request that comes now is refused, and with which status; NULL: it is not. */
const char *wrk_sched_why_closed(const wrk_sched *sched, bt_status *status);

uint32_t wrk_slot_take(wrk_sched *sched); /* n_free_slots > 0 */
void wrk_slot_put(wrk_sched *sched, uint32_t slot);
uint32_t wrk_slot_find(const wrk_sched *sched, const wire_request *request); /* BT_MAP_NONE: not known, or gone */

/* When a request ends; its ids are the caller's to free. */
wire_end_rule wrk_end_rule(const wrk_sched *sched, const wire_sampling *sampling, const uint32_t *stop_ids,
                           uint32_t n_stop_ids, uint32_t max_output);
wire_message wrk_finished(const wire_request *request, uint8_t reason, uint32_t token, uint32_t n_output);

/* How the token behind n_tokens tokens is drawn; n_prompt of these are the prompt. Points to all that it is given. */
krn_draw_args wrk_draw_args(const wire_sampling *sampling, const wire_constraint *constraint, const wire_end_rule *end,
                            const uint32_t *tokens, uint32_t n_prompt, uint32_t n_tokens);

/* Asserts that the slots' n_held blocks are all that is held of the pool. */
void wrk_sched_check_pool(const wrk_sched *sched, uint64_t n_held);

static inline bt_key wrk_request_key(const wire_request *r) { return (bt_key){r->gateway, r->serial, r->attempt}; }
static inline bt_key wrk_u64_key(uint64_t v) { return (bt_key){v, 0, 0}; }
static inline int64_t wrk_after_ms(int64_t now_ns, uint32_t ms) { return now_ns + (int64_t)ms * BT_NS_PER_MS; }
static inline uint32_t wrk_or_default(uint32_t value, uint32_t if_zero) { return value != 0 ? value : if_zero; }

#endif
