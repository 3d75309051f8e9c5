/*
 * What a backend must do: memory, and one function for each fused step of the
 * model.  The graph (engine/model) is written once on top of it; a backend
 * knows neither requests nor scheduling.
 *
 * One be_t serves one rank and is driven by one thread, the rank's leader; a
 * backend may use more threads or a device behind it.  Calls are in order;
 * the CPU backend returns when the work is done, a device backend may only
 * have queued it, and be->sync() waits.
 *
 * A device sees no host memory.  What a step is about (tokens, positions, KV
 * blocks) is the host's; begin() brings it over, once, and operations are
 * told which part of it they are for.  Between begin() and end() nothing
 * waits for the host, so that a device may record what it is told to do and
 * replay it for the next step of the same kind.
 *
 * Activations are row-major float32 in the backend's memory: [rows][dim].
 * What mla_query(), mla_attend() and mla_value() give is for the operation
 * that comes next (linear() or linear_add() after mla_value()) and no other:
 * a backend may keep it in that memory in a type of its own.
 * With compute BE_BF16 the inputs of every matrix product are rounded to
 * BF16 (nearest even) and sums are float32; with BE_F32 nothing is rounded.
 * A kernel path may take finer inputs than BF16, as the CPU's "amx" does for
 * INT8 weights: integers up to 32512 with a scale for each 64.
 *
 * DETERMINISM.  The result of a row must not depend on how many rows there
 * are, which row it is, how work was split over threads, or on other rows:
 * one order of summation per output element for each (operation, shape,
 * kernel path).  Attention goes by runs of 512 tokens, cut by position: a
 * maximum and sums for each, merged in order.  A device does so if it is
 * opened with `fixed`.
 */

#ifndef BE_BACKEND_H
#define BE_BACKEND_H

#include <stddef.h>
#include <stdint.h>


#define ERR_LEN        512
#define BE_BLOCK       64        /* tokens of a KV block */
#define BE_EXPAND_TOKENS 2048    /* of a prompt that a device expands at once */
#define BE_TOPK_MAX    32        /* experts of a token */


typedef struct be_s         be_t;
typedef struct be_weight_s  be_weight_t;     /* a matrix, its own way */
typedef struct be_kv_s      be_kv_t;         /* the KV pool of a rank */

typedef enum {
    BE_F32 = 0,
    BE_BF16,
    BE_F8E4M3,
    BE_INT8,                         /* of matrices in panels */
    BE_INT4,
    BE_PAIRS,                        /* BF16 in panels, made in memory only */
    BE_DTYPES
} be_dtype_t;

/* A tensor as the checkpoint has it, mapped; `data` may be unaligned. */

typedef struct {
    const void   *data;
    be_dtype_t    dtype;
    uint32_t      rows;              /* 1 for vectors */
    uint32_t      cols;
    const float  *scale;             /* F8E4M3: of each block of 128 x 128 */
    uint32_t      scale_cols;

    /*
     * Equal groups of rows (heads), each used on its own, and what of each is
     * wanted: `take` rows from `from` on.  Zeros: one group, all its rows.
     */
    uint32_t      parts;
    uint32_t      from;
    uint32_t      take;

    int           made;              /* what weight_tensor() gave */
    int           expert;            /* of a routed expert */
} be_tensor_t;

typedef struct {
    be_dtype_t   compute;            /* BE_F32 or BE_BF16 */
    be_dtype_t   weights;            /* of matrices; BE_F32: as they are */
    be_dtype_t   expert_inputs;      /* of products with INT4 on a device:
                                        BE_BF16, BE_F8E4M3, or BE_F32: FP8 if
                                        other matrices are */
    be_dtype_t   kv;                 /* of the KV pool; BE_F32: by compute, or
                                        BE_F8E4M3, which devices have */
    uint32_t     threads;            /* of this rank */
    uint32_t     rank;
    const char  *path;               /* kernel path, NULL: the best there is */
    int          pin;                /* CPU to pin the first thread to, -1 */
    int          alone;              /* shares no weights with other ranks */
    int          pack;               /* may copy BF16 weights into the order
                                        and the memory that are fastest */
    int          absorbed;           /* attention of prompts is, too, on a
                                        device */
    int          fixed;              /* DETERMINISM as above on a device too,
                                        where it has its price */
} be_options_t;

