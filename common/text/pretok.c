/* Owns the list of stages and walks it depth first: every piece of one stage is a text of its own for the next one,
 * which is what gives the ends of a piece their meaning in look-aheads. No list of pieces is ever built. The one
 * sequence that matters most, DeepSeek-V3's, is recognised by its patterns and handed to pretok_v3.c. Does not merge
 * and does not know the vocabulary. Semantics: Hugging Face tokenizers 0.23, tokenizers/src/pre_tokenizers/ and
 * src/tokenizer/normalizer.rs (split). */
#include "common/text/pretok.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/regex.h"
#include "common/text/utf8.h"

#define GPT2_REGEX                                                                                                     \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" /* byte_level.rs */

enum { MAX_STAGES = 16 };

typedef enum { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS } split_behavior;

typedef struct {
    enum { STAGE_REGEX, STAGE_LITERAL, STAGE_PREFIX_SPACE } kind;
    split_behavior behavior;
    bool is_inverted;
    rgx_pattern *regex;      /* STAGE_REGEX, owned */
    char *literal;           /* STAGE_LITERAL, owned */
    const char *source_text; /* STAGE_REGEX: as in the file, borrowed during open */
} split_stage;

struct ptk_splitter {
    split_stage stages[MAX_STAGES];
    size_t n_stages;
    bool is_v3; /* exactly DeepSeek-V3's sequence */
};

struct ptk_scratch {
    rgx_scratch *regex;
};

typedef struct {
    const ptk_splitter *splitter;
    ptk_scratch *scratch;
    ptk_batch *batch;
} split_walk;

static bt_status walk_stage(const split_walk *walk, size_t stage, const uint8_t *text, size_t n_bytes);

/* The cuts of one stage as they come, joined as its behavior says. */
typedef struct {
    const split_walk *walk;
    size_t stage;
    const uint8_t *text;
    size_t begin, end; /* the piece that may still grow */
    bool is_pending, was_match;
    bt_status status;
} split_joiner;

static void join_flush(split_joiner *join) {
    if (!join->is_pending || join->status != BT_OK) return;
    join->is_pending = false;
    join->status = walk_stage(join->walk, join->stage + 1, join->text + join->begin, join->end - join->begin);
}

static void join_cut(split_joiner *join, size_t begin, size_t end, bool is_match) {
    const split_stage *stage = &join->walk->splitter->stages[join->stage];
    if (begin == end) return;
    is_match ^= stage->is_inverted;
    bool grows = false;
    switch (stage->behavior) {
    case ISOLATED:
        break;
    case REMOVED:
        if (is_match) return;
        break;
    case MERGED_WITH_PREVIOUS:
        grows = is_match && !join->was_match;
        break;
    case MERGED_WITH_NEXT:
        grows = !is_match && join->was_match;
        break;
    case CONTIGUOUS:
        grows = is_match == join->was_match;
        break;
    }
    if (!grows || !join->is_pending) {
        join_flush(join);
        join->begin = begin;
        join->is_pending = true;
    }
    join->end = end;
    join->was_match = is_match;
}

static bt_status find(const split_stage *stage, ptk_scratch *scratch, const uint8_t *text, size_t n_bytes, size_t at,
                      size_t *begin, size_t *end) {
    if (stage->kind == STAGE_REGEX) return rgx_find(stage->regex, scratch->regex, text, n_bytes, at, begin, end);
    size_t n_literal = strlen(stage->literal);
    const uint8_t *hit = n_literal > 0 ? memmem(text + at, n_bytes - at, stage->literal, n_literal) : NULL;
    if (hit == NULL) return BT_CANCELED;
    *begin = (size_t)(hit - text);
    *end = *begin + n_literal;
    return BT_OK;
}

