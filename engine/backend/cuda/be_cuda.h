/*
 * The CUDA backend's inside: what its files share.  One be_t is one rank on
 * one device (rank modulo devices), with a stream of its own; products compute
 * in BF16, or in FP8 where the weights are FP8 in blocks of 128 x 128.
 *
 *     be_cuda.c          opening, memory, copies, the table of operations
 *     be_cuda_step.c     a step's arrays on the device
 *     be_cuda_record.c   recording and replay, of all ranks of the process
 *     be_cuda_weight.c   matrices: converted, staged, uploaded; with
 *                        be_cuda_stage.c and be_cuda_row.c
 *     be_cuda_slab.c     their memory
 *     be_cuda_kv.c       the KV pool
 *     be_cuda_ops.c      operations, as launches
 *     be_cuda_attend.c   attention, and its plan
 *     be_cuda_expand.c   attention of prompts, expanded
 *     be_cuda_moe.c      router and experts
 *     be_cuda_blas.c     cuBLASLt
 *     be_cuda_peer.c     memory that other ranks write
 *     be_cuda_peer_rows.c   rows to and from them
 *     be_cuda_peer_far.c the same for those of other nodes
 *     be_cuda_peer_flags.c  waiting for ranks where nobody's thread does
 *     be_cuda_nccl.c     NCCL, which brings these
 *     cu_*.cu, cu_*.h    kernels, behind C functions that queue them
 *
 * Memory of activations is float32 as backend.h says.  Inputs of products are
 * made in scratch memory; what norm() gives is made there right away, and the
 * product that follows finds it (cuda->made).  Of two micro-batches each has
 * its own, as one is sent while the other is computed.  What mla_query(),
 * mla_attend() and mla_value() give is BF16.
 *
 * A failure is kept (cuda->failed) and told by the next sync(), begin() or
 * end(); operations do nothing after it.
 */

#ifndef BE_CUDA_H
#define BE_CUDA_H

#include <pthread.h>
#include <stdatomic.h>

#include <cuda_runtime_api.h>

#include "backend/backend.h"
#include "backend/cuda/cu_gate.h"
#include "backend/cuda/cu_gemm.h"
#include "backend/cuda/cu_latent.h"
#include "backend/cuda/cu_mha.h"
#include "backend/cuda/cu_mla.h"
#include "backend/cuda/cu_mm.h"
#include "backend/cuda/cu_rows.h"
#include "backend/cuda/cu_sample.h"


#define CUDA_PATH      "sm90"        /* cuBLASLt has what it can */
#define CUDA_PATH_OWN  "sm90-own"    /* without it */
#define CUDA_ALIGN    64             /* elements that a row is rounded up to */
#define CUDA_STAGE    (4u << 20)     /* bytes of a staging buffer */
#define CUDA_STAGES   3
#define CUDA_RECORDS  64             /* recorded steps that are kept */
#define CUDA_RECORD_ROWS  256        /* of a step; one of more is not */
#define CUDA_EXPANDS  8              /* groups of rows that are expanded */


/* A matrix in the device's memory; parts (heads) follow each other. */

struct be_weight_s {
    cu_matrix_t      m;              /* n: all parts' rows */
    cu_matrix_t     *dev;            /* the same on the device */
    uint32_t         parts;
    int              wide;           /* a table of float32 */
    void            *data;
    void            *scale;
    size_t           size;
};

struct be_kv_s {
    uint32_t         layers;
    uint32_t         blocks;
    uint32_t         dim;
    size_t           block_size;     /* bytes of a block in one layer */
    int              fp8;            /* records of CU_MLA_FP8_SIZE bytes */
    uint8_t         *data;

    /* For copies by other threads. */
    pthread_mutex_t  lock;
    cudaStream_t     stream;
    uint8_t         *stage;          /* pinned, a block of all layers */
};

/*
 * Scratch memory by use; each grows to the largest step so far.  Behind what
 * micro-batches do not share there is that of the second one.
 */

