/* Rules and accounts, each a table with a hash map over it. Accounts are made when they are first named in a minute.
 * When it ends they decide nothing any more, but are kept for another minute: until Redis is told what it does not know
 * of them, so that it has counted all. */
#include "gateway/core/gw_limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/core/map.h"

#define NO_LIMIT  UINT64_MAX
#define CAP_TOTAL ((uint64_t)1 << 62) /* of what others say */
#define CAP_LIMIT 1000000000000U

enum { CAP_RULES = 65536 };

static const char *const payer_names[GW_N_PAYERS] = {"model", "user", "key"};
static const char *const unit_names[GW_N_UNITS] = {"requests", "tokens"};

typedef struct {
    uint64_t limits[GW_N_UNITS];
} rule;

typedef struct {
    rule *rules; /* owned */
    uint32_t n_rules;
    bt_map by_name;
    bool has_token_limits;
} rule_table;

typedef struct {
    uint64_t limit;   /* NO_LIMIT: not counted */
    uint64_t total;   /* as far as Redis has told us */
    uint64_t sent;    /* Redis has not answered yet */
    uint64_t waiting; /* Redis does not know */
    uint64_t told_on; /* the connection on which it was last told of; 0: none */
} counter;

typedef struct {
    gw_payer payer;
    bool is_dirty; /* on the list */
    char name[GW_CAP_PAYER];
    counter counters[GW_N_UNITS];
} account;

/* A minute's accounts. */
typedef struct {
    int64_t window;
    account *accounts; /* owned, [cap_accounts] */
    uint32_t n_accounts, cap_accounts;
    uint32_t *dirty; /* owned, [cap_accounts]: accounts of which something waits */
    uint32_t n_dirty;
} ledger;

struct gw_limits {
    uint64_t seed;
    rule_table rules;
    ledger now, last;
    uint64_t book;       /* counts the ledgers: a clock may go back to an earlier minute */
    bt_map by_name;      /* of `now` */
    uint64_t connection; /* counts them */
};

static bool is_name(const char *name, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (name[i] <= ' ' || name[i] > '~') return false;
    return n_bytes > 0 && n_bytes < GW_CAP_PAYER;
}

static bt_key key_of(const gw_limits *limits, gw_payer payer, const char *name, size_t n_bytes) {
    XXH128_hash_t hash = XXH3_128bits_withSeed(name, n_bytes, limits->seed);
    return (bt_key){hash.low64, hash.high64, (uint32_t)payer};
}

/* ---- rules ----------------------------------------------------------------------------------------------------------
 */

static void rules_fini(rule_table *table) {
    bt_map_fini(&table->by_name);
    free(table->rules);
}

static bool parse_limit(const char *word, uint64_t *out) {
    if (strcmp(word, "-") == 0) {
        *out = NO_LIMIT;
        return true;
    }
    uint64_t value = 0;
    for (const char *c = word; *c != 0; c++) {
        if (*c < '0' || *c > '9') return false;
        value = value * 10 + (uint64_t)(*c - '0');
        if (value > CAP_LIMIT) return false;
    }
    *out = value;
    return true;
}

/* The index of a word in a list, or `n`. */
static uint32_t find_word(const char *const *words, uint32_t n, const char *word, size_t n_bytes) {
    uint32_t i = 0;
    while (i < n && (strlen(words[i]) != n_bytes || memcmp(words[i], word, n_bytes) != 0)) i++;
    return i;
}