static bt_status split_stage_walk(const split_walk *walk, size_t index, const uint8_t *text, size_t n_bytes) {
    const split_stage *stage = &walk->splitter->stages[index];
    split_joiner join = {.walk = walk, .stage = index, .text = text, .status = BT_OK};
    size_t done = 0, at = 0, last_end = SIZE_MAX;
    while (at <= n_bytes && join.status == BT_OK) {
        size_t begin, end;
        bt_status status = find(stage, walk->scratch, text, n_bytes, at, &begin, &end);
        if (status == BT_CANCELED) break;
        if (status != BT_OK) return status;
        at = end;
        if (begin == end) { /* an empty match cuts, but not where a match has just ended (onig's find_iter) */
            do at++;
            while (at < n_bytes && (text[at] & 0xc0) == 0x80);
            if (end == last_end) continue;
        }
        last_end = end;
        join_cut(&join, done, begin, false);
        if (begin == end) join_flush(&join);
        join_cut(&join, begin, end, true);
        done = end;
    }
    join_cut(&join, done, n_bytes, false);
    join_flush(&join);
    return join.status;
}

static bt_status walk_stage(const split_walk *walk, size_t index, const uint8_t *text, size_t n_bytes) {
    if (n_bytes == 0) return BT_OK;
    if (index == walk->splitter->n_stages) {
        ptk_batch_put(walk->batch, text, n_bytes);
        return BT_OK;
    }
    if (walk->splitter->stages[index].kind != STAGE_PREFIX_SPACE) return split_stage_walk(walk, index, text, n_bytes);
    if (text[0] == ' ') return walk_stage(walk, index + 1, text, n_bytes);
    uint8_t *prefixed = bt_calloc(n_bytes + 1 + UTF8_SLACK_BYTES, 1);
    prefixed[0] = ' ';
    memcpy(prefixed + 1, text, n_bytes);
    bt_status status = walk_stage(walk, index + 1, prefixed, n_bytes + 1);
    ptk_batch_flush(walk->batch);
    free(prefixed);
    return status;
}

void ptk_batch_flush(ptk_batch *batch) {
    if (batch->n > 0) batch->sink(batch->context, batch->pieces, batch->n);
    batch->n = 0;
}

bt_status ptk_split(const ptk_splitter *splitter, ptk_scratch *scratch, const uint8_t *text, size_t n_bytes,
                    ptk_sink sink, void *context, bt_error *err) {
    ptk_batch batch;
    batch.sink = sink, batch.context = context, batch.n = 0;
    bt_status status = BT_OK;
    if (splitter->is_v3) {
        ptk_v3_split(text, n_bytes, &batch);
    } else {
        split_walk walk = {.splitter = splitter, .scratch = scratch, .batch = &batch};
        status = walk_stage(&walk, 0, text, n_bytes);
    }
    ptk_batch_flush(&batch);
    if (status != BT_OK) return bt_fail(err, status, "the pre-tokenizer's pattern needs too much work on this text");
    return BT_OK;
}

static const char *string_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static bool flag_of(const cJSON *object, const char *key, bool fallback) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsBool(item) ? (bool)cJSON_IsTrue(item) : fallback;
}

static bt_status add_stage(ptk_splitter *splitter, split_stage stage, bt_error *err) {
    if (splitter->n_stages == MAX_STAGES) {
        free(stage.literal);
        return bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer has more than %d stages", (int)MAX_STAGES);
    }
    if (stage.kind == STAGE_REGEX) {
        bt_status status = rgx_open(stage.source_text, &stage.regex, err);
        if (status != BT_OK) return status;
    }
    splitter->stages[splitter->n_stages++] = stage;
    return BT_OK;
}

static bt_status add_split(ptk_splitter *splitter, const cJSON *spec, bt_error *err) {
    static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                            "Contiguous"};
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(spec, "pattern");
    const char *regex = string_of(pattern, "Regex"), *literal = string_of(pattern, "String");
    const char *behavior = string_of(spec, "behavior");
    split_stage stage = {.kind = regex != NULL ? STAGE_REGEX : STAGE_LITERAL,
                         .is_inverted = flag_of(spec, "invert", false),
                         .source_text = regex};
    if (regex == NULL && literal == NULL) {
        return bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer Split has neither a Regex nor a String pattern");
    }
    size_t i = 0;
    while (i < 5 && (behavior == NULL || strcmp(behavior, behaviors[i]) != 0)) i++;
    if (i == 5) return bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer Split has no known behavior");
    stage.behavior = (split_behavior)i;
    if (regex == NULL) stage.literal = bt_strdup(literal);
    return add_stage(splitter, stage, err);
}

