/* Owns the rules' file, two connections to Redis (commands; pub/sub), and the batch whose answers are due. Decides
 * nothing: what counts and what that means is gw_limits.c's business. */
#include "gateway/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/core/alloc.h"
#include "common/core/log.h"
#include "common/model/json.h"
#include "common/registry/redis_conn.h"
#include "common/registry/redis_keys.h"
#include "gateway/http/watch.h"

enum { MAX_FILE_BYTES = 16 << 20, CAP_BATCH = 256, CAP_KEY = 64 };

typedef struct {
    gw_limiter *limiter;
    gw_delta delta;
    uint64_t total; /* 0: no answer */
} change;

struct gw_limiter {
    gw_limiter_config config;
    gw_limits *limits; /* owned, as the connections */
    redis_conn *commands, *events;
    gw_watch watch; /* of the file */
    change batch[CAP_BATCH];
    uint32_t n_batch, n_due; /* n_due: answers */
    bool is_refusal_logged;
};

static int64_t system_s(void) { return time(NULL); }

/* ---- the file -------------------------------------------------------------------------------------------------------
 */

static bt_status read_rules(gw_limiter *limiter, bt_error *err) {
    bt_buf text = {0};
    bt_error cause = {0};
    gw_watch_mark(&limiter->watch);
    bt_status status = mdl_file_read(limiter->config.path, MAX_FILE_BYTES, &text, err);
    if (status == BT_OK) {
        status = gw_limits_load(limiter->limits, (const char *)text.bytes, text.n_bytes, &cause);
        if (status != BT_OK) bt_fail(err, status, "%.200s: %s", limiter->config.path, cause.text);
    }
    bt_buf_fini(&text);
    return status;
}

void gw_limiter_reload(gw_limiter *limiter) {
    if (limiter == NULL || !gw_watch_is_due(&limiter->watch)) return;
    bt_error err = {0};
    bt_status status = read_rules(limiter, &err);
    if (!limiter->config.is_first) return;
    if (status == BT_OK)
        bt_log(BT_LOG_INFO, "gateway", "limits read again", "file=%s", limiter->config.path);
    else
        bt_log(BT_LOG_WARN, "gateway", "cannot read the limits, the old ones stay", "reason=\"%s\"", err.text);
}

/* ---- to Redis -------------------------------------------------------------------------------------------------------
 */

static void key_of_window(int64_t window, char out[CAP_KEY]) {
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)window);
    snprintf(out, CAP_KEY, redis_key_patterns[REDIS_USAGE], text);
}

/* All answers are there: the others hear the totals. */
static void publish(gw_limiter *limiter) {
    bt_buf text = {0};
    for (uint32_t i = 0; i < limiter->n_batch; i++) {
        const change *one = &limiter->batch[i];
        if (one->total > 0)
            bt_buf_printf(&text, "%lld %llu %s\n", (long long)one->delta.window, (unsigned long long)one->total,
                          one->delta.id);
    }
    const char *args[] = {"PUBLISH", redis_key_patterns[REDIS_TOTALS], bt_buf_text(&text)};
    if (text.n_bytes > 0) (void)redis_conn_command(limiter->commands, NULL, NULL, 3, args);
    bt_buf_fini(&text);
}

static void on_total(void *context, const redis_value *reply) {
    change *one = context;
    gw_limiter *limiter = one->limiter;
    bool is_total = reply != NULL && reply->kind == REDIS_VALUE_INTEGER && reply->integer > 0;
    one->total = is_total ? (uint64_t)reply->integer : 0;
    gw_limits_settle(limiter->limits, &one->delta, is_total ? &one->total : NULL);
    if (reply != NULL && !is_total && !limiter->is_refusal_logged) {
        limiter->is_refusal_logged = true;
        bt_log(BT_LOG_WARN, "gateway", "Redis does not count limits", "id=\"%s\" reason=\"%.200s\"", one->delta.id,
               reply->kind == REDIS_VALUE_ERROR ? reply->text : "not a positive number");
    }
    if (--limiter->n_due == 0) publish(limiter);
}

