/* Carries out what schedulers decide, where nothing has to be carried anywhere. A scheduler may not be told anything
 * while its actions are walked, so what workers have for each other waits as mail, encoded as for a wire, until the
 * walk is over. Pushes have landed when they are made; the sum over nothing is 0 on both sides. */
#include "bench/instant.h"

#include <stdlib.h>

#include "common/control/link.h" /* link_random_u64() */
#include "common/core/alloc.h"
#include "decode/dec_sched.h"
#include "prefill/pre_sched.h"

typedef enum { MAIL_MESSAGE, MAIL_UP, MAIL_GONE, MAIL_PUSHED, MAIL_LEASE_CLOSED } mail_kind;

struct instant_mail {
    instant_mail *next;
    mail_kind kind;
    instant_worker *to;
    uint64_t peer;     /* MESSAGE, UP, GONE */
    uint64_t id;       /* PUSHED, LEASE_CLOSED */
    uint32_t n_pushes; /* LEASE_CLOSED */
    int64_t due_ns;    /* LEASE_CLOSED */
    bt_buf frame;      /* MESSAGE */
};

/* ---- mail ------------------------------------------------------------------------------------------------------- */

static instant_worker *find(const instant_pool *pool, uint64_t incarnation) {
    for (uint32_t i = 0; i < pool->n_workers; i++)
        if (pool->workers[i].incarnation == incarnation) return &pool->workers[i];
    return NULL;
}

static instant_mail *put(instant_box *box, mail_kind kind, instant_worker *to) {
    instant_mail *mail = bt_calloc(1, sizeof(*mail));
    *mail = (instant_mail){.kind = kind, .to = to};
    *box->last = mail;
    box->last = &mail->next;
    return mail;
}

static instant_mail *get(instant_box *box) {
    instant_mail *mail = box->first;
    box->first = mail->next;
    if (box->first == NULL) box->last = &box->first;
    return mail;
}

static void post_message(instant_pool *pool, const instant_worker *from, const wrk_action *action) {
    instant_worker *to = find(pool, action->peer);
    if (to == NULL) return;
    instant_mail *mail = put(&pool->mail, MAIL_MESSAGE, to);
    mail->peer = from->incarnation;
    wire_encode(&action->message, &mail->frame);
}

/* A candidate that is none of ours cannot be reached. */
static void connect_to(instant_pool *pool, instant_worker *from, uint64_t incarnation) {
    instant_worker *to = find(pool, incarnation);
    bool is_there = to != NULL && to->role == WIRE_ROLE_DECODE;
    if (is_there) put(&pool->mail, MAIL_UP, to)->peer = from->incarnation;
    put(&pool->mail, is_there ? MAIL_UP : MAIL_GONE, from)->peer = incarnation;
}

static void take_message(const instant_mail *mail) {
    bt_arena arena = {0};
    wire_message message;
    bt_status status = wire_decode(mail->frame.bytes, mail->frame.n_bytes, &arena, &message, NULL);
    BT_ASSERT(status == BT_OK); /* our own */
    mail->to->sched->peer_message(mail->to->sched, mail->peer, &message, bt_now_ns());
    bt_arena_fini(&arena);
}

static void take(const instant_mail *mail) {
    wrk_sched *sched = mail->to->sched;
    switch (mail->kind) {
    case MAIL_MESSAGE:
        take_message(mail);
        break;
    case MAIL_UP:
        sched->peer_up(sched, mail->peer, bt_now_ns());
        break;
    case MAIL_GONE:
        sched->peer_gone(sched, mail->peer, bt_now_ns());
        break;
    case MAIL_PUSHED:
        sched->push_done(sched, mail->id, 0, bt_now_ns());
        break;
    case MAIL_LEASE_CLOSED:
        sched->lease_closed(sched, mail->id, mail->n_pushes, 0, bt_now_ns());
        break;
    }
}

/* ---- actions ---------------------------------------------------------------------------------------------------- */