/* The rows of one step on one rank. */

typedef struct {
    uint32_t                n_rows;
    const int32_t          *id;          /* [n_rows] token */
    const uint32_t         *pos;         /* [n_rows] position in its sequence */
    const uint32_t         *seq;         /* [n_rows] index into `blocks` */
    uint32_t                n_seqs;
    const int32_t *const   *blocks;      /* [n_seqs] KV blocks, by pos / 64 */
    const uint32_t         *first;       /* [n_seqs] where attention begins,
                                            NULL: at 0 */
    void                   *device;      /* the backend's, from begin() */
} be_batch_t;

/*
 * What one step is about, for begin().  With `some` not 0 the last layer goes
 * on with `last` alone, as not all rows give logits; begin() may say so where
 * all of this rank's do.
 */

typedef struct {
    be_batch_t              all;
    be_batch_t              last;        /* of them, those that give logits */
    int                     some;
    const uint32_t         *row;         /* [last.n_rows] which these are */
    const uint32_t         *from;        /* [all.n_rows] of drafts, or NULL */
    uint32_t                max_rows;    /* what there is memory for */
    uint32_t                max_last;

    /*
     * Two micro-batches, see part(): not 0: where a rank has that many rows.
     * `most`: of any rank; 0: begin() finds out, which is collective.  It says
     * whether it is so in `split`, on all ranks alike; then part[0] has the
     * first half of the rows, one more if they are odd, part[1] the others.
     */
    uint32_t                micro;
    uint32_t                most;
    int                     split;
    be_batch_t              part[2];

    /*
     * Not 0: steps of the same key, `some`, rows and rows of logits are told
     * the same operations with the same memory.  Of several ranks all have a
     * key or none; begin() is collective then.
     */
    uint32_t                key;
} be_step_t;

/* Rotary embedding over adjacent pairs (2i, 2i + 1). */

typedef struct {
    uint32_t      dim;               /* even */
    const float  *freq;              /* [dim / 2], YaRN applied */
    float         mscale;            /* of cos and sin */
} be_rope_t;

typedef struct {
    uint32_t  hidden;
    uint32_t  heads;
    uint32_t  nope;
    uint32_t  rope;
    uint32_t  v;
    uint32_t  kv_lora;
} be_mla_t;

typedef enum { BE_SOFTMAX, BE_SIGMOID } be_scoring_t;

typedef enum {
    BE_GREEDY,                       /* top k of all */
    BE_GROUP_MAX,                    /* groups by their largest score (V2) */
    BE_NOAUX_TC                      /* biased, groups by their two largest */
} be_topk_t;

typedef struct {
    uint32_t      experts;
    uint32_t      top_k;
    uint32_t      groups;
    uint32_t      topk_groups;
    be_scoring_t  scoring;
    be_topk_t     method;
    int           normalise;
    float         scale;
} be_gate_t;

/* How a token is drawn from its row of logits, see sample_draw_t. */

typedef struct {
    float         temperature;
    float         top_p;
    float         min_p;
    uint32_t      top_k;
    double        u;
} be_draw_t;

/* One expert (or dense, or shared) MLP: w2(silu(w1 x) * w3 x). */

typedef struct {
    be_weight_t  *w1;                /* gate_proj [inter][hidden] */
    be_weight_t  *w3;                /* up_proj   [inter][hidden] */
    be_weight_t  *w2;                /* down_proj [hidden][inter] */
} be_mlp_t;

/*
 * Rows for the experts of this rank, as the exchange (engine/ep) hands them
 * over: the pairs (row, expert) of local expert e are offset[e] … offset[e + 1]
 * - 1; pair p reads x[p] and writes y[p], both [hidden], in memory that this
 * backend can reach.  The three arrays are the host's if `max` is 0; else they
 * are in the backend's memory, the host does not know what is in them, and
 * there are at most `max` pairs.
 */

