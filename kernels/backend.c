/* Chooses a backend by name. */
#include "kernels/backend.h"

#include <string.h>

bt_status krn_backend_open(const char *name, const krn_backend_limits *limits, krn_backend **out, bt_error *err) {
    if (strcmp(name, "ref") == 0) return krn_ref_open(limits, out, err);
#ifdef KRN_HAS_CPU
    if (strcmp(name, "cpu") == 0) return krn_cpu_open(limits, out, err);
#endif
    return bt_fail(err, BT_BAD_REQUEST, "backend is \"%.40s\", expected cpu, ref or sim", name);
}
