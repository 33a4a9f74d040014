/* Workers that answer at once, to measure gateways with: prefill's and decode's own schedulers, between which no KV
 * moves and whose steps compute nothing. So a gateway hears exactly what real workers would tell it: ACCEPTED,
 * FIRST_TOKEN, HANDED_OFF, TOKENS for each step, FINISHED, STATUS and BLOCKS with true figures. What they check of a
 * request, they check here too; CANCEL, DRAIN and a gateway that is lost end what they end there.
 *
 * Tokens come from a given text, over and over, whatever the prompt and its sampling parameters say; logprobs are 0.
 *
 * No I/O: messages to gateways leave through send(). One thread. */
#ifndef BATON_BENCH_INSTANT_H
#define BATON_BENCH_INSTANT_H

#include "worker/wrk_sched.h"

typedef struct {
    wire_role role;
    uint64_t incarnation;
    kv_pool *pool;
    wrk_sched *sched;
    bool is_drained;
} instant_worker;

typedef struct instant_mail instant_mail; /* from worker to worker: instant.c */
typedef struct {
    instant_mail *first, **last;
} instant_box;

typedef struct {
    const uint32_t *text; /* [n_text] token ids of the answer, borrowed */
    uint32_t n_text;
    uint32_t output_tokens; /* so many and then eos_id, where the request allows it; 0: until max_tokens */
    uint32_t eos_id, vocab_size, max_model_len, n_blocks;
    int64_t handoff_ns; /* from the first token to the next: decode's tokens shall not overtake prefill's first */
    /* message: one of worker's, to `gateway`, or to all that are up if that is 0; valid during the call */
    void (*send)(void *context, uint32_t worker, uint64_t gateway, const wire_message *message);
    void *context;
} instant_options;

typedef struct {
    instant_options options;
    instant_worker *workers; /* [n_workers] */
    uint32_t n_workers;
    wire_ranked *logprobs; /* of a step: nothing is known of any token */
    uint32_t *tokens;      /* of a step */
    instant_box mail;      /* empty between events */
    instant_box late_mail; /* hand-offs that are not over yet */
} instant_pool;

enum { INSTANT_MAX_SEQS = 1024, INSTANT_MODEL_HASH = 0x696e7374 };

/* n_prefill prefill workers, then n_decode decode workers. BT_BAD_REQUEST: an option is out of range. */
bt_status instant_pool_init(instant_pool *pool, const instant_options *options, uint32_t n_prefill, uint32_t n_decode,
                            bt_error *err);
void instant_pool_fini(instant_pool *pool); /* also of {0}, and after init has failed */

/* What happens to a worker's links. When they return, workers have said all to each other. */
void instant_gateway_up(instant_pool *pool, uint32_t worker, uint64_t gateway);
void instant_gateway_message(instant_pool *pool, uint32_t worker, uint64_t gateway, const wire_message *message);
void instant_gateway_gone(instant_pool *pool, uint32_t worker, uint64_t gateway);
void instant_drain(instant_pool *pool);

/* Timers that are due, then one step of each worker that has one. true: there was a step, and there may be more. */
bool instant_pool_step(instant_pool *pool);

int64_t instant_pool_deadline_ns(const instant_pool *pool); /* of the next timer; INT64_MAX: none */
bool instant_pool_is_drained(const instant_pool *pool);     /* all workers are */

#endif
