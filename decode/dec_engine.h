/* Decode's engine: the thread that owns model, KV memory and scheduler. Turns what arrives in the node's queue into
 * events of dec_sched, carries its actions out, runs its steps; sleeps when there is nothing to do. Decides nothing
 * itself. */
#ifndef BATON_DECODE_DEC_ENGINE_H
#define BATON_DECODE_DEC_ENGINE_H

#include "decode/dec_sched.h"
#include "worker/wrk_node.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "decode/config.def"
} dec_config;
#undef CFG

typedef struct dec_engine dec_engine;

/* `node` is open and borrowed until close. BT_BAD_REQUEST: a flag out of range. */
bt_status dec_engine_open(wrk_node *node, const dec_config *config, dec_engine **out, bt_error *err);

/* Until a signal or DRAIN, and then until the last request is gone. */
void dec_engine_run(dec_engine *engine);

/* After wrk_node_close(): nothing may call back any more. NULL is accepted. */
void dec_engine_close(dec_engine *engine);

#endif
