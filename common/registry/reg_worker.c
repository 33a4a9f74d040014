/* A worker's announcement as JSON, and everything that must be true of one before it is believed. 64-bit numbers are
 * hexadecimal strings: JSON's numbers are doubles. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/address.h"
#include "common/registry/registry_internal.h"

enum { CAP_JSON_BYTES = 4096 };

static const char *const rank_states[] = {
    [REG_RANK_WAITING] = "waiting", [REG_RANK_FORMING] = "forming", [REG_RANK_FORMED] = "formed"};
enum { N_RANK_STATES = sizeof(rank_states) / sizeof(rank_states[0]) };

const char *reg_rank_state_name(reg_rank_state state) { return rank_states[state]; }

static const char *role_name(wire_role role) { return role == WIRE_ROLE_PREFILL ? "prefill" : "decode"; }

static bt_status address_check(const char *field, const char *address, bool may_be_empty, bt_error *err) {
    char host[REG_CAP_ADDRESS];
    uint32_t port;
    if (may_be_empty && address[0] == 0) return BT_OK;
    if (bt_address_split(address, host, sizeof(host), &port, NULL) == BT_OK) return BT_OK;
    return bt_fail(err, BT_BAD_REQUEST, "%s is not host:port", field);
}

bool reg_name_is_valid(const char *name, size_t n_bytes) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (n_bytes == 0 || n_bytes >= REG_CAP_NAME) return false;
    for (size_t i = 0; i < n_bytes; i++)
        if (name[i] == 0 || strchr(allowed, name[i]) == NULL) return false;
    return true;
}

static bt_status rank_check(const reg_rank *ep, bt_error *err) {
    if (ep->size == 0) return BT_OK;
    if (!reg_name_is_valid(ep->group, strnlen(ep->group, REG_CAP_NAME)))
        return bt_fail(err, BT_BAD_REQUEST, "a group's name is 1 to %d of A-Z a-z 0-9 . _ -", REG_CAP_NAME - 1);
    if (ep->size > REG_CAP_RANKS || ep->rank >= ep->size)
        return bt_fail(err, BT_BAD_REQUEST, "rank %u of %u: at most %d ranks, numbered from 0", ep->rank, ep->size,
                       REG_CAP_RANKS);
    return address_check("ep.address", ep->address, false, err);
}

bt_status reg_worker_check(const reg_worker *worker, bt_error *err) {
    if (!reg_name_is_valid(worker->name, strnlen(worker->name, REG_CAP_NAME)))
        return bt_fail(err, BT_BAD_REQUEST, "a worker's name is 1 to %d of A-Z a-z 0-9 . _ -", REG_CAP_NAME - 1);
    if (worker->role != WIRE_ROLE_PREFILL && worker->role != WIRE_ROLE_DECODE)
        return bt_fail(err, BT_BAD_REQUEST, "role is neither prefill nor decode");
    if (worker->incarnation == 0) return bt_fail(err, BT_BAD_REQUEST, "incarnation is 0");
    bt_status status = address_check("control_address", worker->control_address, false, err);
    if (status == BT_OK)
        status = address_check("kv_address", worker->kv_address, worker->role == WIRE_ROLE_PREFILL, err);
    if (status == BT_OK) status = address_check("http_address", worker->http_address, true, err);
    if (status != BT_OK) return status;
    size_t n_bytes = strnlen(worker->served_model, REG_CAP_MODEL);
    if (n_bytes == 0 || n_bytes == REG_CAP_MODEL)
        return bt_fail(err, BT_BAD_REQUEST, "served_model has not 1 to %d bytes", REG_CAP_MODEL - 1);
    for (size_t i = 0; i < n_bytes; i++)
        if ((unsigned char)worker->served_model[i] < ' ' || worker->served_model[i] == 127)
            return bt_fail(err, BT_BAD_REQUEST, "served_model has a control character");
    if (worker->max_model_len == 0) return bt_fail(err, BT_BAD_REQUEST, "max_model_len is 0");
    if (worker->capacity == 0) return bt_fail(err, BT_BAD_REQUEST, "capacity is 0");
    bt_labels labels;
    status = bt_labels_parse(worker->labels, &labels, err);
    return status == BT_OK ? rank_check(&worker->ep, err) : status;
}

static bool rank_equal(const reg_rank *a, const reg_rank *b) {
    return a->size == b->size && a->rank == b->rank && a->epoch == b->epoch && a->state == b->state &&
           strcmp(a->group, b->group) == 0 && strcmp(a->address, b->address) == 0;
}

bool reg_worker_equal(const reg_worker *a, const reg_worker *b) {
    return strcmp(a->name, b->name) == 0 && a->role == b->role && a->incarnation == b->incarnation &&
           strcmp(a->control_address, b->control_address) == 0 && strcmp(a->kv_address, b->kv_address) == 0 &&
           strcmp(a->http_address, b->http_address) == 0 && a->model_hash == b->model_hash &&
           strcmp(a->served_model, b->served_model) == 0 && strcmp(a->labels, b->labels) == 0 &&
           a->max_model_len == b->max_model_len && a->capacity == b->capacity && a->is_draining == b->is_draining &&
           rank_equal(&a->ep, &b->ep);
}

static void rank_write(const reg_rank *ep, cJSON *root) {
    char hex[17];
    if (ep->size == 0) return;
    cJSON *item = cJSON_AddObjectToObject(root, "ep");
    cJSON_AddStringToObject(item, "group", ep->group);
    cJSON_AddNumberToObject(item, "rank", ep->rank);
    cJSON_AddNumberToObject(item, "size", ep->size);
    cJSON_AddStringToObject(item, "address", ep->address);
    snprintf(hex, sizeof(hex), "%llx", (unsigned long long)ep->epoch);
    cJSON_AddStringToObject(item, "epoch", hex);
    cJSON_AddStringToObject(item, "state", rank_states[ep->state]);
}

void reg_worker_write(const reg_worker *worker, bt_buf *out) {
    char hex[17];
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "name", worker->name);
    cJSON_AddStringToObject(root, "role", role_name(worker->role));
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)worker->incarnation);
    cJSON_AddStringToObject(root, "incarnation", hex);
    cJSON_AddStringToObject(root, "control_address", worker->control_address);
    cJSON_AddStringToObject(root, "kv_address", worker->kv_address);
    cJSON_AddStringToObject(root, "http_address", worker->http_address);
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)worker->model_hash);
    cJSON_AddStringToObject(root, "model_hash", hex);
    cJSON_AddStringToObject(root, "served_model", worker->served_model);
    cJSON_AddNumberToObject(root, "max_model_len", worker->max_model_len);
    cJSON_AddNumberToObject(root, "capacity", worker->capacity);
    if (worker->labels[0] != 0) cJSON_AddStringToObject(root, "labels", worker->labels);
    cJSON_AddBoolToObject(root, "is_draining", worker->is_draining);
    rank_write(&worker->ep, root);
    char *text = cJSON_PrintUnformatted(root);
    BT_ASSERT(text != NULL); /* out of memory */
    bt_buf_puts(out, text);
    cJSON_free(text);
    cJSON_Delete(root);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bt_status get_text(const cJSON *root, const char *field, char *out, size_t cap_bytes, bt_error *err) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, field);
    if (!cJSON_IsString(item) || strlen(item->valuestring) >= cap_bytes)
        return bt_fail(err, BT_BAD_REQUEST, "%s is missing, not a string or too long", field);
    memcpy(out, item->valuestring, strlen(item->valuestring));
    return BT_OK;
}

