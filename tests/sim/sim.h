/* A whole cluster in one thread: the deciding cores of gateways, prefill and decode workers, linked with a simulated
 * network, clock, KV memory and failures. A seed replays the whole history, event by event.
 *
 * What is simulated as it is in reality: links are ordered but late, break without notice and are noticed late;
 * messages are encoded and decoded; pushes read prefill's memory some time after they are asked for, land in decode's
 * some time after that, may be damaged or lost; processes die and come back as new incarnations. Ranks of an
 * expert-parallel group are announced in a registry that is read late, forgets the dead late and stands still at times;
 * they connect to each other, some attempts fail; they go through a step layer by layer, each as late as its slowest
 * peer, and one that is gone is missed when the break is noticed or the time is up. What is asserted:
 *
 *   - After every event the books of the core that it touched balance (wrk_sched.check and gw_core_check()).
 *   - The baton rule: of one attempt, at most one process may finish the request (check_baton).
 *   - No block that a landing or a lease may touch is given to anyone else (kv_owner).
 *   - KV is content: a cell holds a hash of all tokens before it. A token drawn from cells that were not written, not
 *     transferred, overwritten or reused for another prompt is a wrong token, and every token that a client gets is
 *     compared with the oracle. Each step also checks every cell that it reads (check_cells), cached blocks included.
 *   - A block that others may read is written by nobody, from memory or network (kv_pool.h rule 2).
 *   - At the end every gateway knows the names in each worker's prefix cache, neither more nor less.
 *   - Who is connected forms the same epoch, and a rank that is FORMED is connected to every other one's living
 *     incarnation, or will hear of the break. Messages between ranks come in exchange.h's order: nobody is more than a
 *     layer ahead, and who begins a step first has rows for it, so an idle group sleeps.
 *   - A worker whose group is not formed, or that has read that a rank leaves, accepts and reserves nothing.
 *   - A rank that drains goes when its peers' steps do not need it. A group whose ranks all live and stay is formed
 *     within SIM_CALM_MS after the last thing that went wrong.
 *   - A request ends exactly once, at the right token, for the right reason. At the end nothing is left anywhere. */
#ifndef BATON_TESTS_SIM_SIM_H
#define BATON_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/core/alloc.h"
#include "common/core/buf.h"
#include "common/core/clock.h"
#include "common/core/map.h"
#include "decode/dec_sched.h"
#include "gateway/core/gw_core.h"
#include "prefill/pre_sched.h"
#include "worker/wrk_group.h"

enum {
    SIM_MAX_OF_ROLE = 4,
    SIM_MAX_NODES = 3 * SIM_MAX_OF_ROLE,
    SIM_LAYERS = 2,
    SIM_VOCAB = 96,
    SIM_EOS = 1,
    SIM_MAX_MODEL_LEN = 1024,
    SIM_SHORT_PROMPT = 32,
    SIM_CALM_MS = 2500, /* two attempts that fail, a step that times out, a lease */
};

/* ---- what a seed chooses ---------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t seed;
    uint32_t n_requests;
    uint32_t n_gateways, n_prefills, n_decodes;
    uint32_t prefill_ranks, decode_ranks; /* of a group, up to 1: none; workers that make up no whole group are alone */
    uint32_t prefill_blocks, decode_blocks;
    uint32_t max_requests, max_batched_tokens, max_batched_seqs;
    uint32_t max_num_seqs, spare_rows, max_leases; /* spare_rows: of a decode step, besides one for each sequence */
    uint32_t local_tokens;
    uint32_t gateway_requests, migration_limit;
    uint32_t worker_queue_ms, max_queued, queue_ms; /* of gateways; worker_queue_ms 0: no bound */
    uint32_t urgent_percent;                        /* of requests: another priority than the others */
    uint32_t max_prompt, max_output;
    uint32_t n_chats; /* half of the prompts begin as one of so many do */
    bool has_prefix_cache;
    int64_t arrival_ns;            /* mean time between requests, of all gateways */
    int64_t fault_ns;              /* mean time between faults; 0: none */
    uint32_t long_percent;         /* of requests: no end of sequence and no stop token ends them */
    uint32_t cancel_percent;       /* of requests: the client leaves at some time */
    uint32_t stop_percent;         /* of requests: a stop string is found at some token */
    uint32_t stall_ppm;            /* of messages: they and what follows them are very late */
    uint32_t damage_ppm, loss_ppm; /* of pushed blocks */
    uint32_t dial_ppm;             /* of connections between ranks: they fail */
    uint32_t read_ppm;             /* of readings of the registry: they are very late */
    bool has_fixed_ports;          /* of ranks: a restarted one is found where its predecessor was */
    bool is_traced;
} sim_config;

