/* The table of strategies. To add one: write the function that fills costs[], and its row. */
#include "gateway/core/gw_strategy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Costs are finite; the lowest wins. */
typedef void (*cost_fn)(const gw_scene *scene, double *costs);

/* ---- figures ---------------------------------------------------------------------------------------------------- */

/* Before anybody has computed anything: a few seconds of a small model on a few cores. */
enum { GUESSED_TOKENS_PER_S = 1000 };

double gw_figures_mean_speed(const gw_figures *workers, uint32_t n_workers) {
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_workers; i++) {
        sum += workers[i].tokens_per_s;
        n += workers[i].tokens_per_s > 0;
    }
    return n > 0 ? sum / n : GUESSED_TOKENS_PER_S;
}

static double mean_speed(const gw_scene *scene) { return gw_figures_mean_speed(scene->workers, scene->n_workers); }

static double ms_of(const gw_figures *worker, uint32_t n_tokens, double mean) {
    return n_tokens * 1e3 / (worker->tokens_per_s > 0 ? worker->tokens_per_s : mean);
}

double gw_figures_queue_ms(const gw_figures *worker, double mean) {
    return ms_of(worker, worker->n_queued_tokens, mean);
}

static uint32_t n_missing(const gw_scene *scene, const gw_figures *worker) {
    return worker->n_known_tokens < scene->n_tokens ? scene->n_tokens - worker->n_known_tokens : 0;
}

/* ---- strategies ------------------------------------------------------------------------------------------------- */

static void cost_random(const gw_scene *scene, double *costs) {
    for (uint32_t i = 0; i < scene->n_workers; i++) costs[i] = 0;
}

static void cost_least_request(const gw_scene *scene, double *costs) {
    for (uint32_t i = 0; i < scene->n_workers; i++) costs[i] = scene->workers[i].n_requests;
}

static void cost_throughput(const gw_scene *scene, double *costs) {
    for (uint32_t i = 0; i < scene->n_workers; i++) costs[i] = scene->workers[i].n_queued_tokens;
}

static void cost_least_kv_cache(const gw_scene *scene, double *costs) {
    for (uint32_t i = 0; i < scene->n_workers; i++) {
        const gw_figures *worker = &scene->workers[i];
        costs[i] = worker->n_blocks_total > 0 ? (double)worker->n_blocks_used / worker->n_blocks_total : 0;
    }
}

/* ms until the first token. */
static void cost_least_latency(const gw_scene *scene, double *costs) {
    double mean = mean_speed(scene);
    for (uint32_t i = 0; i < scene->n_workers; i++) {
        const gw_figures *worker = &scene->workers[i];
        costs[i] = ms_of(worker, worker->n_queued_tokens, mean) + ms_of(worker, n_missing(scene, worker), mean);
    }
}

static double greatest(const double *costs, uint32_t n) {
    double most = 0;
    for (uint32_t i = 0; i < n; i++) most = costs[i] > most ? costs[i] : most;
    return most;
}

/* Two tiers, [0, 1) and [1, 2): by queue within each, and neither outweighs the other's strategies in a mix. Blocks
 * that are kept are worth less than a token. */
static void cost_prefix_cache(const gw_scene *scene, double *costs) {
    uint32_t longest = 0;
    for (uint32_t i = 0; i < scene->n_workers; i++)
        if (scene->workers[i].n_known_tokens > longest) longest = scene->workers[i].n_known_tokens;
    bool is_worth_it = longest > 0 && longest >= scene->n_tokens / 2;
    for (uint32_t i = 0; i < scene->n_workers; i++) {
        const gw_figures *worker = &scene->workers[i];
        double n_tokens = (double)worker->n_queued_tokens + n_missing(scene, worker);
        costs[i] = n_tokens + worker->n_blocks_kept * 0x1p-24;
    }
    double mean = mean_speed(scene), scale = 1 / (greatest(costs, scene->n_workers) + 1);
    for (uint32_t i = 0; i < scene->n_workers; i++) {
        const gw_figures *worker = &scene->workers[i];
        bool is_home = is_worth_it && worker->n_known_tokens == longest &&
                       gw_figures_queue_ms(worker, mean) <= scene->saturation_ms;
        costs[i] = costs[i] * scale + (is_home ? 0 : 1);
    }
}

