/* Flags, then everything in order, then the loop, then everything in reverse. */
#include "worker/wrk_program.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/log.h"

#define CFG(type, name, default_text, help) CFG_ENTRY(wrk_config, type, name, default_text, help)
static const cfg_flag shared_flags[] = {
#include "worker/config.def"
};
#undef CFG

static bt_status flags_parse(const wrk_program *program, int argc, char **argv, bt_error *err) {
    size_t n_own = program->n_flags, n = n_own + sizeof(shared_flags) / sizeof(shared_flags[0]);
    cfg_flag *flags = bt_calloc(n, sizeof(*flags));
    memcpy(flags, program->flags, n_own * sizeof(*flags));
    memcpy(flags + n_own, shared_flags, sizeof(shared_flags));
    bt_status status = cfg_parse(program->name, program->purpose, flags, n, argc, argv, program->config, err);
    free(flags);
    if (status != BT_OK) return status;
    bt_log_level level;
    status = bt_log_parse_level(program->config->log_level, &level, err);
    if (status == BT_OK) bt_log_set_level(level);
    return status;
}

static bt_status sched_open(const wrk_program *program, const wrk_node *node, kv_pool *pool, wrk_sched **out,
                            bt_error *err) {
    const mdl_config *model = krn_model_config(node->model);
    const wrk_sched_options shared = {
        .pool = pool,
        .vocab_size = model->vocab_size,
        .max_model_len = node->max_model_len,
        .n_layers = node->kv.layout.n_layers,
        .eos_ids = model->eos_token_ids,
        .n_eos_ids = model->n_eos_token_ids,
        .has_prefix_cache = program->config->enable_prefix_caching,
        .model_hash = krn_model_hash(node->model),
    };
    return program->sched_open(&shared, out, err);
}

int wrk_program_run(const wrk_program *program, int argc, char **argv) {
    bt_error err = {0};
    bt_status status = flags_parse(program, argc, argv, &err);
    if (status == BT_CANCELED) return 0;
    if (status != BT_OK) {
        bt_log_error(program->module, "bad flags", &err);
        return 2;
    }
    wrk_node_options options = {.config = program->config};
    program->node_options(&options);
    wrk_node node = {0};     /* model, KV memory, fabric, links, announcement */
    kv_pool *pool = NULL;    /* every KV block this process will ever have */
    wrk_sched *sched = NULL; /* decides what is done with requests */

    status = wrk_node_open(&node, &options, &err);
    if (status == BT_OK) pool = kv_pool_open(node.kv.layout.n_blocks);
    if (status == BT_OK) status = sched_open(program, &node, pool, &sched, &err);
    if (status == BT_OK) status = wrk_node_announce(&node, &err);
    if (status == BT_OK) { /* until SIGTERM, then drains */
        wrk_loop_run(&(wrk_loop_options){&node, sched, program->metrics, program->n_metrics, program->export_more});
        bt_log(BT_LOG_INFO, program->module, "stopped", "worker=%s", options.name);
    } else {
        bt_log_error(program->module, "cannot start", &err);
    }
    wrk_node_close(&node); /* nothing calls back any more */
    if (sched != NULL) sched->close(sched);
    kv_pool_close(pool);
    return status == BT_OK ? 0 : 1;
}
