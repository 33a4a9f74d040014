/* The gateway's flags, as config.def lists them. */
#ifndef BATON_GATEWAY_CONFIG_H
#define BATON_GATEWAY_CONFIG_H

#include "common/core/config.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "gateway/config.def"
} gw_config;
#undef CFG

#endif
