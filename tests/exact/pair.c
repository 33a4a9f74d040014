/* Messages and answers wait in one queue, so that no scheduler is called while another event of it is being carried
 * out. Time passes a millisecond per round. */
#include "tests/exact/pair.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/buf.h"
#include "common/core/clock.h"
#include "decode/dec_sched.h"
#include "prefill/pre_sched.h"
#include "tools/run_group.h"

enum { GATEWAY = 1, PREFILL = 2, DECODE = 3 }; /* incarnations */
enum { MAX_BLOCKS_EACH = 64, MAX_POSITIONS = 2048 };

struct pair_engine {
    krn_model *model;
    run_group *group; /* NULL: alone */
    krn_drawer *drawer;
    float *logits;
    kv_layout layout; /* but for n_blocks */
};

typedef enum { TO_GATEWAY, TO_WORKER, FROM_PEER, PEER_UP, PUSH_DONE, LEASE_CLOSED } event_kind;

typedef struct event event;
struct event {
    event *next;
    event_kind kind;
    uint64_t to; /* the worker */
    uint64_t id; /* of the push or the lease */
    uint64_t n;  /* bytes sent, or pushes landed */
    size_t n_bytes;
    uint8_t frame[]; /* [n_bytes] */
};

typedef struct {
    uint64_t lease;
    uint32_t blocks[MAX_BLOCKS_EACH];
    uint32_t n_landed, n_wanted;
    bool is_closing;
} lease;

typedef struct {
    wrk_sched *sched;
    kv_pool *pool;
    krn_kv kv;
} worker;

struct pair {
    pair_engine *engine;
    worker prefill, decode;
    event *first, *last;
    lease *leases; /* [n_leases] */
    uint32_t n_leases, cap_leases;
    int64_t now_ns;
    worker *stepping;
    const pair_request *requests;
    pair_stream *streams;
    uint32_t local_tokens, attempts[PAIR_MAX_REQUESTS];
    uint32_t n_alive;
    wire_ranked logprobs[PAIR_MAX_ROWS];
    wire_logprob top[PAIR_MAX_ROWS][PAIR_N_LOGPROBS];
};

/* ---- the model -------------------------------------------------------------------------------------------------- */

bt_status pair_engine_open(const char *dir, const char *backend, uint32_t n_ranks, pair_engine **out, bt_error *err) {
    pair_engine *engine = bt_calloc(1, sizeof(*engine));
    const krn_model_options options = {.dir = dir,
                                       .backend = backend,
                                       .n_threads = n_ranks > 1 ? 1 : 0,
                                       .max_rows = PAIR_MAX_ROWS,
                                       .max_positions = MAX_POSITIONS,
                                       .max_logits = PAIR_MAX_ROWS,
                                       .n_ranks = n_ranks > 1 ? n_ranks : 0};
    bt_status status = krn_model_open(&options, &engine->model, err);
    if (status == BT_OK && n_ranks > 1) status = run_group_open(&options, engine->model, &engine->group, err);
    if (status != BT_OK) {
        krn_model_close(engine->model);
        free(engine);
        return status;
    }
    const mdl_config *c = krn_model_config(engine->model);
    engine->drawer = krn_drawer_open(c->vocab_size);
    engine->logits = bt_calloc((size_t)PAIR_MAX_ROWS * c->vocab_size, sizeof(float));
    engine->layout = krn_model_kv_layout(engine->model, 0);
    *out = engine;
    return BT_OK;
}

void pair_engine_close(pair_engine *engine) {
    run_group_close(engine->group);
    krn_model_close(engine->model);
    krn_drawer_close(engine->drawer);
    free(engine->logits);
    free(engine);
}

const mdl_config *pair_engine_config(const pair_engine *engine) { return krn_model_config(engine->model); }

/* ---- the queue -------------------------------------------------------------------------------------------------- */

static event *put(pair *p, event_kind kind, uint64_t to, size_t n_bytes) {
    event *e = bt_calloc(1, sizeof(*e) + n_bytes);
    e->kind = kind;
    e->to = to;
    e->n_bytes = n_bytes;
    if (p->last != NULL)
        p->last->next = e;
    else
        p->first = e;
    p->last = e;
    return e;
}

/* Encoded, as on a wire: what a message points to does not outlive the event that sends it. */
static void put_message(pair *p, event_kind kind, uint64_t to, const wire_message *message) {
    bt_buf frame = {0};
    wire_encode(message, &frame);
    memcpy(put(p, kind, to, frame.n_bytes)->frame, frame.bytes, frame.n_bytes);
    bt_buf_fini(&frame);
}

/* ---- the transfer ----------------------------------------------------------------------------------------------- */

