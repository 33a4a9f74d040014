/* Fields of a JSON object with the coercions that clients rely on: integral floats and numeric strings are numbers,
 * 0, 1, "true" and "false" are booleans, null is absent. Every getter leaves *out alone when the field is absent and
 * refuses a wrong value with the field's name as param. The last of repeated keys counts. */
#ifndef BATON_GATEWAY_API_API_PARAMS_H
#define BATON_GATEWAY_API_API_PARAMS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "gateway/api/api_error.h"

/* NULL: absent or null. Borrowed. */
const cJSON *gw_param_find(const cJSON *object, const char *name);
cJSON *gw_param_find_mutable(cJSON *object, const char *name);

/* Bounds are inclusive. `status` idiom as everywhere: BT_OK or gw_fail(). */
bt_status gw_param_bool(const cJSON *object, const char *name, bool *out, gw_error *error);
bt_status gw_param_f64(const cJSON *object, const char *name, double min, double max, double *out, gw_error *error);
bt_status gw_param_i64(const cJSON *object, const char *name, int64_t min, int64_t max, int64_t *out, gw_error *error);
bt_status gw_param_string(const cJSON *object, const char *name, const char **out, gw_error *error);

/* One value on its own, for elements of arrays. false: not a number (integer) at all. */
bool gw_value_f64(const cJSON *value, double *out);
bool gw_value_i64(const cJSON *value, int64_t *out);

#endif
