/* Every key and channel that Baton uses in Redis; docs/REDIS.md comes from this list.
 *
 * REDIS_KEY(ID, pattern, type, life, who, meaning); %s is the worker's name, or the minute. The number in the prefix
 * changes with the meaning of any of them, so that two versions never read each other's. */
#ifndef BATON_COMMON_REGISTRY_REDIS_KEYS_H
#define BATON_COMMON_REGISTRY_REDIS_KEYS_H

/* clang-format off */
#define REDIS_KEYS(REDIS_KEY)                                                                                          \
    REDIS_KEY(WORKER, "baton:1:worker:%s", "string", "`--lease-ms`, renewed at a third",                               \
        "its worker writes; gateways, ranks of its group and batonctl read",                                           \
        "A worker's announcement, as JSON. The key is the lease: when it expires, the worker is gone. Written only "   \
        "by the incarnation that holds it, or by a newer process that takes the name over.")                           \
    REDIS_KEY(WORKERS, "baton:1:workers", "set", "none; readers remove names that have no lease",                      \
        "workers add; gateways and ranks read and tidy",                                                               \
        "The names of all workers: which worker keys to read.")                                                        \
    REDIS_KEY(EVENTS, "baton:1:events", "channel", "-", "workers publish; gateways and ranks subscribe",               \
        "`changed NAME` after an announcement is new or has another content, `left NAME INCARNATION` after a worker "  \
        "deregistered. Only a hint to read the keys now: a lost message costs the time until the next list.")          \
    REDIS_KEY(USAGE, "baton:1:usage:%s", "hash", "120 s", "gateways with `--limits-file` add, and read at start",      \
        "What was used in a minute, counted since 1970: `requests user NAME`, `tokens key NAME`, `tokens model NAME`, "\
        "... to a number. Only names that have a limit.")                                                              \
    REDIS_KEY(TOTALS, "baton:1:totals", "channel", "-", "gateways with `--limits-file` publish and subscribe",         \
        "Lines of `MINUTE TOTAL FIELD`: fields of that minute's hash that have grown. They only grow, so the highest " \
        "is the truth, and a lost line is made good by the next.")
/* clang-format on */

#define REDIS_KEY(id, pattern, type, life, who, meaning) REDIS_##id,
enum { REDIS_KEYS(REDIS_KEY) REDIS_N_KEYS };
#undef REDIS_KEY

/* The pattern of a key: redis_key_patterns[REDIS_WORKER]. */
#define REDIS_KEY(id, pattern, type, life, who, meaning) [REDIS_##id] = pattern,
static const char *const redis_key_patterns[] __attribute__((unused)) = {REDIS_KEYS(REDIS_KEY)};
#undef REDIS_KEY

#endif
