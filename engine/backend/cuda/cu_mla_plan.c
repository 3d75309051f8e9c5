/*
 * Who computes what of a step's attention.
 *
 * Gangs are cut into units so that all lanes have equal work: where a lane is
 * full, or, with fixed cuts, into single runs as long as there are lanes
 * without work and room for partial results.  Costs are in pairs of blocks,
 * what the kernel does in one turn.
 */

#include "backend/cuda/cu_mla.h"

#include <stdlib.h>
#include <string.h>


#define MLA_PAIR       (2 * CU_MLA_BLOCK)

/* A unit's queries come in and its results go out, with nothing to do. */
#define MLA_UNIT_COST  2

/* No piece of fewer pairs is cut off. */
#define MLA_PIECE_MIN  2

/* Partial results for each block of threads. */
#define MLA_PARTS      8


static int mla_gangs(cu_mla_plan_t *p, const cu_mla_group_t *g);
static uint64_t mla_cost(const cu_mla_unit_t *u);
static void mla_cut_even(cu_mla_plan_t *p);
static void mla_cut_runs(cu_mla_plan_t *p);
static void mla_add(cu_mla_plan_t *p, const cu_mla_unit_t *gang,
    uint32_t begin, uint32_t stop, int part, uint32_t lane);
static void mla_add_merges(cu_mla_plan_t *p, const cu_mla_unit_t *gang,
    uint32_t part, uint32_t parts);
static uint32_t mla_least(const cu_mla_plan_t *p);
static void mla_sort(cu_mla_plan_t *p);


int
cu_mla_plan_open(cu_mla_plan_t *p, uint32_t heads, uint32_t sms,
    uint32_t max_rows, int fixed)
{
    uint64_t  tiles, gangs, units;

    memset(p, 0, sizeof(cu_mla_plan_t));

    if (heads == 0 || sms == 0 || sms > 65535 || max_rows == 0
        || (uint64_t) heads * max_rows > INT32_MAX)
    {
        return -1;
    }

    tiles = (heads + CU_MLA_TILE - 1) / CU_MLA_TILE;

    p->heads = heads;
    p->fixed = fixed;
    p->gang = tiles < CU_MLA_GANG ? (uint32_t) tiles : CU_MLA_GANG;
    p->gang = p->gang < sms ? p->gang : sms;
    p->lanes = sms / p->gang;

    /* Each row may be a sequence of its own, with tiles of its own. */

    gangs = (tiles + p->gang - 1) / p->gang * max_rows;
    units = gangs + MLA_PARTS * p->lanes;

    if (units > INT32_MAX / sizeof(cu_mla_unit_t)) {
        return -1;
    }

    p->max_gangs = (uint32_t) gangs;
    p->max_units = (uint32_t) units;
    p->max_parts = MLA_PARTS * p->lanes * p->gang;
    p->max_rows = max_rows;

    p->unit = malloc(units * sizeof(cu_mla_unit_t));
    p->cut = malloc(units * sizeof(cu_mla_unit_t));
    p->of = malloc(units * sizeof(uint32_t));
    p->gangs = malloc(gangs * sizeof(cu_mla_unit_t));
    p->lane = malloc((p->lanes + 1) * sizeof(uint32_t));
    p->load = malloc(p->lanes * sizeof(uint64_t));
    p->merge = malloc(p->max_parts * sizeof(cu_mla_merge_t));

    if (p->unit == NULL || p->cut == NULL || p->of == NULL
        || p->gangs == NULL || p->lane == NULL || p->load == NULL
        || p->merge == NULL)
    {
        cu_mla_plan_close(p);
        return -1;
    }

    return 0;
}


void
cu_mla_plan_close(cu_mla_plan_t *p)
{
    free(p->unit);
    free(p->cut);
    free(p->of);
    free(p->gangs);
    free(p->lane);
    free(p->load);
    free(p->merge);
    memset(p, 0, sizeof(cu_mla_plan_t));
}


