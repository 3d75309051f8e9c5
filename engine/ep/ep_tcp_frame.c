/*
 * Frames of a dispatch: packed for one node, unpacked from one.
 */

#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "ep/ep_tcp_int.h"


static int tcp_wanted(const ep_tcp_all_t *all, const ep_send_t *s,
    uint32_t row, uint32_t node);
static int tcp_unpack_ids(ep_tcp_all_t *all, uint32_t node,
    const uint8_t **at, const uint8_t *end, char *err);


void
ep_tcp_where(ep_tcp_all_t *all, const ep_placement_t *p)
{
    uint32_t  e, h;

    for (e = 0; e < p->experts; e++) {
        all->where[e] = 0;

        for (h = p->first[e]; h < p->first[e + 1]; h++) {
            all->where[e] |= UINT64_C(1) << (p->rank[h] / all->local);
        }
    }
}


static int
tcp_wanted(const ep_tcp_all_t *all, const ep_send_t *s, uint32_t row,
    uint32_t node)
{
    uint32_t        k;
    uint64_t        nodes;
    const int32_t  *id;

    id = s->id + (size_t) row * s->top_k;
    nodes = 0;

    for (k = 0; k < s->top_k; k++) {
        nodes |= all->where[id[k]];
    }

    return nodes >> node & 1;
}


void
ep_tcp_pack(ep_tcp_all_t *all, uint32_t node)
{
    uint32_t          r, row, run;
    tcp_peer_t       *p;
    const ep_send_t  *s;

    p = &all->peer[node];
    p->n_iov = 1;
    ep_tcp_piece(p, all->head, TCP_HEAD + all->local * sizeof(uint32_t));

    for (r = 0; r < all->local; r++) {
        s = &all->send[all->first + r];
        ep_tcp_piece(p, s->id, (size_t) s->rows * s->top_k * sizeof(int32_t));
    }

    for (r = 0; r < all->local; r++) {
        s = &all->send[all->first + r];

        for (row = 0; row < s->rows; row += run + 1) {

            for (run = 0; row + run < s->rows
                          && tcp_wanted(all, s, row + run, node); run++)
            {
                /* void */
            }

            ep_tcp_piece(p, s->x + (size_t) row * s->hidden,
                         (size_t) run * s->hidden * sizeof(float));
        }
    }

    all->out[node].iov = p->iov;
    all->out[node].n = p->n_iov;
}


void
ep_tcp_piece(tcp_peer_t *p, const void *data, size_t len)
{
    if (len > 0) {
        p->iov[p->n_iov].iov_base = (void *) data;
        p->iov[p->n_iov++].iov_len = len;
    }
}


int
ep_tcp_unpack(ep_tcp_all_t *all, uint32_t node, char *err)
{
    uint32_t          r, row;
    uint64_t          hash;
    ep_send_t        *s;
    const uint8_t    *at, *end;
    const ep_send_t  *mine;

    mine = &all->send[all->first];
    at = all->peer[node].frame;
    end = at + all->in[node].len;

    if ((size_t) (end - at) < TCP_HEAD + all->local * sizeof(uint32_t)) {
        snprintf(err, ERR_LEN, "node %u: a dispatch of %zu bytes", node,
                 all->in[node].len);
        return -1;
    }

    memcpy(&hash, at, sizeof(hash));

    if (hash != ep_tcp_hash(mine->placement)) {
        snprintf(err, ERR_LEN, "node %u has its experts placed otherwise than "
                 "node %u", node, all->self);
        return -1;
    }

    if (tcp_unpack_ids(all, node, &at, end, err) != 0) {
        return -1;
    }

    for (r = 0; r < all->local; r++) {
        s = &all->send[node * all->local + r];

        for (row = 0; row < s->rows; row++) {

            if (!tcp_wanted(all, s, row, all->self)) {
                continue;
            }

            if ((size_t) (end - at) < s->hidden * sizeof(float)) {
                snprintf(err, ERR_LEN, "node %u: a dispatch lacks rows", node);
                return -1;
            }

            all->row[(node * all->local + r) * all->max_rows + row] =
                (const float *) (const void *) at;
            at += s->hidden * sizeof(float);
        }
    }

    if (at != end) {
        snprintf(err, ERR_LEN, "node %u: a dispatch has %zu bytes too many",
                 node, (size_t) (end - at));
        return -1;
    }

    return 0;
}


/* Numbers of rows and ids; `at` goes to where rows begin. */

static int
tcp_unpack_ids(ep_tcp_all_t *all, uint32_t node, const uint8_t **at,
    const uint8_t *end, char *err)
{
    size_t            i, n;
    uint32_t          r;
    ep_send_t        *s;
    const uint32_t   *head;
    const ep_send_t  *mine;

    mine = &all->send[all->first];
    head = (const uint32_t *) (const void *) *at;
    *at += TCP_HEAD + all->local * sizeof(uint32_t);

    if (head[2] != mine->hidden || head[3] != mine->top_k) {
        snprintf(err, ERR_LEN, "node %u: rows of %u to %u experts, not %u to "
                 "%u", node, head[2], head[3], mine->hidden, mine->top_k);
        return -1;
    }

    for (r = 0; r < all->local; r++) {
        s = &all->send[node * all->local + r];
        memset(s, 0, sizeof(ep_send_t));

        s->placement = mine->placement;
        s->hidden = mine->hidden;
        s->top_k = mine->top_k;
        s->rows = head[TCP_HEAD / 4 + r];

        n = (size_t) s->rows * s->top_k;

        if (s->rows > all->max_rows
            || (size_t) (end - *at) < n * sizeof(int32_t))
        {
            snprintf(err, ERR_LEN, "node %u: a dispatch of %u rows", node,
                     s->rows);
            return -1;
        }

        s->id = (const int32_t *) (const void *) *at;
        *at += n * sizeof(int32_t);

        for (i = 0; i < n; i++) {
            if (s->id[i] < 0 || (uint32_t) s->id[i] >= s->placement->experts) {
                snprintf(err, ERR_LEN, "node %u: row %zu wants expert %d of "
                         "%u", node, i / s->top_k, s->id[i],
                         s->placement->experts);
                return -1;
            }
        }
    }

    return 0;
}


uint64_t
ep_tcp_hash(const ep_placement_t *p)
{
    return XXH3_64bits_withSeed(p->expert,
                                p->first[p->experts] * sizeof(uint32_t),
                                XXH3_64bits(p->count, p->ranks
                                                      * sizeof(uint32_t)));
}
