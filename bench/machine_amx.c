/* AMX: 2 x 2 tiles, four independent accumulators. */
#include <string.h>

#include "bench/machine.h"

double bench_flops_amx(void) {
    enum { N = 500000, FLOP = 4 * 2 * 16 * 16 * 32 };
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config;
    memset(&config, 0, sizeof(config));
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config)); /* zeroes all tiles */
    for (int i = 0; i < N; i++) {
        __asm__ volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
                         "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
    }
    __asm__ volatile("tilerelease");
    return (double)N * FLOP;
}