size_t
cu_mla_scratch_size(const cu_mla_plan_t *p)
{
    size_t  parts;

    parts = p->max_parts;
    parts += p->fixed ? (size_t) p->lanes * p->gang : 0;

    return parts * CU_MLA_TILE * (CU_MLA_LORA + 2) * sizeof(float);
}


uint32_t
cu_mla_plan_units(const cu_mla_plan_t *p, uint32_t rows)
{
    return p->max_gangs / p->max_rows * rows + MLA_PARTS * p->lanes;
}


uint32_t
cu_mla_plan_merges(const cu_mla_plan_t *p)
{
    return p->max_parts;
}


int
cu_mla_plan(cu_mla_plan_t *p, const cu_mla_group_t *group,
    uint32_t n_groups)
{
    uint32_t  i;

    p->n_units = 0;
    p->n_merge = 0;
    p->n_parts = 0;
    p->n_gangs = 0;

    memset(p->load, 0, p->lanes * sizeof(uint64_t));

    for (i = 0; i < n_groups; i++) {
        if (mla_gangs(p, &group[i]) != 0) {
            return -1;
        }
    }

    if (p->fixed) {
        mla_cut_runs(p);
    } else {
        mla_cut_even(p);
    }

    mla_sort(p);

    return 0;
}


/* The gangs of a group, whole; 0, or -1: too many. */

static int
mla_gangs(cu_mla_plan_t *p, const cu_mla_group_t *g)
{
    uint32_t        q, end, size, last;
    cu_mla_unit_t  *u;

    size = p->gang * CU_MLA_TILE;
    end = (g->row + g->rows) * p->heads;

    for (q = g->row * p->heads; q < end; q += size) {

        if (p->n_gangs == p->max_gangs) {
            return -1;
        }

        last = end - q < size ? end - 1 : q + size - 1;

        u = &p->gangs[p->n_gangs++];
        u->query = q;
        u->end = last + 1;
        u->table = g->table;
        u->first = g->first;
        u->begin = g->first / CU_MLA_BLOCK * CU_MLA_BLOCK;
        u->full = g->pos + (q / p->heads - g->row) + 1;
        u->stop = g->pos + (last / p->heads - g->row) + 1;
        u->part = -1;

        if (u->begin >= u->stop) {
            u->begin = (u->stop - 1) / CU_MLA_BLOCK * CU_MLA_BLOCK;
        }
    }

    return 0;
}


static uint64_t
mla_cost(const cu_mla_unit_t *u)
{
    return (u->stop - u->begin + MLA_PAIR - 1) / MLA_PAIR + MLA_UNIT_COST;
}


/*
 * Lane after lane is filled with its share of all work, then, with what found
 * no room, a little beyond it.
 */

static void
mla_cut_even(cu_mla_plan_t *p)
{
    int                   whole;
    uint32_t              i, at, stop, part, parts, lane;
    uint64_t              share, room, cost, most;
    cu_mla_unit_t         left;
    const cu_mla_unit_t  *g;

    share = 0;
    most = 0;

    for (i = 0; i < p->n_gangs; i++) {
        cost = mla_cost(&p->gangs[i]);
        share += cost;
        most = cost > most ? cost : most;
    }

    share = (share + p->lanes - 1) / p->lanes;

    /* A cut in each lane makes one more unit of it. */

    share += most > share ? MLA_UNIT_COST : 0;
    lane = 0;

    for (i = 0; i < p->n_gangs; i++) {
        g = &p->gangs[i];
        left = *g;
        part = p->n_parts;
        parts = 0;

        for (at = g->begin; at < g->stop; /* void */ ) {

            left.begin = at;
            cost = mla_cost(&left);
            room = share > p->load[lane] ? share - p->load[lane] : 0;
            whole = cost <= room + (cost / 8 < MLA_PIECE_MIN
                                    ? cost / 8 : MLA_PIECE_MIN)
                    || p->n_parts + 2 * p->gang > p->max_parts;

            if (!whole && room < MLA_UNIT_COST + MLA_PIECE_MIN) {

                if (++lane == p->lanes) {
                    lane = 0;
                    share += share / 64 + 1;
                }

                continue;
            }

            stop = whole ? g->stop
                         : at + (uint32_t) (room - MLA_UNIT_COST) * MLA_PAIR;

            if (whole && parts == 0) {
                mla_add(p, g, at, stop, -1, lane);

            } else {
                mla_add(p, g, at, stop, (int) p->n_parts, lane);
                p->n_parts += p->gang;
                parts++;
            }

            at = stop;
        }

        if (parts > 0) {
            mla_add_merges(p, g, part, parts);
        }
    }
}