typedef struct {
    uint64_t n_events, history_hash;
    uint64_t n_finished, n_failed, n_canceled, n_shed, n_died; /* requests, by end; died: with their gateway */
    uint64_t n_tokens, n_attempts;
    uint64_t n_short, max_short_wait_ns; /* prompts of up to SIM_SHORT_PROMPT tokens: from arrival to first token */
    uint64_t n_crashes, n_cuts, n_stalls, n_drains, n_damaged, n_lost;
    uint64_t n_formed, n_not_formed, n_group_lost; /* by rank */
    uint64_t n_helped;                             /* steps of a rank without rows of its own */
    uint64_t n_killed_waiting, n_killed_forming, n_killed_idle, n_killed_in_step, n_killed_draining; /* ranks */
    uint64_t n_dials_failed, n_dials_refused, n_rank_timeouts;
    uint64_t n_redis_stalls, n_reads_late, n_leases_forgotten;
    gw_counters gateway; /* sums over all incarnations */
    pre_counters prefill;
    dec_counters decode;
    int64_t end_ns;
} sim_result;

sim_config sim_config_random(uint64_t seed, uint32_t n_requests);

/* Runs to the end. A broken invariant aborts, with a line that says how to replay. */
void sim_run(const sim_config *config, sim_result *out);

/* ---- the oracle: what a model would say ------------------------------------------------------------------------- */

uint64_t sim_mix(uint64_t x);

/* The cell of a position, from the cell before it (0 for the first) and its token. The form is part of it. */
uint64_t sim_cell(uint64_t before, uint32_t token, krn_form form);

/* The token drawn after the cell. */
uint32_t sim_draw(uint64_t cell, const wire_sampling *sampling, uint32_t position, const uint32_t *banned,
                  uint32_t n_banned);

/* ---- events ----------------------------------------------------------------------------------------------------- */

typedef enum {
    SIM_ARRIVAL,      /* a client sends a request */
    SIM_LEAVE,        /* a client goes; a: serial */
    SIM_TICK,         /* a core's deadline */
    SIM_MESSAGE,      /* payload: sim_frame */
    SIM_LINK_UP,      /* a: link; the node's side of it */
    SIM_LINK_GONE,    /* likewise */
    SIM_KV_SEND,      /* payload: sim_frame; leaves the sender now */
    SIM_KV_READ,      /* payload: sim_transfer; its bytes leave the sender now */
    SIM_KV_ARRIVE,    /* payload: sim_transfer; may it land? */
    SIM_KV_LAND,      /* payload: sim_transfer; it has landed */
    SIM_KV_CONNECT,   /* a: incarnation asked for */
    SIM_LEASE_CLOSED, /* a: lease */
    SIM_LAYER,        /* a: layer */
    SIM_STEP_DONE,
    SIM_FAULT,
    SIM_RESTART,      /* a dead node comes back */
    SIM_ANNOUNCE,     /* the registry takes what a rank says of itself */
    SIM_FORGET,       /* a: incarnation whose lease has run out */
    SIM_READ,         /* a rank reads the registry */
    SIM_DIAL,         /* a rank connects to another; a: epoch << 8 | rank */
    SIM_RANK_MESSAGE, /* payload: sim_rank_message */
    SIM_RANK_LATE,    /* a rank may have waited too long */
    SIM_CALM,         /* nothing went wrong for long: the node's group must be formed */
} sim_event_kind;

