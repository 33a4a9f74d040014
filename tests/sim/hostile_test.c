/* Peers that say anything: well-formed messages with random meaning, in random order, between random events, to each
 * core. Whatever they say, the books balance after every event, nothing is asserted by a peer's word, and when all
 * links are cut nothing is left. Ids are drawn from few values, and now and then the peer answers what the core last
 * said as it should, so that nonsense meets every state. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/test.h"
#include "tests/sim/sim.h"

enum { N_EVENTS = 40000, N_PEERS = 3, N_BLOCKS = 24 };

static const wire_ranked no_logprobs[64];

static sim_world dice; /* for its generator */

static uint32_t below(uint32_t n) { return sim_below(&dice, n); }

/* A small number mostly, sometimes an absurd one. */
static uint32_t number(uint32_t n) { return below(16) == 0 ? (uint32_t)sim_random(&dice) : below(n); }

static uint32_t tokens[300];
static wire_token said_tokens[8];
static wire_candidate candidates[WIRE_MAX_CANDIDATES];
static uint64_t leases[8];
static wire_block_name names[6];

static wire_request random_request(uint64_t gateway) {
    return (wire_request){below(20) == 0 ? 99 : gateway, 1 + below(12), below(3)};
}

static wire_constraint random_constraint(void) {
    static wire_bias bias;
    static uint32_t allowed, said[3];
    static wire_word words[2];
    bias = (wire_bias){number(SIM_VOCAB), below(8) ? -1.0f : NAN};
    allowed = number(SIM_VOCAB);
    for (uint32_t i = 0; i < 3; i++) said[i] = number(SIM_VOCAB);
    for (uint32_t i = 0; i < 2; i++) words[i] = (wire_word){said, below(8) ? 1 + below(3) : 0};
    return below(4) ? (wire_constraint){0} : (wire_constraint){&bias, below(2), &allowed, below(2), words, below(3)};
}

/* Mostly what a request with n_logprobs 2 is told. */
static const wire_ranked *random_logprobs(void) {
    static wire_logprob top[WIRE_MAX_TOP_LOGPROBS];
    static wire_ranked ranked;
    top[0] = (wire_logprob){number(SIM_VOCAB), below(8) ? -1.0f : 1.0f};
    ranked = (wire_ranked){.logprob = below(8) ? -0.5f : NAN, .rank = number(9), .top = top, .n_top = below(3)};
    return &ranked;
}

static wire_sampling random_sampling(void) {
    wire_sampling s = {.top_p = 1,
                       .min_tokens = number(4),
                       .ignore_eos = below(2) != 0,
                       .n_logprobs = below(4) == 0 ? number(3) : 0,
                       .n_prompt_logprobs = below(8) == 0 ? number(3) : 0};
    if (below(30) == 0) s.top_p = 0.0f / 0.0f;
    if (below(30) == 0) s.temperature = -1;
    return s;
}

static const uint32_t *random_tokens(uint32_t n) {
    bool is_common = below(2) == 0; /* many prompts begin alike */
    for (uint32_t i = 0; i < n; i++) tokens[i] = is_common ? i % 7 : below(SIM_VOCAB);
    if (n > 0 && below(20) == 0) tokens[below(n)] = SIM_VOCAB + number(3);
    return tokens;
}

static const wire_candidate *random_candidates(void) {
    for (uint32_t i = 0; i < WIRE_MAX_CANDIDATES; i++)
        candidates[i] = (wire_candidate){wire_str_from("d"), 200 + below(2 * N_PEERS), wire_str_from("d:1")};
    return candidates;
}

