/*
 * A step's arrays on the device.
 *
 * All of them travel as one copy from pinned memory.  In it, of 32-bit words,
 * with R rows and L rows of logits:
 *
 *     id pos seq        R each, of all rows
 *     row id pos seq    L each, of the rows that give logits
 *     from              R, of drafts
 *     at first          R each, of the sequences in the order of their rows
 *     attend            plans, see be_cuda_attend.c: of all rows, or of each
 *                       micro-batch, and of the rows that give logits
 *     table             the sequences' KV blocks
 *
 * so that places depend on R and L alone.  A step that may be recorded
 * (be_cuda_record.c) is padded to one of few sizes, and the rows of a large one
 * with FP8 matrices to a multiple of four, as cuBLASLt wants them; rows of
 * padding have the position CU_NO_ROW and touch neither cache nor experts.
 *
 * Micro-batches are halves of all rows, at the same places.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


#define STEP_WORD      sizeof(uint32_t)
#define STEP_FP8_ROWS  128           /* that cuBLASLt is asked for */


/* Where the arrays are, in words. */

typedef struct {
    size_t    all;
    size_t    row;
    size_t    last;
    size_t    from;
    size_t    at;
    size_t    first;
    size_t    attend[CUDA_BATCHES];
    size_t    table;
    size_t    end;
} step_place_t;


static int step_sequences(be_cuda_t *cuda, const be_batch_t *b,
    uint32_t *blocks);
static int step_grow(be_cuda_t *cuda, const be_step_t *step, uint32_t blocks);
static void step_size(const be_cuda_t *cuda, be_step_t *step, uint32_t *rows,
    uint32_t *last);
static void step_places(const be_cuda_t *cuda, step_place_t *p, uint32_t rows,
    uint32_t last, uint32_t blocks, int split);
static void step_parts(be_cuda_t *cuda, be_step_t *step, uint32_t rows);
static int step_fill(be_cuda_t *cuda, const be_step_t *step,
    const step_place_t *p, uint32_t rows, uint32_t last);
static int step_plan(be_cuda_t *cuda, cuda_rows_t which, const be_batch_t *b,
    const step_place_t *p);
static int step_room(be_cuda_t *cuda, size_t size);
static void step_rows(uint32_t *to, uint32_t rows, const be_batch_t *b,
    const uint32_t *map);
static void step_tables(be_cuda_t *cuda, const be_batch_t *b, uint32_t *at,
    uint32_t *first, int32_t *table);
static void step_batch(be_cuda_t *cuda, cuda_batch_t *batch,
    const step_place_t *p, size_t rows_at, uint32_t rows);
static void step_halve(be_cuda_t *cuda);


int
be_cuda_begin(be_t *be, be_step_t *step, char *err)
{
    uint32_t       rows, last, blocks;
    be_cuda_t     *cuda;
    step_place_t   p;

    cuda = (be_cuda_t *) be;

    if (be_cuda_enter(cuda) != 0 || cuda->failed) {
        goto failed;
    }

    be_cuda_record_stop(cuda);

    if (atomic_exchange(&cuda->forget, 0)) {
        be_cuda_drop(cuda);
        be_cuda_moe_close(cuda);
        be_cuda_peer_forget(cuda);
    }

    cuda->step = step;
    cuda->part = 0;
    memset(cuda->made, 0, sizeof(cuda->made));

    step->split = (step->micro != 0 && step->most >= step->micro);

    if (step->all.n_rows == 0 && step->key == 0) {
        return 0;
    }

    if (step_sequences(cuda, &step->all, &blocks) != 0
        || step_grow(cuda, step, blocks) != 0)
    {
        goto failed;
    }

    if (be_cuda_agree(cuda, step, err) != 0) {
        return -1;
    }

    step_size(cuda, step, &rows, &last);

    cuda->splits += step->split;

    if (rows == 0) {
        return 0;
    }

    step_places(cuda, &p, rows, last, blocks, step->split);
    step_parts(cuda, step, rows);

    if (step_room(cuda, p.end * STEP_WORD) != 0
        || step_fill(cuda, step, &p, rows, last) != 0)
    {
        goto failed;
    }

    /* a rank that was given rows of padding alone may name none */

    if (step->row == NULL) {
        step->row = (const uint32_t *) (const void *) cuda->host + p.row;
    }

    if (step->from == NULL) {
        step->from = (const uint32_t *) (const void *) cuda->host + p.from;
    }

    step->all.n_rows = rows;
    step->last.n_rows = last;
    step->part[0].n_rows = (rows + 1) / 2;
    step->part[1].n_rows = rows / 2;

    if (cuda->say.how == CUDA_PLAIN) {
        return 0;
    }

    cuda->recording = cuda->say.how;
    be_cuda_record_go(cuda);

    if (!cuda->failed) {
        return cuda->recording == CUDA_REPLAY;
    }

failed:

    be_cuda_peer_tell(cuda);
    snprintf(err, ERR_LEN, "%s", cuda->why);

    return -1;
}