static bt_status get_hex(const cJSON *root, const char *field, uint64_t *out, bt_error *err) {
    char text[17] = {0};
    bt_status status = get_text(root, field, text, sizeof(text), err);
    if (status != BT_OK) return status;
    if (text[0] == 0 || strspn(text, "0123456789abcdef") != strlen(text))
        return bt_fail(err, BT_BAD_REQUEST, "%s is not hexadecimal", field);
    *out = strtoull(text, NULL, 16);
    return BT_OK;
}

static bt_status get_u32(const cJSON *root, const char *field, uint32_t *out, bt_error *err) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, field);
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(value >= 0 && value <= UINT32_MAX) || value != (double)(uint32_t)value)
        return bt_fail(err, BT_BAD_REQUEST, "%s is missing or not a 32-bit count", field);
    *out = (uint32_t)value;
    return BT_OK;
}

static bt_status get_rank(const cJSON *root, reg_rank *out, bt_error *err) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, "ep");
    char state[16] = {0};
    if (item == NULL) return BT_OK;
    if (!cJSON_IsObject(item)) return bt_fail(err, BT_BAD_REQUEST, "ep is not an object");
    bt_status status = get_text(item, "group", out->group, sizeof(out->group), err);
    if (status == BT_OK) status = get_u32(item, "rank", &out->rank, err);
    if (status == BT_OK) status = get_u32(item, "size", &out->size, err);
    if (status == BT_OK) status = get_text(item, "address", out->address, sizeof(out->address), err);
    if (status == BT_OK) status = get_hex(item, "epoch", &out->epoch, err);
    if (status == BT_OK) status = get_text(item, "state", state, sizeof(state), err);
    if (status != BT_OK) return status;
    if (out->size == 0) return bt_fail(err, BT_BAD_REQUEST, "a group of no ranks");
    for (int i = 0; i < N_RANK_STATES; i++) {
        if (strcmp(state, rank_states[i]) != 0) continue;
        out->state = (reg_rank_state)i;
        return BT_OK;
    }
    return bt_fail(err, BT_BAD_REQUEST, "ep.state is none that a rank can be in");
}