typedef struct {
    uint32_t             n_experts;
    const uint32_t      *offset;     /* [n_experts + 1] */
    const float *const  *x;
    float *const        *y;          /* NULL: peer_return() has the results */
    uint32_t             max;
    const uint32_t      *row;        /* not NULL: pair p reads row[p] of what
                                        peer_send() brought, and x is NULL */
} be_pairs_t;

/*
 * What the largest step needs, for reserve().  Rows of matrices that have
 * `inputs` columns at most, MLPs apart.
 */

typedef struct {
    uint32_t             rows;       /* of this rank */
    uint32_t             pairs;      /* that the exchange hands over */
    uint32_t             inputs;
    uint32_t             hidden;
    uint32_t             inter;      /* of dense and shared MLPs */
    uint32_t             moe_inter;
    const be_mla_t      *mla;
    const be_gate_t     *gate;
} be_largest_t;

/* The rows of one rank, for a rank that holds every expert in its own slot. */

typedef struct {
    const be_batch_t    *batch;      /* rows that are only padding are left
                                        out; NULL: there are none */
    uint32_t             rows;
    uint32_t             hidden;
    uint32_t             top_k;
    uint32_t             experts;
    const int32_t       *id;         /* [rows][top_k], from gate() */
    const float         *x;          /* [rows][hidden] */
    float               *contrib;    /* [rows][top_k][hidden] */
    uint32_t            *load;       /* [experts], counts rows; or NULL */
} be_route_t;

/*
 * Ranks of one process on devices that reach each other's memory send their
 * rows to those that hold the experts, and contributions home, without the
 * host.  A rank's part of that (be_peer_t) is memory that the others write.
 * Rows travel in the type that the experts' products take (BF16, or FP8 with a
 * scale for 128 elements), which rounds them no more than computing at home
 * does; contributions as float32 if `exact`, else as BF16, those of a rank to
 * itself, too.
 *
 * Ranks of other processes (`local` not 0) have no be_peer_t here.  What goes
 * to them and comes from them has the size that `most` rows take, whatever
 * their number, so that nobody needs to be told.
 */

typedef struct be_peer_s  be_peer_t;

#define BE_PEERS_MAX  32
#define BE_PEER_ID    128            /* bytes */

typedef struct {
    uint32_t          ranks;
    uint32_t          rank;
    uint32_t          max_rows;
    uint32_t          top_k;
    uint32_t          experts;
    uint32_t          slots;         /* of a rank, at most */
    uint32_t          hidden;
    int               exact;
    const be_mlp_t   *expert;        /* one of them, for the type */

    /* Between processes, else 0. */
    uint32_t          first;         /* rank of this process, */
    uint32_t          local;         /* and how many it has */
    const uint8_t    *id;            /* [BE_PEER_ID] the same everywhere */

    /*
     * What is pointed to outlives the peer.  meet(): the ranks' threads come
     * together, the last of them calls last(arg) before all go on; NULL: steps
     * are not recorded.  peers[ranks]: of all that have one.
     */
    uint32_t          timeout_ms;    /* 0: none */
    int             (*status)(void *ctx, char *err);    /* -1: has failed */
    void            (*fail)(void *ctx, const char *why);
    int             (*meet)(void *ctx, uint32_t rank, const char *what,
                            int (*last)(void *arg, char *err), void *arg,
                            char *err);
    be_peer_t *const *peers;
    void             *ctx;
} be_peer_options_t;

/*
 * What a rank sends; the placement as in ep/exchange.h, the host's.  Pair (row,
 * k) of an expert with n homes goes to the one that `rank * max_rows + row +
 * expert` modulo n says.
 */

typedef struct {
    uint32_t             experts;
    uint32_t             homes;
    const uint32_t      *first;      /* [experts + 1] */
    const uint8_t       *home;       /* [homes] rank */
    const uint32_t      *slot;       /* [homes] */
    uint32_t             slots;      /* of this rank */
    const be_batch_t    *batch;
    uint32_t             rows;
    uint32_t             most;       /* of any rank now, the same for all */
    const float         *x;          /* [rows][hidden] */
    const int32_t       *id;         /* [rows][top_k] */
    float               *contrib;    /* [rows][top_k][hidden] */
    uint32_t            *load;       /* [experts] of this rank's rows; or NULL */
} be_peer_send_t;


