/* chat_template.c against Python's Jinja2: the fixtures of two models, and testdata/templates.jsonl, whose expected
 * texts and errors were computed by Jinja2 3.1 in transformers' environment (testdata/make_templates.py). */
#include "common/text/chat_template.h"

#include <pthread.h>
#include <string.h>

#include "common/core/test.h"
#include "common/text/json.h"
#include "common/text/tokenizer.h"

static const cJSON *member(const cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

/* Renders and compares; `expected` NULL: an error is expected. */
static void check_render(const char *where, const char *source, size_t n_source, const cJSON *variables,
                         const char *expected, size_t n_expected) {
    tpl_template *tpl = NULL;
    bt_error err = {0};
    bt_buf out = {0};
    bt_status status = tpl_open(source, n_source, &tpl, &err);
    if (status == BT_OK) status = tpl_render(tpl, variables, &out, &err);
    if (expected == NULL) {
        CHECK(status == BT_BAD_REQUEST && err.text[0] != 0, "%s: got '%s' for %s", where, bt_buf_text(&out), source);
    } else {
        CHECK(status == BT_OK, "%s: %s in %s", where, err.text, source);
        CHECK(status != BT_OK || (out.n_bytes == n_expected && memcmp(bt_buf_text(&out), expected, n_expected) == 0),
              "%s: %s\n  got  '%s'\n  want '%s'", where, source, bt_buf_text(&out), expected);
    }
    bt_buf_fini(&out);
    tpl_close(tpl);
}

static void test_jinja(FILE *file) {
    char *line = NULL;
    size_t cap = 0;
    for (int n = 1; getline(&line, &cap, file) > 0; n++) {
        cJSON *row = NULL;
        char where[32];
        bt_error err = {0};
        snprintf(where, sizeof(where), "line %d", n);
        CHECK(txt_json_parse(line, strlen(line), &row, &err) == BT_OK, "%s: %s", where, err.text);
        size_t n_source, n_expected;
        const char *source = txt_json_string(member(row, "template"), &n_source);
        const char *expected = txt_json_string(member(row, "text"), &n_expected);
        check_render(where, source, n_source, member(row, "variables"), expected, n_expected);
        cJSON_Delete(row);
    }
    free(line);
}

/* The variables that transformers passes to a template. */
static cJSON *chat_variables(const cJSON *row, const tok_tokenizer *tokenizer) {
    cJSON *variables = cJSON_CreateObject();
    const cJSON *tools = member(row, "tools"), *prompt = member(row, "add_generation_prompt"), *extra;
    cJSON_AddItemToObject(variables, "messages", cJSON_Duplicate(member(row, "messages"), 1));
    cJSON_AddItemToObject(variables, "tools", tools != NULL ? cJSON_Duplicate(tools, 1) : cJSON_CreateNull());
    cJSON_AddItemToObject(variables, "documents", cJSON_CreateNull());
    cJSON_AddBoolToObject(variables, "add_generation_prompt", prompt == NULL || cJSON_IsTrue(prompt));
    cJSON_AddStringToObject(variables, "bos_token", tok_bos_text(tokenizer));
    cJSON_AddStringToObject(variables, "eos_token", tok_eos_text(tokenizer));
    cJSON_ArrayForEach(extra, member(row, "kwargs")) {
        cJSON_AddItemToObject(variables, extra->string, cJSON_Duplicate(extra, 1));
    }
    return variables;
}

static void test_chats(FILE *file, const char *name, const tok_tokenizer *tokenizer) {
    char *line = NULL;
    size_t cap = 0;
    const char *source = tok_chat_template(tokenizer);
    for (int n = 1; getline(&line, &cap, file) > 0; n++) {
        cJSON *row = NULL;
        char where[64];
        snprintf(where, sizeof(where), "%s line %d", name, n);
        CHECK(txt_json_parse(line, strlen(line), &row, NULL) == BT_OK, "%s", where);
        size_t n_text;
        const char *text = txt_json_string(member(row, "text"), &n_text);
        if (strcmp(member(row, "template")->valuestring, name) == 0) {
            cJSON *variables = chat_variables(row, tokenizer);
            check_render(where, source, strlen(source), variables, text, n_text);
            cJSON_Delete(variables);
            tok_ids ids = {0};
            CHECK(tok_encode(tokenizer, text, n_text, 0, &ids, NULL) == BT_OK, "%s", where);
            const cJSON *id = member(row, "ids")->child;
            for (size_t i = 0; i < ids.n_ids && id != NULL && ids.ids[i] == (uint32_t)id->valuedouble; i++)
                id = id->next;
            CHECK(id == NULL && (int)ids.n_ids == cJSON_GetArraySize(member(row, "ids")), "%s: ids", where);
            tok_ids_fini(&ids);
        }
        cJSON_Delete(row);
    }
    free(line);
}

static void test_chat_fixture(const char *name, const char *model_dir) {
    tok_tokenizer *tokenizer = NULL;
    bt_error err = {0};
    char path[512];
    snprintf(path, sizeof(path), "%s/fixtures/chat-template.jsonl", test_shared());
    FILE *file = fopen(path, "r");
    CHECK(file != NULL, "%s", path);
    CHECK(tok_open(model_dir, &tokenizer, &err) == BT_OK, "%s", err.text);
    if (file != NULL && tokenizer != NULL) test_chats(file, name, tokenizer);
    if (file != NULL) fclose(file);
    tok_close(tokenizer);
}

/* A template and a tokenizer are shared by threads: all get the same text and ids. */
typedef struct {
    const tok_tokenizer *tokenizer;
    const tpl_template *tpl;
    const cJSON *variables;
    bt_buf text;
    tok_ids ids;
} shared_run;

static void *render_many(void *argument) {
    shared_run *run = argument;
    for (int i = 0; i < 50; i++) {
        bt_buf_clear(&run->text);
        run->ids.n_ids = 0;
        tpl_render(run->tpl, run->variables, &run->text, NULL);
        tok_encode(run->tokenizer, bt_buf_text(&run->text), run->text.n_bytes, 0, &run->ids, NULL);
    }
    return NULL;
}

static void test_threads(void) {
    enum { N_THREADS = 3 };
    static const char text[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello caf\u00e9 123\"}], \"tools\": [{\"n\": 1.5}], "
        "\"bos_token\": \"\", \"add_generation_prompt\": true}";
    tok_tokenizer *tokenizer = NULL;
    tpl_template *tpl = NULL;
    cJSON *variables = NULL;
    CHECK(tok_open("deploy/models/nano-r1", &tokenizer, NULL) == BT_OK, "nano-r1");
    if (tokenizer == NULL) return;
    const char *source = tok_chat_template(tokenizer);
    CHECK(tpl_open(source, strlen(source), &tpl, NULL) == BT_OK, "template");
    CHECK(txt_json_parse(text, strlen(text), &variables, NULL) == BT_OK, "variables");
    shared_run runs[N_THREADS] = {{0}};
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        runs[i] = (shared_run){.tokenizer = tokenizer, .tpl = tpl, .variables = variables};
        pthread_create(&threads[i], NULL, render_many, &runs[i]);
    }
    for (int i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    size_t n_ids = runs[0].ids.n_ids;
    for (int i = 0; i < N_THREADS; i++) {
        CHECK(n_ids > 10 && runs[i].ids.n_ids == n_ids, "thread %d: %zu ids", i, runs[i].ids.n_ids);
        bt_buf_fini(&runs[i].text);
        tok_ids_fini(&runs[i].ids);
    }
    cJSON_Delete(variables);
    tpl_close(tpl);
    tok_close(tokenizer);
}

int main(void) {
    test_threads();
    FILE *file = fopen("common/text/testdata/templates.jsonl", "r");
    CHECK(file != NULL, "testdata is not there");
    if (file != NULL) test_jinja(file);
    if (file != NULL) fclose(file);
    if (test_shared() != NULL) {
        char path[512];
        snprintf(path, sizeof(path), "%s/data/deepseek-v3-tokenizer", test_shared());
        test_chat_fixture("nano-r1", "deploy/models/nano-r1");
        test_chat_fixture("deepseek-v3", path);
    }
    TEST_END();
}
