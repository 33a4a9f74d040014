/* Encoder and decoder, generated field by field from messages.def. */
#include "common/wire/wire.h"

#include <stdlib.h>
#include <string.h>

/* The largest messages that one step makes; what requests bring has less. */
_Static_assert(4 + WIRE_MAX_STEP_TOKENS * (44 + 8 * WIRE_MAX_TOP_LOGPROBS) <= WIRE_MAX_PAYLOAD_BYTES,
               "TOKENS of a whole step fits a frame, and so does PROMPT_LOGPROBS");

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers and arrays of them travel as they lie in memory");

/* ---- writing ---- */

static void put_uint(bt_buf *out, uint64_t value, size_t n_bytes) { bt_buf_put(out, &value, n_bytes); }

static void put_f32(bt_buf *out, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    put_uint(out, bits, 4);
}

static void put_count(bt_buf *out, uint32_t count, uint32_t max) {
    BT_ASSERT(count <= max);
    put_uint(out, count, 4);
}

#define U8(field)  put_uint(out, in->field, 1);
#define U32(field) put_uint(out, in->field, 4);
#define U64(field) put_uint(out, in->field, 8);
#define F32(field) put_f32(out, in->field);
#define STR(field, max)                                                                                                \
    put_count(out, in->field.n_bytes, max);                                                                            \
    bt_buf_put(out, in->field.bytes, in->field.n_bytes);