/*
 * Runs become units of their own where lanes would be idle.  Sums do not
 * depend on it, so what has no room for partial results stays whole.
 */

static void
mla_cut_runs(cu_mla_plan_t *p)
{
    int                   whole;
    uint32_t              i, at, stop, part, parts;
    const cu_mla_unit_t  *g;

    whole = p->n_gangs >= p->lanes;

    for (i = 0; i < p->n_gangs; i++) {
        g = &p->gangs[i];
        parts = (g->stop - 1) / CU_MLA_RUN - g->begin / CU_MLA_RUN + 1;

        if (whole || parts == 1
            || (uint64_t) p->n_parts + (uint64_t) parts * p->gang
               > p->max_parts)
        {
            mla_add(p, g, g->begin, g->stop, -1, mla_least(p));
            continue;
        }

        part = p->n_parts;
        p->n_parts += parts * p->gang;

        for (at = g->begin; at < g->stop; at = stop) {
            stop = (at / CU_MLA_RUN + 1) * CU_MLA_RUN;
            stop = stop < g->stop ? stop : g->stop;

            mla_add(p, g, at, stop, (int) part, mla_least(p));
            part += p->gang;
        }

        mla_add_merges(p, g, part - parts * p->gang, parts);
    }
}


static void
mla_add(cu_mla_plan_t *p, const cu_mla_unit_t *gang, uint32_t begin,
    uint32_t stop, int part, uint32_t lane)
{
    cu_mla_unit_t  *u;

    p->of[p->n_units] = lane;
    u = &p->cut[p->n_units++];

    *u = *gang;
    u->begin = begin;
    u->stop = stop;
    u->part = part;

    p->load[lane] += mla_cost(u);
}


/* One for each tile of a gang. */

static void
mla_add_merges(cu_mla_plan_t *p, const cu_mla_unit_t *gang, uint32_t part,
    uint32_t parts)
{
    uint32_t         q;
    cu_mla_merge_t  *m;

    for (q = gang->query; q < gang->end; q += CU_MLA_TILE) {
        m = &p->merge[p->n_merge++];
        m->query = q;
        m->end = gang->end - q < CU_MLA_TILE ? gang->end : q + CU_MLA_TILE;
        m->part = part++;
        m->stride = p->gang;
        m->parts = parts;
    }
}


static uint32_t
mla_least(const cu_mla_plan_t *p)
{
    uint32_t  i, least;

    least = 0;

    for (i = 1; i < p->lanes; i++) {
        if (p->load[i] < p->load[least]) {
            least = i;
        }
    }

    return least;
}


/* Units by lane, in the order that they were cut in. */

static void
mla_sort(cu_mla_plan_t *p)
{
    uint32_t  i, n, at;

    memset(p->lane, 0, (p->lanes + 1) * sizeof(uint32_t));

    for (i = 0; i < p->n_units; i++) {
        p->lane[p->of[i]]++;
    }

    at = 0;

    for (i = 0; i <= p->lanes; i++) {
        n = p->lane[i];
        p->lane[i] = at;
        at += n;
    }

    for (i = 0; i < p->n_units; i++) {
        p->unit[p->lane[p->of[i]]++] = p->cut[i];
    }

    for (i = p->lanes; i > 0; i--) {
        p->lane[i] = p->lane[i - 1];
    }

    p->lane[0] = 0;
}