static lease *find_lease(pair *p, uint64_t id) {
    for (uint32_t i = 0; i < p->n_leases; i++) {
        if (p->leases[i].lease == id) return &p->leases[i];
    }
    return NULL;
}

static void open_lease(pair *p, const kvt_lease_args *args) {
    if (p->n_leases == p->cap_leases) {
        p->cap_leases = p->cap_leases * 2 + 8;
        p->leases = bt_realloc(p->leases, p->cap_leases, sizeof(lease));
    }
    BT_ASSERT(args->n_blocks <= MAX_BLOCKS_EACH);
    lease *l = &p->leases[p->n_leases++];
    *l = (lease){.lease = args->lease};
    memcpy(l->blocks, args->blocks, args->n_blocks * sizeof(uint32_t));
}

static void close_if_done(pair *p, lease *l) {
    if (!l->is_closing || l->n_landed < l->n_wanted) return;
    event *e = put(p, LEASE_CLOSED, DECODE, 0);
    e->id = l->lease;
    e->n = l->n_landed;
    *l = p->leases[--p->n_leases];
}

static void close_lease(pair *p, uint64_t id, uint32_t n_pushes) {
    lease *l = find_lease(p, id);
    if (l == NULL) return;
    l->is_closing = true;
    l->n_wanted = n_pushes;
    close_if_done(p, l);
}

static void push(pair *p, const kvt_push_args *args, uint64_t push_id) {
    lease *l = find_lease(p, args->lease);
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; l != NULL && i < args->n_blocks; i++) {
        uint32_t n_rows = i + 1 == args->n_blocks ? args->n_rows_last : KV_BLOCK_TOKENS;
        const kv_layout *from = &p->prefill.kv.layout, *to = &p->decode.kv.layout;
        size_t n = n_rows * kv_token_bytes(from);
        memcpy((uint8_t *)p->decode.kv.base + kv_offset_bytes(to, args->layer, l->blocks[args->first_block + i], 0),
               (const uint8_t *)p->prefill.kv.base + kv_offset_bytes(from, args->layer, args->blocks[i], 0), n);
        n_bytes += n;
        l->n_landed++;
    }
    event *e = put(p, PUSH_DONE, PREFILL, 0);
    e->id = push_id;
    e->n = n_bytes;
    if (l != NULL) close_if_done(p, l);
}

/* ---- the gateway ------------------------------------------------------------------------------------------------ */

static void submit(pair *p, uint32_t i) {
    const pair_request *r = &p->requests[i];
    const pair_stream *s = &p->streams[i];
    const wire_candidate decode = {
        .name = wire_str_from("decode"), .incarnation = DECODE, .kv_address = wire_str_from("memory")};
    uint32_t tokens[MAX_POSITIONS];
    memcpy(tokens, r->prompt, r->n_prompt * sizeof(*tokens));
    for (uint32_t k = 0; k < s->n; k++) tokens[r->n_prompt + k] = s->outputs[k].token;
    const wire_message message = {.type = WIRE_SUBMIT,
                                  .submit = {.request = {GATEWAY, i + 1, p->attempts[i]},
                                             .sampling = r->sampling,
                                             .constraint = r->constraint,
                                             .max_tokens = r->max_tokens,
                                             .n_prompt = r->n_prompt,
                                             .tokens = tokens,
                                             .n_tokens = r->n_prompt + s->n,
                                             .candidates = &decode,
                                             .n_candidates = 1}};
    bool is_local = p->local_tokens > 0 && p->attempts[i] == 0; /* decode refuses, or does it itself */
    put_message(p, TO_WORKER, is_local ? DECODE : PREFILL, &message);
}

static void take_token(pair *p, const wire_request *request, uint32_t index, uint32_t token,
                       const wire_ranked *logprobs, uint32_t n_logprobs) {
    uint32_t i = (uint32_t)request->serial - 1;
    pair_stream *s = &p->streams[i];
    if (request->attempt != p->attempts[i]) return;
    BT_ASSERT(index == s->n && s->n < PAIR_MAX_OUTPUT && n_logprobs == 1);
    s->outputs[s->n].token = token;
    s->outputs[s->n].rank = logprobs->rank;
    s->outputs[s->n].logprob = logprobs->logprob;
    BT_ASSERT(logprobs->n_top == PAIR_N_LOGPROBS - 1);
    for (uint32_t k = 0; k < logprobs->n_top; k++) {
        s->outputs[s->n].top[k] = logprobs->top[k].token;
        s->outputs[s->n].top_logprobs[k] = logprobs->top[k].logprob;
    }
    s->n++;
}