static bt_status parse_line(const gw_limits *limits, rule_table *table, const char *line, uint32_t number,
                            bt_error *err) {
    char words[4][GW_CAP_PAYER] = {{0}}, rest[2] = "";
    rule parsed;
    int n = sscanf(line, " %128s %128s %128s %128s %1s", words[0], words[1], words[2], words[3], rest);
    if (n <= 0 || words[0][0] == '#') return BT_OK;
    uint32_t payer = find_word(payer_names, GW_N_PAYERS, words[0], strlen(words[0]));
    size_t n_name = strlen(words[1]);
    if (n != 4 || payer == GW_N_PAYERS || !is_name(words[1], n_name))
        return bt_fail(err, BT_BAD_REQUEST, "line %u is not \"model|user|key NAME REQUESTS TOKENS\"", number);
    for (int unit = 0; unit < GW_N_UNITS; unit++)
        if (!parse_limit(words[2 + unit], &parsed.limits[unit]))
            return bt_fail(err, BT_BAD_REQUEST, "line %u: %s is neither - nor 0 to %llu", number, unit_names[unit],
                           (unsigned long long)CAP_LIMIT);
    bt_key key = key_of(limits, (gw_payer)payer, words[1], n_name);
    if (bt_map_get(&table->by_name, key) != BT_MAP_NONE)
        return bt_fail(err, BT_BAD_REQUEST, "line %u: %s %s has a line already", number, words[0], words[1]);
    if (table->n_rules == CAP_RULES) return bt_fail(err, BT_BAD_REQUEST, "more than %d rules", CAP_RULES);
    table->rules = bt_realloc(table->rules, table->n_rules + 1, sizeof *table->rules);
    table->rules[table->n_rules] = parsed;
    bt_map_put(&table->by_name, key, table->n_rules++);
    if (parsed.limits[GW_PER_TOKENS] != NO_LIMIT) table->has_token_limits = true;
    return BT_OK;
}

/* NULL: no limit. */
static const rule *find_rule(const gw_limits *limits, gw_payer payer, const char *name, size_t n_bytes) {
    const rule_table *table = &limits->rules;
    uint32_t at = bt_map_get(&table->by_name, key_of(limits, payer, name, n_bytes));
    if (at == BT_MAP_NONE) at = bt_map_get(&table->by_name, key_of(limits, payer, "*", 1));
    return at == BT_MAP_NONE ? NULL : &table->rules[at];
}

static void apply_rule(const gw_limits *limits, account *a) {
    const rule *found = find_rule(limits, a->payer, a->name, strlen(a->name));
    for (int unit = 0; unit < GW_N_UNITS; unit++)
        a->counters[unit].limit = found == NULL ? NO_LIMIT : found->limits[unit];
}

bt_status gw_limits_load(gw_limits *limits, const char *text, size_t n_bytes, bt_error *err) {
    rule_table table = {0};
    bt_status status = BT_OK;
    const char *end = text + n_bytes;
    for (uint32_t number = 1; text < end && status == BT_OK; number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t n = (size_t)((newline == NULL ? end : newline) - text);
        char line[512];
        if (n >= sizeof line && text[0] != '#') {
            status = bt_fail(err, BT_BAD_REQUEST, "line %u has over %zu bytes", number, sizeof line - 1);
            break;
        }
        snprintf(line, sizeof line, "%.*s", (int)(n < sizeof line ? n : 0), text);
        if (strlen(line) < n && n < sizeof line)
            status = bt_fail(err, BT_BAD_REQUEST, "line %u has a NUL", number);
        else
            status = parse_line(limits, &table, line, number, err);
        text += n + 1;
    }
    if (status != BT_OK) {
        rules_fini(&table);
        return status;
    }
    rules_fini(&limits->rules);
    limits->rules = table;
    for (uint32_t i = 0; i < limits->now.n_accounts; i++) apply_rule(limits, &limits->now.accounts[i]);
    return BT_OK;
}

bool gw_limits_has_rules(const gw_limits *limits) { return limits->rules.n_rules > 0; }

/* ---- accounts -------------------------------------------------------------------------------------------------------
 */

int64_t gw_limits_window(gw_limits *limits, int64_t wall_s) {
    int64_t window = wall_s / GW_LIMIT_WINDOW_S;
    if (window == limits->now.window) return window;
    ledger emptied = limits->last;
    emptied.window = window;
    emptied.n_accounts = emptied.n_dirty = 0;
    limits->last = limits->now;
    limits->now = emptied;
    limits->book++;
    bt_map_fini(&limits->by_name);
    return window;
}

