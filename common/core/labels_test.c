/* Labels and selectors: each form and its meaning, what is refused, and any bytes. */
#include "common/core/labels.h"

#include <stdio.h>
#include <string.h>

#include "common/core/test.h"

static bool matches(const char *selector_text, const char *labels_text) {
    bt_selector selector;
    bt_labels labels;
    bt_error err;
    CHECK(bt_labels_parse(labels_text, &labels, &err) == BT_OK, "%s: %s", labels_text, err.text);
    CHECK(bt_selector_parse(selector_text, &selector, &err) == BT_OK, "%s: %s", selector_text, err.text);
    return bt_selector_matches(&selector, &labels);
}

static void test_each_requirement_means_what_kubernetes_says(void) {
    static const struct {
        const char *selector, *labels;
        bool is_match;
    } rows[] = {
        {"", "", true},
        {" ", "zone=a", true},
        {"zone=a", "zone=a", true},
        {"zone==a", "gpu=h100,zone=a", true},
        {"zone=a", "zone=b", false},
        {"zone=a", "", false},
        {"zone=a", "zon=ea", false},
        {"zone=", "zone=", true},
        {"zone=", "zone=a", false},
        {"zone!=a", "zone=b", true},
        {"zone!=a", "zone=a", false},
        {"zone!=a", "gpu=h100", true},
        {"zone in (a,b)", "zone=b", true},
        {"zone in(a , b)", "zone=c", false},
        {"zone in (a)", "", false},
        {"zone in ()", "zone=", true},
        {"zone notin (a,b)", "zone=c", true},
        {"zone notin (a,b)", "zone=b", false},
        {"zone notin (a,b)", "", true},
        {"zone", "zone=", true},
        {"zone", "gpu=h100", false},
        {"!zone", "gpu=h100", true},
        {"! zone", "zone=a", false},
        {"in", "in=x", true},
        {"in in (in)", "in=in", true},
        {"inner=1", "inner=1", true},
        {"example.com/gpu = h100 , zone != b,!spot", " example.com/gpu = h100 , zone = a ", true},
        {"example.com/gpu=h100,zone!=b,!spot", "example.com/gpu=h100,zone=a,spot=1", false},
        {"gpu=h100", "example.com/gpu=h100", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK(matches(rows[i].selector, rows[i].labels) == rows[i].is_match, "\"%s\" of \"%s\"", rows[i].selector,
              rows[i].labels);
}

static void test_what_is_no_selector_and_no_label_is_refused(void) {
    static const char *const selectors[] = {
        ",",      "a,",     ",a",   "a,,b",       "=a",           "a=b=c",   "a===b",     "a!b",           "a=!b",
        "!a=b",   "a b",    "a in", "a in b",     "a in (b",      "a in b)", "a in (b))", "a notin (b;c)", "a>1",
        "a<1",    "a=(b)",  "-a=b", "a-=b",       "a/=b",         "/a=b",    "a/b/c=d",   "a=-b",          "a=b-",
        "a=\x01", "a=\xc3", "a\nb", "a in (b c)", "a notina (b)", "!",       "!!a",       "a=b,!",
    };
    static const char *const labels[] = {"a",    "a=b,",     ",a=b",    "a=b,a=c", "a==b", "a=b c",
                                         "!a=b", "a in (b)", "a=b;c=d", "=",       "a=/"};
    bt_selector selector;
    bt_labels parsed;
    for (size_t i = 0; i < sizeof selectors / sizeof selectors[0]; i++) {
        bt_error err = {0};
        CHECK(bt_selector_parse(selectors[i], &selector, &err) == BT_BAD_REQUEST, "\"%s\"", selectors[i]);
        CHECK(strstr(err.text, "wrong at byte") != NULL, "%s", err.text);
    }
    for (size_t i = 0; i < sizeof labels / sizeof labels[0]; i++)
        CHECK(bt_labels_parse(labels[i], &parsed, NULL) == BT_BAD_REQUEST, "\"%s\"", labels[i]);
}

/* Text of n times `word`, where %d is the number, with commas between. */
static const char *many(const char *word, int n) {
    static char text[8192];
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0) text[at++] = ',';
        char number[16], *hole = strchr(word, '%');
        snprintf(number, sizeof number, "%d", i);
        at += (size_t)snprintf(text + at, sizeof text - at, "%.*s%s%s", (int)(hole - word), word, number, hole + 1);
    }
    return text;
}

