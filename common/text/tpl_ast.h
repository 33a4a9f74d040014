/* A parsed template: a tree of nodes in the template's arena, immutable once parsed. Internal to the chat template. */
#ifndef BATON_COMMON_TEXT_TPL_AST_H
#define BATON_COMMON_TEXT_TPL_AST_H

#include "common/text/tpl_lex.h"

typedef enum {
    /* Expressions. */
    EX_CONST,   /* value */
    EX_NAME,    /* name */
    EX_LIST,    /* items */
    EX_TUPLE,   /* items */
    EX_DICT,    /* items: key, value, key, value, ... */
    EX_NEG,     /* a */
    EX_POS,     /* a */
    EX_NOT,     /* a */
    EX_AND,     /* a, b */
    EX_OR,      /* a, b */
    EX_BINARY,  /* a op b */
    EX_COMPARE, /* a, then per item: op items[i] */
    EX_COND,    /* a if b else c (c may be NULL) */
    EX_ATTR,    /* a . value */
    EX_ITEM,    /* a [ b ] */
    EX_SLICE,   /* a [ b : c : d ], each may be NULL */
    EX_CALL,    /* a (args) */
    EX_FILTER,  /* a | value (args); a is NULL in a filter block */
    EX_TEST,    /* a is value (args) */
    /* Statements. */
    ST_TEXT,      /* value */
    ST_OUTPUT,    /* a */
    ST_BLOCK,     /* items */
    ST_IF,        /* if a: b else: c (c may be NULL) */
    ST_FOR,       /* for target a in b if d: body c else: e */
    ST_SET,       /* a = b */
    ST_SET_BLOCK, /* a = body b, through the filters c (may be NULL) */
    ST_MACRO,     /* macro */
    ST_CALL,      /* call b with macro as caller */
    ST_FILTER,    /* body b through the filters a */
    ST_WITH,      /* targets and values in turn in items; body b */
    ST_BREAK,
    ST_CONTINUE,
} node_kind;

/* Operators of EX_BINARY and EX_COMPARE are lexer operators, and: */
enum { OP_IN = 512, OP_NOT_IN };

typedef struct tpl_node tpl_node;

typedef struct {
    const tpl_str **names; /* of the keyword arguments, which come last in items */
    uint32_t n_names;
} node_keywords;

typedef struct {
    const tpl_str *name;    /* NULL: a call block's */
    const tpl_str **params; /* [n_params] */
    tpl_node **defaults;    /* [n_params], NULL: none */
    uint32_t n_params;
    bool uses_caller, uses_varargs, uses_kwargs;
    tpl_node *body;
} node_macro;

struct tpl_node {
    node_kind kind;
    uint32_t line;
    uint16_t depth; /* of the tree below */
    int *ops;       /* EX_COMPARE: [n_items] */
    int op;         /* EX_BINARY */
    tpl_node *a, *b, *c, *d, *e;
    tpl_node **items; /* also the arguments of calls, filters and tests */
    uint32_t n_items, cap_items;
    bool has_macros; /* ST_FOR: its body makes macros, which keep the scope of their iteration */
    node_keywords keywords;
    tpl_value value; /* constants, texts and names */
    node_macro *macro;
};

/* The tree of a whole template. Nodes and strings go into the arena. BT_BAD_REQUEST: the sentence names the line. */
bt_status tpl_parse(const lex_tokens *tokens, bt_arena *arena, tpl_node **out, bt_error *err);

#endif