/* Any message between processes, about the requests of `gateway`, or to it. */
static wire_message random_message(uint64_t gateway) {
    static const wire_type types[] = {WIRE_SUBMIT,      WIRE_SUBMIT,     WIRE_CANCEL,          WIRE_ACCEPTED,
                                      WIRE_FIRST_TOKEN, WIRE_HANDED_OFF, WIRE_TOKENS,          WIRE_FINISHED,
                                      WIRE_FAILED,      WIRE_STATUS,     WIRE_RESERVE,         WIRE_RESERVE,
                                      WIRE_RESERVED,    WIRE_REFUSED,    WIRE_PROMPT_LOGPROBS, WIRE_PROMPT_LOGPROBS,
                                      WIRE_COMMIT,      WIRE_COMMIT,     WIRE_COMMITTED,       WIRE_COMMIT_FAILED,
                                      WIRE_ABORT,       WIRE_RENEW};
    wire_request r = random_request(gateway);
    uint32_t n = 1 + below(200), n_leased = 64 + below(3);
    uint64_t lease = number(40);
    wire_str text = wire_str_from("no");
    wire_message m = {.type = types[below(sizeof(types) / sizeof(types[0]))]};
    switch (m.type) {
    case WIRE_SUBMIT:
        m.submit = (wire_submit){.request = r,
                                 .sampling = random_sampling(),
                                 .constraint = random_constraint(),
                                 .max_tokens = number(40),
                                 .n_prompt = below(8) ? n : number(n + 2),
                                 .tokens = random_tokens(n),
                                 .n_tokens = n,
                                 .candidates = random_candidates(),
                                 .n_candidates = below(4)};
        break;
    case WIRE_CANCEL:
        m.cancel.request = r;
        break;
    case WIRE_ACCEPTED:
        m.accepted.request = r;
        break;
    case WIRE_FIRST_TOKEN:
        m.first_token = (wire_first_token){.request = r,
                                           .index = number(4),
                                           .token = number(SIM_VOCAB),
                                           .logprobs = random_logprobs(),
                                           .n_logprobs = below(2)};
        break;
    case WIRE_PROMPT_LOGPROBS:
        m.prompt_logprobs = (wire_prompt_logprobs){r, number(3), random_logprobs(), below(2)};
        break;
    case WIRE_HANDED_OFF:
        m.handed_off =
            (wire_handed_off){.request = r, .decode = wire_str_from("d"), .decode_incarnation = 200 + below(N_PEERS)};
        break;
    case WIRE_TOKENS:
        for (uint32_t i = 0; i < 8; i++)
            said_tokens[i] =
                (wire_token){random_request(gateway), number(6), number(SIM_VOCAB), random_logprobs(), below(2)};
        m.tokens = (wire_tokens){said_tokens, below(9)};
        break;
    case WIRE_FINISHED:
        m.finished = (wire_finished){r, (uint8_t)number(5), number(SIM_VOCAB), number(6)};
        break;
    case WIRE_FAILED:
        m.failed = (wire_failed){r, (uint8_t)number(9), text};
        break;
    case WIRE_STATUS:
        m.status.load = (wire_load){number(9),     number(9),     number(900), number(99),   number(99),
                                    below(4) == 0, below(4) == 0, number(150), number(9999), number(9999)};
        break;
    case WIRE_RESERVE:
        for (uint32_t i = 0; i < 6; i++) names[i] = (wire_block_name){below(8) == 0 ? below(6) : i, 1};
        m.reserve = (wire_reserve){r, below(4) ? n_leased : number(300), number(99), names, below(4) ? 1 : below(7)};
        break;
    case WIRE_RESERVED:
        m.reserved = (wire_reserved){r, lease, below(3) * 64 + (below(9) == 0), number(99)};
        break;
    case WIRE_REFUSED:
        m.refused = (wire_refused){r, (uint8_t)number(9), text};
        break;
    case WIRE_COMMIT:
        m.commit = (wire_commit){.request = r,
                                 .lease = lease,
                                 .n_pushes = SIM_LAYERS * (1 + (n_leased > 64)),
                                 .checksum = below(3) == 0,
                                 .sampling = random_sampling(),
                                 .constraint = random_constraint(),
                                 .max_tokens = number(40),
                                 .n_prompt = below(4) ? n_leased : number(80),
                                 .tokens = random_tokens(n_leased + 1),
                                 .n_tokens = n_leased + 1};
        break;
    case WIRE_COMMITTED:
        m.committed = (wire_committed){r, lease};
        break;
    case WIRE_COMMIT_FAILED:
        m.commit_failed = (wire_commit_failed){r, lease, (uint8_t)number(9), text};
        break;
    case WIRE_ABORT:
        m.abort = (wire_abort){r, below(2) ? lease : 0};
        break;
    default:
        for (uint32_t i = 0; i < 8; i++) leases[i] = number(40);
        m.renew = (wire_renew){leases, below(9)};
    }
    return m;
}

