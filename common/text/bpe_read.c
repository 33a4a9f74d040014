/* Fills a model from the "model" of a tokenizer.json: options, vocabulary, merges; then finds out which entries are
 * whole tokens and how they come about. */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/bpe_internal.h"
#include "common/text/utf8.h"

static bt_status check_options(const cJSON *spec, bt_error *err) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(spec, "type");
    if (cJSON_IsString(type) && strcmp(type->valuestring, "BPE") != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "tokenizer model type %.40s is not supported, only BPE", type->valuestring);
    }
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const cJSON *affix = cJSON_GetObjectItemCaseSensitive(spec, affixes[i]);
        if (cJSON_IsString(affix) && affix->valuestring[0] != 0) {
            return bt_fail(err, BT_BAD_REQUEST, "tokenizer model option %s is not supported", affixes[i]);
        }
    }
    const cJSON *dropout = cJSON_GetObjectItemCaseSensitive(spec, "dropout");
    if (cJSON_IsNumber(dropout) && dropout->valuedouble != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "tokenizer model option dropout is not supported");
    }
    return BT_OK;
}

static bt_status read_vocab(bpe_model *model, const cJSON *vocab, bt_error *err) {
    if (!cJSON_IsObject(vocab)) return bt_fail(err, BT_BAD_REQUEST, "tokenizer model has no vocab object");
    size_t n_bytes = 0, n_entries = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, vocab) {
        double id = cJSON_IsNumber(entry) ? entry->valuedouble : -1;
        if (!(id >= 0 && id < BPE_MAX_IDS) || id != (double)(uint32_t)id ||
            strlen(entry->string) > BPE_MAX_TOKEN_BYTES) {
            return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab entry %zu has no id below %d, or a text over %d bytes",
                           n_entries, (int)BPE_MAX_IDS, (int)BPE_MAX_TOKEN_BYTES);
        }
        if ((uint32_t)id >= model->n_ids) model->n_ids = (uint32_t)id + 1;
        n_bytes += strlen(entry->string);
        n_entries++;
    }
    if (n_bytes > UINT32_MAX) return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab is over 4 GiB");
    model->tokens = bt_calloc(model->n_ids, sizeof(*model->tokens));
    model->bytes = bt_calloc(n_bytes + UTF8_SLACK_BYTES, 1);
    model->slot_mask = bpe_table_mask(n_entries);
    model->slots = bt_calloc((size_t)model->slot_mask + 1, sizeof(*model->slots));
    memset(model->slots, 0xff, ((size_t)model->slot_mask + 1) * sizeof(*model->slots));
    uint32_t offset = 0;
    cJSON_ArrayForEach(entry, vocab) {
        uint32_t id = (uint32_t)entry->valuedouble, other;
        bpe_token *token = &model->tokens[id];
        if (token->n_bytes > 0) return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab gives the id %u twice", id);
        size_t n_token;
        token->is_byte_level = bpe_unmap(entry->string, model->bytes + offset, &n_token);
        token->offset = offset;
        token->n_bytes = (uint32_t)n_token;
        offset += token->n_bytes;
        if (!token->is_byte_level || n_token == 0) continue;
        if (bpe_find(model, model->bytes + token->offset, n_token, &other)) {
            return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab has the text of id %u twice", id);
        }
        bpe_slot_insert(model, id);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t one[UTF8_SLACK_BYTES] = {(uint8_t)byte};
        if (!bpe_find(model, one, 1, &model->byte_ids[byte])) model->byte_ids[byte] = BPE_NO_ID;
    }
    return BT_OK;
}

/* The two sides of a merge, "a b" or ["a", "b"], as bytes put together in `out`; *n_left is where they meet. */
static bool read_sides(const cJSON *item, uint8_t *out, size_t cap_bytes, size_t *n_left, size_t *n_both) {
    const char *left = NULL, *right = NULL, *space = NULL;
    if (cJSON_IsString(item)) {
        left = item->valuestring;
        space = strchr(left, ' ');
        right = space != NULL ? space + 1 : NULL;
    } else if (cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2) {
        left = cJSON_GetStringValue(item->child);
        right = cJSON_GetStringValue(item->child->next);
    }
    if (left == NULL || right == NULL || strlen(left) + strlen(right) + 1 > cap_bytes) return false;
    char *split = space != NULL ? strndup(left, (size_t)(space - left)) : bt_strdup(left);
    size_t n_right = 0;
    bool is_ok = bpe_unmap(split, out, n_left) && bpe_unmap(right, out + *n_left, &n_right);
    free(split);
    *n_both = *n_left + n_right;
    return is_ok;
}