static void cost_power_of_two(const gw_scene *scene, double *costs) {
    uint64_t random = ~scene->random; /* ties are broken by the other one */
    uint32_t n = scene->n_workers, one = (uint32_t)(gw_random_next(&random) % n), two = one;
    if (n > 1) two = (one + 1 + (uint32_t)(gw_random_next(&random) % (n - 1))) % n;
    cost_least_request(scene, costs);
    double most = greatest(costs, n);
    for (uint32_t i = 0; i < n; i++)
        if (i != one && i != two) costs[i] = most + 1;
}

static uint64_t mix(uint64_t key) { return gw_random_next(&key); }

static void cost_session_affinity(const gw_scene *scene, double *costs) {
    if (scene->session_key == 0) cost_least_request(scene, costs);
    double most = greatest(costs, scene->session_key == 0 ? scene->n_workers : 0) + 1;
    for (uint32_t i = 0; i < scene->n_workers; i++) {
        const gw_figures *worker = &scene->workers[i];
        double place = (double)(mix(scene->session_key ^ worker->name_hash) >> 11) * 0x1p-53;
        costs[i] = 1 + (scene->session_key != 0 ? place : costs[i] / most);
        if (scene->session_name != 0 && scene->session_name == worker->name_hash) costs[i] = 0;
    }
}

static void cost_slo(const gw_scene *scene, double *costs) {
    cost_least_latency(scene, costs);
    for (uint32_t i = 0; i < scene->n_workers; i++) {
        bool is_in_time = costs[i] <= scene->slo_ttft_ms;
        costs[i] = is_in_time ? n_missing(scene, &scene->workers[i]) : (double)UINT32_MAX + costs[i];
    }
}

/* The first is the default. */
#define STRATEGIES(ROW)                                                                                                \
    ROW("prefix-cache", cost_prefix_cache, false)                                                                      \
    ROW("pd", cost_prefix_cache, true)                                                                                 \
    ROW("least-request", cost_least_request, false)                                                                    \
    ROW("least-latency", cost_least_latency, false)                                                                    \
    ROW("least-kv-cache", cost_least_kv_cache, false)                                                                  \
    ROW("least-gpu-cache", cost_least_kv_cache, false)                                                                 \
    ROW("throughput", cost_throughput, false)                                                                          \
    ROW("power-of-two", cost_power_of_two, false)                                                                      \
    ROW("session-affinity", cost_session_affinity, false)                                                              \
    ROW("slo", cost_slo, true)                                                                                         \
    ROW("random", cost_random, false)

#define ROW(name, cost, stands_alone) {name, cost, stands_alone},
static const struct {
    const char *name;
    cost_fn cost;
    bool stands_alone; /* not in a mix */
} table[] = {STRATEGIES(ROW)};
#undef ROW
enum { N_TABLE = sizeof(table) / sizeof(table[0]) };

const char *gw_strategy_names(void) {
#define ROW(name, cost, stands_alone) ", " name
    static const char names[] = STRATEGIES(ROW);
#undef ROW
    return names + strlen(", ");
}

/* ---- parsing ---------------------------------------------------------------------------------------------------- */

