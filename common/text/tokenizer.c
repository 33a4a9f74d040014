/* Owns the files of a tokenizer and puts its parts together: added tokens cut the text (added.c), the pre-tokenizer
 * cuts the rest into pieces (pretok.c), BPE turns pieces into ids (bpe.c), and a cache spares what it knows of that.
 * Ignores the file's truncation and padding, which are the trainer's, and its decoder and post-processor, of which
 * byte-level models use one kind only. */
#include "common/text/tokenizer.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/buf.h"
#include "common/text/added.h"
#include "common/text/pretok.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

enum {
    MAX_FILE_BYTES = 256 << 20,
    BYTES_PER_ID = 4,   /* of most languages: room for all ids at once */
    KEEP_MIN = 64,      /* bytes of a chunk that the cache is asked for: less is encoded as fast */
    KEEP_MAX = 16 << 10 /* and text without places to cut it does not repeat by accident */
};

struct tok_tokenizer {
    bpe_model *model;
    add_tokens *added;
    ptk_splitter *splitter;
    char *bos_text, *eos_text, *chat_template; /* owned, may be NULL */
    uint32_t bos_id, eos_id;
    bool has_bos, has_eos, adds_bos;
};

/* BT_CANCELED: there is no such file. */
static bt_status read_file(const char *folder, const char *name, bt_buf *out, bt_error *err) {
    bt_buf path = {0};
    bt_buf_printf(&path, "%s/%s", folder, name);
    FILE *file = fopen(bt_buf_text(&path), "rb");
    bt_buf_fini(&path);
    if (file == NULL && errno == ENOENT) return bt_fail(err, BT_CANCELED, "%s/%s does not exist", folder, name);
    if (file == NULL) return bt_fail(err, BT_BAD_REQUEST, "%s/%s: %s", folder, name, strerror(errno));
    for (size_t n_read = 1; n_read > 0 && out->n_bytes <= MAX_FILE_BYTES;) {
        bt_buf_reserve(out, 1 << 16);
        n_read = fread(out->bytes + out->n_bytes, 1, 1 << 16, file);
        out->n_bytes += n_read;
    }
    bool has_failed = ferror(file) != 0;
    fclose(file);
    if (has_failed) return bt_fail(err, BT_BAD_REQUEST, "%s/%s cannot be read", folder, name);
    if (out->n_bytes > MAX_FILE_BYTES) return bt_fail(err, BT_BAD_REQUEST, "%s/%s is over 256 MiB", folder, name);
    return BT_OK;
}

static bt_status read_json(const char *folder, const char *name, cJSON **out, bt_error *err) {
    bt_buf text = {0};
    bt_status status = read_file(folder, name, &text, err);
    if (status == BT_OK && !utf8_is_valid(text.bytes, text.n_bytes)) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s/%s is not UTF-8", folder, name);
    }
    if (status == BT_OK) {
        *out = cJSON_Parse(bt_buf_text(&text)); /* bounds its own depth (CJSON_NESTING_LIMIT) */
        if (!cJSON_IsObject(*out)) status = bt_fail(err, BT_BAD_REQUEST, "%s/%s is not a JSON object", folder, name);
    }
    bt_buf_fini(&text);
    return status;
}

