/* BPE as it is defined: of all pairs of neighbours the one with the lowest order is merged first, the leftmost of
 * equals, until there is none. Short pieces look for it in an array, which is faster than anything else as long as it
 * is two cache lines; for others a heap holds the pairs, stale ones too, as the original does. O(n log n). */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/bpe_internal.h"

typedef struct {
    uint32_t id, order, merged; /* order, merged: with the symbol behind it; BPE_NO_ORDER: they do not merge */
} short_symbol;

static void look_at_pair(const bpe_model *model, short_symbol *left) {
    const bpe_merge *merge = bpe_merge_find(model, left[0].id, left[1].id);
    left->order = merge != NULL ? merge->order : BPE_NO_ORDER;
    left->merged = merge != NULL ? merge->id : BPE_NO_ID;
}

static void merge_short(const bpe_model *model, const uint8_t *piece, size_t n_bytes, tok_ids *out, bpe_merge *last) {
    short_symbol symbols[BPE_SHORT_BYTES];
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        symbols[n].id = model->byte_ids[piece[i]];
        n += symbols[n].id != BPE_NO_ID;
    }
    for (size_t i = 0; i + 1 < n; i++) look_at_pair(model, &symbols[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) best = symbols[i].order < symbols[best].order ? i : best;
        short_symbol *left = &symbols[best];
        if (left->order == BPE_NO_ORDER) break;
        if (last != NULL) *last = (bpe_merge){(uint64_t)left[0].id << 32 | left[1].id, left->order, left->merged};
        left->id = left->merged;
        n--;
        memmove(left + 1, left + 2, (n - best - 1) * sizeof(*left));
        if (best + 1 < n) look_at_pair(model, left);
        if (best > 0) look_at_pair(model, left - 1);
    }
    for (size_t i = 0; i < n; i++) tok_ids_put(out, symbols[i].id);
}

typedef struct {
    uint32_t id; /* BPE_NO_ID: merged into the symbol before */
    int32_t prev, next;
} bpe_symbol;

typedef struct {
    uint64_t order; /* the merge's << 32 | position: lowest first, then leftmost */
    uint32_t id;    /* what the pair became when this was pushed */
} bpe_candidate;

typedef struct {
    bpe_candidate *items;
    size_t n;
} bpe_heap;

static void heap_push(bpe_heap *heap, bpe_candidate item) {
    size_t at = heap->n++;
    for (; at > 0 && heap->items[(at - 1) / 2].order > item.order; at = (at - 1) / 2) {
        heap->items[at] = heap->items[(at - 1) / 2];
    }
    heap->items[at] = item;
}

static bpe_candidate heap_pop(bpe_heap *heap) {
    bpe_candidate top = heap->items[0], last = heap->items[--heap->n];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < heap->n; at = child) {
        if (child + 1 < heap->n && heap->items[child + 1].order < heap->items[child].order) child++;
        if (heap->items[child].order >= last.order) break;
        heap->items[at] = heap->items[child];
    }
    heap->items[at] = last;
    return top;
}

static void heap_offer(const bpe_model *model, bpe_heap *heap, const bpe_symbol *symbols, int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    const bpe_merge *merge = bpe_merge_find(model, symbols[left].id, symbols[symbols[left].next].id);
    if (merge == NULL) return;
    heap_push(heap, (bpe_candidate){.order = (uint64_t)merge->order << 32 | (uint32_t)left, .id = merge->id});
}

/* The bytes as symbols, those without a token left out; returns their number. */
static int32_t read_symbols(const bpe_model *model, const uint8_t *piece, size_t n_bytes, bpe_symbol *symbols) {
    int32_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        uint32_t id = model->byte_ids[piece[i]];
        if (id == BPE_NO_ID) continue;
        symbols[n] = (bpe_symbol){.id = id, .prev = n - 1, .next = n + 1};
        n++;
    }
    if (n > 0) symbols[n - 1].next = -1;
    return n;
}

void bpe_merge_encode(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes, tok_ids *out,
                      bpe_merge *last) {
    if (n_bytes <= BPE_SHORT_BYTES) {
        merge_short(model, piece, n_bytes, out, last);
        return;
    }
    /* Every symbol is offered once at the start, and every merge offers two pairs and removes one symbol. */
    bpe_heap heap = {.items = bpe_scratch_reserve(scratch, n_bytes * (sizeof(bpe_symbol) + 3 * sizeof(bpe_candidate)))};
    bpe_symbol *symbols = (bpe_symbol *)(void *)(heap.items + 3 * n_bytes);
    int32_t n = read_symbols(model, piece, n_bytes, symbols);
    if (n == 0) return;
    for (int32_t i = 0; i < n; i++) heap_offer(model, &heap, symbols, i);
    while (heap.n > 0) {
        bpe_candidate top = heap_pop(&heap);
        bpe_symbol *left = &symbols[(uint32_t)top.order];
        if (left->id == BPE_NO_ID || left->next < 0) continue;
        bpe_symbol *right = &symbols[left->next];
        const bpe_merge *merge = bpe_merge_find(model, left->id, right->id);
        if (merge == NULL || merge->id != top.id) continue; /* stale: a neighbour has been merged since */
        if (last != NULL) *last = *merge;
        left->id = merge->id;
        left->next = right->next;
        right->id = BPE_NO_ID;
        if (left->next >= 0) symbols[left->next].prev = (int32_t)(left - symbols);
        heap_offer(model, &heap, symbols, left->prev);
        heap_offer(model, &heap, symbols, (int32_t)(left - symbols));
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next) tok_ids_put(out, symbols[i].id);
}
