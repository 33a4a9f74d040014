/* A model, a cache, and sequences that are fed with a fixed pseudo-random text: what verbs measure. */
#ifndef BATON_BENCH_BATCH_H
#define BATON_BENCH_BATCH_H

#include "kernels/forward.h"

typedef struct {
    krn_model *model;
    krn_kv kv;
    float *logits;
    uint32_t *ids; /* [n_ids] the text */
    uint32_t n_ids, max_rows, max_sequences;
    uint32_t *blocks;        /* [max_sequences][blocks_each] */
    uint32_t blocks_each;    /* per sequence */
    krn_sequence *sequences; /* [max_sequences] */
    /* Between bench_batch_count() and its answer: what steps read. */
    bool is_counting;
    uint64_t *load; /* [layers][n_routed_experts]: how often experts were visited before the step; NULL: no experts */
    uint64_t n_visits, n_steps; /* pairs of a step and an expert that it visited, of n_steps */
    uint64_t n_cached;          /* positions of the cache that their sequences attended to */
} bench_batch;

/* options: max_rows of a step, max_positions and max_logits, the number of sequences. *out is zeroed by the caller and
 * closed by it whatever comes of this. */
bt_status bench_batch_open(const krn_model_options *options, bench_batch *out, bt_error *err);
void bench_batch_close(bench_batch *b);

/* Tokens 0..n of sequence 0, in steps that fit. BT_PEER_LOST, here and below: the model's group has failed. */
bt_status bench_batch_prefill(bench_batch *b, uint32_t n);

/* Every sequence gets its own copy of sequence 0's cache, so that nothing is read twice. */
void bench_batch_copy(bench_batch *b);

/* n_sequences get one token each per step, behind `depth` tokens. */
bt_status bench_batch_decode(bench_batch *b, uint32_t depth, uint32_t n_sequences, uint32_t n_steps);

/* From here on the bytes that steps read are counted. Returns those since the last call: of weights all that a token
 * reads but for its experts once per step, and each expert that the step visits; of the cache each sequence's part. */
double bench_batch_count(bench_batch *b, bool is_counting);

#endif
