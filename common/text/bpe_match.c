/* The ids that merging would give, without merging, in linear time: from left to right the longest token that fits
 * behind the one before it.
 *
 * Two neighbours fit when no merge crosses the border between them before both are complete. A row of whole tokens in
 * which all neighbours fit is what merging gives: a first merge across some border would also happen if these two stood
 * alone. So there is exactly one such row for each beginning of a piece. Where no token fits, the last one was wrong: a
 * shorter one is tried, and the place where it ended is never tried again, for the row that leads there is the only
 * one. (The idea: "So many tokens, so little time", github.blog, 2024, and its Rust crate bpe.)
 *
 * That holds if merges come in the order in which their parts come about: each merge behind all those that make its two
 * sides. Trained vocabularies are so; for others there is bpe_merge.c. Every byte must have a token. */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/bpe_internal.h"

/* Whether two whole tokens stay apart when they stand side by side. Goes back in time: of the two symbols at the border
 * the one that came last is taken apart, and each two that met are asked whether they would have merged before that. Of
 * equal merges the leftmost comes first, so against the left one a merge must have come strictly before. */
static bool do_fit(const bpe_model *model, uint32_t left, uint32_t right) {
    for (uint32_t limit = BPE_NO_ORDER;;) {
        const bpe_merge *merge = bpe_merge_find(model, left, right);
        if (merge != NULL && merge->order < limit) return false;
        const bpe_split *l = &model->splits[left], *r = &model->splits[right];
        if (l->order > r->order) {
            limit = l->order;
            left = l->right;
        } else if (r->order > 0) {
            limit = r->order + 1;
            right = r->left;
        } else {
            return true;
        }
    }
}

void bpe_match_encode(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes,
                      size_t max_ids, tok_ids *out) {
    uint64_t *is_dead = bpe_scratch_reserve(scratch, (n_bytes / 64 + 1) * sizeof(*is_dead)); /* places, a bit each */
    memset(is_dead, 0, (n_bytes / 64 + 1) * sizeof(*is_dead));
    uint32_t last = BPE_NO_ID;
    size_t begin = out->n_ids, at = 0, n_token = 0;
    uint32_t id = bpe_trie_longest(&model->trie, piece, n_bytes, &n_token);
    for (;;) {
        while (id != BPE_NO_ID) {
            size_t end = at + n_token;
            bool is_open = (is_dead[end / 64] >> (end % 64) & 1) == 0;
            if (is_open && (last == BPE_NO_ID || do_fit(model, last, id))) break;
            id = model->splits[id].shorter;
            if (id != BPE_NO_ID) n_token = model->tokens[id].n_bytes;
        }
        if (id != BPE_NO_ID) {
            tok_ids_put(out, id);
            at += n_token;
            if (at == n_bytes || out->n_ids > max_ids) return;
            last = id;
            id = bpe_trie_longest(&model->trie, piece + at, n_bytes - at, &n_token);
        } else {
            BT_ASSERT(out->n_ids > begin);
            is_dead[at / 64] |= (uint64_t)1 << (at % 64);
            out->n_ids--;
            at -= model->tokens[last].n_bytes;
            id = model->splits[last].shorter;
            if (id != BPE_NO_ID) n_token = model->tokens[id].n_bytes;
            last = out->n_ids > begin ? out->ids[out->n_ids - 1] : BPE_NO_ID;
        }
    }
}

static bool are_merges_in_order(const bpe_model *model) {
    uint32_t *made = bt_calloc(model->n_ids, sizeof(*made)); /* the last merge that makes it */
    for (size_t i = 0; i <= model->merge_mask; i++) {
        const bpe_merge *merge = &model->merges[i];
        if (merge->order > made[merge->id]) made[merge->id] = merge->order;
    }
    bool is_in_order = true;
    for (size_t i = 0; i <= model->merge_mask; i++) {
        const bpe_merge *merge = &model->merges[i];
        if (merge->order == 0) continue;
        is_in_order &= merge->order > made[merge->pair >> 32] && merge->order > made[(uint32_t)merge->pair];
    }
    free(made);
    for (int byte = 0; byte < 256; byte++) is_in_order &= model->byte_ids[byte] != BPE_NO_ID;
    return is_in_order;
}

void bpe_match_open(bpe_model *model) {
    model->can_match = are_merges_in_order(model) && bpe_trie_open(model, model->splits, &model->trie);
}