typedef struct {
    int64_t at_ns;
    uint64_t order; /* of two at the same time the older goes first */
    sim_event_kind kind;
    uint32_t node;
    uint64_t incarnation; /* of the node, when it was planned; 0: whatever it is */
    uint64_t a;
    void *payload; /* owned */
} sim_event;

typedef struct {
    uint32_t link, epoch, from;
    size_t n_bytes;
    uint8_t bytes[];
} sim_frame;

/* Blocks of one layer on their way. */
typedef struct {
    uint32_t link, epoch, from;
    uint64_t push_id, lease;
    uint32_t layer, first_block, n_blocks, n_rows_last;
    uint32_t *blocks; /* numbers in prefill's pool */
    uint64_t *cells;  /* [n_blocks][64], from SIM_KV_READ on */
    uint32_t n_refs;  /* each block arrives by itself */
    uint32_t lost;    /* bit mask of blocks that never arrive */
} sim_transfer;

/* ---- nodes and links -------------------------------------------------------------------------------------------- */

typedef enum { SIM_LINK_DOWN, SIM_LINK_OPENING, SIM_LINK_OPEN, SIM_LINK_BROKEN } sim_link_state;

typedef enum { SIM_CONTROL, SIM_KV, SIM_RANKS } sim_link_kind;

/* One connection between two places; side 0 is the gateway's, prefill's of a KV link, the lower rank's of two. */
typedef struct {
    sim_link_kind kind;
    sim_link_state state;
    uint32_t node[2];
    uint32_t epoch;     /* of the connection; what was sent over an older one is lost */
    bool is_up[2];      /* the side has been told that it is up */
    uint64_t peer[2];   /* the incarnation that a side was told */
    bool has_gone[2];   /* BROKEN: the side has been told, or is dead */
    int64_t last_ns[2]; /* towards a side: when the last message arrives */
    int64_t busy_ns;    /* KV: prefill's side is sending until then */
} sim_link;

/* The transfer layer's view of a lease, at decode. */
typedef struct {
    uint64_t lease, peer;
    uint32_t blocks[SIM_MAX_MODEL_LEN / 64 + 1];
    uint32_t first_block, n_blocks, n_tokens;
    uint32_t n_landed, n_in_flight;
    bool is_closing, has_stopped; /* closing: closed when n_wanted have landed; stopped: no further one */
    uint32_t n_wanted;
    uint64_t checksum;
    uint8_t seen[SIM_LAYERS][SIM_MAX_MODEL_LEN / 64 + 1];
} sim_lease;

/* ---- ranks ------------------------------------------------------------------------------------------------------ */

typedef enum { SIM_RANK_BEGIN, SIM_RANK_ROWS, SIM_RANK_LEAVE } sim_rank_verb;

typedef struct {
    uint32_t link, link_epoch;
    uint32_t from; /* rank */
    sim_rank_verb verb;
    uint64_t group_epoch, n; /* BEGIN: the step; ROWS: how many layers the sender has posted in this epoch */
} sim_rank_message;

/* What a rank knows of another one, in its present exchange. */
typedef struct {
    bool is_up;
    uint64_t incarnation;
    uint64_t step, n_posted;
} sim_peer;

/* A worker's place in its group, if it has one (group.own.ep.size > 0): who decides, and what worker/wrk_ep.c and
 * kvtransfer/ep_ucx.h would be. */
typedef struct {
    wrk_group group;
    reg_worker mirror[SIM_MAX_OF_ROLE]; /* [rank] as last read; incarnation 0: not there */
    bool is_leaving[SIM_MAX_OF_ROLE];   /* [rank] as last read of somebody in that place */
    bool is_open, has_failed;      /* the exchange: from FORMING on; it came to nothing, and the engine shall know */
    uint64_t last_epoch;           /* that this process has used */
    uint64_t step, n_posted;       /* begun, and layers posted, in this epoch */
    bool is_in_step, is_computing; /* computing: else waiting for the peers' rows */
    int64_t late_ns;               /* when waiting has lasted too long */
    int64_t watch_ns;              /* when the next SIM_RANK_LATE is planned */
    sim_peer peers[SIM_MAX_OF_ROLE];
} sim_rank;