/* A request that is given back is sent again, as gateways do. */
static void gateway_hear(pair *p, const wire_message *m) {
    switch (m->type) {
    case WIRE_FIRST_TOKEN:
        take_token(p, &m->first_token.request, m->first_token.index, m->first_token.token, m->first_token.logprobs,
                   m->first_token.n_logprobs);
        break;
    case WIRE_TOKENS:
        for (uint32_t k = 0; k < m->tokens.n_tokens; k++) {
            const wire_token *t = &m->tokens.tokens[k];
            take_token(p, &t->request, t->index, t->token, t->logprobs, t->n_logprobs);
        }
        break;
    case WIRE_FINISHED:
        BT_ASSERT(m->finished.n_output == p->requests[m->finished.request.serial - 1].max_tokens);
        p->n_alive--;
        break;
    case WIRE_FAILED:
        BT_ASSERT(m->failed.status != BT_BAD_REQUEST);
        p->attempts[m->failed.request.serial - 1]++;
        submit(p, (uint32_t)m->failed.request.serial - 1);
        break;
    default:
        break;
    }
}

/* ---- the workers ------------------------------------------------------------------------------------------------ */

static worker *worker_of(pair *p, uint64_t incarnation) { return incarnation == PREFILL ? &p->prefill : &p->decode; }

static void actions_run(pair *p, worker *w) {
    uint64_t self = w == &p->prefill ? PREFILL : DECODE;
    for (wrk_action action; wrk_sched_next(w->sched, &action);) {
        switch (action.kind) {
        case WRK_SEND_GATEWAY:
            put_message(p, TO_GATEWAY, 0, &action.message);
            break;
        case WRK_SEND_PEER:
            if (action.message.type == WIRE_COMMIT) action.message.commit.checksum = 0; /* copies are not checked */
            put_message(p, FROM_PEER, action.peer, &action.message);
            break;
        case WRK_CONNECT:
            put(p, PEER_UP, self, 0)->id = DECODE;
            put(p, PEER_UP, DECODE, 0)->id = self;
            break;
        case WRK_PUSH:
            push(p, &action.push, action.push_id);
            break;
        case WRK_LEASE_OPEN:
            open_lease(p, &action.lease_open);
            break;
        case WRK_LEASE_CLOSE:
            close_lease(p, action.lease_close.lease, action.lease_close.n_pushes);
            break;
        case WRK_BROADCAST:
        case WRK_DRAINED:
            break;
        }
    }
    w->sched->check(w->sched);
}

static void deliver(pair *p, const event *e) {
    worker *w = worker_of(p, e->to);
    bt_arena arena = {0};
    wire_message message;
    if (e->n_bytes > 0) BT_ASSERT(wire_decode(e->frame, e->n_bytes, &arena, &message, NULL) == BT_OK);
    switch (e->kind) {
    case TO_GATEWAY:
        gateway_hear(p, &message);
        break;
    case TO_WORKER:
        w->sched->gateway_message(w->sched, GATEWAY, &message, p->now_ns);
        break;
    case FROM_PEER:
        w->sched->peer_message(w->sched, e->to == PREFILL ? DECODE : PREFILL, &message, p->now_ns);
        break;
    case PEER_UP:
        w->sched->peer_up(w->sched, e->id, p->now_ns);
        break;
    case PUSH_DONE:
        w->sched->push_done(w->sched, e->id, e->n, p->now_ns);
        break;
    case LEASE_CLOSED:
        w->sched->lease_closed(w->sched, e->id, (uint32_t)e->n, 0, p->now_ns);
    }
    bt_arena_fini(&arena);
    if (e->kind != TO_GATEWAY) actions_run(p, w);
}

static bool deliver_all(pair *p) {
    bool has_any = p->first != NULL;
    for (event *e; (e = p->first) != NULL; free(e)) {
        p->first = e->next;
        if (p->first == NULL) p->last = NULL;
        deliver(p, e);
    }
    return has_any;
}

static void on_layer(void *context, uint32_t layer) {
    pair *p = context;
    wrk_sched *sched = p->stepping->sched;
    if (sched->layer_done == NULL) return;
    sched->layer_done(sched, layer, p->now_ns);
    actions_run(p, p->stepping);
}

static bool step_run(pair *p, worker *w) {
    pair_engine *engine = p->engine;
    size_t vocab = pair_engine_config(engine)->vocab_size;
    uint32_t tokens[PAIR_MAX_ROWS];
    wrk_step step;
    bool has_step = w->sched->step_begin(w->sched, p->now_ns, &step);
    actions_run(p, w);
    if (!has_step) return false;
    p->stepping = w;
    BT_ASSERT(krn_forward(engine->model, w->kv, step.sequences, step.n_sequences, engine->logits, on_layer, p) ==
              BT_OK);
    for (uint32_t i = 0; i < step.n_samples; i++) {
        BT_ASSERT(!step.samples[i].is_given);
        tokens[i] =
            krn_draw(engine->drawer, engine->logits + i * vocab, &step.samples[i].draw, p->top[i], &p->logprobs[i]);
    }
    w->sched->step_done(w->sched, tokens, p->logprobs, p->now_ns);
    actions_run(p, w);
    return true;
}

