/* For tests: a temporary folder of one's own. */
#ifndef BATON_COMMON_CORE_TEST_DIR_H
#define BATON_COMMON_CORE_TEST_DIR_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/core/status.h"

enum { TEST_DIR_BYTES = 64 }; /* so that the path of a socket in it fits its address, 107 bytes */

static inline void test_dir_make(char dir[TEST_DIR_BYTES]) {
    const char *parent = getenv("TMPDIR");
    char name[32];
    uint64_t random;
    BT_ASSERT(getrandom(&random, sizeof(random), 0) == (ssize_t)sizeof(random));
    snprintf(name, sizeof(name), "baton-test-%llx", (unsigned long long)random);
    if (parent == NULL || strlen(parent) + 1 + strlen(name) >= TEST_DIR_BYTES) parent = "/tmp";
    snprintf(dir, TEST_DIR_BYTES, "%s/%s", parent, name);
    BT_ASSERT(mkdir(dir, 0700) == 0);
}

/* Its files, not its folders. */
static inline void test_dir_clear(const char *dir) {
    DIR *folder = opendir(dir);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] != '.') unlinkat(dirfd(folder), entry->d_name, 0);
    }
    if (folder != NULL) closedir(folder);
}

static inline void test_dir_remove(const char *dir) {
    test_dir_clear(dir);
    rmdir(dir);
}

#endif
