/* Groups of one to four processes started from this binary, over shared memory and TCP, eager and by rendezvous. Rows
 * are drawn from (step, layer, source, target), so that every rank knows what every other must send and answer:
 * whatever arrives is compared bit by bit. Every test is a sentence. */
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/log.h"
#include "common/core/test.h"
#include "kvtransfer/ep_impl.h"

enum { MAX_RANKS = 4, N_LAYERS = 3, N_STEPS = 12, MAX_ROWS = 40, MAX_PAIRS = 100, WIDTH = 260, EXPERTS = 16 };
static ep_limits limits = {MAX_ROWS, MAX_PAIRS, WIDTH * 4, WIDTH, N_LAYERS, EXPERTS, 77};
static const char *self_path;

/* ---- a rank ---- */

typedef struct {
    ep_net *net;
    ep_exchange *exchange;
    uint32_t rank, n_ranks;
    char addresses[MAX_RANKS][32];
} rank_state;

static uint64_t draw(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

typedef struct {
    uint32_t n_rows, n_pairs, rows[MAX_ROWS];
    ep_pair pairs[MAX_PAIRS];
    float x[MAX_ROWS][WIDTH];
} load;

/* What `source` sends to `target` in this layer: every fourth message is empty. */
static void load_draw(load *load, uint64_t step, uint32_t layer, uint32_t source, uint32_t target) {
    uint64_t state = ((step * N_LAYERS + layer) * MAX_RANKS + source) * MAX_RANKS + target + 1;
    for (int i = 0; i < 4; i++) draw(&state);
    load->n_rows = draw(&state) % 4 == 0 ? 0 : (uint32_t)(draw(&state) % (MAX_ROWS + 1));
    load->n_pairs = load->n_rows == 0 ? 0 : load->n_rows + (uint32_t)(draw(&state) % (MAX_PAIRS - MAX_ROWS));
    for (uint32_t r = 0; r < load->n_rows; r++) {
        load->rows[r] = load->n_rows - 1 - r; /* a gather, not a copy */
        for (uint32_t j = 0; j < WIDTH; j++) load->x[r][j] = (float)draw(&state);
    }
    for (uint32_t p = 0; p < load->n_pairs; p++)
        load->pairs[p] = (ep_pair){p % load->n_rows, (uint32_t)(draw(&state) % EXPERTS), (float)(draw(&state) % 100)};
}

static void expert_row(const float *x, const ep_pair *pair, float *y) {
    for (uint32_t j = 0; j < WIDTH; j++) y[j] = x[j] * pair->weight + (float)pair->expert;
}

static bt_status send_rows(rank_state *rank, uint64_t step, uint32_t layer, bool is_empty) {
    static load loads[MAX_RANKS];
    static float x[MAX_RANKS * MAX_ROWS][WIDTH];
    ep_rows_out out[MAX_RANKS] = {0};
    for (uint32_t peer = 0; peer < rank->n_ranks && !is_empty; peer++) {
        if (peer == rank->rank) continue;
        load *load = &loads[peer];
        load_draw(load, step, layer, rank->rank, peer);
        for (uint32_t r = 0; r < load->n_rows; r++) {
            load->rows[r] += peer * MAX_ROWS;
            memcpy(x[load->rows[r]], load->x[r], sizeof(load->x[r]));
        }
        out[peer] = (ep_rows_out){load->rows, load->pairs, load->n_rows, load->n_pairs};
    }
    return rank->exchange->post_rows(rank->exchange, layer, x, out);
}

static bt_status answer_rows(rank_state *rank, uint64_t step, uint32_t layer) {
    static load load;
    static float y[MAX_RANKS * MAX_PAIRS][WIDTH];
    static uint32_t places[MAX_RANKS][MAX_PAIRS];
    ep_rows_in in[MAX_RANKS];
    ep_results_out out[MAX_RANKS] = {0};
    bt_status status = rank->exchange->take_rows(rank->exchange, layer, in);
    for (uint32_t peer = 0; peer < rank->n_ranks && status == BT_OK; peer++) {
        if (peer == rank->rank) continue;
        load_draw(&load, step, layer, peer, rank->rank);
        if (step > 0) { /* step 0: whatever it is, answer it */
            bool is_same = in[peer].n_rows == load.n_rows && in[peer].n_pairs == load.n_pairs;
            is_same = is_same && memcmp(in[peer].x, load.x, load.n_rows * sizeof(load.x[0])) == 0;
            is_same = is_same && memcmp(in[peer].pairs, load.pairs, load.n_pairs * sizeof(ep_pair)) == 0;
            CHECK(is_same, "step %llu layer %u: rows from %u", (unsigned long long)step, layer, peer);
        }
        for (uint32_t p = 0; p < in[peer].n_pairs; p++) {
            places[peer][p] = peer * MAX_PAIRS + in[peer].n_pairs - 1 - p;
            const float *row = (const float *)in[peer].x + (size_t)in[peer].pairs[p].row * WIDTH;
            expert_row(row, &in[peer].pairs[p], y[places[peer][p]]);
        }
        out[peer] = (ep_results_out){places[peer], in[peer].n_pairs};
    }
    return status == BT_OK ? rank->exchange->post_results(rank->exchange, layer, y[0], out) : status;
}

static bt_status take_answers(rank_state *rank, uint64_t step, uint32_t layer) {
    static load load;
    const float *in[MAX_RANKS];
    float wanted[WIDTH];
    bt_status status = rank->exchange->take_results(rank->exchange, layer, in);
    for (uint32_t peer = 0; peer < rank->n_ranks && status == BT_OK && step > 0; peer++) {
        if (peer == rank->rank) continue;
        load_draw(&load, step, layer, rank->rank, peer);
        bool is_same = true;
        for (uint32_t p = 0; p < load.n_pairs; p++) {
            expert_row(load.x[load.pairs[p].row], &load.pairs[p], wanted);
            is_same = is_same && memcmp(wanted, in[peer] + (size_t)p * WIDTH, sizeof(wanted)) == 0;
        }
        CHECK(is_same, "step %llu layer %u: results from %u", (unsigned long long)step, layer, peer);
    }
    return status;
}

/* All layers of one step. */
static bt_status step_run(rank_state *rank, uint64_t step) {
    bt_status status = rank->exchange->begin(rank->exchange);
    for (uint32_t layer = 0; layer < N_LAYERS && status == BT_OK; layer++) {
        status = send_rows(rank, step, layer, step == 0);
        if (status == BT_OK) status = answer_rows(rank, step, layer);
        if (status == BT_OK) status = take_answers(rank, step, layer);
    }
    return status;
}

static bt_status group_open(rank_state *rank, uint64_t epoch, uint32_t n_ranks, uint32_t timeout_ms, bt_error *err) {
    const char *addresses[MAX_RANKS];
    for (uint32_t i = 0; i < MAX_RANKS; i++) addresses[i] = rank->addresses[i];
    ep_group_config config = {epoch, rank->rank, n_ranks, addresses, limits, timeout_ms, timeout_ms};
    rank->n_ranks = n_ranks;
    bt_status status = ep_group_open(rank->net, &config, &rank->exchange, err);
    if (status != BT_OK) return status;
    status = ep_group_await(rank->exchange, err);
    if (status == BT_OK) return BT_OK;
    ep_exchange_close(rank->exchange);
    rank->exchange = NULL;
    return status;
}

static void steps_run(rank_state *rank) {
    for (uint64_t step = 1; step <= N_STEPS; step++) {
        bt_status status = step_run(rank, step);
        CHECK(status == BT_OK, "rank %u of %u, step %llu", rank->rank, rank->n_ranks, (unsigned long long)step);
    }
}

/* Steps until the group fails. Waiting until a deadline is the way to learn of a rank that hangs, and of no other. */
static void steps_until_lost(rank_state *rank, bool by_deadline) {
    while (step_run(rank, 0) == BT_OK) {
    }
    const char *why = ((ep_group *)(void *)rank->exchange)->why.text;
    CHECK(by_deadline || strstr(why, "hangs") == NULL, "rank %u learnt it by waiting: %s", rank->rank, why);
    CHECK(rank->exchange->begin(rank->exchange) == BT_PEER_LOST, "lost is lost");
    CHECK(rank->exchange->is_called(rank->exchange), "a lost group calls");
}

/* ---- what the last rank does wrong ---- */

static void hostile(rank_state *rank, const char *what) {
    uint8_t bytes[8192] = {0};
    ep_conn *peer = ((ep_group *)(void *)rank->exchange)->peers[0];
    wire_ep_rows rows = {rank->exchange->epoch, 1, 0, 1, 1};
    size_t n_bytes = ep_rows_bytes(&limits, 1, 1);
    rank->exchange->begin(rank->exchange);
    if (strcmp(what, "layer") == 0) rows.layer = N_LAYERS;
    if (strcmp(what, "order") == 0) rows.layer = 1;
    if (strcmp(what, "rows") == 0) rows.n_rows = UINT32_MAX;
    if (strcmp(what, "pairs") == 0) rows.n_pairs = MAX_PAIRS + 1;
    if (strcmp(what, "step") == 0) rows.step = 2;
    if (strcmp(what, "short") == 0) n_bytes--;
    wire_message message = {.type = WIRE_EP_ROWS, .ep_rows = rows};
    if (strcmp(what, "place") == 0) message = (wire_message){.type = WIRE_EP_BEGIN, .ep_begin = {rows.epoch, 1}};
    if (strcmp(what, "frame") == 0) message = (wire_message){.type = WIRE_PING, .ping = {1}};
    ep_op_kind kind = strcmp(what, "frame") == 0 ? EP_OP_BEGIN : EP_OP_ROWS;
    ep_link_send(peer, kind, &message, bytes, n_bytes);
    if (strcmp(what, "twice") == 0) ep_link_send(peer, EP_OP_RESULTS, &message, bytes, n_bytes);
    steps_until_lost(rank, false);
}

/* A message of an epoch that is over, then a whole run. */
static void stale(rank_state *rank) {
    uint8_t bytes[8192] = {0};
    wire_message message = {.type = WIRE_EP_ROWS, .ep_rows = {rank->exchange->epoch - 1, 1, 0, 1, 1}};
    if (rank->rank == 1)
        ep_link_send(((ep_group *)(void *)rank->exchange)->peers[0], EP_OP_RESULTS, &message, bytes,
                     ep_rows_bytes(&limits, 1, 1));
    steps_run(rank);
    CHECK(rank->rank == 1 || ((ep_group *)(void *)rank->exchange)->n_dropped == 1, "one message dropped");
}

/* Rank 0 works now and then; the others sleep until it calls, without using the processor. */
static void idle(rank_state *rank) {
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < 3; i++) {
        if (rank->rank == 0) {
            usleep(150000); /* the time that the others must sleep */
        } else {
            struct pollfd fd = {.fd = rank->exchange->wait_fd(rank->exchange), .events = POLLIN};
            do {
                CHECK(poll(&fd, 1, 5000) == 1, "rank %u is never called", rank->rank);
            } while (!rank->exchange->is_called(rank->exchange));
        }
        CHECK(step_run(rank, 0) == BT_OK, "step %d", i);
    }
    getrusage(RUSAGE_SELF, &after);
    int64_t used_us =
        (after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 +
        (after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
    CHECK(used_us < 100000, "%lld us of processor time in half a second of waiting", (long long)used_us);
}

/* The last rank goes; the others go on without it under a new epoch. */
static void last_goes(rank_state *rank, int signal_number) {
    bool is_last = rank->rank == rank->n_ranks - 1;
    CHECK(step_run(rank, 1) == BT_OK, "the first step");
    if (is_last) {
        rank->exchange->begin(rank->exchange);
        send_rows(rank, 2, 0, false);
        ep_rows_in in[MAX_RANKS];
        rank->exchange->take_rows(rank->exchange, 0, in); /* so all have ended the first step */
        if (signal_number != 0) raise(signal_number);     /* in the middle of a layer */
    }
    if (!is_last || signal_number == SIGSTOP) steps_until_lost(rank, signal_number == SIGSTOP);
    uint32_t n_left = rank->n_ranks - 1;
    ep_exchange_close(rank->exchange);
    rank->exchange = NULL;
    if (is_last) return;
    bt_error err = {0};
    CHECK(group_open(rank, 3, n_left, 5000, &err) == BT_OK, "rank %u forms again: %s", rank->rank, err.text);
    if (rank->exchange != NULL) steps_run(rank);
}

/* --rank RANK N_RANKS TRANSPORTS IS_RENDEZVOUS ROLE; says its port, hears everybody's. */
static int rank_main(char **argv) {
    rank_state rank = {.rank = (uint32_t)atoi(argv[2])};
    uint32_t n_ranks = (uint32_t)atoi(argv[3]);
    const char *role = argv[6];
    bool is_last = rank.rank == n_ranks - 1, is_misplaced = strcmp(role, "misplaced") == 0;
    bool is_stranger = strcmp(role, "stranger") == 0 || is_misplaced, is_absent = strcmp(role, "absent") == 0;
    if (is_misplaced) limits.placement += rank.rank;
    ep_net_config config = {
        .compat = {.model_hash = is_stranger && !is_misplaced ? 5 + rank.rank : 5},
        .host = "127.0.0.1",
        .transports = argv[4],
        .is_rendezvous = atoi(argv[5]),
    };
    bt_error err = {0};
    uint32_t ports[MAX_RANKS];
    if (ep_net_open(&config, &rank.net, &err) != BT_OK) return fprintf(stderr, "%s\n", err.text), 1;
    uint32_t port = ep_net_port(rank.net);
    if (write(1, &port, sizeof(port)) != sizeof(port) || read(0, ports, sizeof(ports)) != sizeof(ports)) return 1;
    for (uint32_t i = 0; i < n_ranks; i++) snprintf(rank.addresses[i], 32, "127.0.0.1:%u", ports[i]);
    if (is_absent && rank.rank == 0) {
        ep_net_close(rank.net); /* nobody listens there any more */
        return 0;
    }
    if (is_absent) { /* its dials are refused until the time is over */
        CHECK(group_open(&rank, 2, n_ranks, 300, &err) == BT_TIMEOUT, "rank %u: %s", rank.rank, err.text);
        CHECK(group_open(&rank, 3, n_ranks, 300, &err) == BT_TIMEOUT, "rank %u, again: %s", rank.rank, err.text);
    } else if (is_stranger) {
        bt_status status = group_open(&rank, 2, n_ranks, 500, &err);
        CHECK(status == (rank.rank == 0 ? BT_TIMEOUT : BT_BAD_REQUEST), "rank %u: %s", rank.rank, err.text);
        CHECK(rank.rank == 0 || strstr(err.text, is_misplaced ? "another --placement" : "another model") != NULL,
              "says why: %s", err.text);
    } else {
        bt_status status = group_open(&rank, 2, n_ranks, strcmp(role, "stop") == 0 ? 500 : 5000, &err);
        CHECK(status == BT_OK, "rank %u: %s", rank.rank, err.text);
        if (status != BT_OK) return 1;
    }
    if (strcmp(role, "run") == 0) steps_run(&rank);
    if (strcmp(role, "stale") == 0) stale(&rank);
    if (strcmp(role, "idle") == 0) idle(&rank);
    if (strcmp(role, "kill") == 0) last_goes(&rank, SIGKILL);
    if (strcmp(role, "stop") == 0) last_goes(&rank, SIGSTOP);
    if (strcmp(role, "leave") == 0) last_goes(&rank, 0);
    if (strncmp(role, "bad-", 4) == 0 && is_last) hostile(&rank, role + 4);
    if (strncmp(role, "bad-", 4) == 0 && !is_last) steps_until_lost(&rank, false);
    ep_exchange_close(rank.exchange);
    ep_net_close(rank.net);
    return test_n_failed == 0 ? 0 : 1;
}

/* ---- the test ---- */

static void group_run(uint32_t n_ranks, const char *transports, bool is_rendezvous, const char *role) {
    pid_t pids[MAX_RANKS];
    int to[MAX_RANKS][2], from[MAX_RANKS][2];
    uint32_t ports[MAX_RANKS] = {0};
    for (uint32_t i = 0; i < n_ranks; i++) {
        char rank_text[12], n_text[12];
        snprintf(rank_text, sizeof(rank_text), "%u", i);
        snprintf(n_text, sizeof(n_text), "%u", n_ranks);
        if (pipe(to[i]) != 0 || pipe(from[i]) != 0) exit(1);
        pids[i] = fork();
        if (pids[i] == 0) {
            dup2(to[i][0], 0);
            dup2(from[i][1], 1);
            execl(self_path, self_path, "--rank", rank_text, n_text, transports, is_rendezvous ? "1" : "0", role, NULL);
            _exit(127);
        }
        close(to[i][0]);
        close(from[i][1]);
    }
    for (uint32_t i = 0; i < n_ranks; i++)
        CHECK(read(from[i][0], &ports[i], sizeof(ports[i])) == sizeof(ports[i]), "rank %u listens", i);
    for (uint32_t i = 0; i < n_ranks; i++) {
        CHECK(write(to[i][1], ports, sizeof(ports)) == sizeof(ports), "rank %u hears the ports", i);
        close(to[i][1]);
        close(from[i][0]);
    }
    for (uint32_t i = 0; i < n_ranks; i++) {
        int status = -1;
        bool is_last = i == n_ranks - 1;
        if (is_last && strcmp(role, "stop") == 0) kill(pids[i], SIGCONT); /* the others have gone on without it */
        waitpid(pids[i], &status, 0);
        bool is_right = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (is_last && strcmp(role, "kill") == 0) is_right = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        CHECK(is_right, "%s: rank %u of %u over %s%s: status %d", role, i, n_ranks, transports,
              is_rendezvous ? " by rendezvous" : "", status);
    }
}

int main(int argc, char **argv) {
    self_path = argv[0];
    bt_log_set_level(BT_LOG_ERROR);
    signal(SIGPIPE, SIG_IGN);
    if (argc == 7 && strcmp(argv[1], "--rank") == 0) return rank_main(argv);
    static const char *const transports[] = {"posix,tcp,self", "tcp,self"};
    static const char *const hostile_roles[] = {"bad-layer", "bad-order", "bad-rows",  "bad-pairs", "bad-step",
                                                "bad-short", "bad-twice", "bad-place", "bad-frame"};
    for (int i = 0; i < 4; i++) {
        for (uint32_t n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) group_run(n_ranks, transports[i / 2], i % 2, "run");
        group_run(3, transports[i / 2], i % 2, "kill");
    }
    for (int i = 0; i < 2; i++) {
        group_run(3, transports[i], false, "stop");
        group_run(3, transports[i], false, "leave");
        group_run(3, transports[i], false, "idle");
        group_run(2, transports[i], false, "stale");
        group_run(2, transports[i], false, "stranger");
        group_run(2, transports[i], false, "misplaced");
        group_run(2, transports[i], false, "absent");
    }
    for (size_t i = 0; i < sizeof(hostile_roles) / sizeof(hostile_roles[0]); i++)
        group_run(2, transports[0], false, hostile_roles[i]);
    TEST_END();
}