/* This is where a hand-off takes its time. */
static void close_lease(instant_pool *pool, instant_worker *worker, const wrk_action *action) {
    instant_mail *mail = put(&pool->late_mail, MAIL_LEASE_CLOSED, worker);
    mail->id = action->lease_close.lease;
    mail->n_pushes = action->lease_close.n_pushes;
    mail->due_ns = bt_now_ns() + pool->options.handoff_ns;
}

static void act(instant_pool *pool, instant_worker *worker, const wrk_action *action) {
    switch (action->kind) {
    case WRK_SEND_GATEWAY:
    case WRK_BROADCAST:
        pool->options.send(pool->options.context, (uint32_t)(worker - pool->workers),
                           action->kind == WRK_BROADCAST ? 0 : action->peer, &action->message);
        break;
    case WRK_SEND_PEER:
        post_message(pool, worker, action);
        break;
    case WRK_CONNECT:
        connect_to(pool, worker, action->peer);
        break;
    case WRK_PUSH:
        put(&pool->mail, MAIL_PUSHED, worker)->id = action->push_id;
        break;
    case WRK_LEASE_OPEN: /* nothing lands */
        break;
    case WRK_LEASE_CLOSE:
        close_lease(pool, worker, action);
        break;
    case WRK_DRAINED:
        worker->is_drained = true;
        break;
    }
}

static void walk(instant_pool *pool, instant_worker *worker) {
    for (wrk_action action; wrk_sched_next(worker->sched, &action);) act(pool, worker, &action);
}

static void deliver(instant_pool *pool, instant_mail *mail) {
    instant_worker *worker = mail->to;
    take(mail);
    bt_buf_fini(&mail->frame);
    free(mail);
    walk(pool, worker);
}

/* After an event of `worker`: its actions, and all that comes of them. */
static void settle(instant_pool *pool, instant_worker *worker) {
    walk(pool, worker);
    while (pool->mail.first != NULL) deliver(pool, get(&pool->mail));
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static uint32_t draw(const instant_options *options, const krn_draw_args *args) {
    uint32_t index = args->n_tokens - args->n_prompt;
    bool may_end = options->output_tokens > 0 && !args->sampling->ignore_eos && args->n_banned == 0;
    return may_end && index + 1 >= options->output_tokens ? options->eos_id : options->text[index % options->n_text];
}

static bool step(instant_pool *pool, instant_worker *worker) {
    wrk_sched *sched = worker->sched;
    wrk_step step = {0};
    bool has_step = sched->step_begin(sched, bt_now_ns(), &step);
    settle(pool, worker);
    if (!has_step) return false;
    for (uint32_t i = 0; i < step.n_samples; i++) pool->tokens[i] = draw(&pool->options, &step.samples[i].draw);
    if (sched->layer_done != NULL) sched->layer_done(sched, 0, bt_now_ns());
    settle(pool, worker);
    sched->step_done(sched, pool->tokens, pool->logprobs, bt_now_ns());
    settle(pool, worker);
    return true;
}

/* Hand-offs that have taken their time. */
static void settle_late(instant_pool *pool) {
    for (int64_t now_ns = bt_now_ns(); pool->late_mail.first != NULL && pool->late_mail.first->due_ns <= now_ns;) {
        instant_worker *worker = pool->late_mail.first->to;
        deliver(pool, get(&pool->late_mail));
        settle(pool, worker);
    }
}

bool instant_pool_step(instant_pool *pool) {
    bool has_step = false;
    settle_late(pool);
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        instant_worker *worker = &pool->workers[i];
        int64_t now_ns = bt_now_ns();
        if (wrk_sched_deadline_ns(worker->sched) <= now_ns) {
            wrk_sched_tick(worker->sched, now_ns);
            settle(pool, worker);
        }
        has_step |= step(pool, worker);
    }
    return has_step;
}

int64_t instant_pool_deadline_ns(const instant_pool *pool) {
    int64_t next_ns = pool->late_mail.first != NULL ? pool->late_mail.first->due_ns : INT64_MAX;
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        int64_t deadline_ns = wrk_sched_deadline_ns(pool->workers[i].sched);
        if (deadline_ns < next_ns) next_ns = deadline_ns;
    }
    return next_ns;
}

