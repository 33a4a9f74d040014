/* KV memory is zeroed, can be read by who is told where it is, and by nobody changed. Every test is a sentence. */
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/core/test.h"
#include "kvtransfer/kvt_memory.h"

enum { N_BYTES = 5 << 20 };
static kvt_memory memory;

static bt_status map(uint64_t token, kvt_memory *out) {
    return kvt_memory_map((uint32_t)getpid(), (uint32_t)memory.fd, token, out, NULL);
}

static void a_reader_sees_what_the_owner_writes(void) {
    kvt_memory reader = {0};
    CHECK(map(memory.token, &reader) == BT_OK && reader.n_bytes == memory.n_bytes, "mapped");
    CHECK(reader.base != memory.base && (uintptr_t)reader.base % (2 << 20) == 0, "on huge pages");
    for (size_t i = 0; i < N_BYTES; i++) {
        if (reader.base[i] != 0) CHECK(false, "byte %zu is not zero", i);
    }
    memory.base[N_BYTES - 1] = 7;
    CHECK(reader.base[N_BYTES - 1] == 7, "written after it was mapped");
    kvt_memory_close(&reader);
    CHECK(reader.base == NULL && memory.base[N_BYTES - 1] == 7, "the owner's stays");
}

static void who_does_not_know_the_token_gets_nothing(void) {
    kvt_memory reader = {0};
    CHECK(map(memory.token + 1, &reader) == BT_BAD_REQUEST && reader.base == NULL, "mapped");
}

static void nobody_else_can_write_or_shrink_it(void) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", memory.fd);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0, "the file can be opened");
    CHECK(mmap(NULL, N_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, "mapped to write");
    CHECK(pwrite(fd, "x", 1, 0) < 0, "written");
    CHECK(ftruncate(fd, 0) < 0, "shrunk");
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0, "emptied");
    close(fd);
    memory.base[0] = 1;
    CHECK(memory.base[0] == 1, "the owner can");
}

int main(void) {
    bt_error err = {0};
    CHECK(kvt_memory_open(N_BYTES, &memory, &err) == BT_OK, "%s", err.text);
    a_reader_sees_what_the_owner_writes();
    who_does_not_know_the_token_gets_nothing();
    nobody_else_can_write_or_shrink_it();
    kvt_memory_close(&memory);
    kvt_memory_close(&memory);
    TEST_END();
}