struct be_s {
    const char  *name;               /* "cpu" */
    const char  *path;               /* "generic", "avx2", "avx512", … */

    /* Operations only queue, and memory is not the host's. */
    int          device;

    /*
     * Names what weights and memory of this backend depend on, as in
     * "cpu avx2 bf16 int8": ranks whose backends have equal keys use each other's
     * weights and memory from alloc(), and any of them may free these.  The
     * string lives as long as the backend.  NULL: nothing is shared.
     */
    const char  *share;

    void (*close)(be_t *be);

    /*
     * A backend that makes weights for this one, by weight() and weight_t(),
     * while this one computes: another thread drives it.  It may free this
     * one's weights, too, and is closed first.  NULL with the reason in `err`.
     */
    be_t *(*helper)(be_t *be, char *err);

    /* Memory of the backend, zeroed, 64-byte aligned; NULL: none left. */
    void *(*alloc)(be_t *be, size_t size);
    void (*free)(be_t *be, void *p);
    void (*upload)(be_t *be, void *dst, const void *src, size_t size);
    void (*download)(be_t *be, void *dst, const void *src, size_t size);

    /* Waits.  0, or -1 with the reason of the first failure so far. */
    int (*sync)(be_t *be, char *err);

    /*
     * NULL, or takes the memory that a step works in, so that none is taken
     * in a step: before the first, once.  0, or -1 with the reason in `err`.
     */
    int (*reserve)(be_t *be, const be_largest_t *largest, char *err);

    /*
     * NULL but on a device: begins and ends a step.  Batches of operations
     * are &step->all and &step->last, rows of gather() step->row and
     * step->from; begin() may change the step: it adds rows of padding, whose
     * results are undefined, up to sizes of which there are few.  1: all is
     * queued that was recorded for this key before, and end() is what is
     * left; 0; or -1 with the reason in `err`.
     */
    int (*begin)(be_t *be, be_step_t *step, char *err);
    int (*end)(be_t *be, char *err);

    /*
     * NULL but on a device: what follows is of the whole step, 0, or of one of
     * two micro-batches, 1 and 2.  The exchange of these runs beside what the
     * backend is told after peer_send() and peer_return(), up to peer_pairs()
     * and peer_collect() of the same part; all else is in order.  Between
     * these calls what the part sends (x, id) stays as it is.
     */
    void (*part)(be_t *be, uint32_t part);

    /*
     * NULL but on a device: what was recorded counts no more, because weights
     * have changed.  While no step is under way; any thread.
     */
    void (*forget)(be_t *be);

    /*
     * Makes a matrix usable in products, of the type that the options name.
     * The backend may keep pointing into `t->data` (it stays mapped) or
     * convert.  `copies` adds the bytes it allocated.  weight_t() is the same
     * for the transpose of `t` cut into `parts` equal groups of rows, each
     * transposed on its own and stacked: part i of the result is [cols][rows /
     * parts] (`take` in place of rows / parts, if given).  table() makes what
     * embed() takes, never quantised.
     */
    be_weight_t *(*weight)(be_t *be, const be_tensor_t *t, size_t *copies,
        char *err);
    be_weight_t *(*weight_t)(be_t *be, const be_tensor_t *t, uint32_t parts,
        size_t *copies, char *err);
    be_weight_t *(*table)(be_t *be, const be_tensor_t *t, size_t *copies,
        char *err);
    void (*weight_free)(be_t *be, be_weight_t *w);

    /*
     * NULL but on a device: bytes of weights that went there, and the seconds
     * from the first to the last of them.
     */
    void (*loaded)(be_t *be, uint64_t *bytes, double *seconds);

    /*
     * A matrix as it is in memory, for saving: type, shape, parts and bytes
     * (be_tensor_size()).  weight() takes it back, without work, where they
     * are aligned to 64 and stay.
     */
    void (*weight_tensor)(const be_weight_t *w, be_tensor_t *t);

