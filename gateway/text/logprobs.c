/* Three shapes of the same list. */
#include "gateway/text/logprobs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "gateway/api/api_json.h"

#define PUT(out, literal) bt_buf_put((out), (literal), sizeof(literal) - 1)

void gw_logprobs_init(gw_logprobs *logprobs, const tok_tokenizer *tokenizer, gw_logprobs_shape shape,
                      bool skips_special, uint32_t n_top) {
    *logprobs = (gw_logprobs){.tokenizer = tokenizer, .shape = shape, .skips_special = skips_special, .n_top = n_top};
    det_init(&logprobs->det, tokenizer, skips_special);
}

void gw_logprobs_fini(gw_logprobs *logprobs) {
    free(logprobs->scored);
    free(logprobs->top);
    bt_buf_fini(&logprobs->scratch);
    *logprobs = (gw_logprobs){0};
}

typedef struct {
    const uint8_t *bytes;
    size_t n_bytes;
} raw_bytes;

static raw_bytes bytes_of(const gw_logprobs *logprobs, uint32_t token) {
    raw_bytes text = {(const uint8_t *)"", 0};
    tok_token_bytes(logprobs->tokenizer, token, &text.bytes, &text.n_bytes);
    return text;
}

void gw_logprobs_put(gw_logprobs *logprobs, uint32_t token, bool is_shown, const wire_ranked *ranked) {
    if (logprobs->shape == GW_LOGPROBS_CHAT && !is_shown) return;
    if (logprobs->n == logprobs->cap) {
        logprobs->cap = logprobs->cap * 2 + 16;
        logprobs->scored = bt_realloc(logprobs->scored, logprobs->cap, sizeof(gw_scored));
        if (logprobs->n_top > 0)
            logprobs->top = bt_realloc(logprobs->top, (size_t)logprobs->cap * logprobs->n_top, sizeof(wire_logprob));
    }
    bool is_skipped = logprobs->skips_special && tok_is_special(logprobs->tokenizer, token);
    size_t n_bytes = is_shown && !is_skipped ? bytes_of(logprobs, token).n_bytes : 0;
    uint32_t i = logprobs->n++;
    logprobs->scored[i] = (gw_scored){token, ranked->logprob, ranked->rank, (uint32_t)n_bytes};
    BT_ASSERT(ranked->n_top >= logprobs->n_top);
    if (logprobs->n_top > 0)
        memcpy(&logprobs->top[(size_t)i * logprobs->n_top], ranked->top, logprobs->n_top * sizeof(wire_logprob));
}

void gw_logprobs_put_first(gw_logprobs *logprobs, uint32_t token) {
    static const wire_logprob none[WIRE_MAX_TOP_LOGPROBS];
    gw_logprobs_put(logprobs, token, true, &(wire_ranked){.logprob = NAN, .top = none, .n_top = logprobs->n_top});
}