static void test_everything_has_a_limit(void) {
    bt_selector selector;
    bt_labels labels;
    CHECK(bt_labels_parse(many("k%=v", BT_MAX_LABELS), &labels, NULL) == BT_OK && labels.n == BT_MAX_LABELS, "all");
    CHECK(bt_labels_parse(many("k%=v", BT_MAX_LABELS + 1), &labels, NULL) == BT_BAD_REQUEST, "one more");
    CHECK(bt_selector_parse(many("k%", BT_MAX_REQUIREMENTS), &selector, NULL) == BT_OK, "all");
    CHECK(bt_selector_parse(many("k%", BT_MAX_REQUIREMENTS + 1), &selector, NULL) == BT_BAD_REQUEST, "one more");
    char text[4096], long_name[65];
    snprintf(text, sizeof text, "k in (%s)", many("v%", BT_MAX_SELECTOR_VALUES));
    CHECK(bt_selector_parse(text, &selector, NULL) == BT_OK, "all values");
    snprintf(text, sizeof text, "k in (%s)", many("v%", BT_MAX_SELECTOR_VALUES + 1));
    CHECK(bt_selector_parse(text, &selector, NULL) == BT_BAD_REQUEST, "one more");
    memset(long_name, 'a', 64);
    long_name[64] = 0;
    snprintf(text, sizeof text, "k=%s", long_name + 1);
    CHECK(bt_labels_parse(text, &labels, NULL) == BT_OK, "63 characters");
    snprintf(text, sizeof text, "k=%s", long_name);
    CHECK(bt_labels_parse(text, &labels, NULL) == BT_BAD_REQUEST, "64 characters");
    snprintf(text, sizeof text, "%s=v", long_name);
    CHECK(bt_labels_parse(text, &labels, NULL) == BT_BAD_REQUEST, "likewise of a key");
    memset(text, ' ', sizeof text);
    text[BT_MAX_SELECTOR + 1] = 0;
    CHECK(bt_selector_parse(text, &selector, NULL) == BT_BAD_REQUEST, "blanks count");
    CHECK(bt_labels_parse(text, &labels, NULL) == BT_BAD_REQUEST, "blanks count");
}

static void test_any_bytes_are_parsed_or_refused(void) {
    static const char pieces[] = "ab=!(),. /-_\tinotin<\x80";
    uint32_t random = 1, n_good = 0;
    for (int turn = 0; turn < 200000; turn++) {
        char text[24];
        size_t n = 0;
        for (uint32_t length = (random >> 8) % (sizeof text - 1); n < length; n++) {
            random = random * 1664525 + 1013904223;
            text[n] = pieces[(random >> 8) % (sizeof pieces - 1)];
        }
        text[n] = 0;
        random = random * 1664525 + 1013904223;
        bt_selector selector;
        bt_labels labels = {0};
        n_good += bt_selector_parse(text, &selector, NULL) == BT_OK;
        (void)bt_labels_parse(text, &labels, NULL);
        if (bt_selector_parse(text, &selector, NULL) == BT_OK) (void)bt_selector_matches(&selector, &labels);
    }
    CHECK(n_good > 100, "some are selectors: %u", n_good);
}

int main(void) {
    test_each_requirement_means_what_kubernetes_says();
    test_what_is_no_selector_and_no_label_is_refused();
    test_everything_has_a_limit();
    test_any_bytes_are_parsed_or_refused();
    TEST_END();
}