int
be_cuda_end(be_t *be, char *err)
{
    int         rc;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;
    rc = (cuda->recording != CUDA_PLAIN) ? be_cuda_record_end(cuda, err) : 0;

    (void) be_cuda_check(cuda, cudaEventRecord(cuda->stepped, cuda->stream),
                         "a step");

    cuda->step = NULL;

    if (cuda->failed) {
        be_cuda_peer_tell(cuda);
        snprintf(err, ERR_LEN, "%s", cuda->why);
        return -1;
    }

    return rc;
}


void
be_cuda_forget(be_t *be)
{
    atomic_store(&((be_cuda_t *) be)->forget, 1);
}


void
be_cuda_step_close(be_cuda_t *cuda)
{
    be_cuda_attend_close(cuda);

    (void) cudaFreeHost(cuda->host);
    (void) cudaFree(cuda->dev);
    (void) cudaFree(cuda->freq);
    free(cuda->host_freq);
    free(cuda->map);
}


/*
 * Numbers the sequences that have rows in cuda->map, from one; how many blocks
 * they have up to their last row.  0, or -1: no memory.
 */

static int
step_sequences(be_cuda_t *cuda, const be_batch_t *b, uint32_t *blocks)
{
    uint32_t  i, n, s, most, *map;

    if (b->n_seqs > cuda->map_size) {
        map = realloc(cuda->map, 2 * (size_t) b->n_seqs * STEP_WORD);

        if (map == NULL) {
            be_cuda_fail(cuda, "no memory for %u sequences", b->n_seqs);
            return -1;
        }

        cuda->map = map;
        cuda->map_size = b->n_seqs;
    }

    /* the second half: blocks of each */

    map = cuda->map;
    *blocks = 0;
    n = 0;

    if (b->n_rows == 0) {
        return 0;
    }

    memset(map, 0, 2 * (size_t) cuda->map_size * STEP_WORD);

    for (i = 0; i < b->n_rows; i++) {
        s = b->seq[i];
        most = b->pos[i] / BE_BLOCK + 1;

        if (map[s] == 0) {
            map[s] = ++n;
        }

        if (most > map[cuda->map_size + s]) {
            *blocks += most - map[cuda->map_size + s];
            map[cuda->map_size + s] = most;
        }
    }

    return 0;
}


/*
 * Room for all that the step may be padded to, which is not known before the
 * ranks have agreed: from then on what is recorded must stay where it is.
 */

static int
step_grow(be_cuda_t *cuda, const be_step_t *step, uint32_t blocks)
{
    uint32_t       rows, most;
    step_place_t   p;

    rows = step->all.n_rows;
    most = rows > step->max_rows ? rows : step->max_rows;

    if (be_cuda_attend_room(cuda, most) != 0) {
        return -1;
    }

    if (step->key == 0 || rows > CUDA_RECORD_ROWS) {
        return 0;
    }

    most = most < CUDA_RECORD_ROWS ? most : CUDA_RECORD_ROWS;
    step_places(cuda, &p, most, most, blocks, step->micro != 0);

    return step_room(cuda, p.end * STEP_WORD);
}


