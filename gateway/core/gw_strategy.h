/* How a prefill worker is chosen: a table of strategies, each a name and a function that gives every candidate a cost.
 * The lowest cost wins, ties are broken by the decision's random number. Pure: figures in, an index out; no I/O, no
 * clock, no state. What each minimises, and where the name and the rule come from (AIBrix:
 * pkg/plugins/gateway/algorithms):
 *
 * prefix-cache: sticky until saturated (llm-d, 2026-08: affinity until the queue of uncached tokens is worth too many
 * milliseconds). Of the workers that know the longest beginning of the prompt, if that is at least half of it (SGLang's
 * cache_threshold, Preble), the one with the shortest queue, unless it is worth more than `saturation_ms`; otherwise
 * whoever has the shortest queue, this prompt's share included. Of equals, whoever keeps fewest blocks (SGLang: the
 * smallest tree), so that idle workers get as many beginnings each. Queues are compared in tokens: how fast a worker
 * was lately follows from the prompts that it got, and to prefer the fastest would send it all that are new. `pd` is
 * another name.
 *
 * least-latency: the wait, time until the first token. (queued tokens + tokens of this prompt that are not known there)
 * / tokens per second of that worker. AIBrix adds up histograms of the past instead.
 *
 * least-request: requests there, running and waiting (AIBrix, least_request.go).
 *
 * throughput: prompt tokens there that are not computed yet, whatever the worker's speed (AIBrix, throughput.go: least
 * weighted tokens, not highest throughput).
 *
 * least-kv-cache: used share of its KV blocks. `least-gpu-cache` is another name: there is one cache.
 *
 * power-of-two: requests there, of two candidates drawn at random (Mitzenmacher, 2001).
 *
 * session-affinity: 0 for the worker that the session names, for others their place in the rendezvous hash of the
 * session's key (Thaler and Ravishankar, 1998); without either, requests there.
 *
 * slo: tokens of this prompt to be computed, among those whose wait is at most `slo_ttft_ms`: the cheapest that meets
 * the target (--slo-ttft-ms, or the request's own). If none does, the wait. Stands alone in a list, like pd.
 *
 * random: nothing.
 *
 * AIBrix's other names (least-busy-time, least-utilization, prefix-cache-preble, vtc-basic, slo-*) mean something that
 * is not known here; they are refused rather than taken for another.
 *
 * "A:2,B:1" is a mix: each one's costs are scaled to 0..1 over the candidates, then added with these weights. */
#ifndef BATON_GATEWAY_CORE_GW_STRATEGY_H
#define BATON_GATEWAY_CORE_GW_STRATEGY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/status.h"

enum { GW_CAP_STRATEGY = 128, GW_MAX_MIX = 8, GW_MAX_WEIGHT = 1000000 };

/* A name or a mix, parsed. */
typedef struct {
    char name[GW_CAP_STRATEGY]; /* as it was given; the default's own if nothing was */
    uint32_t n_parts;
    struct {
        uint32_t which; /* in the table */
        uint32_t weight;
    } parts[GW_MAX_MIX];
} gw_strategy;

/* "" is the default. BT_BAD_REQUEST: not one; the sentence lists the known names. */
bt_status gw_strategy_parse(const char *text, gw_strategy *out, bt_error *err);
const char *gw_strategy_names(void); /* "prefix-cache, least-request, ...": all, for error texts */

/* Does it look at sessions? Then the client is told which to send. */
bool gw_strategy_has_session(const gw_strategy *strategy);

/* What is known of a candidate. */
typedef struct {
    uint64_t name_hash;       /* of its name: lasts over restarts */
    uint32_t n_requests;      /* there or on their way */
    uint32_t n_queued_tokens; /* likewise: prompt tokens that it has to compute */
    uint32_t n_known_tokens;  /* of this prompt, in its prefix cache */
    uint32_t n_blocks_used, n_blocks_total;
    uint32_t n_blocks_kept; /* in its prefix cache */
    uint32_t tokens_per_s;  /* measured speed of prefill; 0: not measured yet, taken for the others' mean */
} gw_figures;

/* Mean of the measured speeds, in tokens per second; a guess if there are none. */
double gw_figures_mean_speed(const gw_figures *workers, uint32_t n_workers);

/* How long a worker needs for the tokens that it has to compute; one that was not measured has the mean speed. */
double gw_figures_queue_ms(const gw_figures *worker, double mean_speed);

typedef struct {
    const gw_figures *workers; /* [n_workers], >= 1 */
    uint32_t n_workers;
    uint32_t n_tokens;      /* of the prompt */
    uint64_t session_key;   /* 0: none; hash of what the client calls its session */
    uint64_t session_name;  /* 0: none; name_hash of the worker that its session id names */
    uint32_t saturation_ms; /* prefix-cache */
    uint32_t slo_ttft_ms;   /* slo */
    uint64_t random;
} gw_scene;

/* Index of the chosen one. scratch: [2 * n_workers]. */
uint32_t gw_strategy_choose(const gw_strategy *strategy, const gw_scene *scene, double *scratch);

/* For name_hash, session_key and session_name; never 0. */
uint64_t gw_strategy_hash(const char *text);

/* The sequence that follows from a seed (splitmix64: Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t gw_random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif
