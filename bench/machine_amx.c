/* AMX: 2 x 2 tiles, four independent accumulators. The operands are loaded once and stay: where another hardware thread
 * keeps the core busy, products of tiles that were configured but never loaded run at twice the rate of real ones. */
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
    uint16_t numbers[16 * 32]; /* bfloat16: 1/2, 1, 2 */
    for (int i = 0; i < 16 * 32; i++) numbers[i] = (uint16_t)(0x3f00 + i % 3 * 0x80);
    __asm__ volatile("ldtilecfg %0" ::"m"(config)); /* zeroes all tiles */
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm4\n\ttileloadd (%0,%1,1), %%tmm5\n\t"
                     "tileloadd (%0,%1,1), %%tmm6\n\ttileloadd (%0,%1,1), %%tmm7" ::"r"(numbers),
                     "r"((size_t)64)
                     : "memory");
    for (int i = 0; i < N; i++) {
        __asm__ volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
                         "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
    }
    __asm__ volatile("tilerelease");
    return (double)N * FLOP;
}
