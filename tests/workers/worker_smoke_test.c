/* Whole workers from the outside: Redis, one baton-prefill, one baton-decode, and this process in the gateway's place.
 * Tokens must be those that the model gives in one process; every end of a request must give all blocks back. */
#include <arpa/inet.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/control/link.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"
#include "common/core/test_dir.h"
#include "common/registry/registry_internal.h"
#include "kernels/forward.h"
#include "kernels/sampler.h"

enum { WAIT_MS = 60000, N_REQUESTS = 9, MAX_PROMPT = 600, MAX_OUTPUT = 400, MODEL_LEN = 1024 };
static const char model_dir[] = "deploy/models/nano-r1";
static const char *backend = "cpu"; /* or "ref", where the processor lacks what cpu needs */
static char bin_dir[512], redis_address[64], work_dir[TEST_DIR_BYTES];

/* ---- processes ---- */

static uint32_t free_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    if (bind(fd, (struct sockaddr *)&addr, n_bytes) != 0) exit(1);
    getsockname(fd, (struct sockaddr *)&addr, &n_bytes);
    close(fd);
    return ntohs(addr.sin_port);
}

static pid_t start(char *const *argv, const char *log) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* however this test ends */
    char path[600];
    snprintf(path, sizeof(path), "%s/%s.log", work_dir, log);
    if (freopen(path, "a", stderr) == NULL || freopen(path, "a", stdout) == NULL) _exit(126);
    execvp(argv[0], argv);
    _exit(127);
}

static pid_t start_worker(const char *program, const char *name, char *extra_flag) {
    char path[600];
    snprintf(path, sizeof(path), "%s/%s", bin_dir, program);
    char *argv[] = {path,
                    "--model",
                    (char *)model_dir,
                    "--name",
                    (char *)name,
                    "--redis",
                    redis_address,
                    "--backend",
                    (char *)backend,
                    "--kv-cache-memory-bytes=64M",
                    "--max-model-len=1024",
                    "--log-level=debug",
                    extra_flag,
                    NULL};
    return start(argv, name);
}