typedef enum {
    CUDA_ACT_H = 0,                  /* what norm() left for products */
    CUDA_ACT_H_2,
    CUDA_ACT_H8,                     /* the same in FP8 */
    CUDA_ACT_H8_2,
    CUDA_ACT,                        /* inputs of a product */
    CUDA_ACT2,
    CUDA_UP,                         /* of an MLP: gate, */
    CUDA_UP2,                        /* up */
    CUDA_QUERY,
    CUDA_LOGITS,
    CUDA_ROPE,
    CUDA_PAIRS,
    CUDA_PAIRS_HOST,                 /* pairs that the host sorted */
    CUDA_DRAW,
    CUDA_ATTEND,
    CUDA_EXPAND,
    CUDA_PAIRS_PEER,                 /* pairs of several ranks */
    CUDA_PAIRS_PEER_2,
    CUDA_PAIRS_Y,                    /* and what is made of them */
    CUDA_PAIRS_Y_2,
    CUDA_SCRATCH_MAX
} cuda_scratch_t;

/* Whose BF16 or FP8 copy there is in CUDA_ACT_H or CUDA_ACT_H8, or in _2. */

typedef struct {
    const float         *x;
    uint32_t             rows;
    uint32_t             dim;
    cu_act_t             act[2];     /* by type */
} cuda_made_t;

/* A batch as the kernels see it, be_batch_t's `device`. */

typedef struct {
    cu_batch_t           b;
    cu_mla_work_t        work;       /* unit NULL: the simple attention */
    float               *rope;       /* [rows][rope], by cu_rope_table() */
    int                  rope_made;  /* in this step */

    /* rows whose attention is expanded, by row; `work` has the others */
    cu_mla_group_t       expand[CUDA_EXPANDS];
    uint32_t             n_expand;
} cuda_batch_t;

typedef enum {
    CUDA_ALL = 0,
    CUDA_LAST,                       /* the rows that give logits */
    CUDA_PART,                       /* the two micro-batches */
    CUDA_BATCHES = CUDA_PART + 2
} cuda_rows_t;

/* How a step is done, and who is in its graph: be_cuda_record.c. */

typedef enum {
    CUDA_PLAIN = 0,                  /* as its operations come */
    CUDA_RECORD,
    CUDA_REPLAY
} cuda_how_t;

typedef enum {
    CUDA_ALONE = 0,
    CUDA_SHARED,                     /* all ranks, which have one device */
    CUDA_APART,                      /* one of several, each on a device */
    CUDA_NEVER                       /* ranks whose steps are not recorded */
} cuda_group_t;

typedef struct {
    uint64_t             key;        /* 0: free */
    uint64_t             used;
    uint64_t             drops;      /* of all ranks, when it was computed */
    int                  recorded;
} cuda_known_t;

/* What a rank wants of a step, and what all have agreed on. */

typedef struct {
    uint32_t             key;
    uint32_t             rows;
    uint32_t             last;
    uint32_t             max_rows;
    uint32_t             max_last;
    uint32_t             micro;
    int                  some;
    uint64_t             drops;
} cuda_ask_t;

typedef struct {
    cuda_group_t         group;
    cuda_how_t           how;
    uint32_t             index;      /* in known[] and exec[] */
    uint32_t             rows;       /* 0: each its own, nothing is recorded */
    uint32_t             last;
    int                  some;
    int                  split;      /* in two micro-batches */
} cuda_say_t;

typedef struct {
    uint32_t             heads;      /* 0: not one that the kernels know */
    cu_mla_plan_t        plan;
    cu_mla_group_t      *group;      /* [plan.max_rows] */
} cuda_attend_t;

/* What mla_query() and mla_attend() note for expanded rows. */

typedef struct {
    int                  on;         /* the model has the kernel's sizes */
    uint32_t             tile;       /* tokens */
    const cuda_batch_t  *batch;      /* of the last attention, or NULL */
    const be_weight_t   *uk;
    const void          *qn;
    const void          *ql;
    const uint8_t       *kv;
    int                  fp8;
    float                scale;
    uint64_t             groups;     /* that were expanded so far */
} cuda_expand_t;