static const cJSON *member(const cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static bt_status check_normalizer(const cJSON *normalizer, bt_error *err) {
    if (normalizer == NULL || cJSON_IsNull(normalizer)) return BT_OK;
    const char *type = cJSON_GetStringValue(member(normalizer, "type"));
    if (type != NULL && strcmp(type, "Sequence") == 0) {
        const cJSON *child;
        bt_status status = BT_OK;
        cJSON_ArrayForEach(child, member(normalizer, "normalizers")) {
            if (status == BT_OK) status = check_normalizer(child, err);
        }
        return status;
    }
    return bt_fail(err, BT_BAD_REQUEST, "tokenizer normalizer %.40s is not supported",
                   type != NULL ? type : "(no type)");
}

static bt_status open_parts(tok_tokenizer *tokenizer, const cJSON *json, bt_error *err) {
    bt_status status = check_normalizer(member(json, "normalizer"), err);
    if (status == BT_OK) status = ptk_open(member(json, "pre_tokenizer"), &tokenizer->splitter, err);
    if (status == BT_OK) status = bpe_open(member(json, "model"), &tokenizer->model, err);
    if (status == BT_OK) status = add_open(member(json, "added_tokens"), &tokenizer->added, err);
    if (status == BT_OK) unicode_classes(); /* now, not in the first request */
    return status;
}

/* "<s>", or {"content": "<s>", ...}; the caller frees. */
static char *special_text(const cJSON *config, const char *key) {
    const cJSON *item = member(config, key);
    if (cJSON_IsObject(item)) item = member(item, "content");
    return cJSON_IsString(item) ? bt_strdup(item->valuestring) : NULL;
}

static char *template_text(const cJSON *config) {
    const cJSON *item = member(config, "chat_template"), *named;
    if (cJSON_IsString(item)) return bt_strdup(item->valuestring);
    if (!cJSON_IsArray(item)) return NULL;
    cJSON_ArrayForEach(named, item) {
        const char *name = cJSON_GetStringValue(member(named, "name"));
        const char *text = cJSON_GetStringValue(member(named, "template"));
        if (name != NULL && text != NULL && strcmp(name, "default") == 0) return bt_strdup(text);
    }
    return NULL;
}

/* What the post-processor puts first: TemplateProcessing's "single" begins with a SpecialToken. */
static bool template_begins_with(const cJSON *processor, const char *bos_text) {
    const char *type = cJSON_GetStringValue(member(processor, "type"));
    if (type == NULL || bos_text == NULL) return false;
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *child;
        cJSON_ArrayForEach(child, member(processor, "processors")) {
            if (template_begins_with(child, bos_text)) return true;
        }
        return false;
    }
    const cJSON *single = member(processor, "single");
    const char *id = cJSON_GetStringValue(member(member(single != NULL ? single->child : NULL, "SpecialToken"), "id"));
    return strcmp(type, "TemplateProcessing") == 0 && id != NULL && strcmp(id, bos_text) == 0;
}

static bt_status read_config(tok_tokenizer *tokenizer, const char *model_dir, const cJSON *json, bt_error *err) {
    cJSON *config = NULL;
    bt_status status = read_json(model_dir, "tokenizer_config.json", &config, err);
    if (status == BT_CANCELED) status = BT_OK;
    if (status == BT_OK) {
        tokenizer->bos_text = special_text(config, "bos_token");
        tokenizer->eos_text = special_text(config, "eos_token");
        tokenizer->chat_template = template_text(config);
        if (tokenizer->bos_text != NULL)
            tokenizer->has_bos = tok_find(tokenizer, tokenizer->bos_text, &tokenizer->bos_id);
        if (tokenizer->eos_text != NULL)
            tokenizer->has_eos = tok_find(tokenizer, tokenizer->eos_text, &tokenizer->eos_id);
        const cJSON *adds_bos = member(config, "add_bos_token");
        const char *class = cJSON_GetStringValue(member(config, "tokenizer_class"));
        tokenizer->adds_bos = cJSON_IsBool(adds_bos)
                                  ? (bool)cJSON_IsTrue(adds_bos)
                                  : (class != NULL && strncmp(class, "LlamaTokenizer", 14) == 0) ||
                                        template_begins_with(member(json, "post_processor"), tokenizer->bos_text);
        tokenizer->adds_bos &= tokenizer->has_bos;
    }
    cJSON_Delete(config);
    if (status != BT_OK || tokenizer->chat_template != NULL) return status;
    bt_buf text = {0};
    status = read_file(model_dir, "chat_template.jinja", &text, err);
    if (status == BT_OK) tokenizer->chat_template = bt_strdup(bt_buf_text(&text));
    bt_buf_fini(&text);
    return status == BT_CANCELED ? BT_OK : status;
}

bt_status tok_open(const char *model_dir, tok_tokenizer **out, bt_error *err) {
    tok_tokenizer *tokenizer = bt_calloc(1, sizeof(*tokenizer));
    cJSON *json = NULL;
    bt_status status = read_json(model_dir, "tokenizer.json", &json, err);
    if (status == BT_CANCELED) status = bt_fail(err, BT_BAD_REQUEST, "%s/tokenizer.json does not exist", model_dir);
    if (status == BT_OK) status = open_parts(tokenizer, json, err);
    if (status == BT_OK) status = read_config(tokenizer, model_dir, json, err);
    cJSON_Delete(json);
    if (status != BT_OK) {
        tok_close(tokenizer);
        return status;
    }
    if (err != NULL) *err = (bt_error){0}; /* an optional file that is not there is no error */
    *out = tokenizer;
    return BT_OK;
}