    /* KV pool: [layers][blocks][64][kv_lora + rope], F32 or BF16 by compute. */
    be_kv_t *(*kv_open)(be_t *be, uint32_t layers, uint32_t blocks,
        const be_mla_t *mla, char *err);
    void (*kv_free)(be_t *be, be_kv_t *kv);
    size_t (*kv_block_size)(const be_kv_t *kv);      /* all layers, bytes */

    /*
     * A block to host memory and back, kv_block_size() bytes.  Any thread may
     * call them, and while the leader computes: for blocks that no row of its
     * steps uses meanwhile.  They return when it is done; a device uses a
     * stream of its own for them.
     */
    void (*kv_read)(be_t *be, be_kv_t *kv, int32_t block, void *dst);
    void (*kv_write)(be_t *be, be_kv_t *kv, int32_t block, const void *src);

    /* x[row] = w[id] */
    void (*embed)(be_t *be, const be_weight_t *w, const be_batch_t *b,
        float *x);

    /* y = x * w / sqrt(mean(x^2) + eps), each row; y may be x */
    void (*norm)(be_t *be, const float *w, float eps, const float *x,
        uint32_t rows, uint32_t dim, float *y);

    /* y[rows][out] = x[rows][in] w^T;  linear_add: y += */
    void (*linear)(be_t *be, const be_weight_t *w, const float *x,
        uint32_t rows, float *y);
    void (*linear_add)(be_t *be, const be_weight_t *w, const float *x,
        uint32_t rows, float *y);

    /*
     * kva [rows][kv_lora + rope]: norm the first part with w, rotate the
     * second, store both in the rows' places of `layer`.
     */
    void (*mla_cache)(be_t *be, be_kv_t *kv, uint32_t layer,
        const be_mla_t *mla, const be_rope_t *rope, const float *w, float eps,
        const float *kva, const be_batch_t *b);

    /*
     * q [rows][heads][nope + rope] → ql [rows][heads][kv_lora + rope]:
     * absorbs W_UK ([heads] parts of [kv_lora][nope], from weight_t() or
     * weight()) and rotates the rope part.
     */
    void (*mla_query)(be_t *be, const be_mla_t *mla, const be_rope_t *rope,
        const be_weight_t *w_uk, const float *q, const be_batch_t *b,
        float *ql);

    /*
     * Attention over the latent cache, row r over positions first … pos[r] of
     * its sequence: ol [rows][heads][kv_lora].  What lies before `first` in
     * its block may be anything finite; a row before it gives anything.
     */
    void (*mla_attend)(be_t *be, be_kv_t *kv, uint32_t layer,
        const be_mla_t *mla, float scale, const float *ql,
        const be_batch_t *b, float *ol);

    /*
     * o [rows][heads * v] = per head W_UV ([heads] parts of [v][kv_lora]) ol.
     * kv_b_proj as it is, [heads] parts of [nope + v][kv_lora], serves too,
     * without a copy: the last v rows of each part are used.  Likewise W_UK
     * may be weight_t() of it: the first nope columns are used.
     */
    void (*mla_value)(be_t *be, const be_mla_t *mla, const be_weight_t *w_uv,
        const float *ol, uint32_t rows, float *o);

    /* y[rows][hidden] += mlp(x) (dense layers and shared experts) */
    void (*mlp_add)(be_t *be, const be_mlp_t *mlp, const float *x,
        uint32_t rows, float *y);

    /*
     * Router, in float32 whatever the compute mode, w [experts][hidden], bias
     * NULL or [experts]: ids [rows][top_k] in order of falling choice score
     * (ties: lower id first), weights alike.  The backend's memory.
     */
    void (*gate)(be_t *be, const be_gate_t *g, const float *w,
        const float *bias, const float *x, uint32_t rows, uint32_t hidden,
        int32_t *id, float *weight);

    /*
     * NULL but on a device: sorts pairs (row, expert) by expert, in order of
     * rows, without the host.  `pairs` holds until the next call.
     */
    void (*route)(be_t *be, const be_route_t *r, be_pairs_t *pairs);

