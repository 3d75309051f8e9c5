/*
 * The router: logits, choice, and the order of pairs (row, expert) by expert.
 */

#ifndef CU_GATE_H
#define CU_GATE_H

#include "backend/cuda/cu_rows.h"

#ifdef __cplusplus
extern "C" {
#endif


#define CU_GATE_EXPERTS  1024        /* at most, */
#define CU_GATE_TOPK     32
#define CU_GATE_GROUPS   64
#define CU_GATE_SPLITS   16          /* parts that a row's elements are cut in */
#define CU_GATE_MANY     512         /* more rows: all in one block of threads */
#define CU_GATE_PARTS(rows)                                                   \
    ((size_t) (rows) * ((rows) > CU_GATE_MANY ? 1 : CU_GATE_SPLITS))

typedef struct {
    uint32_t  experts;
    uint32_t  top_k;
    uint32_t  groups;
    uint32_t  topk_groups;
    int       sigmoid;               /* or softmax */
    int       grouped;               /* the best groups only, */
    int       two;                   /* by their two largest, or the largest */
    int       normalise;
    float     scale;
} cu_gate_t;


/*
 * x [rows][hidden], w [experts][hidden] and bias, [experts] or NULL, float32.
 * id and weight [rows][top_k], in order of falling choice score, among equals
 * the lower id first.  `part`: CU_GATE_PARTS(rows) * experts floats.
 */
int cu_gate(const cu_gate_t *g, const float *w, const float *bias,
    const float *x, uint32_t rows, uint32_t hidden, float *part, int32_t *id,
    float *weight, void *stream);

/*
 * Pairs i = row * top_k + k of rows that are no padding, by id[i] and then i:
 * those of expert e are offset[e] … offset[e + 1] - 1, and the p-th pair has
 * x[p] = from + row * hidden, y[p] = to + i * hidden.  `load`, if given, adds
 * up the pairs of each expert.  `pos` NULL: no row is padding.
 */

typedef struct {
    const int32_t   *id;
    const uint32_t  *pos;
    uint32_t         rows;
    uint32_t         top_k;
    uint32_t         experts;
    uint32_t         hidden;
    const float     *from;
    float           *to;
    uint32_t        *offset;         /* [experts + 1] */
    const float    **x;              /* [rows * top_k] */
    float          **y;
    uint32_t        *load;
} cu_route_t;

int cu_route(const cu_route_t *r, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_GATE_H */