void tok_close(tok_tokenizer *tokenizer) {
    if (tokenizer == NULL) return;
    bpe_close(tokenizer->model);
    add_close(tokenizer->added);
    ptk_close(tokenizer->splitter);
    free(tokenizer->bos_text);
    free(tokenizer->eos_text);
    free(tokenizer->chat_template);
    free(tokenizer);
}

/* What one tok_encode() carries through the cutting. */
typedef struct {
    const tok_tokenizer *tokenizer;
    tok_cache *cache; /* may be NULL */
    ptk_scratch *split;
    bpe_scratch merge;
    size_t max_ids;
    tok_ids *out;
} encode_run;

static void encode_pieces(void *context, const utf8_piece *pieces, size_t n_pieces) {
    encode_run *run = context;
    bpe_encode(run->tokenizer->model, &run->merge, pieces, n_pieces, run->max_ids, run->out);
}

static bt_status check_ids(const encode_run *run, bt_error *err) {
    if (run->out->n_ids <= run->max_ids) return BT_OK;
    return bt_fail(err, BT_NO_CAPACITY, "the text has more than %zu tokens", run->max_ids);
}

/* Text that goes on as it did before: that is compared, and what follows need not be searched for a place to cut. */
static size_t encode_expected(encode_run *run, const uint8_t *text, size_t n_bytes) {
    size_t n = tok_cache_expected(run->cache);
    bool may_cut = n > 0 && n <= n_bytes && ptk_may_cut(run->tokenizer->splitter, text, n_bytes, n);
    return may_cut && tok_cache_get_expected(run->cache, text, run->out) ? n : 0;
}

/* By chunks, each as the cache knows it or as it is encoded now. */
static bt_status encode_text(encode_run *run, const uint8_t *text, size_t n_bytes, bt_error *err) {
    const ptk_splitter *splitter = run->tokenizer->splitter;
    bt_status status = BT_OK;
    for (size_t n; n_bytes > 0 && status == BT_OK; text += n, n_bytes -= n) {
        n = run->cache != NULL ? encode_expected(run, text, n_bytes) : 0;
        if (n > 0) continue;
        n = run->cache != NULL ? ptk_chunk(splitter, text, n_bytes) : 0;
        bool may_keep = n >= KEEP_MIN && n <= KEEP_MAX;
        if (n == 0) n = n_bytes;
        size_t n_before = run->out->n_ids;
        bool is_known = may_keep && tok_cache_get(run->cache, text, n, run->out);
        if (!is_known) status = ptk_split(splitter, run->split, text, n, encode_pieces, run, err);
        if (status == BT_OK) status = check_ids(run, err);
        if (may_keep && !is_known && status == BT_OK)
            tok_cache_put(run->cache, text, n, run->out->ids + n_before, run->out->n_ids - n_before);
    }
    return status;
}

static bt_status encode_part(void *context, const add_token *token, const uint8_t *text, size_t n_bytes,
                             bt_error *err) {
    encode_run *run = context;
    if (token == NULL) return encode_text(run, text, n_bytes, err);
    tok_ids_put(run->out, token->id);
    return check_ids(run, err);
}

bt_status tok_encode(const tok_tokenizer *tokenizer, const char *text, size_t n_bytes, unsigned flags, tok_ids *out,
                     bt_error *err) {
    return tok_encode_cached(tokenizer, NULL, text, n_bytes, flags, TOK_ANY_IDS, out, err);
}