static wrk_sched_options worker_options(kv_pool *pool) {
    static const uint32_t eos = SIM_EOS;
    return (wrk_sched_options){.pool = pool,
                               .vocab_size = SIM_VOCAB,
                               .max_model_len = 256,
                               .n_layers = SIM_LAYERS,
                               .eos_ids = &eos,
                               .n_eos_ids = 1,
                               .has_prefix_cache = true};
}

/* ---- prefill ---------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t ids[4096];
    uint32_t n;
    uint64_t decode;     /* that was asked last */
    wire_message answer; /* what it should say */
    bool has_answer;
} pushes;

static void note_answer(pushes *open, const wrk_action *action) {
    open->decode = action->peer;
    open->has_answer = true;
    if (action->message.type == WIRE_RESERVE) {
        open->answer = (wire_message){.type = WIRE_RESERVED,
                                      .reserved = {.request = action->message.reserve.request,
                                                   .lease = 1 + below(40),
                                                   .held_tokens = 64 * below(action->message.reserve.n_prefix + 1),
                                                   .ttl_ms = 5000}};
    } else if (action->message.type == WIRE_COMMIT) {
        const wire_commit *commit = &action->message.commit;
        open->answer =
            (wire_message){.type = WIRE_COMMITTED, .committed = {.request = commit->request, .lease = commit->lease}};
    } else {
        open->has_answer = false;
    }
}

static void walk_prefill(wrk_sched *sched, pushes *open) {
    wrk_action action;
    bt_buf bytes = {0};
    while (wrk_sched_next(sched, &action)) {
        if (action.kind == WRK_PUSH) {
            BT_ASSERT(open->n < 4096);
            open->ids[open->n++] = action.push_id;
        } else if (action.kind == WRK_SEND_PEER || action.kind == WRK_SEND_GATEWAY) {
            bt_buf_clear(&bytes);
            wire_encode(&action.message, &bytes); /* what it points to is there */
            if (action.kind == WRK_SEND_PEER) note_answer(open, &action);
        }
    }
    bt_buf_fini(&bytes);
    sched->check(sched);
}

