/* libFuzzer: any bytes are a file image. Whatever the header says, no tensor may lie outside. */
#include <stdlib.h>

#include "common/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    bt_arena names = {0};
    mdl_safetensors found = {0};
    bt_error err = {0};
    if (mdl_safetensors_parse("fuzz", bytes, n_bytes, &names, &found, &err) == BT_OK) {
        for (size_t i = 0; i < found.n_tensors; i++) {
            const uint8_t *data = found.tensors[i].data;
            BT_ASSERT(data >= bytes && data + found.tensors[i].n_bytes <= bytes + n_bytes);
            BT_ASSERT(found.tensors[i].rank <= MDL_MAX_RANK);
        }
        free(found.tensors);
    } else {
        BT_ASSERT(err.text[0] != 0 && err.status == BT_BAD_REQUEST);
    }
    bt_arena_fini(&names);
    return 0;
}