static void expect_exit(pid_t pid, const char *what) {
    int status = -1;
    for (int64_t deadline_ns = bt_now_ns() + (int64_t)WAIT_MS * BT_NS_PER_MS; bt_now_ns() < deadline_ns;
         usleep(10000)) {
        if (waitpid(pid, &status, WNOHANG) == pid) break;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s ended with status %x", what, status);
}

/* ---- the gateway's place ---- */

typedef struct {
    uint32_t prompt[MAX_PROMPT], n_prompt;
    uint32_t expected[MAX_OUTPUT], n_expected;
    uint32_t got[MAX_OUTPUT], n_got;
    bool is_accepted, is_handed_off, is_finished, is_failed;
    uint8_t reason, status;
    wire_sampling sampling;
} request;

typedef struct {
    bt_queue *queue;
    bt_queue_node *events;
    link_hub *hub;
    uint64_t incarnation;
    reg_poll *poll;
    reg_watcher *watcher;
    reg_worker workers[2]; /* prefill, decode: as announced */
    link_dialer *dialers[2];
    link_conn *links[2];
    wire_load loads[2];
    uint64_t n_statuses[2];
    request requests[N_REQUESTS];
} client;

static void on_worker(void *context, reg_change change, const reg_worker *worker) {
    client *client = context;
    int i = worker->role == WIRE_ROLE_PREFILL ? 0 : 1;
    if (change != REG_WORKER_UP) return;
    client->workers[i] = *worker;
    link_dialer_close(client->dialers[i]);
    bt_error err = {0};
    bt_status status = link_hub_dial(client->hub, worker->control_address, (uint64_t)i, &client->dialers[i], &err);
    CHECK(status == BT_OK, "%s", err.text);
}

static void on_event(client *client, link_event *event) {
    const wire_message *message = &event->message;
    int i = (int)event->tag;
    if (event->kind == LINK_UP) client->links[i] = event->link;
    if (event->kind == LINK_DOWN && client->links[i] == event->link) client->links[i] = NULL;
    if (event->kind != LINK_MESSAGE) return;
    if (message->type == WIRE_STATUS) {
        client->loads[i] = message->status.load;
        client->n_statuses[i]++;
        return;
    }
    if (message->type == WIRE_TOKENS) {
        for (uint32_t t = 0; t < message->tokens.n_tokens; t++) {
            const wire_token *token = &message->tokens.tokens[t];
            request *request = &client->requests[token->request.serial % N_REQUESTS];
            if (token->index < MAX_OUTPUT) request->got[token->index] = token->token;
            request->n_got++;
        }
        return;
    }
    request *request =
        &client->requests[message->accepted.request.serial % N_REQUESTS]; /* all begin with the request */
    if (message->type == WIRE_ACCEPTED) request->is_accepted = true;
    if (message->type == WIRE_FIRST_TOKEN) request->got[message->first_token.index] = message->first_token.token;
    if (message->type == WIRE_FIRST_TOKEN) request->n_got++;
    if (message->type == WIRE_HANDED_OFF) request->is_handed_off = true;
    if (message->type == WIRE_FINISHED) request->is_finished = true;
    if (message->type == WIRE_FINISHED) request->reason = message->finished.reason;
    if (message->type == WIRE_FAILED) request->is_failed = true;
    if (message->type == WIRE_FAILED) request->status = message->failed.status;
}

/* Takes part in the world until `condition`. */
#define WAIT_UNTIL(client, condition)                                                                                  \
    do {                                                                                                               \
        int64_t deadline_ns = bt_now_ns() + (int64_t)WAIT_MS * BT_NS_PER_MS;                                           \
        while (!(condition) && bt_now_ns() < deadline_ns) client_look(client);                                         \
        CHECK(condition, "within %d ms", WAIT_MS);                                                                     \
    } while (0)

static void client_look(client *client) {
    reg_poll_run_once(client->poll, link_hub_turn(client->hub) ? 0 : 5);
    reg_watcher_tick(client->watcher);
    bt_queue_node *node = bt_queue_take(client->queue);
    while (node != NULL) {
        bt_queue_node *next = node->next;
        on_event(client, (link_event *)(void *)node);
        link_event_free((link_event *)(void *)node);
        node = next;
    }
}

static void client_open(client *client) {
    bt_error err = {0};
    memset(client, 0, sizeof(*client));
    client->incarnation = link_random_u64();
    CHECK(bt_queue_open(&client->queue, &err) == BT_OK, "%s", err.text);
    link_config links = {
        .name = "smoke", .incarnation = client->incarnation, .role = WIRE_ROLE_GATEWAY, .queue = client->queue};
    CHECK(link_hub_open(&links, &client->hub, &err) == BT_OK, "%s", err.text);
    CHECK(reg_poll_open(&client->poll, &err) == BT_OK, "%s", err.text);
    reg_loop loop = reg_poll_loop(client->poll);
    reg_watcher_config watcher = {.redis = redis_address, .on_worker = on_worker, .context = client};
    CHECK(reg_watcher_open(&watcher, &loop, &client->watcher, &err) == BT_OK, "%s", err.text);
    WAIT_UNTIL(client, client->links[0] != NULL && client->links[1] != NULL && client->n_statuses[0] > 0 &&
                           client->n_statuses[1] > 0);
}

static void client_close(client *client) {
    reg_watcher_close(client->watcher);
    reg_poll_close(client->poll);
    for (int i = 0; i < 2; i++) link_dialer_close(client->dialers[i]);
    link_hub_close(client->hub, 1000);
    for (bt_queue_node *node = bt_queue_take(client->queue), *next; node != NULL; node = next) {
        next = node->next;
        link_event_free((link_event *)(void *)node);
    }
    bt_queue_close(client->queue);
}

static wire_request request_id(const client *client, uint64_t serial) {
    return (wire_request){client->incarnation, serial, 0};
}

static void submit(client *client, uint64_t serial, uint32_t max_tokens) {
    request *request = &client->requests[serial % N_REQUESTS];
    const reg_worker *decode = &client->workers[1];
    wire_candidate candidate = {wire_str_from(decode->name), decode->incarnation, wire_str_from(decode->kv_address)};
    wire_message message = {.type = WIRE_SUBMIT,
                            .submit = {.request = request_id(client, serial),
                                       .sampling = request->sampling,
                                       .max_tokens = max_tokens,
                                       .n_prompt = request->n_prompt,
                                       .tokens = request->prompt,
                                       .n_tokens = request->n_prompt,
                                       .candidates = &candidate,
                                       .n_candidates = 1}};
    request->n_got = 0;
    request->is_accepted = request->is_handed_off = request->is_finished = request->is_failed = false;
    CHECK(link_send(client->links[0], &message) == BT_OK, "SUBMIT");
}

static void cancel(client *client, uint64_t serial) {
    wire_message message = {.type = WIRE_CANCEL, .cancel = {.request = request_id(client, serial)}};
    for (int i = 0; i < 2; i++) link_send(client->links[i], &message);
}

static bool is_idle(const client *client) {
    for (int i = 0; i < 2; i++) {
        const wire_load *load = &client->loads[i];
        if (load->running + load->waiting + load->kv_blocks_used > 0 || client->n_statuses[i] == 0) return false;
    }
    return true;
}

/* ---- the truth: the same model in this process ---- */

static void requests_make(client *client, krn_model *model) {
    static const uint32_t n_prompts[N_REQUESTS] = {1, 2, 63, 64, 65, 128, 200, 300, 600};
    uint32_t vocab_size = krn_model_config(model)->vocab_size;
    uint64_t state = 1;
    for (uint32_t r = 0; r < N_REQUESTS; r++) {
        request *request = &client->requests[r];
        request->n_prompt = n_prompts[r];
        for (uint32_t i = 0; i < request->n_prompt; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            request->prompt[i] = (uint32_t)(state >> 33) % vocab_size;
        }
        request->sampling = (wire_sampling){.temperature = r % 2 == 0 ? 0 : 1, .top_p = 1, .seed = r, .ignore_eos = 1};
    }
}

static void expect(krn_model *model, krn_kv kv, request *request, uint32_t n_output) {
    uint32_t vocab_size = krn_model_config(model)->vocab_size, blocks[MODEL_LEN / KV_BLOCK_TOKENS];
    for (uint32_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) blocks[i] = i;
    float *logits = bt_calloc(vocab_size, sizeof(*logits));
    krn_sampler *sampler = krn_sampler_open(vocab_size);
    krn_sequence sequence = {request->prompt, blocks, request->n_prompt, 0, KRN_EXPANDED, 1};
    for (uint32_t i = 0; i < n_output; i++) {
        bt_status status = krn_forward(model, kv, &sequence, 1, logits, NULL, NULL);
        BT_ASSERT(status == BT_OK);
        uint32_t position = request->n_prompt + i;
        request->expected[i] = krn_sample(sampler, logits, &request->sampling, position);
        sequence = (krn_sequence){&request->expected[i], blocks, 1, position, KRN_ABSORBED, 1};
    }
    request->n_expected = n_output;
    krn_sampler_close(sampler);
    free(logits);
}

static void expect_all(client *client, uint32_t n_output) {
    const krn_model_options options = {.dir = model_dir,
                                       .backend = backend,
                                       .n_threads = 1,
                                       .max_rows = MAX_PROMPT,
                                       .max_positions = MODEL_LEN,
                                       .max_logits = 1};
    krn_model *model = NULL;
    bt_error err = {0};
    bt_status status = krn_model_open(&options, &model, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) exit(1);
    krn_kv kv = {.layout = krn_model_kv_layout(model, MODEL_LEN / KV_BLOCK_TOKENS)};
    kv.base = bt_calloc_aligned(kv_pool_bytes(&kv.layout), 64);
    requests_make(client, model);
    for (uint32_t r = 0; r < N_REQUESTS; r++) expect(model, kv, &client->requests[r], n_output);
    free(kv.base);
    krn_model_close(model);
}

/* ---- tests ---- */

static void check_answer(const client *client, uint32_t r, uint8_t reason) {
    const request *request = &client->requests[r];
    CHECK(request->is_accepted && request->is_handed_off && request->reason == reason, "request %u", r);
    CHECK(request->n_got == request->n_expected, "request %u: %u tokens", r, request->n_got);
    for (uint32_t i = 0; i < request->n_expected; i++)
        CHECK(request->got[i] == request->expected[i], "request %u token %u: %u, expected %u", r, i, request->got[i],
              request->expected[i]);
}

static bool all_finished(const client *client) {
    for (uint32_t r = 0; r < N_REQUESTS; r++) {
        if (!client->requests[r].is_finished) return false;
    }
    return true;
}

static void tokens_are_those_of_one_process(client *client, uint32_t n_output) {
    for (uint32_t r = 0; r < N_REQUESTS; r++) submit(client, r, n_output);
    WAIT_UNTIL(client, all_finished(client));
    for (uint32_t r = 0; r < N_REQUESTS; r++) check_answer(client, r, WIRE_FINISH_LENGTH);
    WAIT_UNTIL(client, is_idle(client));
}

static void cancel_gives_all_blocks_back_in_every_phase(client *client) {
    request *request = &client->requests[8];
    for (uint32_t phase = 0; phase < 4; phase++) {
        uint64_t serial = 8 + (uint64_t)(phase + 1) * N_REQUESTS;
        submit(client, serial, MAX_OUTPUT);
        if (phase == 1) WAIT_UNTIL(client, request->is_accepted);
        if (phase == 2) WAIT_UNTIL(client, request->n_got > 0);
        if (phase == 3) WAIT_UNTIL(client, request->n_got > 5);
        cancel(client, serial);
        submit(client, 40ull * N_REQUESTS + phase * N_REQUESTS, 3); /* so that a new STATUS comes for sure */
        WAIT_UNTIL(client, client->requests[0].is_finished);
        WAIT_UNTIL(client, is_idle(client));
        CHECK(!request->is_failed && !request->is_finished, "phase %u: an answer after CANCEL", phase);
    }
}

static void nonsense_is_refused(client *client) {
    request *request = &client->requests[0];
    uint32_t kept = request->prompt[0];
    request->prompt[0] = UINT32_MAX;
    submit(client, 70 * N_REQUESTS, 4);
    WAIT_UNTIL(client, request->is_failed);
    CHECK(request->status == BT_BAD_REQUEST, "a token id above the vocabulary: %u", request->status);
    request->prompt[0] = kept;
}

static bool log_has(const char *name, const char *text) {
    char path[600], line[2000];
    snprintf(path, sizeof(path), "%s/%s.log", work_dir, name);
    FILE *file = fopen(path, "r");
    bool is_there = false;
    while (file != NULL && !is_there && fgets(line, sizeof(line), file) != NULL) is_there = strstr(line, text) != NULL;
    if (file != NULL) fclose(file);
    return is_there;
}

static void a_refused_hand_off_is_logged_with_its_reason(client *client) {
    request *request = &client->requests[0];
    link_dialer_close(client->dialers[1]);
    WAIT_UNTIL(client, client->links[1] == NULL);
    uint64_t serial = 1000;
    do { /* until decode has noticed, too */
        submit(client, serial++ * N_REQUESTS, 3);
        WAIT_UNTIL(client, request->is_failed || request->is_handed_off);
    } while (request->is_handed_off);
    CHECK(request->status == BT_PEER_LOST, "%u", request->status);
    char line[200];
    snprintf(line, sizeof(line), "hand-off refused req=" WIRE_REQ_FORMAT " worker=decode-0",
             WIRE_REQ_ARGS(request_id(client, (serial - 1) * N_REQUESTS)));
    CHECK(log_has("decode-0", line), "\"%s\" in decode's log", line);
    CHECK(log_has("decode-0", "text=\"This decode worker has no link to the request's gateway.\""), "and why");
    client->n_statuses[1] = 0;
    bt_error err = {0};
    bt_status status = link_hub_dial(client->hub, client->workers[1].control_address, 1, &client->dialers[1], &err);
    CHECK(status == BT_OK, "%s", err.text);
    WAIT_UNTIL(client, client->links[1] != NULL && client->n_statuses[1] > 0);
}

static void a_killed_decode_comes_back(client *client, pid_t *decode) {
    request *request = &client->requests[8];
    submit(client, 8 + 80 * N_REQUESTS, MAX_OUTPUT);
    WAIT_UNTIL(client, request->n_got > 3);
    int64_t begin_ns = bt_now_ns();
    kill(*decode, SIGKILL);
    waitpid(*decode, NULL, 0);
    WAIT_UNTIL(client, client->links[1] == NULL);
    CHECK(bt_now_ns() - begin_ns < 2ll * BT_NS_PER_S, "the link went down late");
    client->n_statuses[1] = 0;
    *decode = start_worker("baton-decode", "decode-0", "--max-num-seqs=5");
    WAIT_UNTIL(client, client->links[1] != NULL && client->n_statuses[1] > 0);
    cancel(client, 8 + 80 * N_REQUESTS);
    submit(client, 4 + 81 * N_REQUESTS, client->requests[4].n_expected);
    WAIT_UNTIL(client, client->requests[4].is_finished);
    check_answer(client, 4, WIRE_FINISH_LENGTH);
    WAIT_UNTIL(client, is_idle(client));
}

static void a_lost_gateway_leaves_nothing(client *old) {
    static client other;
    submit(old, 8 + 90 * N_REQUESTS, MAX_OUTPUT);
    WAIT_UNTIL(old, old->requests[8].n_got > 3);
    client_close(old);
    client_open(&other);
    WAIT_UNTIL(&other, is_idle(&other));
    client_close(&other);
}

static void term_drains(client *client, pid_t prefill, pid_t decode) {
    uint32_t n_output = client->requests[8].n_expected;
    submit(client, 8 + 100 * N_REQUESTS, n_output);
    WAIT_UNTIL(client, client->requests[8].is_handed_off);
    kill(prefill, SIGTERM);
    kill(decode, SIGTERM);
    WAIT_UNTIL(client, client->requests[8].is_finished);
    check_answer(client, 8, WIRE_FINISH_LENGTH);
    expect_exit(prefill, "prefill");
    expect_exit(decode, "decode");
}

int main(int argc, char **argv) {
    (void)argc;
    char self[512];
    snprintf(self, sizeof(self), "%s", argv[0]);
    snprintf(bin_dir, sizeof(bin_dir), "%.480s/../bin", dirname(self));
    if (system("command -v redis-server > /dev/null") != 0) TEST_SKIP("no redis-server");
    bt_log_set_level(BT_LOG_ERROR);
    test_dir_make(work_dir);
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) backend = "ref";
    char port[16];
    snprintf(port, sizeof(port), "%u", free_port());
    snprintf(redis_address, sizeof(redis_address), "127.0.0.1:%s", port);
    char *redis_argv[] = {"redis-server", "--port", port, "--save", "", "--appendonly", "no", "--dir", work_dir, NULL};
    pid_t redis = start(redis_argv, "redis"); /* forks first: NNG and UCX do not survive one */
    pid_t prefill = start_worker("baton-prefill", "prefill-0", "--max-num-batched-tokens=100");
    pid_t decode = start_worker("baton-decode", "decode-0", "--max-num-seqs=5");

    static client client, last;
    enum { N_OUTPUT = 12 };
    client_open(&client);
    expect_all(&client, N_OUTPUT);
    tokens_are_those_of_one_process(&client, N_OUTPUT);
    cancel_gives_all_blocks_back_in_every_phase(&client);
    nonsense_is_refused(&client);
    a_refused_hand_off_is_logged_with_its_reason(&client);
    a_killed_decode_comes_back(&client, &decode);
    memcpy(last.requests, client.requests, sizeof(last.requests));
    a_lost_gateway_leaves_nothing(&client);
    static request kept[N_REQUESTS];
    memcpy(kept, last.requests, sizeof(kept));
    client_open(&last);
    memcpy(last.requests, kept, sizeof(kept));
    term_drains(&last, prefill, decode);
    client_close(&last);

    kill(redis, SIGTERM);
    waitpid(redis, NULL, 0);
    if (test_n_failed == 0) {
        test_dir_remove(work_dir);
    } else {
        fprintf(stderr, "logs are in %s\n", work_dir);
    }
    TEST_END();
}
