/* The pipeline of one choice. Counts tokens, but does not know why a request ends. */
#include "gateway/text/stream.h"

#include <string.h>

static void open_tools(gw_stream *stream, const gw_stream_options *options) {
    stream->has_tools = true;
    tcl_init(&stream->tools, options->call_format, options->call_ids, options->max_calls);
    if (options->call_opening != NULL)
        tcl_put_opening(&stream->tools, options->call_opening, strlen(options->call_opening));
    if (tcl_has_special_markers(options->call_format, options->tokenizer)) stream->det.skips_special = false;
}

bt_status gw_stream_init(gw_stream *stream, const gw_stream_options *options, bt_error *err) {
    *stream = (gw_stream){.has_reasoning = options->has_reasoning,
                          .include_stop_str = options->include_stop_str,
                          .min_tokens = options->min_tokens};
    bt_status status = stop_init(&stream->stop, options->stop, options->n_stop, options->include_stop_str, err);
    if (status != BT_OK) return status;
    det_init(&stream->det, options->tokenizer, options->skip_special_tokens);
    rsn_init(&stream->rsn, options->tokenizer, options->opens_think);
    if (options->call_format != TCL_NONE) open_tools(stream, options);
    BT_ASSERT(options->n_end_ids <= GW_MAX_END_IDS);
    stream->n_end_ids = options->n_end_ids;
    if (options->n_end_ids > 0) memcpy(stream->end_ids, options->end_ids, options->n_end_ids * sizeof(uint32_t));
    return BT_OK;
}

void gw_stream_fini(gw_stream *stream) {
    stop_fini(&stream->stop);
    bt_buf_fini(&stream->piece);
    bt_buf_fini(&stream->clean);
    bt_buf_fini(&stream->said);
    tcl_fini(&stream->tools);
    bt_buf_fini(&stream->reasoning);
    bt_buf_fini(&stream->content);
}

static bool is_end_id(const gw_stream *stream, uint32_t id) {
    for (uint32_t i = 0; i < stream->n_end_ids; i++)
        if (stream->end_ids[i] == id) return true;
    return false;
}

/* stream->piece -> stream->clean. */
static bool match_stop(gw_stream *stream) {
    bt_buf_clear(&stream->clean);
    if (stream->n_tokens > stream->min_tokens)
        return stop_put(&stream->stop, (const char *)stream->piece.bytes, stream->piece.n_bytes, &stream->clean);
    bt_buf_put(&stream->clean, stream->piece.bytes, stream->piece.n_bytes);
    return false;
}

/* stream->clean -> reasoning, content, calls. `id`: of the token that it came with, NULL: of none. */
static void split(gw_stream *stream, const uint32_t *id, bool is_end) {
    const char *text = (const char *)stream->clean.bytes;
    size_t n_bytes = stream->clean.n_bytes;
    bt_buf *said = stream->has_tools ? &stream->said : &stream->content;
    if (!stream->has_reasoning) {
        bt_buf_put(said, text, n_bytes);
    } else {
        if (id != NULL) rsn_put(&stream->rsn, *id, text, n_bytes, &stream->reasoning, said);
        if (id == NULL) rsn_put_text(&stream->rsn, text, n_bytes, &stream->reasoning, said);
        if (is_end) rsn_finish(&stream->rsn, &stream->reasoning, said);
    }
    if (!stream->has_tools) return;
    tcl_put(&stream->tools, (const char *)said->bytes, said->n_bytes, &stream->content);
    if (is_end) tcl_finish(&stream->tools, &stream->content);
    bt_buf_clear(said);
}

bool gw_stream_put(gw_stream *stream, uint32_t id) {
    if (stream->is_ended) return true;
    stream->n_tokens++;
    bt_buf_clear(&stream->piece);
    stream->is_shown = stream->include_stop_str || !is_end_id(stream, id) || stream->n_tokens <= stream->min_tokens;
    if (stream->is_shown) det_put(&stream->det, id, &stream->piece);
    stream->is_ended = match_stop(stream);
    split(stream, &id, stream->is_ended);
    return stream->is_ended;
}

bool gw_stream_finish(gw_stream *stream) {
    if (stream->is_ended) return stream->stop.matched >= 0;
    stream->is_ended = true;
    bt_buf_clear(&stream->piece);
    det_finish(&stream->det, &stream->piece);
    bool is_stop = match_stop(stream);
    if (!is_stop) stop_finish(&stream->stop, &stream->clean);
    split(stream, NULL, true);
    return is_stop;
}

size_t gw_stream_n_held(const gw_stream *stream) {
    size_t n_marker = stream->has_reasoning ? stream->rsn.n_held : 0;
    size_t n_call =
        stream->tools.pending.n_bytes + (stream->tools.state == TCL_TEXT ? stream->tools.unread.n_bytes : 0);
    return stream->is_ended ? 0 : stream->det.n_pending + stream->stop.held.n_bytes + n_marker + n_call;
}

uint64_t gw_stream_n_reasoning(const gw_stream *stream) {
    return stream->has_reasoning ? stream->rsn.n_reasoning_tokens : 0;
}
