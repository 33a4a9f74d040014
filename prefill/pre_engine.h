/* Prefill's engine: the thread that owns model, KV memory and scheduler. Turns what arrives in the node's queue into
 * events of pre_sched, carries its actions out, runs its steps; sleeps when there is nothing to do. Decides nothing
 * itself. */
#ifndef BATON_PREFILL_PRE_ENGINE_H
#define BATON_PREFILL_PRE_ENGINE_H

#include "prefill/pre_sched.h"
#include "worker/wrk_node.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "prefill/config.def"
} pre_config;
#undef CFG

typedef struct pre_engine pre_engine;

/* `node` is open and borrowed until close. BT_BAD_REQUEST: a flag out of range. */
bt_status pre_engine_open(wrk_node *node, const pre_config *config, pre_engine **out, bt_error *err);

/* Until a signal or DRAIN, and then until the last request is gone. */
void pre_engine_run(pre_engine *engine);

/* After wrk_node_close(): nothing may call back any more. NULL is accepted. */
void pre_engine_close(pre_engine *engine);

#endif