/* A pair that is listed again counts as listed last. */
static void put_merge(bpe_model *model, uint32_t left, uint32_t right, uint32_t order, uint32_t merged) {
    uint64_t pair = (uint64_t)left << 32 | right, hash = bpe_pair_hash(left, right);
    uint32_t at = (uint32_t)(hash >> 32) & model->merge_mask;
    while (model->merge_tags[at] != 0 && model->merges[at].pair != pair) at = (at + 1) & model->merge_mask;
    model->merge_tags[at] = bpe_pair_tag(hash);
    model->sides[left] |= BPE_LEFT;
    model->sides[right] |= BPE_RIGHT;
    model->merges[at] = (bpe_merge){.pair = pair, .order = order, .id = merged};
}

static bt_status read_merges(bpe_model *model, const cJSON *merges, bt_error *err) {
    if (!cJSON_IsArray(merges)) return bt_fail(err, BT_BAD_REQUEST, "tokenizer model has no merges array");
    size_t n_merges = (size_t)cJSON_GetArraySize(merges);
    if (n_merges > BPE_MAX_IDS) return bt_fail(err, BT_BAD_REQUEST, "tokenizer model has too many merges");
    model->merge_mask = bpe_table_mask(n_merges);
    model->merges = bt_calloc((size_t)model->merge_mask + 1, sizeof(*model->merges));
    model->sides = bt_calloc(model->n_ids, 1);
    model->merge_tags = bt_calloc((size_t)model->merge_mask + 1, 1);
    uint8_t *both = bt_calloc(2 * BPE_MAX_TOKEN_BYTES + UTF8_SLACK_BYTES, 1);
    const cJSON *item;
    uint32_t order = 0;
    bt_status status = BT_OK;
    cJSON_ArrayForEach(item, merges) {
        size_t n_left, n_both;
        uint32_t left, right, merged;
        if (!read_sides(item, both, 2 * BPE_MAX_TOKEN_BYTES, &n_left, &n_both) ||
            !bpe_find(model, both, n_left, &left) || !bpe_find(model, both + n_left, n_both - n_left, &right) ||
            !bpe_find(model, both, n_both, &merged)) {
            status = bt_fail(err, BT_BAD_REQUEST, "tokenizer merge %u is not two tokens whose union is a token", order);
            break;
        }
        put_merge(model, left, right, ++order, merged);
    }
    free(both);
    return status;
}

/* Merges every entry once. */
static void find_whole_tokens(bpe_model *model) {
    bpe_scratch scratch = {0};
    tok_ids ids = {0};
    model->splits = bt_calloc(model->n_ids, sizeof(*model->splits));
    for (uint32_t id = 0; id < model->n_ids; id++) {
        bpe_token *token = &model->tokens[id];
        if (!token->is_byte_level || token->n_bytes == 0) continue;
        ids.n_ids = 0;
        bpe_merge last = {0};
        bpe_merge_encode(model, &scratch, model->bytes + token->offset, token->n_bytes, &ids, &last);
        model->splits[id] =
            (bpe_split){.left = (uint32_t)(last.pair >> 32), .right = (uint32_t)last.pair, .order = last.order};
        token->is_whole = ids.n_ids == 1 && ids.ids[0] == id;
        if (token->is_whole || model->ignores_merges) bpe_slot_set_piece(model, id);
    }
    free(ids.ids);
    bpe_scratch_fini(&scratch);
}

bt_status bpe_open(const cJSON *spec, bpe_model **out, bt_error *err) {
    bpe_model *model = bt_calloc(1, sizeof(*model));
    model->ignores_merges = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(spec, "ignore_merges"));
    bt_status status = check_options(spec, err);
    if (status == BT_OK) status = read_vocab(model, cJSON_GetObjectItemCaseSensitive(spec, "vocab"), err);
    if (status == BT_OK) status = read_merges(model, cJSON_GetObjectItemCaseSensitive(spec, "merges"), err);
    if (status != BT_OK) {
        bpe_close(model);
        return status;
    }
    find_whole_tokens(model);
    bpe_match_open(model);
    *out = model;
    return BT_OK;
}

void bpe_close(bpe_model *model) {
    if (model == NULL) return;
    free(model->tokens);
    free(model->bytes);
    free(model->slots);
    free(model->merges);
    free(model->merge_tags);
    free(model->sides);
    free(model->splits);
    bpe_trie_fini(&model->trie);
    free(model);
}