static bt_status worker_from_json(const cJSON *root, reg_worker *out, bt_error *err) {
    char role[16] = {0};
    bt_status status = get_text(root, "name", out->name, sizeof(out->name), err);
    if (status == BT_OK) status = get_text(root, "role", role, sizeof(role), err);
    if (status == BT_OK) status = get_hex(root, "incarnation", &out->incarnation, err);
    if (status == BT_OK)
        status = get_text(root, "control_address", out->control_address, sizeof(out->control_address), err);
    if (status == BT_OK) status = get_text(root, "kv_address", out->kv_address, sizeof(out->kv_address), err);
    if (status == BT_OK) status = get_text(root, "http_address", out->http_address, sizeof(out->http_address), err);
    if (status == BT_OK) status = get_hex(root, "model_hash", &out->model_hash, err);
    if (status == BT_OK) status = get_text(root, "served_model", out->served_model, sizeof(out->served_model), err);
    if (status == BT_OK) status = get_u32(root, "max_model_len", &out->max_model_len, err);
    if (status == BT_OK) status = get_u32(root, "capacity", &out->capacity, err);
    if (status == BT_OK && cJSON_GetObjectItemCaseSensitive(root, "labels") != NULL)
        status = get_text(root, "labels", out->labels, sizeof(out->labels), err);
    if (status == BT_OK) status = get_rank(root, &out->ep, err);
    if (status != BT_OK) return status;
    const cJSON *is_draining = cJSON_GetObjectItemCaseSensitive(root, "is_draining");
    if (!cJSON_IsBool(is_draining)) return bt_fail(err, BT_BAD_REQUEST, "is_draining is missing or not a bool");
    out->is_draining = cJSON_IsTrue(is_draining);
    if (strcmp(role, "prefill") == 0) out->role = WIRE_ROLE_PREFILL;
    if (strcmp(role, "decode") == 0) out->role = WIRE_ROLE_DECODE;
    return reg_worker_check(out, err);
}

bt_status reg_worker_parse(const char *json, size_t n_bytes, reg_worker *out, bt_error *err) {
    if (n_bytes > CAP_JSON_BYTES)
        return bt_fail(err, BT_BAD_REQUEST, "an announcement of %zu bytes, limit %d", n_bytes, CAP_JSON_BYTES);
    cJSON *root = cJSON_ParseWithLength(json, n_bytes);
    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        return bt_fail(err, BT_BAD_REQUEST, "an announcement is not a JSON object");
    }
    reg_worker worker = {0};
    bt_status status = worker_from_json(root, &worker, err);
    cJSON_Delete(root);
    if (status == BT_OK) *out = worker;
    return status;
}
