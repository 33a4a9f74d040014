/* baton-bench VERB FLAGS: measures parts of Baton and prints CSV. */
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "engine") == 0) return bench_engine(argc - 1, argv + 1);
    fprintf(stderr, "usage: baton-bench engine --model DIR [flags]; baton-bench engine --help lists them\n");
    return argc >= 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
}
