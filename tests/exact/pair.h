/* One prefill and one decode worker with real models in one thread: the two schedulers, each with a KV memory of its
 * own, and between them a transfer that is a copy. What the schedulers decide is computed by a krn_model, so a
 * request's tokens and logprobs come out as a cluster makes them, whatever happens to it on the way, and nothing else
 * is in the way: no network, no clock, no chance. */
#ifndef BATON_TESTS_EXACT_PAIR_H
#define BATON_TESTS_EXACT_PAIR_H

#include "common/wire/wire.h"
#include "kernels/forward.h"

enum {
    PAIR_MAX_OUTPUT = 64,
    PAIR_N_LOGPROBS = 4, /* 1 + 3: of the chosen token and of the three likeliest */
    PAIR_MAX_ROWS = 512, /* of a step */
    PAIR_MAX_REQUESTS = 64,
};

/* The model that both workers run, alone or as rank 0 of a group whose other ranks are threads. */
typedef struct pair_engine pair_engine;

/* n_ranks 1: alone. */
bt_status pair_engine_open(const char *dir, const char *backend, uint32_t n_ranks, pair_engine **out, bt_error *err);
void pair_engine_close(pair_engine *engine);
const mdl_config *pair_engine_config(const pair_engine *engine);

typedef struct {
    uint32_t max_num_seqs; /* decode's batch */
    uint32_t chunk;        /* rows of a prefill step; decode computes half as many again after a preemption */
    uint32_t prefill_blocks, decode_blocks;
    bool has_prefix_cache;
    uint32_t local_tokens; /* prompts of which decode's cache lacks at most that many are computed there; 0: none */
} pair_options;

typedef struct {
    const uint32_t *prompt; /* [n_prompt] */
    uint32_t n_prompt, max_tokens;
    wire_sampling sampling; /* with PAIR_N_LOGPROBS logprobs */
    wire_constraint constraint;
} pair_request;

/* Zeroed before it is filled, so that two are compared as bytes. */
typedef struct {
    uint32_t n;
    struct {
        uint32_t token, rank, top[PAIR_N_LOGPROBS - 1];
        float logprob, top_logprobs[PAIR_N_LOGPROBS - 1];
    } outputs[PAIR_MAX_OUTPUT];
} pair_stream;

typedef struct pair pair;

pair *pair_open(pair_engine *engine, const pair_options *options);

/* All blocks but those of the prefix caches must be free; asserts it. */
void pair_close(pair *p);

/* Sends all requests at once and runs until each has finished. */
void pair_run(pair *p, const pair_request *requests, uint32_t n_requests, pair_stream *streams);

/* What happened since open. */
typedef struct {
    uint64_t n_prefix_hits; /* positions, on both sides */
    uint64_t n_preempted, n_local;
} pair_counts;
pair_counts pair_counted(const pair *p);

#endif