/* An array of MLPs on the device. */

typedef struct cuda_mlps_s  cuda_mlps_t;

struct cuda_mlps_s {
    cuda_mlps_t         *next;
    const be_mlp_t      *mlp;        /* the host's, which it was made of */
    uint32_t             n;
    cu_matrix_t         *m;          /* [3][n]: all w1, all w3, all w2 */
    CUtensorMap         *maps;       /* [3][n], of matrices not in INT4 */
};

typedef struct cuda_blas_s  cuda_blas_t;

typedef struct {
    be_t                 be;         /* first */
    be_options_t         opt;
    int                  device;
    int                  sms;
    char                *path;
    cudaStream_t         stream;
    cuda_blas_t         *blas;       /* NULL: there is no cuBLASLt */
    void                *room;       /* of products whose K is cut */

    int                  failed;
    char                 why[ERR_LEN];

    void                *scratch[CUDA_SCRATCH_MAX];
    size_t               scratch_size[CUDA_SCRATCH_MAX];

    uint32_t             part;       /* whose operations these are */
    cuda_made_t          made[2];    /* of each part, the whole has the first */
    int                  fp8;        /* there are FP8 matrices */

    /* be_cuda_step.c */
    be_step_t           *step;
    cuda_batch_t         batch[CUDA_BATCHES];
    uint8_t             *host;       /* pinned */
    uint8_t             *dev;
    size_t               step_size;
    const uint32_t      *dev_row;
    const uint32_t      *dev_from;
    uint32_t            *map;        /* [map_size] sequences to their index */
    uint32_t             map_size;
    atomic_int           forget;
    uint64_t             splits;     /* steps in two micro-batches, so far */
    cudaEvent_t          copied;     /* `host` may be written again */
    cudaEvent_t          stepped;    /* the end of the last step */
    float               *freq;       /* of the rope, on the device */
    float               *host_freq;
    uint32_t             rope_dim;

    /* be_cuda_record.c; of several ranks the first one has `known` for all */
    cuda_how_t           recording;  /* the step at hand */
    cuda_ask_t           ask;
    cuda_say_t           say;
    cuda_known_t         known[CUDA_RECORDS];
    cudaGraphExec_t      exec[CUDA_RECORDS];
    uint64_t             steps;
    uint64_t             drops;      /* times that memory or weights moved */
    cudaGraph_t         *piece;      /* of what is recorded, [n_pieces] */
    uint32_t             n_pieces;
    uint32_t             max_pieces;
    int                  capturing;
    uint64_t             recorded;   /* steps, so far, */
    uint64_t             replayed;   /* and how many were launched again */

    /* be_cuda_weight.c */
    cudaStream_t         load;
    uint8_t             *stage[CUDA_STAGES];
    cudaEvent_t          staged[CUDA_STAGES];
    uint32_t             next_stage;
    uint64_t             load_bytes;
    double               load_begin; /* seconds, of the first weight, */
    double               load_end;   /* and of the last */

    cuda_mlps_t         *mlps;
    cuda_attend_t        attend;
    cuda_expand_t        expand;
    be_peer_t           *peer;       /* NULL: it exchanges with nobody */
} be_cuda_t;


/* Of what there is for each micro-batch, which one: the whole has the first. */

static inline uint32_t
be_cuda_half(const be_cuda_t *cuda)
{
    return cuda->part == 2;
}


/* be_cuda.c */