/* What the ranks have agreed on, and the sizes that the step is padded to. */

static void
step_size(const be_cuda_t *cuda, be_step_t *step, uint32_t *rows,
    uint32_t *last)
{
    uint32_t  each, n;

    step->split |= cuda->say.split;
    *rows = step->all.n_rows;
    *last = step->last.n_rows;

    if (cuda->say.rows != 0) {
        *rows = cuda->say.rows;
        *last = cuda->say.last;
        step->some = cuda->say.some;
        return;
    }

    step->key = 0;

    /* other nodes have no more room than their busiest rank's rows take */

    if (cuda->blas == NULL || !cuda->fp8 || cuda->opt.fixed
        || *rows < STEP_FP8_ROWS
        || (cuda->peer != NULL && be_cuda_peer_far(cuda->peer)))
    {
        return;
    }

    each = step->split ? 8 : 4;
    n = (*rows + each - 1) / each * each;
    *rows = (n <= step->max_rows) ? n : *rows;
}


/* In two halves a plan takes no less room than as one. */

static void
step_places(const be_cuda_t *cuda, step_place_t *p, uint32_t rows,
    uint32_t last, uint32_t blocks, int split)
{
    size_t  half;

    half = split ? be_cuda_attend_words(cuda, rows / 2) : 0;

    p->all = 0;
    p->row = 3 * (size_t) rows;
    p->last = p->row + last;
    p->from = p->last + 3 * (size_t) last;
    p->at = p->from + rows;
    p->first = p->at + rows;
    p->attend[CUDA_ALL] = p->first + rows;
    p->attend[CUDA_PART] = p->attend[CUDA_ALL];
    p->attend[CUDA_PART + 1] = p->attend[CUDA_ALL]
                               + be_cuda_attend_words(cuda, split
                                                      ? (rows + 1) / 2 : rows);
    p->attend[CUDA_LAST] = p->attend[CUDA_PART + 1] + half;
    p->table = p->attend[CUDA_LAST] + be_cuda_attend_words(cuda, last);
    p->end = p->table + blocks;
}


/* What is theirs of the rows, without padding. */

static void
step_parts(be_cuda_t *cuda, be_step_t *step, uint32_t rows)
{
    uint32_t     first, n;
    be_batch_t  *b;

    n = step->all.n_rows;
    first = (rows + 1) / 2;
    b = step->part;

    b[0] = step->all;
    b[1] = step->all;
    b[0].n_rows = (n < first) ? n : first;
    b[1].n_rows = n - b[0].n_rows;

    if (b[1].n_rows > 0) {
        b[1].id += first;
        b[1].pos += first;
        b[1].seq += first;
    }

    step->all.device = &cuda->batch[CUDA_ALL];
    step->last.device = &cuda->batch[CUDA_LAST];
    b[0].device = &cuda->batch[CUDA_PART];
    b[1].device = &cuda->batch[CUDA_PART + 1];
}


/* The arrays, in pinned memory, and the copy of them. */