static void send_change(gw_limiter *limiter, change *one) {
    char key[CAP_KEY], known[24], amount[24];
    key_of_window(one->delta.window, key);
    snprintf(known, sizeof known, "%llu", (unsigned long long)one->delta.known);
    snprintf(amount, sizeof amount, "%llu", (unsigned long long)one->delta.amount);
    if (one->delta.is_first) {
        const char *args[] = {"HSETNX", key, one->delta.id, known};
        (void)redis_conn_command(limiter->commands, NULL, NULL, 4, args);
    }
    const char *args[] = {"HINCRBY", key, one->delta.id, amount};
    limiter->n_due++;
    if (redis_conn_command(limiter->commands, on_total, one, 4, args) == BT_OK) return;
    limiter->n_due--;
    gw_limits_settle(limiter->limits, &one->delta, NULL);
}

static void send_expiry(gw_limiter *limiter, int64_t window) {
    char key[CAP_KEY];
    key_of_window(window, key);
    const char *args[] = {"EXPIRE", key, "120"}; /* clocks of gateways may differ by a minute */
    (void)redis_conn_command(limiter->commands, NULL, NULL, 3, args);
}

static void flush(gw_limiter *limiter) {
    if (limiter->n_due > 0 || !redis_conn_is_up(limiter->commands)) return;
    limiter->n_batch = 0;
    while (limiter->n_batch < CAP_BATCH) {
        change *one = &limiter->batch[limiter->n_batch];
        *one = (change){.limiter = limiter};
        if (!gw_limits_take(limiter->limits, &one->delta)) break;
        limiter->n_batch++;
        send_change(limiter, one);
    }
    for (uint32_t i = 0; i < limiter->n_batch; i++)
        if (i == 0 || limiter->batch[i].delta.window != limiter->batch[i - 1].delta.window)
            send_expiry(limiter, limiter->batch[i].delta.window);
}

/* ---- from Redis -----------------------------------------------------------------------------------------------------
 */

/* A number in front of a blank or the end, 0 to 2^62. NULL: it is none. What follows it otherwise. */
static const char *parse_number(const char *text, const char *end, uint64_t *out) {
    uint64_t value = 0;
    const char *c = text;
    for (; c < end && *c >= '0' && *c <= '9'; c++) {
        value = value * 10 + (uint64_t)(*c - '0');
        if (value > (uint64_t)1 << 62 || c - text > 20) return NULL;
    }
    if (c == text || (c < end && *c != ' ')) return NULL;
    *out = value;
    return c < end ? c + 1 : c;
}

/* Lines of "WINDOW TOTAL ID". */
static void on_published(void *context, const char *text, size_t n_bytes) {
    gw_limiter *limiter = context;
    const char *end = text + n_bytes;
    gw_limits_window(limiter->limits, limiter->config.wall_s());
    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *line_end = newline == NULL ? end : newline;
        uint64_t window, total;
        const char *rest = parse_number(text, line_end, &window);
        if (rest != NULL) rest = parse_number(rest, line_end, &total);
        if (rest != NULL) gw_limits_heard(limiter->limits, (int64_t)window, rest, (size_t)(line_end - rest), total);
        text = line_end + 1;
    }
}

/* The running minute's totals, as id, figure, id, figure, ... */
static void on_totals(void *context, const redis_value *reply) {
    gw_limiter *limiter = context;
    if (reply == NULL || reply->kind != REDIS_VALUE_LIST) return;
    int64_t window = gw_limits_window(limiter->limits, limiter->config.wall_s());
    for (size_t i = 0; i + 1 < reply->n_items; i += 2) {
        const redis_value *id = &reply->items[i], *figure = &reply->items[i + 1];
        uint64_t total;
        if (id->kind != REDIS_VALUE_TEXT || figure->kind != REDIS_VALUE_TEXT) continue;
        if (parse_number(figure->text, figure->text + figure->n_bytes, &total) != NULL)
            gw_limits_heard(limiter->limits, window, id->text, id->n_bytes, total);
    }
}