static void test_prefill_survives_any_peer(void) {
    kv_pool *pool = kv_pool_open(N_BLOCKS);
    const wrk_sched_options shared = worker_options(pool);
    const pre_sched_options options = {.max_requests = 10, .max_batched_tokens = 100, .max_batched_seqs = 4};
    wrk_sched *sched;
    CHECK(pre_sched_open(&shared, &options, &sched, NULL) == BT_OK, "open");
    pushes open = {.n = 0};
    wrk_step step;
    uint32_t n_layers = SIM_LAYERS + 1, drawn[4] = {0}; /* n_layers done; more than all: no step */
    int64_t now_ns = 0;
    for (uint32_t event = 0; event < N_EVENTS; event++) {
        uint64_t gateway = 100 + below(N_PEERS), decode = 200 + below(2 * N_PEERS);
        now_ns += sim_exponential_ns(&dice, 10 * (int64_t)BT_NS_PER_MS);
        wire_message message = random_message(gateway);
        uint32_t what = below(28);
        if (what >= 24 && open.has_answer) {
            open.has_answer = false;
            sched->peer_message(sched, open.decode, &open.answer, now_ns);
        } else if (what < 7) {
            sched->gateway_message(sched, gateway, &message, now_ns);
        } else if (what < 14) {
            sched->peer_message(sched, decode, &message, now_ns);
        } else if (what < 16) {
            sched->peer_up(sched, decode, now_ns);
        } else if (what == 16 && below(3) == 0) {
            sched->peer_gone(sched, decode, now_ns);
        } else if (what == 17) {
            if (below(8) == 0)
                sched->gateway_gone(sched, gateway, now_ns);
            else
                sched->gateway_up(sched, gateway, now_ns);
        } else if (what == 18) {
            wrk_sched_tick(sched, now_ns);
        } else if (what == 19 && open.n > 0) {
            sched->push_done(sched, open.ids[--open.n], 64, now_ns);
        } else if (n_layers > SIM_LAYERS) {
            if (sched->step_begin(sched, now_ns, &step)) n_layers = 0;
        } else if (n_layers < SIM_LAYERS) {
            sched->layer_done(sched, n_layers++, now_ns);
        } else {
            for (uint32_t i = 0; i < 4; i++) drawn[i] = below(SIM_VOCAB);
            sched->step_done(sched, drawn, no_logprobs, now_ns);
            n_layers = SIM_LAYERS + 1;
        }
        walk_prefill(sched, &open);
    }
    for (uint64_t gateway = 100; gateway < 100 + N_PEERS; gateway++) {
        sched->gateway_gone(sched, gateway, now_ns);
        walk_prefill(sched, &open);
    }
    while (n_layers < SIM_LAYERS) {
        sched->layer_done(sched, n_layers++, now_ns);
        walk_prefill(sched, &open);
    }
    if (n_layers == SIM_LAYERS) sched->step_done(sched, drawn, no_logprobs, now_ns);
    walk_prefill(sched, &open);
    while (open.n > 0) {
        sched->push_done(sched, open.ids[--open.n], 64, now_ns);
        walk_prefill(sched, &open);
    }
    const pre_counters *counters = sched->counters;
    CHECK(kv_pool_n_free(pool) == N_BLOCKS, "nothing is left: %u blocks free", kv_pool_n_free(pool));
    CHECK(counters->n_prefix_hits > 0, "cached blocks were met");
    CHECK(counters->n_strange > 100 && counters->n_handed_off > 5 && counters->n_finished > 0 && counters->n_failed > 0,
          "strange %llu handed off %llu finished %llu failed %llu", (unsigned long long)counters->n_strange,
          (unsigned long long)counters->n_handed_off, (unsigned long long)counters->n_finished,
          (unsigned long long)counters->n_failed);
    sched->close(sched);
    kv_pool_close(pool);
}

/* ---- decode ----------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t ids[256];
    uint32_t n;
    uint64_t prefill;   /* that got a lease last */
    uint32_t n_held;    /* blocks under it that need no push */
    wire_commit commit; /* what it should say */
    bool has_commit;
} closing;

static void note_grant(closing *list, const wrk_action *action) {
    const wire_reserved *reserved = &action->message.reserved;
    list->prefill = action->peer;
    list->has_commit = true;
    list->commit.request = reserved->request;
    list->commit.lease = reserved->lease;
}

static wire_message right_commit(const closing *list) {
    wire_message m = {.type = WIRE_COMMIT, .commit = list->commit};
    uint32_t n = m.commit.n_tokens; /* as the lease was opened for */
    m.commit.sampling = (wire_sampling){.top_p = 1};
    m.commit.max_tokens = 2 + below(100);
    m.commit.n_prompt = n - 1;
    m.commit.n_pushes = SIM_LAYERS * (kv_blocks_for(n - 1) - list->n_held);
    for (uint32_t i = 0; i < n; i++) tokens[i] = below(SIM_VOCAB);
    m.commit.tokens = tokens;
    return m;
}

