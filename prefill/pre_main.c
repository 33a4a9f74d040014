/* baton-prefill: computes prompts and the first token, pushes the KV to a decode worker. */
#include "prefill/pre_sched.h"
#include "worker/wrk_program.h"

#define CFG(type, name, default_text, help) cfg_##type name;
static struct {
    wrk_config shared;
#include "prefill/config.def"
} config;
#undef CFG

#define CFG(type, name, default_text, help) CFG_ENTRY(typeof(config), type, name, default_text, help)
static const cfg_flag flags[] = {
#include "prefill/config.def"
};
#undef CFG

static void node_options(wrk_node_options *options) {
    options->name = config.name;
    options->role = WIRE_ROLE_PREFILL;
    options->max_rows = config.max_num_batched_tokens;
    options->max_logits = options->capacity = config.max_num_seqs;
}

static bt_status sched_open(const wrk_sched_options *shared, wrk_sched **out, bt_error *err) {
    const pre_sched_options options = {
        .max_requests = config.max_requests,
        .max_batched_tokens = config.max_num_batched_tokens,
        .max_batched_seqs = config.max_num_seqs,
    };
    return pre_sched_open(shared, &options, out, err);
}

#define COUNT(id, labels, field)                                                                                       \
    { BT_METRIC_##id, labels, offsetof(pre_counters, field) }
static const wrk_metric metrics[] = {
    COUNT(STEPS, "", n_steps),
    COUNT(WORKER_PROMPT_TOKENS, "", n_prompt_tokens),
    COUNT(PREFIX_QUERIES, "", n_prefix_queries),
    COUNT(PREFIX_HITS, "", n_prefix_hits),
    COUNT(WORKER_OUTPUT_TOKENS, "", n_sampled),
    COUNT(TRANSFER_BYTES, "", n_push_bytes),
    COUNT(TRANSFER_FAILURES, "reason=\"commit_failed\"", n_commit_failed),
    COUNT(TRANSFER_FAILURES, "reason=\"decode_lost\"", n_decode_lost),
    COUNT(TRANSFER_FAILURES, "reason=\"timeout\"", n_timeouts),
    COUNT(CANCELS, "phase=\"queued\"", n_canceled_queued),
    COUNT(CANCELS, "phase=\"computing\"", n_canceled_computing),
    COUNT(CANCELS, "phase=\"computed\"", n_canceled_computed),
    COUNT(CANCELS, "phase=\"committing\"", n_canceled_committing),
};
#undef COUNT

int main(int argc, char **argv) {
    const wrk_program program = {
        .name = "baton-prefill",
        .purpose = "computes prompts and hands their KV to decode workers",
        .module = "pre",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .config = &config.shared,
        .node_options = node_options,
        .sched_open = sched_open,
        .metrics = metrics,
        .n_metrics = sizeof(metrics) / sizeof(metrics[0]),
    };
    return wrk_program_run(&program, argc, argv);
}
