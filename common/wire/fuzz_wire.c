/* Any bytes: the decoder accepts or refuses; what it accepts encodes to the same bytes again. */
#include <string.h>

#include "common/wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    bt_arena arena = {0};
    bt_buf again = {0};
    wire_message message;
    bt_error err;
    if (wire_decode(bytes, n_bytes, &arena, &message, &err) == BT_OK) {
        wire_encode(&message, &again);
        BT_ASSERT(again.n_bytes == n_bytes && memcmp(again.bytes, bytes, n_bytes) == 0);
    }
    bt_buf_fini(&again);
    bt_arena_fini(&arena);
    return 0;
}