static bool worker_run(pair *p, worker *w) {
    bool is_due = wrk_sched_deadline_ns(w->sched) <= p->now_ns;
    if (is_due) {
        wrk_sched_tick(w->sched, p->now_ns);
        actions_run(p, w);
    }
    return step_run(p, w) || is_due;
}

void pair_run(pair *p, const pair_request *requests, uint32_t n_requests, pair_stream *streams) {
    BT_ASSERT(n_requests <= PAIR_MAX_REQUESTS);
    memset(streams, 0, n_requests * sizeof(*streams));
    memset(p->attempts, 0, sizeof(p->attempts));
    p->requests = requests;
    p->streams = streams;
    p->n_alive = n_requests;
    for (uint32_t i = 0; i < n_requests; i++) submit(p, i);
    for (uint32_t n_idle = 0; p->n_alive > 0 || p->first != NULL;) {
        bool has_events = deliver_all(p), has_prefilled = worker_run(p, &p->prefill);
        bool has_decoded = worker_run(p, &p->decode);
        n_idle = has_events || has_prefilled || has_decoded ? 0 : n_idle + 1;
        BT_ASSERT(n_idle < 100000); /* a request is stuck */
        p->now_ns += BT_NS_PER_MS;
    }
}

/* ---- birth and death -------------------------------------------------------------------------------------------- */

static void worker_open(worker *w, const pair_engine *engine, uint32_t n_blocks) {
    w->pool = kv_pool_open(n_blocks);
    w->kv.layout = engine->layout;
    w->kv.layout.n_blocks = n_blocks;
    w->kv.base = bt_calloc_aligned(kv_pool_bytes(&w->kv.layout), 64);
}

pair *pair_open(pair_engine *engine, const pair_options *options) {
    const mdl_config *c = pair_engine_config(engine);
    pair *p = bt_calloc(1, sizeof(*p));
    p->engine = engine;
    p->now_ns = BT_NS_PER_S;
    p->local_tokens = options->local_tokens;
    worker_open(&p->prefill, engine, options->prefill_blocks);
    worker_open(&p->decode, engine, options->decode_blocks);
    wrk_sched_options shared = {.pool = p->prefill.pool,
                                .vocab_size = c->vocab_size,
                                .max_model_len = MAX_POSITIONS,
                                .n_layers = engine->layout.n_layers,
                                .has_prefix_cache = options->has_prefix_cache};
    const pre_sched_options prefill = {
        .max_requests = PAIR_MAX_REQUESTS, .max_batched_tokens = options->chunk, .max_batched_seqs = options->chunk};
    const dec_sched_options decode = {.max_num_seqs = options->max_num_seqs,
                                      .max_batched_tokens = options->max_num_seqs + options->chunk / 2,
                                      .max_leases = PAIR_MAX_REQUESTS,
                                      .local_prefill_tokens = options->local_tokens};
    bt_error err = {0};
    BT_ASSERT(pre_sched_open(&shared, &prefill, &p->prefill.sched, &err) == BT_OK);
    shared.pool = p->decode.pool;
    BT_ASSERT(dec_sched_open(&shared, &decode, &p->decode.sched, &err) == BT_OK);
    worker *workers[] = {&p->prefill, &p->decode};
    for (uint32_t i = 0; i < 2; i++) {
        workers[i]->sched->gateway_up(workers[i]->sched, GATEWAY, p->now_ns);
        actions_run(p, workers[i]);
    }
    return p;
}

static void worker_close(worker *w) {
    BT_ASSERT(kv_pool_n_free(w->pool) == kv_pool_n_blocks(w->pool));
    w->sched->close(w->sched);
    kv_pool_close(w->pool);
    free(w->kv.base);
}

void pair_close(pair *p) {
    BT_ASSERT(p->first == NULL && p->n_leases == 0);
    worker_close(&p->prefill);
    worker_close(&p->decode);
    free(p->leases);
    free(p);
}

pair_counts pair_counted(const pair *p) {
    const pre_counters *pre = pre_sched_counters(p->prefill.sched);
    const dec_counters *dec = dec_sched_counters(p->decode.sched);
    return (pair_counts){.n_prefix_hits = pre->n_prefix_hits + dec->n_prefix_hits,
                         .n_preempted = dec->n_preempted,
                         .n_local = dec->n_local};
}