/* NULL: the name has no limit, or there is no room for "*" either. */
static account *find_account(gw_limits *limits, gw_payer payer, const char *name, size_t n_bytes) {
    if (!is_name(name, n_bytes)) return find_account(limits, payer, "*", 1);
    bt_key key = key_of(limits, payer, name, n_bytes);
    uint32_t at = bt_map_get(&limits->by_name, key);
    ledger *now = &limits->now;
    if (at != BT_MAP_NONE) return &now->accounts[at];
    if (find_rule(limits, payer, name, n_bytes) == NULL) return NULL;
    bool is_any = n_bytes == 1 && name[0] == '*';
    uint32_t cap = is_any ? GW_CAP_ACCOUNTS + GW_N_PAYERS : GW_CAP_ACCOUNTS; /* there is always room for "*" */
    if (now->n_accounts >= cap) return is_any ? NULL : find_account(limits, payer, "*", 1);
    if (now->n_accounts == now->cap_accounts) {
        now->cap_accounts = now->cap_accounts == 0 ? 64 : now->cap_accounts * 2;
        now->accounts = bt_realloc(now->accounts, now->cap_accounts, sizeof *now->accounts);
        now->dirty = bt_realloc(now->dirty, now->cap_accounts, sizeof *now->dirty);
    }
    account *a = &now->accounts[now->n_accounts];
    *a = (account){.payer = payer};
    memcpy(a->name, name, n_bytes);
    apply_rule(limits, a);
    bt_map_put(&limits->by_name, key, now->n_accounts++);
    return a;
}

static account *payer_account(gw_limits *limits, const gw_payers *payers, gw_payer payer) {
    const char *name = payers->names[payer];
    return name == NULL || name[0] == 0 ? NULL : find_account(limits, payer, name, strlen(name));
}

static uint64_t counted(const counter *c) { return c->total + c->sent + c->waiting; }

static void add(gw_limits *limits, account *a, gw_unit unit, uint64_t amount) {
    counter *c = &a->counters[unit];
    if (c->limit == NO_LIMIT || amount == 0) return;
    c->waiting += amount;
    if (a->is_dirty) return;
    a->is_dirty = true;
    limits->now.dirty[limits->now.n_dirty++] = (uint32_t)(a - limits->now.accounts);
}

bool gw_limits_check(gw_limits *limits, const gw_payers *payers, int64_t wall_s, gw_limit_hit *hit) {
    if (!gw_limits_has_rules(limits)) return true;
    gw_limits_window(limits, wall_s);
    for (int payer = 0; payer < GW_N_PAYERS; payer++) {
        const account *a = payer_account(limits, payers, (gw_payer)payer);
        for (int unit = 0; a != NULL && unit < GW_N_UNITS; unit++) {
            const counter *c = &a->counters[unit];
            if (c->limit == NO_LIMIT || counted(c) < c->limit) continue;
            *hit = (gw_limit_hit){.payer = (gw_payer)payer, .unit = (gw_unit)unit, .limit = c->limit};
            hit->retry_after_s = (uint32_t)(GW_LIMIT_WINDOW_S - wall_s % GW_LIMIT_WINDOW_S);
            memcpy(hit->name, a->name, sizeof hit->name);
            return false;
        }
    }
    return true;
}

void gw_limits_count(gw_limits *limits, const gw_payers *payers, int64_t wall_s) {
    if (!gw_limits_has_rules(limits)) return;
    gw_limits_window(limits, wall_s);
    for (int payer = 0; payer < GW_N_PAYERS; payer++) {
        account *a = payer_account(limits, payers, (gw_payer)payer);
        if (a != NULL) add(limits, a, GW_REQUESTS, 1);
    }
}