/* What only the simulator knows of a group. */
typedef struct {
    int64_t calm_ns;                /* something was wrong until then */
    bool is_watched;                /* SIM_CALM is planned */
    uint64_t busy_epoch, busy_step; /* the last step that somebody had rows for */
} sim_group;

typedef struct {
    wire_role role;
    uint32_t index; /* of its role */
    char name[32];
    uint64_t incarnation; /* 0: dead */
    uint32_t n_lives;
    bool is_draining;
    int64_t tick_ns; /* when the next SIM_TICK is planned */
    gw_core *gateway;
    wrk_sched *worker; /* prefill's or decode's scheduler */

    kv_pool *pool;
    uint64_t *cells;    /* [layer][block][64] */
    uint64_t *kv_owner; /* decode [block]: the lease that may land there; 0: none */
    sim_lease **leases; /* [n_leases] decode's transfer layer */
    uint32_t n_leases, cap_leases;
    bt_map sent_sums; /* prefill: (decode, lease) -> index in sums */
    uint64_t *sums;
    uint32_t n_sums, cap_sums;

    bool is_drained;
    bool is_stepping; /* with rows of its own */
    wrk_step step;
    sim_rank rank;
    wire_ranked logprobs[64]; /* of the last step's tokens */
} sim_node;

/* What a client knows. */
typedef struct {
    bool is_alive;
    uint32_t node;
    uint64_t incarnation, serial;
    int64_t arrived_ns;
    uint32_t n_prompt, max_tokens, n_output;
    wire_sampling sampling;
    uint32_t stop_ids[2], n_stop_ids;
    uint32_t stop_at; /* token at which its stop string is found; 0: none */
    uint64_t cell;    /* of the last known token's position minus one */
    uint32_t last;    /* the last known token */
    uint8_t end;      /* reason that the last token gave; 0: it must go on */
} sim_client;

typedef struct {
    sim_config config;
    sim_result result;
    uint64_t random;
    int64_t now_ns;
    sim_event *heap; /* [n_heap] */
    uint32_t n_heap, cap_heap;
    uint64_t n_planned;
    sim_node nodes[SIM_MAX_NODES];
    uint32_t n_nodes;
    reg_worker registry[SIM_MAX_NODES]; /* by node; incarnation 0: nothing is there */
    int64_t redis_ns;                   /* it stands still until then */
    sim_group groups[SIM_MAX_NODES];    /* by node of rank 0 */
    sim_link links[SIM_MAX_NODES * SIM_MAX_NODES];
    uint32_t n_links;
    sim_client *clients; /* [n_requests] */
    uint32_t n_clients;
    bt_map by_serial; /* (incarnation, serial) -> client */
    uint32_t n_alive;
    uint64_t n_incarnations;
    bt_buf scratch;
} sim_world;

/* ---- sim_queue.c ------------------------------------------------------------------------------------------------ */

uint64_t sim_random(sim_world *world);
uint32_t sim_below(sim_world *world, uint32_t n);
bool sim_chance(sim_world *world, uint32_t ppm);
int64_t sim_exponential_ns(sim_world *world, int64_t mean_ns);

