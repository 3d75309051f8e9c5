/*
 * Sampling from a row of logits.
 *
 * A row is turned into weights relative to its largest logit,
 *
 *     d = (max - x) / temperature,    w = exp(-d),
 *
 * in float64.  Rows with d > SAMPLE_FAR weigh nothing: 2^18 of them together
 * are less than float64 can tell from 1.  Sums run in a fixed order, by id or
 * by (falling logit, rising id), so a draw depends on the row alone.
 *
 * Top-k and top-p need the likeliest rows in order, but hardly ever many of
 * them.  Rows are counted and their weights summed in SAMPLE_BUCKETS buckets
 * of d; only the buckets that can matter are collected and sorted.  Without
 * either, a draw needs the sums of blocks of rows and then one block's rows.
 *
 * exp() is our own: 129,000 of them a token are most of what sampling costs,
 * and it gives the same bits with every C library.
 */

#include "sample/sample.h"
#include "sample/sample_int.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>


static uint64_t sample_mix(uint64_t z);
static int sample_penalised(const sample_params_t *p);
static void sample_touch(sample_t *s, const int32_t *id, uint32_t n,
    uint32_t add);
static const float *sample_adjust(sample_t *s, const sample_params_t *p,
    const float *logits, const int32_t *prompt, uint32_t n_prompt,
    const int32_t *output, uint32_t n_output);
static int32_t sample_argmax(const sample_t *s, const float *row);
static uint32_t sample_distances(const sample_t *s, const float *row,
    uint32_t begin, double *d);
static uint32_t sample_weights(const sample_t *s, const float *row,
    uint32_t begin, double min_p, double *w);
static int32_t sample_draw_any(sample_t *s, const sample_params_t *p,
    const float *row, double u);
static uint32_t sample_reach(sample_t *s, const sample_params_t *p,
    const float *row, double *total);
static void sample_collect(sample_t *s, const float *row, uint32_t last);
static void sample_cut(sample_t *s, const sample_params_t *p, double total);
static int sample_compare(const void *a, const void *b);
static int32_t sample_draw(const sample_t *s, double u);


/*
 * The random number of a position: splitmix64's finaliser over the seed, and
 * once more over that and the position.  [0, 1) with 53 bits.
 */

static uint64_t
sample_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);

    return z ^ (z >> 31);
}


double
sample_random(uint64_t seed, uint32_t position)
{
    uint64_t  h;

    h = sample_mix(seed + UINT64_C(0x9e3779b97f4a7c15));
    h = sample_mix(h + ((uint64_t) position + 1)
                       * UINT64_C(0x9e3779b97f4a7c15));

    return (double) (h >> 11) * 0x1p-53;
}


sample_t *
sample_open(uint32_t vocab, const uint8_t *known, uint32_t max_context)
{
    size_t     n;
    sample_t  *s;

    (void) max_context;          /* scratch is by id, not by position */

    s = calloc(1, sizeof(sample_t));
    if (s == NULL) {
        return NULL;
    }

    n = vocab > 0 ? vocab : 1;

    s->vocab = vocab;
    s->known = known;
    s->row = malloc(n * sizeof(float));
    s->count = calloc(n, sizeof(uint32_t));
    s->seen = calloc(n, 1);
    s->touched = malloc(n * sizeof(int32_t));
    s->cand = malloc(n * sizeof(sample_cand_t));
    s->block_w = malloc((n / SAMPLE_BLOCK + 1) * sizeof(double));

    if (s->block_w == NULL || s->row == NULL || s->count == NULL
        || s->seen == NULL
        || s->touched == NULL || s->cand == NULL)
    {
        sample_close(s);
        return NULL;
    }

    return s;
}


void
sample_close(sample_t *s)
{
    if (s == NULL) {
        return;
    }

    free(s->row);
    free(s->count);
    free(s->seen);
    free(s->touched);
    free(s->cand);
    free(s->block_w);
    free(s);
}


int32_t
sample_token(sample_t *s, const sample_params_t *p, const float *logits,
    const int32_t *prompt, uint32_t n_prompt, const int32_t *output,
    uint32_t n_output, uint32_t position)
{
    double        u, total;
    int32_t       best;
    uint32_t      last;
    const float  *row;

    row = logits;

    if (p->n_bias > 0 || sample_penalised(p)) {
        row = sample_adjust(s, p, logits, prompt, n_prompt, output, n_output);
    }

    best = sample_argmax(s, row);

    if (best < 0 || !(p->temperature > 0)) {
        return best;
    }

    s->max = sample_finite(row[best]);
    s->inverse_t = 1.0 / p->temperature;

    u = sample_random(p->seed, position);

    if (p->top_k == 0 && p->top_p >= 1.0f) {
        return sample_draw_any(s, p, row, u);
    }

    last = sample_reach(s, p, row, &total);
    sample_collect(s, row, last);
    sample_cut(s, p, total);

    return sample_draw(s, u);
}


