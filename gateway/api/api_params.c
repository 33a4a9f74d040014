/* Typed access to parsed JSON. Knows no field names and no defaults. */
#include "gateway/api/api_params.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

cJSON *gw_param_find_mutable(cJSON *object, const char *name) {
    cJSON *found = NULL;
    for (cJSON *child = object->child; child != NULL; child = child->next)
        if (child->string != NULL && strcmp(child->string, name) == 0) found = child;
    return found == NULL || cJSON_IsNull(found) ? NULL : found;
}

const cJSON *gw_param_find(const cJSON *object, const char *name) {
    const cJSON *found = NULL;
    for (const cJSON *child = object->child; child != NULL; child = child->next)
        if (child->string != NULL && strcmp(child->string, name) == 0) found = child;
    return found == NULL || cJSON_IsNull(found) ? NULL : found;
}

bool gw_value_f64(const cJSON *value, double *out) {
    if (cJSON_IsNumber(value)) {
        *out = value->valuedouble;
        return true;
    }
    if (!cJSON_IsString(value)) return false;
    /* strtod also takes hexadecimal, blanks, inf and nan: only what JSON could have written counts */
    const char *text = value->valuestring;
    if (text[0] == 0 || strspn(text, "0123456789+-.eE") != strlen(text)) return false;
    char *end = NULL;
    *out = strtod(text, &end);
    return *end == 0;
}

bool gw_value_i64(const cJSON *value, int64_t *out) {
    if (cJSON_IsString(value)) { /* exact beyond 2^53 */
        const char *text = value->valuestring;
        char *end = NULL;
        errno = 0;
        if (text[0] != 0 && strspn(text, "0123456789-") == strlen(text)) {
            long long parsed = strtoll(text, &end, 10);
            if (*end != 0 || errno != 0) return false;
            *out = parsed;
            return true;
        }
    }
    double number = 0;
    if (!gw_value_f64(value, &number) || floor(number) != number) return false;
    if (number < -0x1p63 || number >= 0x1p63) return false;
    *out = (int64_t)number;
    return true;
}

bt_status gw_param_bool(const cJSON *object, const char *name, bool *out, gw_error *error) {
    const cJSON *value = gw_param_find(object, name);
    if (value == NULL) return BT_OK;
    if (cJSON_IsBool(value)) {
        *out = cJSON_IsTrue(value);
        return BT_OK;
    }
    if (cJSON_IsNumber(value) && (value->valuedouble == 0 || value->valuedouble == 1)) {
        *out = value->valuedouble == 1;
        return BT_OK;
    }
    if (cJSON_IsString(value) &&
        (strcasecmp(value->valuestring, "true") == 0 || strcasecmp(value->valuestring, "false") == 0)) {
        *out = strcasecmp(value->valuestring, "true") == 0;
        return BT_OK;
    }
    return gw_fail(error, 400, name, "%s must be true or false.", name);
}

bt_status gw_param_f64(const cJSON *object, const char *name, double min, double max, double *out, gw_error *error) {
    const cJSON *value = gw_param_find(object, name);
    if (value == NULL) return BT_OK;
    double number = 0;
    if (!gw_value_f64(value, &number)) return gw_fail(error, 400, name, "%s must be a number.", name);
    if (!(number >= min && number <= max))
        return gw_fail(error, 400, name, "%s must be between %g and %g, got %g.", name, min, max, number);
    *out = number;
    return BT_OK;
}

bt_status gw_param_i64(const cJSON *object, const char *name, int64_t min, int64_t max, int64_t *out, gw_error *error) {
    const cJSON *value = gw_param_find(object, name);
    if (value == NULL) return BT_OK;
    int64_t number = 0;
    if (!gw_value_i64(value, &number)) return gw_fail(error, 400, name, "%s must be an integer.", name);
    if (number < min)
        return gw_fail(error, 400, name, "%s must be at least %lld, got %lld.", name, (long long)min,
                       (long long)number);
    if (number > max)
        return gw_fail(error, 400, name, "%s must be at most %lld, got %lld.", name, (long long)max, (long long)number);
    *out = number;
    return BT_OK;
}

bt_status gw_param_string(const cJSON *object, const char *name, const char **out, gw_error *error) {
    const cJSON *value = gw_param_find(object, name);
    if (value == NULL) return BT_OK;
    if (!cJSON_IsString(value)) return gw_fail(error, 400, name, "%s must be a string.", name);
    *out = value->valuestring;
    return BT_OK;
}