void sim_plan(sim_world *world, int64_t at_ns, sim_event_kind kind, uint32_t node, uint64_t a, void *payload);
bool sim_pop(sim_world *world, sim_event *out);
void sim_trace(sim_world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- sim_net.c -------------------------------------------------------------------------------------------------- */

sim_link *sim_link_between(sim_world *world, uint32_t a, uint32_t b);
void sim_send(sim_world *world, uint32_t from, uint64_t to_incarnation, const wire_message *message);
void sim_link_open(sim_world *world, sim_link *link); /* plans SIM_LINK_UP for both sides */
void sim_link_join(sim_world *world, sim_link *link); /* at once, for both; nobody is told */
void sim_link_break(sim_world *world, sim_link *link);
void sim_link_part(sim_link *link); /* both sides know */
void sim_link_event(sim_world *world, const sim_event *event);
void sim_message_event(sim_world *world, const sim_event *event);
uint32_t sim_node_of(const sim_world *world, uint64_t incarnation); /* UINT32_MAX: dead */
int64_t sim_arrival_ns(sim_world *world, sim_link *link, int side); /* of what leaves now, in order */

/* ---- sim_kv.c --------------------------------------------------------------------------------------------------- */

void sim_kv_push(sim_world *world, uint32_t node, uint64_t peer, const kvt_push_args *push, uint64_t push_id);
void sim_kv_send(sim_world *world, uint32_t node, uint64_t peer, const wire_message *message);
void sim_kv_connect(sim_world *world, uint32_t node, uint64_t incarnation);
void sim_kv_event(sim_world *world, const sim_event *event);
void sim_lease_open(sim_world *world, uint32_t node, uint64_t peer, const kvt_lease_args *open);
void sim_lease_close(sim_world *world, uint32_t node, uint64_t lease, uint32_t n_pushes);
void sim_node_forget_kv(sim_world *world, sim_node *node);
void sim_transfer_release(sim_transfer *transfer);

/* ---- sim_node.c ------------------------------------------------------------------------------------------------- */

void sim_node_start(sim_world *world, uint32_t index);
void sim_node_kill(sim_world *world, uint32_t index);  /* its links break */
void sim_node_after(sim_world *world, uint32_t index); /* after every event of its core: carry out, step, check */
void sim_node_walk(sim_world *world, uint32_t index);  /* carries a worker's actions out */
void sim_node_step_event(sim_world *world, const sim_event *event);
bool sim_node_begin_step(sim_world *world, uint32_t index);  /* false: it has no rows */
int64_t sim_node_layer_ns(sim_world *world, uint32_t index); /* for the rows of its step */
void sim_node_compute(sim_world *world, uint32_t index, uint32_t layer);
void sim_node_finish_step(sim_world *world, uint32_t index);
void sim_check_baton(sim_world *world, const wire_request *request);

/* ---- sim_registry.c --------------------------------------------------------------------------------------------- */

void sim_announce(sim_world *world, uint32_t index);      /* what the rank says of itself when that arrives */
void sim_registry_read(sim_world *world, uint32_t index); /* soon */
void sim_registry_forget(sim_world *world, uint32_t index, int64_t after_ns); /* unless its node is started anew */
void sim_registry_lose(sim_world *world, uint32_t index); /* the announcement of one that lives; it is renewed */
void sim_registry_stall(sim_world *world, int64_t until_ns);
void sim_registry_event(sim_world *world, const sim_event *event);

/* ---- sim_rank.c ------------------------------------------------------------------------------------------------- */

/* The ranks of the node's group, *first and those behind it; 1: it is alone. */
uint32_t sim_ranks_of(const sim_world *world, uint32_t index, uint32_t *first);
static inline bool sim_is_rank(const sim_node *node) { return node->rank.group.own.ep.size > 0; } /* and lives */

void sim_rank_start(sim_world *world, uint32_t index);
void sim_rank_stop(sim_world *world, uint32_t index);
void sim_rank_turn(sim_world *world, uint32_t index); /* of wrk_loop.c's loop */
bool sim_rank_is_over(const sim_world *world, uint32_t index);
void sim_rank_gone(sim_world *world, uint32_t index, uint64_t peer); /* the connection to that incarnation broke */
void sim_rank_event(sim_world *world, const sim_event *event);

/* Something is wrong in the node's group, if it has one, until then. */
void sim_disturb(sim_world *world, uint32_t index, int64_t until_ns);
void sim_check_group(const sim_world *world, uint32_t index); /* it is formed, if all its ranks live and stay */

/* ---- sim_client.c ----------------------------------------------------------------------------------------------- */

void sim_client_arrive(sim_world *world);
void sim_client_leave(sim_world *world, uint32_t node, uint64_t serial);
void sim_client_hear(sim_world *world, uint32_t node, const gw_action *action);
void sim_clients_die(sim_world *world, uint32_t node);

#endif
