/* Every message between processes. The messages themselves are in messages.def; this header turns them into structs.
 *
 * On the wire a message is a frame: an 8-byte header, then the fields as messages.def lists them.
 *
 *   offset  bytes  field
 *   0       4      payload bytes that follow the header, <= WIRE_MAX_PAYLOAD_BYTES
 *   4       2      WIRE_MAGIC
 *   6       1      WIRE_VERSION
 *   7       1      message number
 *
 * All integers little-endian. No struct is ever copied to the wire. Everything that arrives is hostile: wire_decode()
 * checks magic, version, number, every length against its limit and the payload's end, and that nothing is left over;
 * it does not check meaning (that a token id is below the vocabulary's size): the cores do. */
#ifndef BATON_COMMON_WIRE_WIRE_H
#define BATON_COMMON_WIRE_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/core/alloc.h"
#include "common/core/buf.h"
#include "common/core/status.h"

enum {
    WIRE_MAGIC = 0x5442, /* "BT" */
    WIRE_VERSION = 7,
    WIRE_HEADER_BYTES = 8,
    WIRE_MAX_PAYLOAD_BYTES = 8 << 20,
    WIRE_MAX_NAME = 128,
    WIRE_MAX_TEXT = 480,
    WIRE_MAX_TOKENS = 1 << 20,
    WIRE_MAX_PREFIX = WIRE_MAX_TOKENS / 64, /* blocks of a prompt */
    WIRE_MAX_BLOCK_NAMES = 4096,            /* of one BLOCKS message, each way */
    WIRE_MAX_PULL = 64,
    WIRE_MAX_STOP_IDS = 64,
    WIRE_MAX_CANDIDATES = 8,
    WIRE_MAX_STEP_TOKENS = 4096,
    WIRE_MAX_LEASES = 4096,
    WIRE_MAX_BIASES = 4096,
    WIRE_MAX_ALLOWED_IDS = 1 << 18, /* more than any vocabulary */
    WIRE_MAX_BAD_WORDS = 256,
    WIRE_MAX_BAD_WORD_TOKENS = 256,
    WIRE_MAX_TOP_LOGPROBS = 128, /* so that the tokens of a step fit a frame with theirs: wire.c */
};

typedef enum { WIRE_ROLE_GATEWAY = 1, WIRE_ROLE_PREFILL = 2, WIRE_ROLE_DECODE = 3 } wire_role;

typedef enum {
    WIRE_FINISH_EOS = 1,    /* end-of-sequence token, counted in n_output */
    WIRE_FINISH_STOP_TOKEN, /* one of stop_token_ids, counted in n_output */
    WIRE_FINISH_LENGTH,     /* max_tokens, or the context is full */
} wire_finish;

/* A string: not NUL-terminated, no NUL inside. Decoded ones point into the frame or the arena. */
typedef struct {
    const char *bytes;
    uint32_t n_bytes;
} wire_str;

static inline wire_str wire_str_from(const char *text) {
    uint32_t n = 0;
    while (text[n] != 0) n++;
    return (wire_str){text, n};
}

/* The structs. Pointers in a struct to be encoded are borrowed; in a decoded one they live in the decode arena. */
#define U8(field)       uint8_t field;
#define U32(field)      uint32_t field;
#define U64(field)      uint64_t field;
#define F32(field)      float field;
#define STR(field, max) wire_str field;
#define U32S(field, max)                                                                                               \
    const uint32_t *field;                                                                                             \
    uint32_t n_##field;
#define U64S(field, max)                                                                                               \
    const uint64_t *field;                                                                                             \
    uint32_t n_##field;
#define RECORD(field, type) wire_##type field;
#define RECORDS(field, type, max)                                                                                      \
    const wire_##type *field;                                                                                          \
    uint32_t n_##field;
#define RECORD_BEGIN(name) typedef struct {
#define RECORD_END(name)                                                                                               \
    }                                                                                                                  \
    wire_##name;
#define MESSAGE_BEGIN(NAME, name, number) typedef struct {
#define MESSAGE_END(NAME, name)                                                                                        \
    }                                                                                                                  \
    wire_##name;
#include "common/wire/messages.def"
#include "common/wire/undef.h"

/* WIRE_SUBMIT = 2, ... */
#define MESSAGE_BEGIN(NAME, name, number) WIRE_##NAME = number,
#include "common/wire/ignore_fields.h"
typedef enum {
#include "common/wire/messages.def"
} wire_type;
#include "common/wire/undef.h"

typedef struct {
    wire_type type;
    union {
#define MESSAGE_BEGIN(NAME, name, number) wire_##name name;
#include "common/wire/ignore_fields.h"
#include "common/wire/messages.def"
#include "common/wire/undef.h"
    };
} wire_message;

/* Appends one frame. Counts and lengths must be within the limits (BT_ASSERT: the sender's own bug). */
void wire_encode(const wire_message *message, bt_buf *out);

/* Looks at the first bytes of a stream. BT_AGAIN: the frame is not complete, *frame_bytes is its size if the header is
 * there, else 0. BT_OK: *frame_bytes is complete. BT_BAD_REQUEST: not ours, or too large; close the connection. */
bt_status wire_frame_size(const uint8_t *bytes, size_t n_bytes, size_t *frame_bytes, bt_error *err);

/* One whole frame -> message. Arrays are allocated in `arena`, strings point into `frame`. */
bt_status wire_decode(const uint8_t *frame, size_t n_bytes, bt_arena *arena, wire_message *out, bt_error *err);

const char *wire_type_name(wire_type type); /* "submit" */

/* docs/WIRE.md's tables. */
void wire_write_markdown(bt_buf *out);

static inline bool wire_request_equal(const wire_request *a, const wire_request *b) {
    return a->gateway == b->gateway && a->serial == b->serial && a->attempt == b->attempt;
}

/* "req=" in every log: the gateway's incarnation and the serial, as WIRE_REQ_ARGS(r) for WIRE_REQ_FORMAT. */
#define WIRE_REQ_FORMAT        "%08x-%llu"
#define WIRE_REQ_ARGS(request) (unsigned)((request).gateway >> 32), (unsigned long long)(request).serial

#endif
