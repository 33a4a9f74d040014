#include "common/core/address.h"

#include <stdlib.h>
#include <string.h>

bt_status bt_address_split(const char *address, char *host, size_t cap_host, uint32_t *port, bt_error *err) {
    const char *colon = strrchr(address, ':');
    if (colon == NULL) return bt_fail(err, BT_BAD_REQUEST, "address \"%.120s\" is not host:port", address);
    const char *begin = address, *end = colon;
    int is_v6 = *begin == '[' && end > begin && end[-1] == ']';
    if (is_v6) begin++, end--;
    size_t n = (size_t)(end - begin);
    const char *allowed =
        is_v6 ? "0123456789abcdefABCDEF:.%" : "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    if (n == 0 || n >= cap_host || strspn(begin, allowed) < n)
        return bt_fail(err, BT_BAD_REQUEST, "address \"%.120s\" has no usable host", address);
    size_t n_digits = strspn(colon + 1, "0123456789");
    unsigned long number = strtoul(colon + 1, NULL, 10);
    if (n_digits == 0 || n_digits > 5 || colon[1 + n_digits] != 0 || number == 0 || number > 65535)
        return bt_fail(err, BT_BAD_REQUEST, "address \"%.120s\" has no port in 1..65535", address);
    memcpy(host, begin, n);
    host[n] = 0;
    *port = (uint32_t)number;
    return BT_OK;
}
