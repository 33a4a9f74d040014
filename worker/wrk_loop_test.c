/* The loop around a scheduler that decides nothing: what is due, and what comes, is heard within a step. */
#include "worker/wrk_loop.h"

#include "common/core/clock.h"
#include "common/core/test.h"
#include "kernels/test_engine.h"
#include "kernels/test_model.h"

enum { N_BLOCKS = 4, N_LAYERS = 3 }; /* of TEST_CONFIG_V3 */

typedef struct {
    wrk_sched base; /* first */
    bt_queue *queue;
    bool has_stepped;
    uint32_t n_layers, n_late; /* in the step */
} fake;

/* A timer that is due as soon as it is set, and somebody who takes our name: the loop drains for that. */
static bool step_begin(wrk_sched *base, int64_t now_ns, wrk_step *out) {
    static const uint32_t tokens[] = {5}, blocks[] = {0};
    static const krn_sequence sequence = {tokens, blocks, 1, 0, KRN_EXPANDED, 0};
    fake *sched = (fake *)base;
    if (sched->has_stepped) return false;
    sched->has_stepped = base->is_stepping = true;
    bt_timers_set(&base->timers, 0, now_ns);
    wrk_event *event = bt_calloc(1, sizeof(*event));
    *event = (wrk_event){.source = WRK_FROM_NODE, .is_replaced = true};
    bt_queue_push(sched->queue, &event->node);
    *out = (wrk_step){.sequences = &sequence, .n_sequences = 1, .n_rows = 1};
    return true;
}

static void late(wrk_sched *base, uint32_t id, int64_t now_ns) {
    fake *sched = (fake *)base;
    CHECK(id == 0 && base->is_stepping, "within the step");
    sched->n_late++;
    if (sched->n_layers < N_LAYERS) bt_timers_set(&base->timers, 0, now_ns + 1);
}

static void layer_done(wrk_sched *base, uint32_t layer, int64_t now_ns) {
    (void)now_ns;
    fake *sched = (fake *)base;
    CHECK(layer == sched->n_layers++, "layer %u", layer);
    CHECK(sched->n_late == layer, "layer %u: what was due is done before the next one", layer);
    CHECK(base->is_draining == (layer > 0), "layer %u: what came is heard", layer);
}

static void step_done(wrk_sched *base, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns) {
    (void)tokens, (void)logprobs, (void)now_ns;
    const fake *sched = (const fake *)base;
    base->is_stepping = false;
    CHECK(sched->n_layers == N_LAYERS && sched->n_late == N_LAYERS, "%u layers, %u times", sched->n_layers,
          sched->n_late);
    wrk_slot_put(base, 0); /* the last request is gone: drained */
}

static void load(const wrk_sched *base, wire_load *out) {
    (void)base;
    *out = (wire_load){0};
}

static void what_is_due_and_what_comes_is_heard_between_layers(void) {
    char dir[TEST_PATH_BYTES];
    static const test_model model = {.config = TEST_CONFIG_V3 "}", .matrix_dtype = "F32", .bias_dtype = "F32"};
    static const wrk_config config = {0};
    bt_error err = {0};
    test_engine engine = {0};
    test_dir_make(dir);
    test_model_write(dir, &model);
    CHECK(test_engine_open(dir, "ref", 1, N_BLOCKS, &engine, &err) == BT_OK, "%s", err.text);
    bt_metrics *metrics = bt_metrics_open(BT_ROLE_DECODE, "model_name=\"m\"");
    bt_series *any = bt_metrics_series(metrics, BT_METRIC_RUNNING, "");
    wrk_node node = {.options = {.config = &config, .name = "decode-0", .max_logits = 1},
                     .metrics = metrics,
                     .model = engine.model,
                     .kv = engine.kv,
                     .logits = engine.logits,
                     .running = any,
                     .waiting = any,
                     .kv_total = any,
                     .kv_used = any,
                     .kv_cached = any};
    wrk_vllm_open(&node.vllm, metrics);
    CHECK(bt_queue_open(&node.queue, &err) == BT_OK, "%s", err.text);
    fake sched = {.base = {.step_begin = step_begin,
                           .layer_done = layer_done,
                           .step_done = step_done,
                           .late = late,
                           .load = load},
                  .queue = node.queue};
    const wrk_sched_options options = {.pool = kv_pool_open(N_BLOCKS)};
    wrk_sched_init(&sched.base, &options, 1, 1);
    wrk_slot_take(&sched.base);
    wrk_loop_run(&(wrk_loop_options){.node = &node, .sched = &sched.base});
    CHECK(sched.has_stepped, "a step was run");
    wrk_sched_fini(&sched.base);
    kv_pool_close(options.pool);
    bt_queue_close(node.queue);
    bt_metrics_close(metrics);
    test_engine_close(&engine);
    test_dir_remove(dir);
}

int main(void) {
    what_is_due_and_what_comes_is_heard_between_layers();
    TEST_END();
}