static void walk_decode(wrk_sched *sched, closing *list) {
    wrk_action action;
    bt_buf bytes = {0};
    while (wrk_sched_next(sched, &action)) {
        if (action.kind == WRK_LEASE_OPEN) {
            list->commit = (wire_commit){.n_tokens = action.lease_open.n_tokens + 1};
            list->n_held = action.lease_open.first_block;
        } else if (action.kind == WRK_LEASE_CLOSE) {
            bool is_there = false;
            for (uint32_t i = 0; i < list->n; i++) is_there |= list->ids[i] == action.lease_close.lease;
            BT_ASSERT(is_there || list->n < 256);
            if (!is_there) list->ids[list->n++] = action.lease_close.lease;
        } else if (action.kind == WRK_SEND_PEER || action.kind == WRK_SEND_GATEWAY) {
            bt_buf_clear(&bytes);
            wire_encode(&action.message, &bytes);
            if (action.message.type == WIRE_RESERVED) note_grant(list, &action);
        }
    }
    bt_buf_fini(&bytes);
    sched->check(sched);
}

static void close_one(wrk_sched *sched, closing *list, int64_t now_ns) {
    uint32_t at = below(list->n);
    uint64_t lease = list->ids[at];
    list->ids[at] = list->ids[--list->n];
    sched->lease_closed(sched, lease, below(4) ? SIM_LAYERS * (1 + below(2)) : 0, below(4) == 0, now_ns);
}

static void test_decode_survives_any_peer(void) {
    kv_pool *pool = kv_pool_open(N_BLOCKS);
    const wrk_sched_options shared = worker_options(pool);
    const dec_sched_options options = {
        .max_num_seqs = 4, .max_batched_tokens = 12, .max_leases = 6, .local_prefill_tokens = 150};
    wrk_sched *sched;
    CHECK(dec_sched_open(&shared, &options, &sched, NULL) == BT_OK, "open");
    closing list = {.n = 0};
    wrk_step step;
    bool is_stepping = false;
    uint32_t drawn[4] = {0};
    int64_t now_ns = 0;
    for (uint32_t event = 0; event < N_EVENTS; event++) {
        uint64_t gateway = 100 + below(N_PEERS), prefill = 300 + (below(8) == 0);
        now_ns += sim_exponential_ns(&dice, 20 * (int64_t)BT_NS_PER_MS);
        wire_message message = random_message(gateway);
        uint32_t what = below(28);
        if (what >= 24 && list.has_commit) {
            list.has_commit = false;
            message = right_commit(&list);
            sched->peer_message(sched, list.prefill, &message, now_ns);
        } else if (what < 4) {
            sched->gateway_message(sched, gateway, &message, now_ns);
        } else if (what < 14) {
            sched->peer_message(sched, prefill, &message, now_ns);
        } else if (what == 14 && below(8) == 0) {
            (event % 2 ? sched->peer_up : sched->peer_gone)(sched, prefill, now_ns);
        } else if (what == 15) {
            if (below(16) == 0)
                sched->gateway_gone(sched, gateway, now_ns);
            else if (below(4) == 0)
                sched->gateway_up(sched, gateway, now_ns);
        } else if (what == 16) {
            wrk_sched_tick(sched, now_ns);
        } else if (what < 20 && list.n > 0) {
            close_one(sched, &list, now_ns);
        } else if (!is_stepping) {
            is_stepping = sched->step_begin(sched, now_ns, &step);
        } else {
            for (uint32_t i = 0; i < 4; i++) drawn[i] = below(SIM_VOCAB);
            sched->step_done(sched, drawn, no_logprobs, now_ns);
            is_stepping = false;
        }
        walk_decode(sched, &list);
    }
    for (uint64_t peer = 100; peer < 100 + N_PEERS; peer++) {
        sched->gateway_gone(sched, peer, now_ns);
        walk_decode(sched, &list);
    }
    for (uint64_t prefill = 300; prefill < 302; prefill++) {
        sched->peer_gone(sched, prefill, now_ns);
        walk_decode(sched, &list);
    }
    if (is_stepping) sched->step_done(sched, drawn, no_logprobs, now_ns);
    walk_decode(sched, &list);
    while (list.n > 0) {
        close_one(sched, &list, now_ns);
        walk_decode(sched, &list);
    }
    const dec_counters *counters = sched->counters;
    CHECK(kv_pool_n_free(pool) == N_BLOCKS, "nothing is left: %u blocks free", kv_pool_n_free(pool));
    CHECK(counters->n_prefix_hits > 0, "cached blocks were met");
    CHECK(counters->n_local > 20 && counters->n_local_tokens > counters->n_local, "prompts were computed: %llu",
          (unsigned long long)counters->n_local);
    CHECK(counters->n_committed > 20 && counters->n_finished > 5 && counters->n_commit_failed > 20 &&
              counters->n_lease_expired > 5,
          "committed %llu finished %llu commits failed %llu expired %llu", (unsigned long long)counters->n_committed,
          (unsigned long long)counters->n_finished, (unsigned long long)counters->n_commit_failed,
          (unsigned long long)counters->n_lease_expired);
    sched->close(sched);
    kv_pool_close(pool);
}

