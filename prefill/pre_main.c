/* baton-prefill: computes prompts and the first token, pushes the KV to a decode worker. */
#include "common/core/log.h"
#include "prefill/pre_engine.h"

#define CFG(type, name, default_text, help) CFG_ENTRY(pre_config, type, name, default_text, help)
static const cfg_flag flags[] = {
#include "prefill/config.def"
};
#undef CFG

#define CFG(type, name, default_text, help) .name = config->name,
static wrk_config shared_flags(const pre_config *config) {
    return (wrk_config){
#include "worker/config.def"
    };
}
#undef CFG

int main(int argc, char **argv) {
    pre_config config;
    bt_error err = {0};
    bt_log_level level;
    bt_status status = cfg_parse("baton-prefill", "computes prompts and hands their KV to decode workers", flags,
                                 sizeof(flags) / sizeof(flags[0]), argc, argv, &config, &err);
    if (status == BT_CANCELED) return 0;
    if (status == BT_OK) status = bt_log_parse_level(config.log_level, &level, &err);
    if (status != BT_OK) {
        bt_log_error("pre", "bad flags", &err);
        return 2;
    }
    bt_log_set_level(level);

    wrk_config shared = shared_flags(&config);
    wrk_node_options options = {
        .config = &shared,
        .name = config.name,
        .role = WIRE_ROLE_PREFILL,
        .max_rows = config.max_num_batched_tokens,
        .max_logits = config.max_num_seqs,
        .capacity = config.max_num_seqs,
    };
    wrk_node node = {0};       /* model, KV memory, fabric, links, announcement */
    pre_engine *engine = NULL; /* the scheduler and the loop around it */

    status = wrk_node_open(&node, &options, &err);
    if (status == BT_OK) status = pre_engine_open(&node, &config, &engine, &err);
    if (status == BT_OK) status = wrk_node_announce(&node, &err);
    if (status == BT_OK) pre_engine_run(engine); /* until SIGTERM, then drains */
    if (status != BT_OK)
        bt_log_error("pre", "cannot start", &err);
    else
        bt_log(BT_LOG_INFO, "pre", "stopped", "worker=%s", config.name);

    wrk_node_close(&node);
    pre_engine_close(engine);
    return status == BT_OK ? 0 : 1;
}