bt_status tok_encode_cached(const tok_tokenizer *tokenizer, tok_cache *cache, const char *text, size_t n_bytes,
                            unsigned flags, size_t max_ids, tok_ids *out, bt_error *err) {
    if (n_bytes > TOK_MAX_TEXT_BYTES) {
        return bt_fail(err, BT_BAD_REQUEST, "the text has %zu bytes, limit %d", n_bytes, (int)TOK_MAX_TEXT_BYTES);
    }
    bt_buf copy = {0};
    utf8_piece valid = {(const uint8_t *)text, n_bytes};
    if (!(flags & TOK_CHECKED)) {
        utf8_put_lossy(&copy, valid.bytes, n_bytes);
        utf8_put_slack(&copy);
        valid = (utf8_piece){copy.bytes, copy.n_bytes};
    }
    size_t n_before = out->n_ids;
    encode_run run = {.tokenizer = tokenizer,
                      .cache = cache,
                      .split = ptk_scratch_open(tokenizer->splitter),
                      .max_ids = max_ids,
                      .out = out};
    tok_ids_reserve(out, n_bytes / BYTES_PER_ID < max_ids ? n_bytes / BYTES_PER_ID : max_ids);
    if ((flags & TOK_ADD_BOS) && tokenizer->adds_bos) tok_ids_put(out, tokenizer->bos_id);
    bt_status status = BT_OK;
    if (flags & TOK_PLAIN) {
        if (valid.n_bytes > 0) status = encode_part(&run, NULL, valid.bytes, valid.n_bytes, err);
    } else {
        status = add_split(tokenizer->added, valid.bytes, valid.n_bytes, encode_part, &run, err);
    }
    if (status != BT_OK) out->n_ids = n_before;
    ptk_scratch_close(run.split);
    bpe_scratch_fini(&run.merge);
    bt_buf_fini(&copy);
    return status;
}

void tok_ids_fini(tok_ids *ids) {
    free(ids->ids);
    *ids = (tok_ids){0};
}

uint32_t tok_vocab_size(const tok_tokenizer *tokenizer) {
    uint32_t n_model = bpe_n_ids(tokenizer->model), n_added = add_n_ids(tokenizer->added);
    return n_model > n_added ? n_model : n_added;
}

bt_status tok_token_bytes(const tok_tokenizer *tokenizer, uint32_t id, const uint8_t **bytes, size_t *n_bytes) {
    const add_token *added = add_by_id(tokenizer->added, id);
    if (added != NULL) {
        *bytes = added->bytes;
        *n_bytes = added->n_bytes;
        return BT_OK;
    }
    *bytes = bpe_token_bytes(tokenizer->model, id, n_bytes);
    return id < tok_vocab_size(tokenizer) ? BT_OK : BT_BAD_REQUEST;
}

void tok_put_entry(const tok_tokenizer *tokenizer, uint32_t id, bt_buf *out) {
    const add_token *added = add_by_id(tokenizer->added, id);
    if (added != NULL) {
        bt_buf_put(out, added->bytes, added->n_bytes);
    } else {
        bpe_put_entry(tokenizer->model, id, out);
    }
}

bool tok_is_special(const tok_tokenizer *tokenizer, uint32_t id) {
    const add_token *added = add_by_id(tokenizer->added, id);
    return added != NULL && added->is_special;
}

bool tok_is_added(const tok_tokenizer *tokenizer, uint32_t id) { return add_by_id(tokenizer->added, id) != NULL; }

bool tok_find(const tok_tokenizer *tokenizer, const char *content, uint32_t *id) {
    const add_token *added = add_by_content(tokenizer->added, content);
    if (added != NULL) {
        *id = added->id;
        return true;
    }
    bt_buf bytes = {0};
    bt_buf_puts(&bytes, content);
    utf8_put_slack(&bytes);
    bool is_there = bpe_find(tokenizer->model, bytes.bytes, bytes.n_bytes, id);
    bt_buf_fini(&bytes);
    return is_there;
}

const char *tok_bos_text(const tok_tokenizer *tokenizer) { return tokenizer->bos_text; }
const char *tok_eos_text(const tok_tokenizer *tokenizer) { return tokenizer->eos_text; }

bool tok_bos_id(const tok_tokenizer *tokenizer, uint32_t *id) {
    if (tokenizer->has_bos) *id = tokenizer->bos_id;
    return tokenizer->has_bos;
}

bool tok_eos_id(const tok_tokenizer *tokenizer, uint32_t *id) {
    if (tokenizer->has_eos) *id = tokenizer->eos_id;
    return tokenizer->has_eos;
}

bool tok_adds_bos(const tok_tokenizer *tokenizer) { return tokenizer->adds_bos; }
const char *tok_chat_template(const tok_tokenizer *tokenizer) { return tokenizer->chat_template; }
