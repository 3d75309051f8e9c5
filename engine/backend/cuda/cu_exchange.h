/*
 * Rows to the ranks that hold their experts, and contributions home, by stores
 * into the other ranks' memory: peers of one process, on one device or on
 * several.  Nobody waits in these kernels: that the stores are done is known
 * by events between the streams, or in a graph as be_cuda_record.c says.
 *
 * A rank's memory that others write, for R ranks of at most M rows with K
 * experts each:
 *
 *     x       [R * M][ld]     rows, as inputs of a product (cu_act_t), row r
 *                             of rank s at s * M + r
 *     scale   [R * M][groups] of FP8: of 128 elements each
 *     slot    [R * M][K]      the slot of this rank that pair (row, k) is for,
 *                             -1: it is for another rank
 *     rows    [R]             how many there are of each rank
 *     inbox   [M * K][hidden] BF16: contributions to this rank's own rows
 *
 * Of two micro-batches each has `rows` of its own; the second one's begin in
 * the middle of M, which is where its x, scale, slot and inbox point.
 *
 * For a rank whose memory cannot be reached there is memory of one's own that
 * is written instead and then sent: x, scale, slot and rows as of one rank
 * (R = 1), and `inbox` or `contrib` for its rows.
 *
 * All are queued on `stream` and return a cudaError_t as int.
 */

#ifndef CU_EXCHANGE_H
#define CU_EXCHANGE_H

#include "backend/cuda/cu_rows.h"

#ifdef __cplusplus
extern "C" {
#endif


#define CU_PEERS  32                 /* ranks at most */

/* The memory of all ranks, or what stands for it. */

typedef struct {
    uint8_t    *x[CU_PEERS];
    float      *scale[CU_PEERS];     /* NULL: BF16 */
    int32_t    *slot[CU_PEERS];
    uint32_t   *rows[CU_PEERS];
    uint16_t   *inbox[CU_PEERS];     /* NULL: contributions are float32 */
    float      *contrib[CU_PEERS];   /* of those, [M * K][hidden] */
    uint32_t    from[CU_PEERS];      /* which rank this one is to it */
} cu_peers_t;

/* Sizes that all ranks share. */

typedef struct {
    uint32_t  ranks;
    uint32_t  rank;                  /* this one */
    uint32_t  max_rows;
    uint32_t  most;                  /* rows of a rank now */
    uint32_t  top_k;
    uint32_t  hidden;
    uint32_t  row_bytes;             /* of a row in x, a multiple of 16 */
    uint32_t  groups;                /* scales of a row, 0: BF16 */
    uint32_t  blocks;                /* of a copy to others, large ones, 0: as
                                        many as there are rows, small ones */
} cu_exchange_t;


/*
 * Rows of `act` (row_bytes apart) to every rank that has a home of one of
 * their experts.  Homes of expert e are first[e] … first[e + 1] - 1, rank
 * home[h], slot[h]; of several, (rank * max_rows + row + e) modulo their number
 * is taken.  `pos` NULL, or rows at CU_NO_ROW are padding.  `load`, if given,
 * counts this rank's pairs of each expert.  Nothing goes if one of two
 * words at `stop` is not 0: the others may be reading what came before, and
 * nobody waits for them any more.
 */

typedef struct {
    cu_act_t         act;
    const int32_t   *id;             /* [rows][top_k] */
    const uint32_t  *pos;
    uint32_t         rows;
    const uint32_t  *first;
    const uint8_t   *home;
    const uint32_t  *slot;
    uint32_t        *load;
    const uint32_t  *stop;
} cu_exchange_send_t;

int cu_exchange_send(const cu_exchange_t *e, const cu_peers_t *to,
    const cu_exchange_send_t *s, void *stream);

/*
 * Pairs that came, by slot and then home rank, row and k: those of slot s are
 * offset[s] … offset[s + 1] - 1, pair p is of row row[p] of x, its
 * contribution is to go to to[p], BF16, or with float32 contributions is made
 * where it belongs, at y[p].  None came if *stop is not 0: what is in memory
 * may be half of one step and half of another.
 */

typedef struct {
    uint32_t         slots;
    const uint32_t  *stop;
    uint32_t        *offset;         /* [slots + 1] */
    uint32_t        *row;
    float          **y;
    uint16_t       **to;
} cu_exchange_pairs_t;

int cu_exchange_pairs(const cu_exchange_t *e, const cu_peers_t *peers,
    const cu_exchange_pairs_t *p, void *stream);

/* Row p of `act` is row row[p] of x; *n of at most `max` pairs. */
int cu_exchange_take(const cu_exchange_t *e, const uint8_t *x,
    const float *scale, const uint32_t *row, const uint32_t *n, uint32_t max,
    const cu_act_t *act, void *stream);

/* to[p] = stage[p]; *n of at most `max` pairs. */
int cu_exchange_return(const cu_exchange_t *e, const uint16_t *stage,
    uint16_t *const *to, const uint32_t *n, uint32_t max, void *stream);

/* contrib[i] = inbox[i] of `pairs` pairs. */
int cu_exchange_widen(const cu_exchange_t *e, const uint16_t *inbox,
    uint32_t pairs, float *contrib, void *stream);

/*
 * The same where some pairs come from ranks that cannot be reached: pair i with
 * slot[r][i] >= 0, as it was sent to rank r, is box[r][i], BF16, or float32
 * where there is no inbox.  slot[r] NULL: r can be reached.
 */

typedef struct {
    const int32_t   *slot[CU_PEERS];
    const void      *box[CU_PEERS];  /* [M * K][hidden] */
    const uint16_t  *inbox;
} cu_exchange_home_t;

int cu_exchange_home(const cu_exchange_t *e, const cu_exchange_home_t *h,
    uint32_t pairs, float *contrib, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_EXCHANGE_H */