int
sample_plain(const sample_params_t *p, uint32_t position,
    sample_draw_t *draw)
{
    if (p->n_bias > 0 || sample_penalised(p)) {
        return 0;
    }

    draw->temperature = p->temperature;
    draw->top_p = p->top_p;
    draw->min_p = p->min_p;
    draw->top_k = p->top_k;
    draw->u = sample_random(p->seed, position);

    return 1;
}


static int
sample_penalised(const sample_params_t *p)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f
           || p->frequency_penalty != 0.0f;
}


static void
sample_touch(sample_t *s, const int32_t *id, uint32_t n, uint32_t add)
{
    uint32_t  i, t;

    for (i = 0; i < n; i++) {
        t = (uint32_t) id[i];

        if (t >= s->vocab) {
            continue;
        }

        if (!s->seen[t]) {
            s->seen[t] = 1;
            s->touched[s->n_touched++] = id[i];
        }

        s->count[t] += add;
    }
}


static const float *
sample_adjust(sample_t *s, const sample_params_t *p, const float *logits,
    const int32_t *prompt, uint32_t n_prompt, const int32_t *output,
    uint32_t n_output)
{
    float     x;
    int32_t   id;
    uint32_t  i;

    memcpy(s->row, logits, s->vocab * sizeof(float));

    for (i = 0; i < p->n_bias; i++) {
        id = p->bias[i].id;

        if (id >= 0 && (uint32_t) id < s->vocab) {
            s->row[id] += p->bias[i].bias;
        }
    }

    if (!sample_penalised(p)) {
        return s->row;
    }

    sample_touch(s, prompt, n_prompt, 0);
    sample_touch(s, output, n_output, 1);

    for (i = 0; i < s->n_touched; i++) {
        id = s->touched[i];
        x = s->row[id];

        if (p->repetition_penalty != 1.0f && p->repetition_penalty > 0) {
            x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
        }

        if (s->count[id] > 0) {
            x -= p->presence_penalty;
            x -= p->frequency_penalty * (float) s->count[id];
        }

        s->row[id] = x;
        s->seen[id] = 0;
        s->count[id] = 0;
    }

    s->n_touched = 0;

    return s->row;
}


static int32_t
sample_argmax(const sample_t *s, const float *row)
{
    float     x, max;
    int32_t   best;
    uint32_t  i;

    best = -1;
    max = -INFINITY;

    for (i = 0; i < s->vocab; i++) {
        if (!(row[i] > max) || !s->known[i]) {
            continue;
        }

        x = sample_finite(row[i]);

        if (x > max) {
            max = x;
            best = (int32_t) i;
        }
    }

    return best;
}


/*
 * Distances of up to SAMPLE_BLOCK rows; SAMPLE_FAR for those that weigh
 * nothing.  Returns how many rows there are.
 */

static uint32_t
sample_distances(const sample_t *s, const float *row, uint32_t begin,
    double *d)
{
    float     x;
    double    v;
    uint32_t  i, n;

    n = s->vocab - begin;
    n = n < SAMPLE_BLOCK ? n : SAMPLE_BLOCK;

    for (i = 0; i < n; i++) {
        x = row[begin + i];
        x = x < FLT_MAX ? x : sample_finite(x);
        v = (s->max - (double) x) * s->inverse_t;

        d[i] = v < SAMPLE_FAR && s->known[begin + i] ? v : SAMPLE_FAR;
    }

    for ( ; i < SAMPLE_BLOCK; i++) {
        d[i] = SAMPLE_FAR;
    }

    return n;
}


static uint32_t
sample_weights(const sample_t *s, const float *row, uint32_t begin,
    double min_p, double *w)
{
    double    d[SAMPLE_BLOCK];
    uint32_t  i, n;

    n = sample_distances(s, row, begin, d);

    for (i = 0; i < SAMPLE_BLOCK; i++) {
        w[i] = sample_exp(d[i]);
    }

    for (i = 0; i < n; i++) {
        if (d[i] >= SAMPLE_FAR || (w[i] < min_p && d[i] > 0)) {
            w[i] = 0;
        }
    }

    return n;
}


/*
 * Neither top-k nor top-p: everything, in order of ids.  Where rounding leaves
 * u just beyond the last sum, the last row that weighs anything is drawn.
 */

