/* The one error vocabulary: bt_status says what the caller should do, bt_error says why in one sentence.
 *
 * The first function that knows the cause calls bt_fail(); everyone above returns the status unchanged; whoever ends
 * the operation logs it once. Hot paths return the bare status and carry no bt_error. */
#ifndef BATON_COMMON_CORE_STATUS_H
#define BATON_COMMON_CORE_STATUS_H

typedef enum {
    BT_OK = 0,      /* done */
    BT_AGAIN,       /* not now; the same call may succeed later */
    BT_BAD_REQUEST, /* the input is wrong; repeating it is useless */
    BT_NO_CAPACITY, /* pages, slots or queue room are used up: a normal day */
    BT_TIMEOUT,     /* a deadline passed */
    BT_PEER_LOST,   /* the other process is gone; try another one */
    BT_CANCELED,    /* somebody asked for it */
    BT_INTERNAL,    /* our fault, or the operating system's */
} bt_status;

typedef struct {
    bt_status status;
    char text[512]; /* one human sentence, NUL-terminated, no newline; never a prompt or a key */
} bt_error;

/* Writes the sentence into *err (which may be NULL) and returns `status`: `return bt_fail(err, BT_TIMEOUT, ...);` */
bt_status bt_fail(bt_error *err, bt_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* "ok", "bad_request", ...: for logs and metrics labels. */
const char *bt_status_name(bt_status status);

/* A broken invariant of ours: logs and aborts, in every build. No client or peer can ever reach one. */
#define BT_ASSERT(condition)                                                                                           \
    do {                                                                                                               \
        if (__builtin_expect(!(condition), 0)) bt_assert_failed(#condition, __FILE__, __LINE__);                       \
    } while (0)
void bt_assert_failed(const char *condition, const char *file, int line) __attribute__((noreturn));

#endif
