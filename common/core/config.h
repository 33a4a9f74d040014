/* Flags: one line each in a program's config.def, from which the struct, the defaults, the parser, --help and
 * docs/CONFIG.md come.
 *
 *     CFG(u32, max_num_seqs, "64", "sequences that decode together, at most")
 *
 * Types: u32, u64 (bytes may carry K, M, G for powers of 1024), f64, bool, str. The flag is the field's name with '-'
 * for '_': --max-num-seqs 64 or --max-num-seqs=64. A bool is --flag or --no-flag (or --flag=true|false). A default of
 * "" makes a str empty, and NULL is not used. Use in a program:
 *
 *     #define CFG(type, name, default_text, help) cfg_##type name;
 *     typedef struct {
 *     #include "decode/config.def"
 *     } dec_config;
 *     #undef CFG
 *     #define CFG(type, name, default_text, help) CFG_ENTRY(dec_config, type, name, default_text, help)
 *     static const cfg_flag flags[] = {
 *     #include "decode/config.def"
 *     };
 *     #undef CFG
 */
#ifndef BATON_COMMON_CORE_CONFIG_H
#define BATON_COMMON_CORE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

typedef uint32_t cfg_u32;
typedef uint64_t cfg_u64;
typedef double cfg_f64;
typedef bool cfg_bool;
typedef const char *cfg_str; /* borrowed: argv or the default */

typedef enum {
    CFG_TYPE_u32,
    CFG_TYPE_u64,
    CFG_TYPE_f64,
    CFG_TYPE_bool,
    CFG_TYPE_str,
    CFG_TYPE__Bool = CFG_TYPE_bool, /* what stdbool.h's macro makes of it on the way through CFG() */
} cfg_type;

typedef struct {
    const char *name; /* the field's name, with '_' */
    cfg_type type;
    size_t offset;
    const char *default_text;
    const char *help;
} cfg_flag;

/* A small program needs no .def file. This defines cfg_own, the struct, and cfg_own_flags:
 *
 *     #define FLAGS(F) F(u32, rows, "16", "rows in a layer") F(u32, layers, "2000", "exchanges")
 *     CFG_OWN(FLAGS)
 */
#define CFG_OWN(FLAGS)                                                                                                 \
    typedef struct {                                                                                                   \
        FLAGS(CFG_OWN_FIELD)                                                                                           \
    } cfg_own;                                                                                                         \
    static const cfg_flag cfg_own_flags[] = {FLAGS(CFG_OWN_ENTRY)};
#define CFG_OWN_FIELD(type, name, default_text, help) cfg_##type name;
#define CFG_OWN_ENTRY(type, name, default_text, help) CFG_ENTRY(cfg_own, type, name, default_text, help)

#define CFG_ENTRY(struct_type, type, name, default_text, help)                                                         \
    {#name, CFG_TYPE_##type, offsetof(struct_type, name), default_text, help},

/* Fills *config (all fields) from the defaults and argv[1..]. BT_BAD_REQUEST: an unknown flag, a missing or
 * malformed value, a number out of range; the sentence names the flag. BT_CANCELED: --help or --help-markdown was
 * given and answered on stdout; the caller exits 0. Positional arguments are refused. */
bt_status cfg_parse(const char *program, const char *purpose, const cfg_flag *flags, size_t n_flags, int argc,
                    char **argv, void *config, bt_error *err);

#endif