static int32_t
sample_draw_any(sample_t *s, const sample_params_t *p, const float *row,
    double u)
{
    double    total, sum, w[SAMPLE_BLOCK];
    int32_t   id;
    uint32_t  i, n, b, last, blocks;

    blocks = (s->vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;
    total = 0;
    last = 0;

    for (b = 0; b < blocks; b++) {
        n = sample_weights(s, row, b * SAMPLE_BLOCK, p->min_p, w);

        for (sum = 0, i = 0; i < n; i++) {
            sum += w[i];
        }

        s->block_w[b] = sum;
        total += sum;
        last = sum > 0 ? b : last;
    }

    u *= total;

    for (sum = 0, b = 0; b < last && u >= sum + s->block_w[b]; b++) {
        sum += s->block_w[b];
    }

    n = sample_weights(s, row, b * SAMPLE_BLOCK, p->min_p, w);
    id = -1;

    for (i = 0; i < n && (id < 0 || u >= sum); i++) {
        if (w[i] > 0) {
            id = (int32_t) (b * SAMPLE_BLOCK + i);
            sum += w[i];
        }
    }

    return id;
}


/*
 * The last bucket that top-k, or else top-p, can reach into, and the weight of
 * all rows, which top-k has no use for: of blocks of rows, as everywhere.
 */

static uint32_t
sample_reach(sample_t *s, const sample_params_t *p, const float *row,
    double *total)
{
    double    sum, d[SAMPLE_BLOCK], w[SAMPLE_BLOCK];
    uint32_t  i, n, b, begin, last;

    memset(s->bucket_n, 0, sizeof(s->bucket_n));
    memset(s->bucket_w, 0, sizeof(s->bucket_w));
    memset(w, 0, sizeof(w));
    *total = 0;

    for (begin = 0; begin < s->vocab; begin += SAMPLE_BLOCK) {

        n = sample_distances(s, row, begin, d);

        if (p->top_k == 0) {
            for (i = 0; i < SAMPLE_BLOCK; i++) {
                w[i] = sample_exp(d[i]);
            }
        }

        for (sum = 0, i = 0; i < n; i++) {
            if (d[i] < SAMPLE_FAR) {
                b = (uint32_t) (d[i] * SAMPLE_PER_UNIT);
                s->bucket_n[b]++;
                s->bucket_w[b] += w[i];
                sum += w[i];
            }
        }

        *total += sum;
    }

    n = 0;
    sum = 0;

    for (last = 0; last < SAMPLE_BUCKETS - 1; last++) {
        n += s->bucket_n[last];
        sum += s->bucket_w[last];

        if ((p->top_k > 0 && n >= p->top_k)
            || (p->top_k == 0 && sum > p->top_p * *total * (1 + 1e-9)))
        {
            break;
        }
    }

    return last;
}


/* Leaves in `cand` the rows up to a bucket, likeliest first. */

static void
sample_collect(sample_t *s, const float *row, uint32_t last)
{
    double          d[SAMPLE_BLOCK];
    uint32_t        i, n, begin;
    sample_cand_t  *c;

    s->n_cand = 0;

    for (begin = 0; begin < s->vocab; begin += SAMPLE_BLOCK) {

        n = sample_distances(s, row, begin, d);

        for (i = 0; i < n; i++) {
            if (d[i] >= SAMPLE_FAR
                || (uint32_t) (d[i] * SAMPLE_PER_UNIT) > last)
            {
                continue;
            }

            c = &s->cand[s->n_cand++];
            c->weight = sample_exp(d[i]);
            c->logit = sample_finite(row[begin + i]);
            c->id = (int32_t) (begin + i);
        }
    }

    qsort(s->cand, s->n_cand, sizeof(sample_cand_t), sample_compare);
}


static int
sample_compare(const void *a, const void *b)
{
    const sample_cand_t  *x = a, *y = b;

    if (x->logit != y->logit) {
        return x->logit > y->logit ? -1 : 1;
    }

    return x->id < y->id ? -1 : 1;
}


/* Leaves in `cand` what may be drawn. */

static void
sample_cut(sample_t *s, const sample_params_t *p, double total)
{
    double          sum, want;
    uint32_t        i, n;
    sample_cand_t  *c;

    c = s->cand;
    n = s->n_cand;

    if (p->top_k > 0) {
        n = n < p->top_k ? n : p->top_k;

        for (total = 0, i = 0; i < n; i++) {
            total += c[i].weight;
        }
    }

    if (p->top_p < 1.0f) {
        want = (double) p->top_p * total;

        for (sum = 0, i = 0; i < n; ) {
            sum += c[i++].weight;

            if (sum >= want) {
                break;
            }
        }

        n = i;
    }

    while (n > 1 && c[n - 1].weight < (double) p->min_p
           && c[n - 1].logit < c[0].logit)
    {
        n--;
    }

    s->n_cand = n;
}


static int32_t
sample_draw(const sample_t *s, double u)
{
    double    total, sum;
    uint32_t  i;

    for (total = 0, i = 0; i < s->n_cand; i++) {
        total += s->cand[i].weight;
    }

    u *= total;

    for (sum = 0, i = 0; i + 1 < s->n_cand; i++) {
        sum += s->cand[i].weight;

        if (u < sum) {
            break;
        }
    }

    return s->cand[i].id;
}