void gw_limits_spend(gw_limits *limits, const gw_payers *payers, uint32_t n_tokens, int64_t wall_s) {
    if (!limits->rules.has_token_limits) return;
    gw_limits_window(limits, wall_s);
    for (int payer = 0; payer < GW_N_PAYERS; payer++) {
        account *a = payer_account(limits, payers, (gw_payer)payer);
        if (a != NULL) add(limits, a, GW_PER_TOKENS, n_tokens);
    }
}

/* ---- Redis ---------------------------------------------------------------------------------------------------------
 */

static bool take_from(gw_limits *limits, ledger *from, uint64_t book, gw_delta *out) {
    while (from->n_dirty > 0) {
        uint32_t at = from->dirty[from->n_dirty - 1];
        account *a = &from->accounts[at];
        for (int unit = 0; unit < GW_N_UNITS; unit++) {
            counter *c = &a->counters[unit];
            if (c->waiting == 0) continue;
            *out = (gw_delta){.window = from->window,
                              .unit = (gw_unit)unit,
                              .amount = c->waiting,
                              .is_first = c->told_on != limits->connection,
                              .known = c->total,
                              .book = book,
                              .account = at};
            snprintf(out->id, sizeof out->id, "%s %s %s", unit_names[unit], payer_names[a->payer], a->name);
            c->sent += c->waiting;
            c->waiting = 0;
            c->told_on = limits->connection;
            return true;
        }
        a->is_dirty = false;
        from->n_dirty--;
    }
    return false;
}

bool gw_limits_take(gw_limits *limits, gw_delta *out) {
    return take_from(limits, &limits->last, limits->book - 1, out) ||
           take_from(limits, &limits->now, limits->book, out);
}

static void raise_total(counter *c, uint64_t total) {
    if (total > c->total && total <= CAP_TOTAL) c->total = total;
}

void gw_limits_settle(gw_limits *limits, const gw_delta *delta, const uint64_t *total) {
    if (delta->book != limits->book) return; /* of a minute that is over */
    counter *c = &limits->now.accounts[delta->account].counters[delta->unit];
    c->sent -= delta->amount;
    if (total != NULL)
        raise_total(c, *total);
    else
        c->total += delta->amount; /* Redis may have it or not: once here, perhaps never elsewhere */
}

void gw_limits_heard(gw_limits *limits, int64_t window, const char *id, size_t n_bytes, uint64_t total) {
    if (window != limits->now.window) return;
    const char *payer_word = memchr(id, ' ', n_bytes);
    if (payer_word == NULL) return;
    uint32_t unit = find_word(unit_names, GW_N_UNITS, id, (size_t)(payer_word - id));
    size_t n_rest = n_bytes - (size_t)(++payer_word - id);
    const char *name = memchr(payer_word, ' ', n_rest);
    if (name == NULL || unit == GW_N_UNITS) return;
    uint32_t payer = find_word(payer_names, GW_N_PAYERS, payer_word, (size_t)(name - payer_word));
    size_t n_name = n_rest - (size_t)(++name - payer_word);
    if (payer == GW_N_PAYERS || !is_name(name, n_name)) return;
    account *a = find_account(limits, (gw_payer)payer, name, n_name);
    if (a != NULL) raise_total(&a->counters[unit], total);
}

void gw_limits_reconnected(gw_limits *limits) { limits->connection++; }

/* ---- life -----------------------------------------------------------------------------------------------------------
 */

static void ledger_fini(ledger *minute) {
    free(minute->accounts);
    free(minute->dirty);
}

gw_limits *gw_limits_open(uint64_t seed) {
    gw_limits *limits = bt_calloc(1, sizeof *limits);
    limits->seed = seed;
    limits->connection = 1;
    return limits;
}

void gw_limits_close(gw_limits *limits) {
    if (limits == NULL) return;
    rules_fini(&limits->rules);
    bt_map_fini(&limits->by_name);
    ledger_fini(&limits->now);
    ledger_fini(&limits->last);
    free(limits);
}