    /*
     * NULL but on a device.  peer_open() and peer_close() by the rank's thread.
     * The others only queue: first peer_send(); when all ranks have called it,
     * peer_pairs(), whose pairs experts() takes; then peer_return(), and when
     * all have called that, peer_collect(), after which contributions are at
     * home.  all[ranks] and sends[ranks] are those of all ranks; of another
     * process all[] is NULL, and they may send `most` rows.  They are for the
     * part that part() has named.  peer_stop(): the exchange has failed, and
     * nobody will end the step.
     */
    be_peer_t *(*peer_open)(be_t *be, const be_peer_options_t *opt,
        char *err);
    void (*peer_close)(be_t *be, be_peer_t *peer);
    void (*peer_send)(be_t *be, be_peer_t *const *all,
        const be_peer_send_t *send);
    void (*peer_pairs)(be_t *be, be_peer_t *const *all,
        const be_peer_send_t *sends, be_pairs_t *pairs);
    void (*peer_return)(be_t *be, be_peer_t *const *all);
    void (*peer_collect)(be_t *be, be_peer_t *const *all,
        const be_peer_send_t *send);
    void (*peer_stop)(be_t *be);

    /* y[p] = mlp[e](x[p]), unweighted, for each pair of each local expert */
    void (*experts)(be_t *be, const be_mlp_t *mlp, const be_pairs_t *pairs);

    /* x[row] += sum over k, in order, of weight[row][k] * c[row][k][hidden] */
    void (*combine)(be_t *be, const float *c, const float *weight,
        uint32_t rows, uint32_t top_k, uint32_t hidden, float *x);

    /* y[i] = x[row[i]] */
    void (*gather)(be_t *be, const float *x, const uint32_t *row, uint32_t n,
        uint32_t dim, float *y);

    /*
     * NULL but on a device: draws a token from each row of logits, the same
     * that sample_token() does.  `known` [vocab], in the backend's memory;
     * `draw` and `id` [rows] are the host's, id known after sync(): -1: none
     * can be drawn, -2: the host has to do it.
     */
    void (*draw)(be_t *be, const float *logits, uint32_t rows,
        uint32_t vocab, const uint8_t *known, const be_draw_t *draw,
        int32_t *id);

    /* y[i] = a[i] and b[i] behind it, [rows][2 * dim] */
    void (*join)(be_t *be, const float *a, const float *b, uint32_t rows,
        uint32_t dim, float *y);
};


/*
 * What is free on a device that `ranks` ranks use, as be_open() would spread
 * them, and how many share it: of the one that has least for each.  0, 1: the
 * backend has no memory of its own; -1 with the reason in `err`.
 */
int be_memory(const char *name, uint32_t ranks, uint64_t *bytes,
    uint32_t *shared, char *err);

/*
 * An id for be_peer_options_t of that backend's ranks, [BE_PEER_ID], made by
 * one process for all.  0, or -1 with the reason in `err`: none can be made
 * here.
 */
int be_peer_id(const char *name, uint8_t *id, char *err);

/*
 * Opens a backend for one rank.  `name` "cpu" (or "cuda", where built in).
 * NULL with the reason in `err` (ERR_LEN).
 */

be_t *be_open(const char *name, const be_options_t *opt, char *err);

/* Bytes of a matrix from weight_tensor(); 0 if it is not possible. */
size_t be_tensor_size(const be_tensor_t *t);

/*
 * The CPU backend; paths: "generic", "avx2", "avx512", "avx512bf16", "amx".
 */
be_t *be_cpu_open(const be_options_t *opt, char *err);

/*
 * The CUDA backend: one rank on device rank modulo devices, of compute
 * capability 9.0; paths: "sm90", with cuBLASLt where its library is, and
 * "sm90-own".  Where it is not built in there is no such function.
 */
be_t *be_cuda_open(const be_options_t *opt, char *err);

/* be_memory() and be_peer_id() of that backend. */
int be_cuda_memory(uint32_t ranks, uint64_t *bytes, uint32_t *shared,
    char *err);
int be_cuda_peer_id(uint8_t *id, char *err);

/* NULL-terminated list of the kernel paths this processor can run. */
const char *const *be_cpu_paths(void);

#endif /* BE_BACKEND_H */