static bt_status add_spec(ptk_splitter *splitter, const cJSON *spec, bool *has_byte_level, bt_error *err) {
    const char *type = string_of(spec, "type");
    if (type == NULL) return bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer has no type");
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *child;
        bt_status status = BT_OK;
        cJSON_ArrayForEach(child, cJSON_GetObjectItemCaseSensitive(spec, "pretokenizers")) {
            if (status == BT_OK) status = add_spec(splitter, child, has_byte_level, err);
        }
        return status;
    }
    if (*has_byte_level) return bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer has a %s stage behind ByteLevel", type);
    if (strcmp(type, "Split") == 0) return add_split(splitter, spec, err);
    if (strcmp(type, "Digits") == 0) {
        bool is_single = flag_of(spec, "individual_digits", false);
        split_stage digits = {.kind = STAGE_REGEX, .source_text = is_single ? "\\p{N}" : "\\p{N}+"};
        return add_stage(splitter, digits, err);
    }
    if (strcmp(type, "ByteLevel") != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer type %s is not supported", type);
    }
    *has_byte_level = true;
    bt_status status = BT_OK;
    if (flag_of(spec, "add_prefix_space", true)) {
        status = add_stage(splitter, (split_stage){.kind = STAGE_PREFIX_SPACE}, err);
    }
    if (status == BT_OK && flag_of(spec, "use_regex", true)) {
        status = add_stage(splitter, (split_stage){.kind = STAGE_REGEX, .source_text = GPT2_REGEX}, err);
    }
    return status;
}

/* The file writes CR and LF in its third pattern as characters or as escapes; both count. */
static bool is_deepseek_v3(const ptk_splitter *splitter) {
    static const char *const patterns[3][2] = {
        {"\\p{N}{1,3}", "\\p{N}{1,3}"},
        {"[一-龥぀-ゟ゠-ヿ]+", "[一-龥\xe3\x81\x80-ゟ゠-ヿ]+"},
        {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
         "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
         "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
         "?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    };
    if (splitter->n_stages != 3) return false;
    for (size_t i = 0; i < 3; i++) {
        const split_stage *stage = &splitter->stages[i];
        if (stage->kind != STAGE_REGEX || stage->behavior != ISOLATED || stage->is_inverted) return false;
        if (strcmp(stage->source_text, patterns[i][0]) != 0 && strcmp(stage->source_text, patterns[i][1]) != 0) {
            return false;
        }
    }
    return true;
}

bt_status ptk_open(const cJSON *spec, ptk_splitter **out, bt_error *err) {
    ptk_splitter *splitter = bt_calloc(1, sizeof(*splitter));
    bool has_byte_level = false;
    bt_status status = add_spec(splitter, spec, &has_byte_level, err);
    if (status == BT_OK && !has_byte_level) {
        status = bt_fail(err, BT_BAD_REQUEST, "pre_tokenizer has no ByteLevel stage: only byte-level BPE is supported");
    }
    if (status != BT_OK) {
        ptk_close(splitter);
        return status;
    }
    splitter->is_v3 = is_deepseek_v3(splitter);
    *out = splitter;
    return BT_OK;
}

void ptk_close(ptk_splitter *splitter) {
    if (splitter == NULL) return;
    for (size_t i = 0; i < splitter->n_stages; i++) {
        rgx_close(splitter->stages[i].regex);
        free(splitter->stages[i].literal);
    }
    free(splitter);
}

size_t ptk_chunk(const ptk_splitter *splitter, const uint8_t *text, size_t n_bytes) {
    return splitter->is_v3 ? ptk_v3_chunk(text, n_bytes) : 0;
}

bool ptk_may_cut(const ptk_splitter *splitter, const uint8_t *text, size_t n_bytes, size_t at) {
    return at == n_bytes || (splitter->is_v3 && at > 0 && at + 1 < n_bytes && ptk_v3_is_seam(text + at));
}

void ptk_use_regex_only(ptk_splitter *splitter) { splitter->is_v3 = false; }

ptk_scratch *ptk_scratch_open(const ptk_splitter *splitter) {
    ptk_scratch *scratch = bt_calloc(1, sizeof(*scratch));
    if (!splitter->is_v3) scratch->regex = rgx_scratch_open();
    return scratch;
}

void ptk_scratch_close(ptk_scratch *scratch) {
    if (scratch == NULL) return;
    rgx_scratch_close(scratch->regex);
    free(scratch);
}
