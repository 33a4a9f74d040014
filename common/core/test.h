/* The whole test framework: CHECK counts, main() ends with TEST_END. A test that cannot run says why and skips. */
#ifndef BATON_COMMON_CORE_TEST_H
#define BATON_COMMON_CORE_TEST_H

#include <stdio.h>
#include <stdlib.h>

static int test_n_checks, test_n_failed;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        test_n_checks++;                                                                                               \
        if (!(condition)) {                                                                                            \
            test_n_failed++;                                                                                           \
            fprintf(stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition);                                    \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
        }                                                                                                              \
    } while (0)

#define TEST_END()                                                                                                     \
    do {                                                                                                               \
        fprintf(stderr, "%d checks, %d failed\n", test_n_checks, test_n_failed);                                       \
        return test_n_failed == 0 ? 0 : 1;                                                                             \
    } while (0)

#define TEST_SKIP(why)                                                                                                 \
    do {                                                                                                               \
        fprintf(stderr, "SKIPPED: %s\n", why);                                                                         \
        return 77;                                                                                                     \
    } while (0)

/* The folder with the large fixtures, or NULL. tests/run sets BATON_SHARED. */
static inline const char *test_shared(void) {
    const char *folder = getenv("BATON_SHARED");
    return folder != NULL && folder[0] != 0 ? folder : NULL;
}

#endif