/* "NAME" or "NAME:WEIGHT", n_bytes long. */
static bool parse_part(const char *text, size_t n_bytes, gw_strategy *out) {
    const char *colon = memchr(text, ':', n_bytes);
    size_t n_name = colon != NULL ? (size_t)(colon - text) : n_bytes;
    uint32_t weight = colon != NULL ? 0 : 1;
    if (colon == text + n_bytes - 1 || out->n_parts == GW_MAX_MIX) return false;
    for (const char *at = colon != NULL ? colon + 1 : text + n_bytes; at < text + n_bytes; at++) {
        if (*at < '0' || *at > '9') return false;
        weight = weight * 10 + (uint32_t)(*at - '0');
        if (weight > GW_MAX_WEIGHT) return false;
    }
    for (uint32_t i = 0; i < N_TABLE; i++) {
        if (strlen(table[i].name) != n_name || memcmp(text, table[i].name, n_name) != 0) continue;
        out->parts[out->n_parts].which = i;
        out->parts[out->n_parts++].weight = weight;
        return true;
    }
    return false;
}

bt_status gw_strategy_parse(const char *text, gw_strategy *out, bt_error *err) {
    gw_strategy parsed = {0};
    if (text[0] == 0) text = table[0].name;
    bool is_known = strlen(text) < sizeof(parsed.name), has_loner = false;
    for (const char *at = text; is_known; at++) {
        size_t n = strcspn(at, ",");
        const char *end = at + n;
        while (n > 0 && *at == ' ') at++, n--;
        while (n > 0 && at[n - 1] == ' ') n--;
        is_known = n > 0 && parse_part(at, n, &parsed);
        has_loner |= is_known && table[parsed.parts[parsed.n_parts - 1].which].stands_alone;
        at = end;
        if (*end == 0) break;
    }
    if (!is_known)
        return bt_fail(err, BT_BAD_REQUEST, "incorrect routing strategy %.64s, known are: %s", text,
                       gw_strategy_names());
    if (has_loner && parsed.n_parts > 1)
        return bt_fail(err, BT_BAD_REQUEST, "incorrect routing strategy %.64s: pd and slo cannot be mixed", text);
    snprintf(parsed.name, sizeof(parsed.name), "%s", text);
    *out = parsed;
    return BT_OK;
}

bool gw_strategy_has_session(const gw_strategy *strategy) {
    for (uint32_t i = 0; i < strategy->n_parts; i++)
        if (table[strategy->parts[i].which].cost == cost_session_affinity) return true;
    return false;
}

uint64_t gw_strategy_hash(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *text != 0; text++) hash = (hash ^ (uint8_t)*text) * 0x100000001b3u;
    return hash != 0 ? hash : 1;
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

/* sum += weight * costs, scaled to 0..1. */
static void add_scaled(double *sum, const double *costs, uint32_t n, uint32_t weight) {
    double least = costs[0], most = costs[0];
    for (uint32_t i = 1; i < n; i++) {
        if (costs[i] < least) least = costs[i];
        if (costs[i] > most) most = costs[i];
    }
    if (most == least) return;
    for (uint32_t i = 0; i < n; i++) sum[i] += weight * ((costs[i] - least) / (most - least));
}

uint32_t gw_strategy_choose(const gw_strategy *strategy, const gw_scene *scene, double *scratch) {
    uint32_t n = scene->n_workers, best = 0, n_ties = 0;
    double *sum = scratch, *costs = scratch + n;
    if (strategy->n_parts == 1) {
        table[strategy->parts[0].which].cost(scene, sum);
    } else {
        for (uint32_t i = 0; i < n; i++) sum[i] = 0;
        for (uint32_t i = 0; i < strategy->n_parts; i++) {
            table[strategy->parts[i].which].cost(scene, costs);
            add_scaled(sum, costs, n, strategy->parts[i].weight);
        }
    }
    uint64_t random = scene->random;
    for (uint32_t i = 0; i < n; i++) {
        if (n_ties > 0 && sum[i] > sum[best]) continue;
        n_ties = n_ties > 0 && sum[i] == sum[best] ? n_ties + 1 : 1;
        if (gw_random_next(&random) % n_ties == 0) best = i; /* each of the tied with the same chance */
    }
    return best;
}