/* Keeps the first failure; -1 if `rc`, a cudaError_t, is one. */
int be_cuda_check(be_cuda_t *cuda, int rc, const char *what);
void be_cuda_fail(be_cuda_t *cuda, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Waits until the stream is done, with NCCL's limit if it has a part in it. */
int be_cuda_wait(be_cuda_t *cuda);

/*
 * That, where NCCL has a part: to be called before a copy from or to memory
 * which is not pinned, as such a copy waits for the stream without a limit.
 * 0, or -1; in a recorded step it does not wait.
 */
int be_cuda_settle(be_cuda_t *cuda);

/* Makes the device this thread's.  0, or -1. */
int be_cuda_enter(be_cuda_t *cuda);

/* At least `size` bytes for that use, their content undefined; or NULL. */
void *be_cuda_scratch(be_cuda_t *cuda, cuda_scratch_t use, size_t size);

/* be_cuda_step.c */
int be_cuda_begin(be_t *be, be_step_t *step, char *err);
int be_cuda_end(be_t *be, char *err);
void be_cuda_forget(be_t *be);
void be_cuda_step_close(be_cuda_t *cuda);

/*
 * be_cuda_record.c.  be_cuda_agree() says in cuda->say how the step is done;
 * with several ranks all call it, and it fails as their meetings do: 0, or -1
 * with the reason in `err`.  Until be_cuda_record_end(), which launches, or
 * be_cuda_record_stop() nothing may move; be_cuda_record_cut() and
 * be_cuda_record_go() leave and enter the recording where the ranks' threads
 * meet.
 */
int be_cuda_agree(be_cuda_t *cuda, const be_step_t *step, char *err);
void be_cuda_record_go(be_cuda_t *cuda);
void be_cuda_record_cut(be_cuda_t *cuda);
int be_cuda_record_end(be_cuda_t *cuda, char *err);
void be_cuda_record_stop(be_cuda_t *cuda);
void be_cuda_record_close(be_cuda_t *cuda);

/* Drops what was recorded.  By the leader, while nothing is recorded. */
void be_cuda_drop(be_cuda_t *cuda);

/*
 * The rows that a step of `n` is padded to where there is room for `max`; n
 * itself if it is too large to be recorded.
 */
uint32_t be_cuda_bucket(uint32_t n, uint32_t max);

/* Whose operations follow: 0, 1 or 2. */
void be_cuda_part(be_t *be, uint32_t part);

/* The batch on the device; outside of a step of a test's own making. */
cuda_batch_t *be_cuda_batch(be_cuda_t *cuda, const be_batch_t *b);

/* Cosines and sines of a batch's rows, made once a step. */
const float *be_cuda_rope(be_cuda_t *cuda, cuda_batch_t *b,
    const be_rope_t *rope);

/* be_cuda_weight.c */
be_weight_t *be_cuda_weight(be_t *be, const be_tensor_t *t, size_t *copies,
    char *err);
be_weight_t *be_cuda_weight_t(be_t *be, const be_tensor_t *t, uint32_t parts,
    size_t *copies, char *err);
be_weight_t *be_cuda_table(be_t *be, const be_tensor_t *t, size_t *copies,
    char *err);
void be_cuda_weight_free(be_t *be, be_weight_t *w);
void be_cuda_weight_tensor(const be_weight_t *w, be_tensor_t *t);
void be_cuda_loaded(be_t *be, uint64_t *bytes, double *seconds);
void be_cuda_weight_close(be_cuda_t *cuda);

/* be_cuda_kv.c */
be_kv_t *be_cuda_kv_open(be_t *be, uint32_t layers, uint32_t blocks,
    const be_mla_t *mla, char *err);
void be_cuda_kv_free(be_t *be, be_kv_t *kv);
size_t be_cuda_kv_block_size(const be_kv_t *kv);
void be_cuda_kv_read(be_t *be, be_kv_t *kv, int32_t block, void *dst);
void be_cuda_kv_write(be_t *be, be_kv_t *kv, int32_t block, const void *src);

/* be_cuda_ops.c */
void be_cuda_embed(be_t *be, const be_weight_t *w, const be_batch_t *b,
    float *x);
void be_cuda_norm(be_t *be, const float *w, float eps, const float *x,
    uint32_t rows, uint32_t dim, float *y);
void be_cuda_linear(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y);
void be_cuda_linear_add(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y);
void be_cuda_mla_cache(be_t *be, be_kv_t *kv, uint32_t layer,
    const be_mla_t *mla, const be_rope_t *rope, const float *w, float eps,
    const float *kva, const be_batch_t *b);
void be_cuda_mla_query(be_t *be, const be_mla_t *mla, const be_rope_t *rope,
    const be_weight_t *w_uk, const float *q, const be_batch_t *b, float *ql);
void be_cuda_latent(cu_latent_t *l, const be_mla_t *mla);

/*
 * be_cuda_attend.c.  be_cuda_attend_model() says whose attention is to come;
 * be_cuda_attend_room() sees that steps of `rows` rows can be planned; 0, or
 * -1.  be_cuda_attend_words() is what the plan of a batch padded to `rows` rows
 * takes, and be_cuda_attend_plan() makes it, at `host` for `dev`: `at` and
 * `first` are the step's, of the sequences in cuda->map.  0, or -1.
 */
void be_cuda_attend_model(be_cuda_t *cuda, const be_mla_t *mla);
int be_cuda_attend_room(be_cuda_t *cuda, uint32_t rows);
void be_cuda_attend_close(be_cuda_t *cuda);
size_t be_cuda_attend_words(const be_cuda_t *cuda, uint32_t rows);
int be_cuda_attend_plan(be_cuda_t *cuda, cuda_batch_t *batch,
    const be_batch_t *b, const uint32_t *at, const uint32_t *first,
    uint32_t *host, const uint32_t *dev);
void be_cuda_mla_attend(be_t *be, be_kv_t *kv, uint32_t layer,
    const be_mla_t *mla, float scale, const float *ql, const be_batch_t *b,
    float *ol);
void be_cuda_mla_value(be_t *be, const be_mla_t *mla, const be_weight_t *w_uv,
    const float *ol, uint32_t rows, float *o);

/*
 * be_cuda_expand.c.  be_cuda_expand_model() says whose attention is to come;
 * be_cuda_expands() whether rows of a sequence are expanded.  Between expanded
 * groups lie n_expand + 1 gaps: be_cuda_expand_gap() gives the rows of the i-th
 * and its first one.  be_cuda_expand() does the attention of the batch that
 * cuda->expand notes: o [rows][heads][v], BF16, or float if matrices are FP8.
 * 0, or -1.
 */
void be_cuda_expand_model(be_cuda_t *cuda, const be_mla_t *mla);
int be_cuda_expands(const be_cuda_t *cuda, const cu_mla_group_t *g);
uint32_t be_cuda_expand_gap(const cuda_batch_t *b, uint32_t i, uint32_t *row);
int be_cuda_expand(be_cuda_t *cuda, const be_mla_t *mla,
    const be_weight_t *w_uv, float *o);
void be_cuda_combine(be_t *be, const float *c, const float *weight,
    uint32_t rows, uint32_t top_k, uint32_t hidden, float *x);
void be_cuda_gather(be_t *be, const float *x, const uint32_t *row, uint32_t n,
    uint32_t dim, float *y);
void be_cuda_join(be_t *be, const float *a, const float *b, uint32_t rows,
    uint32_t dim, float *y);

void be_cuda_draw(be_t *be, const float *logits, uint32_t rows,
    uint32_t vocab, const uint8_t *known, const be_draw_t *draw, int32_t *id);

/* What norm() has left of the part at hand. */
cuda_made_t *be_cuda_made(be_cuda_t *cuda);

/* Memory that held a product's inputs has new content. */
void be_cuda_wrote(be_cuda_t *cuda, const float *y);

/* The type of inputs of products with matrices of that type: BF16 or FP8. */
cu_mm_type_t be_cuda_act_type(const be_cuda_t *cuda, cu_mm_type_t type);

/* Room for rows of inputs of a product with matrices of that type. */
int be_cuda_act(be_cuda_t *cuda, cuda_scratch_t use, cu_mm_type_t type,
    uint32_t rows, uint32_t dim, cu_act_t *act);

/*
 * Rows row … row + rows - 1 of x, [all][dim], as inputs of a product: what
 * norm() has made of x, if it has, else made now.
 */
int be_cuda_input(be_cuda_t *cuda, const float *x, uint32_t all, uint32_t row,
    uint32_t rows, uint32_t dim, cu_mm_type_t type, cu_act_t *act);

/* A product, by whoever can do it. */
int be_cuda_mm(be_cuda_t *cuda, const cu_mm_t *p);

/* be_cuda_moe.c */
void be_cuda_mlp_add(be_t *be, const be_mlp_t *mlp, const float *x,
    uint32_t rows, float *y);
void be_cuda_gate(be_t *be, const be_gate_t *g, const float *w,
    const float *bias, const float *x, uint32_t rows, uint32_t hidden,
    int32_t *id, float *weight);
void be_cuda_route(be_t *be, const be_route_t *r, be_pairs_t *pairs);
void be_cuda_experts(be_t *be, const be_mlp_t *mlp, const be_pairs_t *pairs);
void be_cuda_moe_close(be_cuda_t *cuda);

/* be_cuda_peer.c and be_cuda_peer_rows.c */
be_peer_t *be_cuda_peer_open(be_t *be, const be_peer_options_t *opt,
    char *err);
void be_cuda_peer_close(be_t *be, be_peer_t *peer);
void be_cuda_peer_send(be_t *be, be_peer_t *const *all,
    const be_peer_send_t *send);
void be_cuda_peer_pairs(be_t *be, be_peer_t *const *all,
    const be_peer_send_t *sends, be_pairs_t *pairs);
void be_cuda_peer_return(be_t *be, be_peer_t *const *all);
void be_cuda_peer_collect(be_t *be, be_peer_t *const *all,
    const be_peer_send_t *send);
void be_cuda_peer_stop(be_t *be);

/*
 * The ranks that step together, this one at least, in all[BE_PEERS_MAX] and how
 * they share devices; how many they are, 0: one is missing.
 */
uint32_t be_cuda_peer_all(be_cuda_t *cuda, be_cuda_t **all,
    cuda_group_t *group);

/*
 * The ranks' threads meet, as in be_peer_options_t.  0, or -1 with the reason
 * in `err`.
 */
int be_cuda_peer_meet(be_cuda_t *cuda, const char *what,
    int (*last)(void *arg, char *err), char *err);

/* The others learn of this rank's failure, if it has failed. */
void be_cuda_peer_tell(be_cuda_t *cuda);

/* 0, or -1 with the reason in `err`: the exchange has failed. */
int be_cuda_peer_status(be_cuda_t *cuda, char *err);

/* After the stream was waited for.  0, or -1: others did not come in time. */
int be_cuda_peer_late(be_cuda_t *cuda);

/* The rows of pairs, as inputs of the experts' first product. */
int be_cuda_peer_take(be_cuda_t *cuda, const be_pairs_t *pairs,
    const cu_act_t *act);

/*
 * Whether ranks of other nodes have a part in it; waiting for the stream then.
 */
int be_cuda_peer_far(const be_peer_t *p);
int be_cuda_peer_wait(be_peer_t *p);

/*
 * Where the contributions of the last peer_collect() to `contrib` are, in BF16,
 * or NULL: they are in `contrib`.
 */
const uint16_t *be_cuda_peer_inbox(const be_peer_t *p, const float *contrib);

/* Before `x` is read: brings them there, if it is of them.  0, or -1. */
int be_cuda_peer_home(be_peer_t *p, const float *x);

/* The memory of its experts' results, in the order of pairs; NULL: theirs. */
uint16_t *be_cuda_peer_stage(const be_peer_t *p);

/* Placements are others now. */
void be_cuda_peer_forget(be_cuda_t *cuda);

/*
 * be_cuda_blas.c: cuBLASLt, if its library can be loaded; NULL, with the reason
 * in `err`, if not.  `fixed`: one algorithm for each shape of matrix, whatever
 * the rows, and no sums in an order that the rows decide.  It has products in
 * BF16, and in FP8 those of many rows.
 */
cuda_blas_t *be_cuda_blas_open(int fixed, char *err);
void be_cuda_blas_close(cuda_blas_t *blas);

/* 0; 1: it does not do this one; or -1, failed. */
int be_cuda_blas_mm(be_cuda_t *cuda, cuda_blas_t *blas, const cu_mm_t *p);

#endif /* BE_CUDA_H */