static int
step_fill(be_cuda_t *cuda, const be_step_t *step, const step_place_t *p,
    uint32_t rows, uint32_t last)
{
    uint32_t        *host;
    const uint32_t  *dev;

    if (be_cuda_check(cuda, cudaEventSynchronize(cuda->copied),
                      "rows of a step")
        != 0)
    {
        return -1;
    }

    host = (uint32_t *) (void *) cuda->host;
    memset(host, 0, p->attend[CUDA_ALL] * STEP_WORD);

    step_rows(host + p->all, rows, &step->all, cuda->map);
    step_rows(host + p->last, last, &step->last, cuda->map);

    if (step->row != NULL && step->last.n_rows > 0) {
        memcpy(host + p->row, step->row, step->last.n_rows * STEP_WORD);
    }

    if (step->from != NULL && step->all.n_rows > 0) {
        memcpy(host + p->from, step->from, step->all.n_rows * STEP_WORD);
    }

    step_tables(cuda, &step->all, host + p->at, host + p->first,
                (int32_t *) host + p->table);

    step_batch(cuda, &cuda->batch[CUDA_ALL], p, p->all, rows);
    step_batch(cuda, &cuda->batch[CUDA_LAST], p, p->last, last);
    step_halve(cuda);

    dev = (const uint32_t *) (const void *) cuda->dev;

    if ((step->split
         ? step_plan(cuda, CUDA_PART, &step->part[0], p) != 0
           || step_plan(cuda, CUDA_PART + 1, &step->part[1], p) != 0
         : step_plan(cuda, CUDA_ALL, &step->all, p) != 0)
        || step_plan(cuda, CUDA_LAST, &step->last, p) != 0)
    {
        return -1;
    }

    cuda->dev_row = dev + p->row;
    cuda->dev_from = dev + p->from;

    if (be_cuda_check(cuda, cudaMemcpyAsync(cuda->dev, cuda->host,
                                            p->end * STEP_WORD,
                                            cudaMemcpyHostToDevice,
                                            cuda->stream), "rows of a step")
        != 0)
    {
        return -1;
    }

    return be_cuda_check(cuda, cudaEventRecord(cuda->copied, cuda->stream),
                         "rows of a step");
}


static int
step_plan(be_cuda_t *cuda, cuda_rows_t which, const be_batch_t *b,
    const step_place_t *p)
{
    uint32_t        *host;
    const uint32_t  *dev;

    host = (uint32_t *) (void *) cuda->host;
    dev = (const uint32_t *) (const void *) cuda->dev;

    return be_cuda_attend_plan(cuda, &cuda->batch[which], b, host + p->at,
                               host + p->first, host + p->attend[which],
                               dev + p->attend[which]);
}


static int
step_room(be_cuda_t *cuda, size_t size)
{
    size_t  n;

    if (size <= cuda->step_size) {
        return 0;
    }

    be_cuda_drop(cuda);
    n = size * 2 + 65536;

    if (be_cuda_wait(cuda) != 0) {
        return -1;
    }

    (void) cudaFreeHost(cuda->host);
    (void) cudaFree(cuda->dev);
    cuda->host = NULL;
    cuda->dev = NULL;
    cuda->step_size = 0;

    if (be_cuda_check(cuda, cudaMallocHost((void **) &cuda->host, n),
                      "pinned memory for rows")
        != 0
        || be_cuda_check(cuda, cudaMalloc((void **) &cuda->dev, n),
                         "memory for rows")
           != 0)
    {
        return -1;
    }

    cuda->step_size = n;

    return 0;
}


/* [3][rows]: id, pos, seq */

static void
step_rows(uint32_t *to, uint32_t rows, const be_batch_t *b,
    const uint32_t *map)
{
    uint32_t  i;

    for (i = 0; i < b->n_rows; i++) {
        to[i] = (uint32_t) b->id[i];
        to[rows + i] = b->pos[i];
        to[2 * (size_t) rows + i] = map[b->seq[i]] - 1;
    }

    for ( /* void */ ; i < rows; i++) {
        to[rows + i] = CU_NO_ROW;
    }
}


static void
step_tables(be_cuda_t *cuda, const be_batch_t *b, uint32_t *at,
    uint32_t *first, int32_t *table)
{
    uint32_t  i, s, n, seen, *size;

    size = cuda->map + cuda->map_size;
    n = 0;
    seen = 0;

    for (i = 0; i < b->n_rows; i++) {
        s = b->seq[i];

        if (cuda->map[s] <= seen) {
            continue;
        }

        at[seen] = n;
        first[seen] = (b->first != NULL) ? b->first[s] : 0;
        memcpy(table + n, b->blocks[s], size[s] * sizeof(int32_t));

        n += size[s];
        seen++;
    }
}