/* ---- links ------------------------------------------------------------------------------------------------------ */

void instant_gateway_up(instant_pool *pool, uint32_t worker, uint64_t gateway) {
    wrk_sched *sched = pool->workers[worker].sched;
    sched->gateway_up(sched, gateway, bt_now_ns());
    settle(pool, &pool->workers[worker]);
}

void instant_gateway_message(instant_pool *pool, uint32_t worker, uint64_t gateway, const wire_message *message) {
    wrk_sched *sched = pool->workers[worker].sched;
    sched->gateway_message(sched, gateway, message, bt_now_ns());
    settle(pool, &pool->workers[worker]);
}

void instant_gateway_gone(instant_pool *pool, uint32_t worker, uint64_t gateway) {
    wrk_sched *sched = pool->workers[worker].sched;
    sched->gateway_gone(sched, gateway, bt_now_ns());
    settle(pool, &pool->workers[worker]);
}

void instant_drain(instant_pool *pool) {
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        wrk_sched_drain(pool->workers[i].sched, 0, bt_now_ns());
        settle(pool, &pool->workers[i]);
    }
}

bool instant_pool_is_drained(const instant_pool *pool) {
    for (uint32_t i = 0; i < pool->n_workers; i++)
        if (!pool->workers[i].is_drained) return false;
    return true;
}

/* ---- open and close --------------------------------------------------------------------------------------------- */

static bt_status worker_init(instant_worker *worker, wire_role role, const instant_options *options, bt_error *err) {
    static const pre_sched_options prefill = {
        .max_requests = WIRE_MAX_LEASES, .max_batched_tokens = WIRE_MAX_TOKENS, .max_batched_seqs = INSTANT_MAX_SEQS};
    static const dec_sched_options decode = {.max_num_seqs = INSTANT_MAX_SEQS, .max_batched_tokens = WIRE_MAX_TOKENS};
    *worker = (instant_worker){.role = role, .incarnation = link_random_u64()};
    worker->pool = kv_pool_open(options->n_blocks);
    const wrk_sched_options shared = {.pool = worker->pool,
                                      .vocab_size = options->vocab_size,
                                      .max_model_len = options->max_model_len,
                                      .n_layers = 1,
                                      .eos_ids = &options->eos_id,
                                      .n_eos_ids = options->output_tokens > 0,
                                      .has_prefix_cache = true,
                                      .model_hash = INSTANT_MODEL_HASH};
    return role == WIRE_ROLE_PREFILL ? pre_sched_open(&shared, &prefill, &worker->sched, err)
                                     : dec_sched_open(&shared, &decode, &worker->sched, err);
}

bt_status instant_pool_init(instant_pool *pool, const instant_options *options, uint32_t n_prefill, uint32_t n_decode,
                            bt_error *err) {
    *pool = (instant_pool){.options = *options};
    pool->mail.last = &pool->mail.first;
    pool->late_mail.last = &pool->late_mail.first;
    pool->tokens = bt_calloc(INSTANT_MAX_SEQS, sizeof(*pool->tokens));
    pool->logprobs = bt_calloc(INSTANT_MAX_SEQS, sizeof(*pool->logprobs));
    for (uint32_t i = 0; i < INSTANT_MAX_SEQS; i++) pool->logprobs[i].rank = 1;
    pool->workers = bt_calloc((size_t)n_prefill + n_decode, sizeof(*pool->workers));
    bt_status status = BT_OK;
    for (uint32_t i = 0; i < n_prefill + n_decode && status == BT_OK; i++) {
        wire_role role = i < n_prefill ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE;
        status = worker_init(&pool->workers[pool->n_workers++], role, options, err);
    }
    return status;
}

void instant_pool_fini(instant_pool *pool) {
    while (pool->late_mail.first != NULL) free(get(&pool->late_mail)); /* these have no frame */
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        if (pool->workers[i].sched != NULL) pool->workers[i].sched->close(pool->workers[i].sched);
        kv_pool_close(pool->workers[i].pool);
    }
    free(pool->workers);
    free(pool->tokens);
    free(pool->logprobs);
}