uint32_t gw_logprobs_n_ready(const gw_logprobs *logprobs, size_t n_held_bytes) {
    uint32_t n = logprobs->n;
    for (size_t n_bytes = 0; n > 0 && n_bytes < n_held_bytes; n--) n_bytes += logprobs->scored[n - 1].n_text_bytes;
    return n;
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------
 */

static void put_number(float logprob, bt_buf *out) {
    if (!(logprob >= -9999)) logprob = -9999;
    size_t begin = out->n_bytes;
    bt_buf_printf(out, "%.9g", (double)logprob + 0.0); /* + 0.0: no "-0"; nine digits tell all floats apart */
    if (strpbrk(bt_buf_text(out) + begin, ".e") == NULL) PUT(out, ".0");
}

static void put_token(const gw_logprobs *logprobs, uint32_t token, bt_buf *out) {
    raw_bytes text = bytes_of(logprobs, token);
    if (logprobs->shows_ids) {
        bt_buf_printf(out, "\"token_id:%u\"", token);
    } else {
        gw_json_put_string(out, (const char *)text.bytes, text.n_bytes);
    }
}

static void put_chat_token(const gw_logprobs *logprobs, uint32_t token, float logprob, bt_buf *out) {
    raw_bytes text = bytes_of(logprobs, token);
    PUT(out, "{\"token\":");
    put_token(logprobs, token, out);
    PUT(out, ",\"logprob\":");
    put_number(logprob, out);
    PUT(out, ",\"bytes\":[");
    for (size_t i = 0; i < text.n_bytes; i++) bt_buf_printf(out, i == 0 ? "%u" : ",%u", text.bytes[i]);
    PUT(out, "]");
}

static void put_chat(const gw_logprobs *logprobs, uint32_t n, bt_buf *out) {
    PUT(out, "{\"content\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) PUT(out, ",");
        put_chat_token(logprobs, logprobs->scored[i].token, logprobs->scored[i].logprob, out);
        PUT(out, ",\"top_logprobs\":[");
        for (uint32_t t = 0; t < logprobs->n_top; t++) {
            const wire_logprob *top = &logprobs->top[(size_t)i * logprobs->n_top + t];
            if (t > 0) PUT(out, ",");
            put_chat_token(logprobs, top->token, top->logprob, out);
            PUT(out, "}");
        }
        PUT(out, "]}");
    }
    PUT(out, "],\"refusal\":null}");
}

/* A token's entry in the object of the likeliest, unless one with the same text is there already: keys are texts, and
 * the first is the likeliest. `keys`: where the earlier ones are in *out, [n_keys][2]. */
static uint32_t put_key(const gw_logprobs *logprobs, wire_logprob entry, size_t (*keys)[2], uint32_t n_keys,
                        bt_buf *out) {
    size_t restart = out->n_bytes;
    if (n_keys > 0) PUT(out, ",");
    size_t begin = out->n_bytes;
    put_token(logprobs, entry.token, out);
    size_t n_bytes = out->n_bytes - begin;
    for (uint32_t i = 0; i < n_keys; i++) {
        if (keys[i][1] != n_bytes || memcmp(out->bytes + keys[i][0], out->bytes + begin, n_bytes) != 0) continue;
        out->n_bytes = restart;
        return n_keys;
    }
    keys[n_keys][0] = begin;
    keys[n_keys][1] = n_bytes;
    PUT(out, ":");
    put_number(entry.logprob, out);
    return n_keys + 1;
}

static void put_top(const gw_logprobs *logprobs, uint32_t i, bt_buf *out) {
    size_t keys[WIRE_MAX_TOP_LOGPROBS + 1][2];
    uint32_t n_keys = 0;
    if (isnan(logprobs->scored[i].logprob)) {
        PUT(out, "null");
        return;
    }
    PUT(out, "{");
    for (uint32_t t = 0; t < logprobs->n_top; t++)
        n_keys = put_key(logprobs, logprobs->top[(size_t)i * logprobs->n_top + t], keys, n_keys, out);
    put_key(logprobs, (wire_logprob){logprobs->scored[i].token, logprobs->scored[i].logprob}, keys, n_keys, out);
    PUT(out, "}");
}

/* Characters of the text in front of the token; moves on behind it. */
static uint64_t next_offset(gw_logprobs *logprobs, const gw_scored *scored) {
    uint64_t offset = logprobs->n_chars;
    if (scored->n_text_bytes == 0) return offset;
    bt_buf_clear(&logprobs->scratch);
    det_put(&logprobs->det, scored->token, &logprobs->scratch);
    for (size_t i = 0; i < logprobs->scratch.n_bytes; i++)
        logprobs->n_chars += (logprobs->scratch.bytes[i] & 0xc0) != 0x80;
    return offset;
}

static void put_completion(gw_logprobs *logprobs, uint32_t n, bt_buf *out) {
    PUT(out, "{\"text_offset\":[");
    for (uint32_t i = 0; i < n; i++)
        bt_buf_printf(out, i == 0 ? "%llu" : ",%llu", (unsigned long long)next_offset(logprobs, &logprobs->scored[i]));
    PUT(out, "],\"token_logprobs\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) PUT(out, ",");
        if (isnan(logprobs->scored[i].logprob)) {
            PUT(out, "null");
        } else {
            put_number(logprobs->scored[i].logprob, out);
        }
    }
    PUT(out, "],\"tokens\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) PUT(out, ",");
        put_token(logprobs, logprobs->scored[i].token, out);
    }
    PUT(out, "],\"top_logprobs\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) PUT(out, ",");
        put_top(logprobs, i, out);
    }
    PUT(out, "]}");
}

static void put_named(const gw_logprobs *logprobs, uint32_t token, float logprob, uint32_t rank, bt_buf *out) {
    bt_buf_printf(out, "\"%u\":{\"logprob\":", token);
    put_number(logprob, out);
    bt_buf_printf(out, ",\"rank\":%u,\"decoded_token\":", rank);
    put_token(logprobs, token, out);
    PUT(out, "}");
}

static void put_prompt(const gw_logprobs *logprobs, uint32_t n, bt_buf *out) {
    PUT(out, "[");
    for (uint32_t i = 0; i < n; i++) {
        const gw_scored *scored = &logprobs->scored[i];
        if (i > 0) PUT(out, ",");
        if (isnan(scored->logprob)) {
            PUT(out, "null");
            continue;
        }
        PUT(out, "{");
        put_named(logprobs, scored->token, scored->logprob, scored->rank, out);
        for (uint32_t t = 0; t < logprobs->n_top; t++) {
            const wire_logprob *top = &logprobs->top[(size_t)i * logprobs->n_top + t];
            if (top->token == scored->token) continue;
            PUT(out, ",");
            put_named(logprobs, top->token, top->logprob, t + 1, out);
        }
        PUT(out, "}");
    }
    PUT(out, "]");
}

void gw_logprobs_write(gw_logprobs *logprobs, uint32_t n, bt_buf *out) {
    switch (logprobs->shape) {
    case GW_LOGPROBS_CHAT:
        put_chat(logprobs, n, out);
        break;
    case GW_LOGPROBS_COMPLETION:
        put_completion(logprobs, n, out);
        break;
    case GW_LOGPROBS_PROMPT:
        put_prompt(logprobs, n, out);
        break;
    }
    logprobs->n -= n;
    if (logprobs->n == 0) return;
    memmove(logprobs->scored, logprobs->scored + n, logprobs->n * sizeof(gw_scored));
    size_t n_top = logprobs->n_top;
    if (n_top > 0) memmove(logprobs->top, logprobs->top + n * n_top, logprobs->n * n_top * sizeof(wire_logprob));
}