/* ---- gateway ---------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t n_output;
    bool has_ended;
} watched;

/* The last SUBMIT, and how far honest workers have come with it. */
typedef struct {
    uint64_t prefill, decode;
    wire_request request;
    uint32_t n_base, stage;
} submitted;

static void say_next(gw_core *core, submitted *s, int64_t now_ns) {
    wire_token token = {s->request, s->n_base + 1, 5, NULL, 0};
    wire_message right[] = {
        {.type = WIRE_ACCEPTED, .accepted = {s->request}},
        {.type = WIRE_FIRST_TOKEN, .first_token = {.request = s->request, .index = s->n_base, .token = 4}},
        {.type = WIRE_HANDED_OFF,
         .handed_off = {.request = s->request, .decode = wire_str_from("w"), .decode_incarnation = s->decode}},
        {.type = WIRE_TOKENS, .tokens = {&token, 1}},
        {.type = WIRE_FINISHED, .finished = {s->request, WIRE_FINISH_EOS, 0, s->n_base + 2}},
    };
    if (s->prefill == 0 || s->stage == 5) return;
    gw_core_message(core, s->stage < 3 ? s->prefill : s->decode, &right[s->stage], now_ns);
    s->stage++;
}

static void walk_gateway(gw_core *core, watched *clients, submitted *last) {
    gw_action action;
    bt_buf bytes = {0};
    while (gw_core_next(core, &action)) {
        if (action.kind == GW_SEND) {
            bt_buf_clear(&bytes);
            wire_encode(&action.message, &bytes);
            const wire_submit *submit = &action.message.submit;
            if (action.message.type == WIRE_SUBMIT)
                *last = (submitted){action.peer, submit->candidates[0].incarnation, submit->request,
                                    submit->n_tokens - submit->n_prompt, 0};
            continue;
        }
        watched *client = &clients[action.serial];
        CHECK(!client->has_ended, "request %llu hears something after its end", (unsigned long long)action.serial);
        if (action.kind == GW_TOKENS) {
            CHECK(action.index == client->n_output, "tokens in order");
            for (uint32_t i = 0; i < action.n_tokens; i++) CHECK(action.tokens[i] < SIM_VOCAB, "token");
            client->n_output += action.n_tokens;
        } else {
            CHECK(action.n_output == client->n_output, "all tokens came before the end");
            client->has_ended = true;
        }
    }
    bt_buf_fini(&bytes);
    gw_core_check(core);
}

static void set_worker(gw_core *core, uint64_t incarnation, bool is_draining, int64_t now_ns) {
    gw_worker known = {.role = incarnation < 200 ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE,
                       .name = "w",
                       .kv_address = "w:1",
                       .incarnation = incarnation,
                       .is_draining = is_draining};
    gw_core_worker_up(core, &known, now_ns);
}