/* One of the two connections is there (again): what was said meanwhile is read. */
static void read_totals(gw_limiter *limiter) {
    char key[CAP_KEY];
    key_of_window(gw_limits_window(limiter->limits, limiter->config.wall_s()), key);
    const char *args[] = {"HGETALL", key};
    (void)redis_conn_command(limiter->commands, on_totals, limiter, 2, args);
}

static void on_commands_up(void *context) {
    gw_limiter *limiter = context;
    limiter->is_refusal_logged = false;
    gw_limits_reconnected(limiter->limits);
    read_totals(limiter);
    flush(limiter);
}

static void on_events_up(void *context) { read_totals(context); }

static void on_down(void *context) {
    const gw_limiter *limiter = context;
    if (limiter->config.is_first)
        bt_log(BT_LOG_WARN, "gateway", "limits hold for each gateway alone", "redis=%s", limiter->config.redis);
}

/* ---- requests -------------------------------------------------------------------------------------------------------
 */

bt_status gw_limiter_check(gw_limiter *limiter, const gw_payers *payers, gw_error *error) {
    static const char *const payer_names[] = {"model", "user", "key"};
    gw_limit_hit hit;
    if (limiter == NULL) return BT_OK;
    if (gw_limits_check(limiter->limits, payers, limiter->config.wall_s(), &hit)) return BT_OK;
    bool is_requests = hit.unit == GW_REQUESTS;
    gw_fail(error, 429, "", "%s: %s has exceeded %s: %llu", payer_names[hit.payer], hit.name,
            is_requests ? "RPM" : "TPM", (unsigned long long)hit.limit);
    error->retry_after_s = hit.retry_after_s;
    error->reason = is_requests ? "requests_per_minute" : "tokens_per_minute";
    gw_error_set_header(error,
                        !is_requests               ? "x-error-tpm-exceeded"
                        : hit.payer == GW_BY_MODEL ? "x-error-model-rps-exceeded"
                                                   : "x-error-rpm-exceeded",
                        "true");
    return BT_BAD_REQUEST;
}

void gw_limiter_count(gw_limiter *limiter, const gw_payers *payers) {
    if (limiter == NULL) return;
    gw_limits_count(limiter->limits, payers, limiter->config.wall_s());
    flush(limiter);
}

void gw_limiter_spend(gw_limiter *limiter, const gw_payers *payers, uint32_t n_tokens) {
    if (limiter != NULL) gw_limits_spend(limiter->limits, payers, n_tokens, limiter->config.wall_s());
}

/* ---- life -----------------------------------------------------------------------------------------------------------
 */

void gw_limiter_tick(gw_limiter *limiter) {
    if (limiter == NULL) return;
    redis_conn_tick(limiter->commands);
    redis_conn_tick(limiter->events);
    flush(limiter);
}

bt_status gw_limiter_open(const gw_limiter_config *config, const reg_loop *loop, gw_limiter **out, bt_error *err) {
    gw_limiter *limiter = bt_calloc(1, sizeof *limiter);
    limiter->config = *config;
    if (config->wall_s == NULL) limiter->config.wall_s = system_s;
    limiter->limits = gw_limits_open(config->seed);
    redis_conn_config commands = {
        .address = config->redis, .on_up = on_commands_up, .on_down = on_down, .context = limiter};
    redis_conn_config events = {.address = config->redis,
                                .channel = redis_key_patterns[REDIS_TOTALS],
                                .on_up = on_events_up,
                                .on_message = on_published,
                                .context = limiter};
    gw_watch_add(&limiter->watch, limiter->config.path);
    bt_status status = read_rules(limiter, err);
    if (status == BT_OK) status = redis_conn_open(&commands, loop, &limiter->commands, err);
    if (status == BT_OK) status = redis_conn_open(&events, loop, &limiter->events, err);
    if (status != BT_OK) {
        gw_limiter_close(limiter);
        return status;
    }
    *out = limiter;
    return BT_OK;
}

void gw_limiter_close(gw_limiter *limiter) {
    if (limiter == NULL) return;
    redis_conn_close(limiter->commands);
    redis_conn_close(limiter->events);
    gw_limits_close(limiter->limits);
    free(limiter);
}