static void
step_batch(be_cuda_t *cuda, cuda_batch_t *batch, const step_place_t *p,
    size_t rows_at, uint32_t rows)
{
    const uint32_t  *dev;

    dev = (const uint32_t *) (const void *) cuda->dev;

    batch->b.id = (const int32_t *) dev + rows_at;
    batch->b.pos = dev + rows_at + rows;
    batch->b.seq = dev + rows_at + 2 * (size_t) rows;
    batch->b.at = dev + p->at;
    batch->b.first = dev + p->first;
    batch->b.table = (const int32_t *) dev + p->table;
    batch->b.rows = rows;
    batch->work.unit = NULL;
    batch->rope_made = 0;
    batch->n_expand = 0;
}


/* The micro-batches, of all rows. */

static void
step_halve(be_cuda_t *cuda)
{
    uint32_t       first;
    cuda_batch_t  *b;

    b = cuda->batch;
    first = (b[CUDA_ALL].b.rows + 1) / 2;

    b[CUDA_PART] = b[CUDA_ALL];
    b[CUDA_PART].b.rows = first;

    b[CUDA_PART + 1] = b[CUDA_ALL];
    b[CUDA_PART + 1].b.id += first;
    b[CUDA_PART + 1].b.pos += first;
    b[CUDA_PART + 1].b.seq += first;
    b[CUDA_PART + 1].b.rows -= first;
}


void
be_cuda_part(be_t *be, uint32_t part)
{
    ((be_cuda_t *) be)->part = part;
}


cuda_batch_t *
be_cuda_batch(be_cuda_t *cuda, const be_batch_t *b)
{
    if (b->device == NULL) {
        be_cuda_fail(cuda, "a batch that is not of a step");
    }

    return b->device;
}


const float *
be_cuda_rope(be_cuda_t *cuda, cuda_batch_t *b, const be_rope_t *rope)
{
    int       rc;
    float    *room, *freq;
    size_t    half, most, first;

    half = rope->dim / 2 * sizeof(float);

    if (cuda->rope_dim != rope->dim
        || memcmp(cuda->host_freq, rope->freq, half) != 0)
    {
        freq = realloc(cuda->host_freq, half + 1);

        if (freq == NULL) {
            be_cuda_fail(cuda, "no memory for frequencies");
            return NULL;
        }

        cuda->host_freq = freq;
        memcpy(freq, rope->freq, half);

        if (cuda->recording != CUDA_PLAIN) {
            be_cuda_fail(cuda, "other frequencies in a recorded step");
            return NULL;
        }

        be_cuda_drop(cuda);
        (void) be_cuda_wait(cuda);
        (void) cudaFree(cuda->freq);
        cuda->freq = NULL;
        cuda->rope_dim = rope->dim;

        rc = cudaMalloc((void **) &cuda->freq, half + 1);

        if (rc == 0) {
            rc = cudaMemcpyAsync(cuda->freq, freq, half,
                                 cudaMemcpyHostToDevice, cuda->stream);
        }

        if (rc == 0) {
            rc = cudaStreamSynchronize(cuda->stream);
        }

        if (be_cuda_check(cuda, rc, "frequencies") != 0) {
            cuda->rope_dim = 0;
            return NULL;
        }
    }

    /* all rows, or in two halves, which end 63 later at most; then the last */

    most = (size_t) cuda->batch[CUDA_ALL].b.rows * rope->dim;
    first = (size_t) cuda->batch[CUDA_PART].b.rows * rope->dim;
    first = (first + 63) / 64 * 64;
    room = be_cuda_scratch(cuda, CUDA_ROPE,
                           (2 * most + 2 * 64) * sizeof(float));

    if (room == NULL) {
        return NULL;
    }

    b->rope = (b == &cuda->batch[CUDA_LAST]) ? room + 64
                                               + (most + 63) / 64 * 64
              : (b == &cuda->batch[CUDA_PART + 1]) ? room + first
              : room;

    if (!b->rope_made) {
        rc = cu_rope_table(&b->b, cuda->freq, rope->dim, rope->mscale,
                           b->rope, cuda->stream);

        if (be_cuda_check(cuda, rc, "cosines") != 0) {
            return NULL;
        }

        b->rope_made = 1;
    }

    return b->rope;
}