#define U32S(field, max)                                                                                               \
    put_count(out, in->n_##field, max);                                                                                \
    bt_buf_put(out, in->field, in->n_##field * sizeof(uint32_t));
#define U64S(field, max)                                                                                               \
    put_count(out, in->n_##field, max);                                                                                \
    bt_buf_put(out, in->field, in->n_##field * sizeof(uint64_t));
#define RECORD(field, type) put_##type(out, &in->field);
#define RECORDS(field, type, max)                                                                                      \
    put_count(out, in->n_##field, max);                                                                                \
    for (uint32_t i = 0; i < in->n_##field; i++) put_##type(out, &in->field[i]);
#define RECORD_BEGIN(name)                static void put_##name(bt_buf *out, const wire_##name *in) {
#define RECORD_END(name)                  }
#define MESSAGE_BEGIN(NAME, name, number) RECORD_BEGIN(name)
#define MESSAGE_END(NAME, name)           RECORD_END(name)
#include "common/wire/messages.def"
#include "common/wire/undef.h"

void wire_encode(const wire_message *message, bt_buf *out) {
    size_t begin = out->n_bytes;
    put_uint(out, 0, 4); /* the payload's size, known at the end */
    put_uint(out, WIRE_MAGIC, 2);
    put_uint(out, WIRE_VERSION, 1);
    put_uint(out, (uint8_t)message->type, 1);
    switch (message->type) {
#define MESSAGE_BEGIN(NAME, name, number)                                                                              \
    case WIRE_##NAME:                                                                                                  \
        put_##name(out, &message->name);                                                                               \
        break;
#include "common/wire/ignore_fields.h"
#include "common/wire/messages.def"
#include "common/wire/undef.h"
    }
    size_t payload_bytes = out->n_bytes - begin - WIRE_HEADER_BYTES;
    BT_ASSERT(payload_bytes <= WIRE_MAX_PAYLOAD_BYTES);
    for (size_t i = 0; i < 4; i++) out->bytes[begin + i] = (uint8_t)(payload_bytes >> (8 * i));
}

/* ---- reading ---- */

typedef struct {
    const uint8_t *at, *end;
    bt_arena *arena;
    const char *bad_field; /* the first field that did not fit; NULL: fine so far */
} reader;

static uint64_t get_uint(reader *in, size_t n_bytes, const char *field) {
    if (in->bad_field != NULL || (size_t)(in->end - in->at) < n_bytes) {
        if (in->bad_field == NULL) in->bad_field = field;
        return 0;
    }
    uint64_t value = 0;
    memcpy(&value, in->at, n_bytes);
    in->at += n_bytes;
    return value;
}

static float get_f32(reader *in, const char *field) {
    uint32_t bits = (uint32_t)get_uint(in, 4, field);
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* A count of elements of at least `elem_bytes` each, which must all be there: checked before memory is taken. */
static uint32_t get_count(reader *in, uint32_t max, size_t elem_bytes, const char *field) {
    uint32_t count = (uint32_t)get_uint(in, 4, field);
    if (in->bad_field == NULL && (count > max || count > (size_t)(in->end - in->at) / elem_bytes))
        in->bad_field = field;
    return in->bad_field == NULL ? count : 0;
}

/* Elements that get_count() has found to be there. */
static void *get_array(reader *in, uint32_t n, size_t elem_bytes) {
    void *elems = bt_arena_alloc(in->arena, n * elem_bytes);
    if (n > 0) memcpy(elems, in->at, n * elem_bytes);
    in->at += n * elem_bytes;
    return elems;
}

static wire_str get_str(reader *in, uint32_t max, const char *field) {
    wire_str text = {"", 0};
    uint32_t n_bytes = get_count(in, max, 1, field);
    if (n_bytes == 0) return text;
    if (memchr(in->at, 0, n_bytes) != NULL) {
        in->bad_field = field;
        return text;
    }
    text = (wire_str){(const char *)in->at, n_bytes};
    in->at += n_bytes;
    return text;
}

#define U8(field)       out->field = (uint8_t)get_uint(in, 1, #field);
#define U32(field)      out->field = (uint32_t)get_uint(in, 4, #field);
#define U64(field)      out->field = get_uint(in, 8, #field);
#define F32(field)      out->field = get_f32(in, #field);
#define STR(field, max) out->field = get_str(in, max, #field);
#define U32S(field, max)                                                                                               \
    out->n_##field = get_count(in, max, sizeof(uint32_t), #field);                                                     \
    out->field = get_array(in, out->n_##field, sizeof(uint32_t));
#define U64S(field, max)                                                                                               \
    out->n_##field = get_count(in, max, sizeof(uint64_t), #field);                                                     \
    out->field = get_array(in, out->n_##field, sizeof(uint64_t));
#define RECORD(field, type) get_##type(in, &out->field);
#define RECORDS(field, type, max)                                                                                      \
    {                                                                                                                  \
        out->n_##field = get_count(in, max, 4, #field);                                                                \
        wire_##type *elems = bt_arena_alloc(in->arena, out->n_##field * sizeof(wire_##type));                          \
        for (uint32_t i = 0; i < out->n_##field && in->bad_field == NULL; i++) get_##type(in, &elems[i]);              \
        out->field = elems;                                                                                            \
    }
#define RECORD_BEGIN(name)                static void get_##name(reader *in, wire_##name *out) {
#define RECORD_END(name)                  }
#define MESSAGE_BEGIN(NAME, name, number) RECORD_BEGIN(name)
#define MESSAGE_END(NAME, name)           RECORD_END(name)
#include "common/wire/messages.def"
#include "common/wire/undef.h"

bt_status wire_frame_size(const uint8_t *bytes, size_t n_bytes, size_t *frame_bytes, bt_error *err) {
    *frame_bytes = 0;
    if (n_bytes < WIRE_HEADER_BYTES) return BT_AGAIN;
    uint32_t payload_bytes =
        (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    unsigned magic = bytes[4] | (unsigned)bytes[5] << 8;
    if (magic != WIRE_MAGIC)
        return bt_fail(err, BT_BAD_REQUEST, "the peer does not speak Baton's protocol (magic %04x)", magic);
    if (bytes[6] != WIRE_VERSION)
        return bt_fail(err, BT_BAD_REQUEST, "the peer speaks wire version %u, this process %u", bytes[6], WIRE_VERSION);
    if (payload_bytes > WIRE_MAX_PAYLOAD_BYTES)
        return bt_fail(err, BT_BAD_REQUEST, "a frame of %u bytes, limit %u", payload_bytes, WIRE_MAX_PAYLOAD_BYTES);
    *frame_bytes = WIRE_HEADER_BYTES + payload_bytes;
    return n_bytes < *frame_bytes ? BT_AGAIN : BT_OK;
}

bt_status wire_decode(const uint8_t *frame, size_t n_bytes, bt_arena *arena, wire_message *out, bt_error *err) {
    size_t frame_bytes = 0;
    bt_status status = wire_frame_size(frame, n_bytes, &frame_bytes, err);
    if (status == BT_BAD_REQUEST) return status;
    if (status != BT_OK || frame_bytes != n_bytes)
        return bt_fail(err, BT_BAD_REQUEST, "a frame of %zu bytes, not whole", n_bytes);
    reader in = {frame + WIRE_HEADER_BYTES, frame + n_bytes, arena, NULL};
    memset(out, 0, sizeof(*out));
    out->type = (wire_type)frame[7];
    switch (out->type) {
#define MESSAGE_BEGIN(NAME, name, number)                                                                              \
    case WIRE_##NAME:                                                                                                  \
        get_##name(&in, &out->name);                                                                                   \
        break;
#include "common/wire/ignore_fields.h"
#include "common/wire/messages.def"
#include "common/wire/undef.h"
    default:
        return bt_fail(err, BT_BAD_REQUEST, "unknown message number %u", frame[7]);
    }
    if (in.bad_field == NULL && in.at == in.end) return BT_OK;
    if (in.bad_field == NULL) in.bad_field = "the end";
    return bt_fail(err, BT_BAD_REQUEST, "a malformed %s message: %s does not fit", wire_type_name(out->type),
                   in.bad_field);
}

/* ---- names ---- */

const char *wire_type_name(wire_type type) {
    switch (type) {
#define MESSAGE_BEGIN(NAME, name, number)                                                                              \
    case WIRE_##NAME:                                                                                                  \
        return #name;
#include "common/wire/ignore_fields.h"
#include "common/wire/messages.def"
#include "common/wire/undef.h"
    }
    return "unknown";
}

void wire_write_markdown(bt_buf *out) {
    bt_buf_printf(out, "Wire version %u. Frame: u32 payload bytes, u16 magic 0x%04x, u8 version, u8 number.\n",
                  WIRE_VERSION, WIRE_MAGIC);
#define U8(field)                 bt_buf_puts(out, "| u8 | " #field " |\n");
#define U32(field)                bt_buf_puts(out, "| u32 | " #field " |\n");
#define U64(field)                bt_buf_puts(out, "| u64 | " #field " |\n");
#define F32(field)                bt_buf_puts(out, "| f32 | " #field " |\n");
#define STR(field, max)           bt_buf_printf(out, "| u32 n <= %u, bytes | " #field " |\n", max);
#define U32S(field, max)          bt_buf_printf(out, "| u32 n <= %u, u32 each | " #field " |\n", max);
#define U64S(field, max)          bt_buf_printf(out, "| u32 n <= %u, u64 each | " #field " |\n", max);
#define RECORD(field, type)       bt_buf_puts(out, "| " #type " | " #field " |\n");
#define RECORDS(field, type, max) bt_buf_printf(out, "| u32 n <= %u, " #type " each | " #field " |\n", max);
#define RECORD_BEGIN(name)        bt_buf_puts(out, "\n### record " #name "\n\n| bytes | field |\n|---|---|\n");
#define RECORD_END(name)
#define MESSAGE_BEGIN(NAME, name, number)                                                                              \
    bt_buf_puts(out, "\n### " #number " " #name "\n\n| bytes | field |\n|---|---|\n");
#define MESSAGE_END(NAME, name)
#include "common/wire/messages.def"
#include "common/wire/undef.h"
}
