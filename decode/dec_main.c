/* baton-decode: takes over KV from prefill workers and decodes sequences in one batch, token by token. */
#include "decode/dec_sched.h"
#include "worker/wrk_program.h"

#define CFG(type, name, default_text, help) cfg_##type name;
static struct {
    wrk_config shared;
#include "decode/config.def"
} config;
#undef CFG

#define CFG(type, name, default_text, help) CFG_ENTRY(typeof(config), type, name, default_text, help)
static const cfg_flag flags[] = {
#include "decode/config.def"
};
#undef CFG

static void node_options(wrk_node_options *options) {
    options->name = config.name;
    options->role = WIRE_ROLE_DECODE;
    options->max_rows = config.max_num_batched_tokens;
    options->max_logits = options->capacity = config.max_num_seqs;
    options->takes_kv = true;
    options->kv_port = config.kv_port;
}

static bt_status sched_open(const wrk_sched_options *shared, wrk_sched **out, bt_error *err) {
    const dec_sched_options options = {.max_num_seqs = config.max_num_seqs,
                                       .max_batched_tokens = config.max_num_batched_tokens,
                                       .local_prefill_tokens = config.local_prefill_tokens};
    return dec_sched_open(shared, &options, out, err);
}

#define COUNT(id, labels, field)                                                                                       \
    { BT_METRIC_##id, labels, offsetof(dec_counters, field) }
static const wrk_metric metrics[] = {
    COUNT(STEPS, "", n_steps),
    COUNT(PREFIX_QUERIES, "", n_prefix_queries),
    COUNT(PREFIX_HITS, "", n_prefix_hits),
    COUNT(WORKER_OUTPUT_TOKENS, "", n_sampled),
    COUNT(TRANSFER_FAILURES, "reason=\"commit_failed\"", n_commit_failed),
    COUNT(TRANSFER_FAILURES, "reason=\"prefill_lost\"", n_prefill_lost),
    COUNT(LEASE_EXPIRIES, "", n_lease_expired),
    COUNT(LOCAL_PREFILLS, "", n_local),
    COUNT(LOCAL_PREFILL_TOKENS, "", n_local_tokens),
    COUNT(PREEMPTIONS, "", n_preempted),
    COUNT(RECOMPUTED_TOKENS, "", n_recomputed),
    COUNT(CANCELS, "phase=\"leased\"", n_canceled_leased),
    COUNT(CANCELS, "phase=\"waiting\"", n_canceled_waiting),
    COUNT(CANCELS, "phase=\"running\"", n_canceled_running),
};
#undef COUNT

static void set(const wrk_node *node, bt_metric_id id, const char *labels, uint64_t value) {
    bt_series_set(bt_metrics_series(node->metrics, id, labels), (double)value);
}

static void export_more(wrk_node *node, const wrk_sched *sched) {
    kvt_stats stats;
    kvt_fabric_stats(node->fabric, &stats);
    set(node, BT_METRIC_TRANSFER_BYTES, "", stats.bytes_landed);
    set(node, BT_METRIC_TRANSFER_FAILURES, "reason=\"push_refused\"", stats.pushes_refused);
    set(node, BT_METRIC_LEASES, "", dec_sched_n_leases(sched));
    set(node, BT_METRIC_VLLM_WAITING_BY, "reason=\"deferred\"", dec_sched_n_leases(sched));
}

int main(int argc, char **argv) {
    const wrk_program program = {
        .name = "baton-decode",
        .purpose = "takes over prompts' KV and decodes tokens",
        .module = "dec",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .config = &config.shared,
        .node_options = node_options,
        .sched_open = sched_open,
        .metrics = metrics,
        .n_metrics = sizeof(metrics) / sizeof(metrics[0]),
        .export_more = export_more,
    };
    return wrk_program_run(&program, argc, argv);
}
