/* batonctl VERB FLAGS: what an operator asks of a running cluster. */
#include "tools/batonctl.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} verbs[] = {{"status", ctl_status}, {"plan", ctl_plan}};

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* hiredis writes without MSG_NOSIGNAL */
    for (size_t i = 0; argc >= 2 && i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        if (strcmp(argv[1], verbs[i].name) == 0) return verbs[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "usage: batonctl status|plan [flags]; batonctl VERB --help lists them\n");
    return argc >= 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
}
