/*
 * Pairs shared out among ranks.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_share.h"


/*
 * An expert's weights are read once on each rank that has a row for it, which
 * costs about as much as computing that many rows: fewer are not given away.
 */

#define SHARE_PIECE  8


static void share_split(ep_share_t *s, const ep_placement_t *p, uint32_t e);


int
ep_share_open(ep_share_t *s, uint32_t ranks, uint32_t max_experts)
{
    memset(s, 0, sizeof(ep_share_t));

    s->ranks = ranks;
    s->max_experts = max_experts;
    s->total = calloc((size_t) max_experts + 1, sizeof(uint32_t));
    s->until = calloc((size_t) max_experts * ranks + 1, sizeof(uint32_t));
    s->seen = calloc((size_t) max_experts + 1, sizeof(uint32_t));
    s->home = calloc((size_t) max_experts + 1, sizeof(uint32_t));
    s->part = calloc(ranks, sizeof(uint32_t));
    s->busy = calloc(ranks, sizeof(uint64_t));

    if (s->total == NULL || s->until == NULL || s->seen == NULL
        || s->home == NULL || s->part == NULL || s->busy == NULL)
    {
        ep_share_close(s);
        return -1;
    }

    return 0;
}


void
ep_share_close(ep_share_t *s)
{
    free(s->total);
    free(s->until);
    free(s->seen);
    free(s->home);
    free(s->part);
    free(s->busy);
    memset(s, 0, sizeof(ep_share_t));
}


int
ep_share_check(const ep_share_t *s, uint32_t rank, const ep_send_t *send,
    uint32_t max_rows, uint32_t max_top_k, uint32_t max_hidden, char *err)
{
    size_t                 i, n;
    const ep_placement_t  *p;

    p = send->placement;

    if (p->ranks != s->ranks || p->experts > s->max_experts
        || p->count[rank] > s->max_experts || send->rows > max_rows
        || send->top_k > max_top_k || send->hidden > max_hidden)
    {
        snprintf(err, ERR_LEN, "rank %u: dispatch of %u rows to %u experts "
                 "each is more than the exchange was made for", rank,
                 send->rows, send->top_k);
        return -1;
    }

    n = (size_t) send->rows * send->top_k;

    for (i = 0; i < n; i++) {
        if (send->id[i] < 0 || (uint32_t) send->id[i] >= p->experts) {
            snprintf(err, ERR_LEN, "rank %u: row %zu wants expert %d of %u",
                     rank, i / send->top_k, send->id[i], p->experts);
            return -1;
        }
    }

    return 0;
}


void
ep_share_out(ep_share_t *s, const ep_placement_t *p, const ep_send_t *send)
{
    size_t    i, n;
    uint32_t  r, e, h, homes;

    memset(s->total, 0, p->experts * sizeof(uint32_t));
    memset(s->busy, 0, p->ranks * sizeof(uint64_t));

    for (r = 0; r < s->ranks; r++) {
        n = (size_t) send[r].rows * send[r].top_k;

        for (i = 0; i < n; i++) {
            s->total[send[r].id[i]]++;
        }
    }

    for (e = 0; e < p->experts; e++) {
        homes = p->first[e + 1] - p->first[e];

        for (h = p->first[e]; h < p->first[e + 1]; h++) {
            s->busy[p->rank[h]] += s->total[e] / homes;
            s->until[h] = s->total[e];
        }
    }

    for (e = 0; e < p->experts; e++) {
        if (p->first[e + 1] > p->first[e] + 1 && s->total[e] > 0) {
            share_split(s, p, e);
        }
    }
}


/*
 * Pairs of an expert with several homes, shared evenly so far, go there in
 * pieces, each to the home that has least to do.
 */

static void
share_split(ep_share_t *s, const ep_placement_t *p, uint32_t e)
{
    uint32_t        k, n, best, left, piece, end;
    const uint8_t  *home;

    home = p->rank + p->first[e];
    n = p->first[e + 1] - p->first[e];
    left = s->total[e];

    piece = (left + 4 * n - 1) / (4 * n);
    piece = (piece < SHARE_PIECE) ? SHARE_PIECE : piece;

    for (k = 0; k < n; k++) {
        s->busy[home[k]] -= left / n;
        s->part[k] = 0;
    }

    while (left > 0) {

        if (left < piece + SHARE_PIECE) {
            piece = left;
        }

        for (best = 0, k = 1; k < n; k++) {
            best = (s->busy[home[k]] < s->busy[home[best]]) ? k : best;
        }

        s->part[best] += piece;
        s->busy[home[best]] += piece;
        left -= piece;
    }

    for (end = 0, k = 0; k < n; k++) {
        end += s->part[k];
        s->until[p->first[e] + k] = end;
    }
}


uint32_t
ep_share_count(const ep_share_t *s, const ep_placement_t *p, uint32_t e,
    uint32_t rank)
{
    uint32_t  h;

    for (h = p->first[e]; h < p->first[e + 1]; h++) {
        if (p->rank[h] == rank) {
            return s->until[h] - (h > p->first[e] ? s->until[h - 1] : 0);
        }
    }

    return 0;
}


void
ep_share_walk(ep_share_t *s, const ep_placement_t *p)
{
    memset(s->seen, 0, p->experts * sizeof(uint32_t));
    memcpy(s->home, p->first, p->experts * sizeof(uint32_t));
}