static void test_the_gateway_survives_any_worker(void) {
    enum { GATEWAY = 7 };
    gw_core_options options = {
        .incarnation = GATEWAY, .max_requests = 6, .vocab_size = SIM_VOCAB, .max_model_len = 256, .migration_limit = 3};
    gw_core *core;
    CHECK(gw_core_open(&options, &core, NULL) == BT_OK, "open");
    watched *clients = bt_calloc(N_EVENTS + 1, sizeof(watched));
    gw_strategy strategy;
    CHECK(gw_strategy_parse("", &strategy, NULL) == BT_OK, "default strategy");
    int64_t now_ns = 0;
    uint64_t last_serial = 0, serial;
    submitted last = {0};
    for (uint32_t event = 0; event < N_EVENTS; event++) {
        uint64_t worker = (below(2) ? 100 : 200) + below(N_PEERS);
        now_ns += sim_exponential_ns(&dice, 5 * (int64_t)BT_NS_PER_MS);
        wire_message m = random_message(GATEWAY);
        if (last_serial > 6) m.cancel.request.serial += last_serial - 6; /* every message about one begins with it */
        for (uint32_t i = 0; i < 8 && last_serial > 6; i++) said_tokens[i].request.serial += last_serial - 6;
        if (m.type == WIRE_TOKENS || m.type == WIRE_STATUS || m.type == WIRE_RENEW) m = random_message(GATEWAY);
        uint32_t what = below(24);
        if (what >= 14) {
            say_next(core, &last, now_ns);
        } else if (what < 2) {
            uint32_t n = 1 + below(200);
            gw_submit submit = {.tokens = random_tokens(n),
                                .n_tokens = n,
                                .max_tokens = 1 + below(6),
                                .sampling = random_sampling(),
                                .constraint = random_constraint(),
                                .cache_salt = "",
                                .strategy = &strategy};
            if (gw_core_submit(core, &submit, now_ns, &serial, NULL) == BT_OK) last_serial = serial;
        } else if (what == 2 && below(4) == 0) {
            serial = last_serial > 3 ? last_serial - below(4) : last_serial; /* 0: none was ever */
            gw_core_cancel(core, serial, now_ns);
            clients[serial].has_ended = true;
        } else if (what == 3 && below(6) == 0) {
            gw_core_worker_gone(core, worker, now_ns);
        } else if (what == 4) {
            set_worker(core, worker, below(8) == 0, now_ns);
        } else if (what == 5) {
            gw_core_tick(core, now_ns);
        } else {
            gw_core_message(core, worker, &m, now_ns);
        }
        if (below(4) != 0) walk_gateway(core, clients, &last); /* else the next event comes first */
    }
    for (uint64_t i = 1; i <= last_serial; i++) {
        gw_core_cancel(core, i, now_ns);
        clients[i].has_ended = true;
    }
    walk_gateway(core, clients, &last);
    const gw_counters *counters = gw_core_counters(core);
    CHECK(gw_core_n_alive(core) == 0, "nothing is left");
    CHECK(counters->n_strange > 100 && counters->n_late > 100 && counters->n_failed > 5 && counters->n_finished > 5,
          "strange %llu late %llu failed %llu finished %llu", (unsigned long long)counters->n_strange,
          (unsigned long long)counters->n_late, (unsigned long long)counters->n_failed,
          (unsigned long long)counters->n_finished);
    gw_core_close(core);
    free(clients);
}

/* hostile_test [SEEDS]: more seeds, more luck. */
int main(int argc, char **argv) {
    uint64_t n_seeds = argc > 1 ? strtoull(argv[1], NULL, 0) : 3;
    for (uint64_t seed = 1; seed <= n_seeds; seed++) {
        dice.random = seed;
        test_prefill_survives_any_peer();
        test_decode_survives_any_peer();
        test_the_gateway_survives_any_worker();
    }
    TEST_END();
}
