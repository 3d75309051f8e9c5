/*
 * Grouped products: what is checked and chosen before a launch.
 */

#include <stddef.h>
#include <string.h>

#include "backend/cuda/cu_gemm.h"
#include "backend/cuda/cu_gemm_int.h"


#define GEMM_BOX     128             /* outputs of a tile */
#define GEMM_SLICES  16              /* of K, at most */


static void gemm_split(const cu_gemm_t *p, gemm_launch_t *l);
static int gemm_possible(const cu_gemm_t *p);


int
cu_gemm_map(const cu_matrix_t *m, CUtensorMap *map)
{
    if (m->type == CU_MM_FP8) {
        return cu_map_2d_ld(map, CU_BYTES, m->w, m->k, m->n, m->ld, 128,
                            GEMM_BOX);
    }

    return cu_map_2d_ld(map, CU_BF16, m->w, m->k, m->n, m->ld, 64, GEMM_BOX);
}


int
cu_gemm_grouped(const cu_gemm_t *p, void *stream)
{
    int            rc, device, count;
    uint32_t       k;
    gemm_launch_t  l;

    if (p->g.rows == 0 || p->g.groups == 0) {
        return 0;
    }

    if (!gemm_possible(p)) {
        return cudaErrorInvalidValue;
    }

    memset(&l, 0, sizeof(l));
    l.stream = stream;
    l.tile = (p->tile != 0) ? p->tile : cu_gemm_tile(p);

    rc = cudaGetDevice(&device);

    if (rc == 0) {
        rc = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount,
                                    device);
    }

    if (rc != 0) {
        return rc;
    }

    l.blocks = (uint32_t) count;
    k = p->g.k;
    gemm_split(p, &l);

    if (p->g.x.scale == NULL) {
        rc = cu_map_2d_ld(&l.x, CU_BF16, p->g.x.x, k, p->g.rows, p->g.x.ld,
                          64, l.tile);

        if (rc != 0) {
            return rc;
        }

        return (p->type == CU_MM_BF16) ? cu_gemm_bf16(p, &l)
                                       : cu_gemm_int4(p, &l);
    }

    rc = cu_map_2d_ld(&l.x, CU_BYTES, p->g.x.x, k, p->g.rows, p->g.x.ld, 128,
                      l.tile);

    if (rc == 0) {
        rc = cu_map_2d_ld(&l.scale, CU_F32, p->g.x.scale, p->g.rows,
                          (k + CU_GROUP - 1) / CU_GROUP, p->g.x.ld_scale,
                          l.tile + 4, 1);
    }

    if (rc != 0) {
        return rc;
    }

    return (p->type == CU_MM_FP8) ? cu_gemm_fp8(p, &l)
                                  : cu_gemm_int4_fp8(p, &l);
}


int
cu_gemm(const cu_mm_t *p, const cu_matrix_t *m, uint32_t tile, void *room,
    void *stream)
{
    int        rc;
    cu_gemm_t  g;

    if (p->batch != 1) {
        return cudaErrorInvalidValue;
    }

    memset(&g, 0, sizeof(g));

    g.g.m = m;
    g.g.groups = 1;
    g.g.rows = p->rows;
    g.g.n = p->m.n;
    g.g.k = p->m.k;
    g.g.x = p->x;
    g.g.y = p->y;
    g.g.ldy = p->ldy;
    g.type = p->m.type;
    g.tile = tile;
    g.room = room;
    g.g.narrow = p->narrow;
    g.add = p->add;

    if (p->m.type != CU_MM_INT4) {
        rc = cu_gemm_map(&p->m, &g.map);

        if (rc != 0) {
            return rc;
        }
    }

    return cu_gemm_grouped(&g, stream);
}


/*
 * Few tiles leave most of the device idle: K is cut then.
 */

static void
gemm_split(const cu_gemm_t *p, gemm_launch_t *l)
{
    uint32_t  tile, tiles, most, split;

    l->split = 1;

    if (p->room == NULL || p->tile != 0 || p->g.groups != 1
        || p->g.offset != NULL)
    {
        return;
    }

    tile = (l->tile < 64) ? l->tile : 64;
    tiles = (p->g.n + GEMM_BOX - 1) / GEMM_BOX
            * ((p->g.rows + tile - 1) / tile);
    most = (l->blocks < CU_GEMM_SPLIT) ? l->blocks : CU_GEMM_SPLIT;
    split = (tiles < most) ? most / tiles : 1;
    split = (split < GEMM_SLICES) ? split : GEMM_SLICES;
    most = p->g.k / (p->type == CU_MM_BF16 ? 64 : 128);

    /* A slice more to be added takes about as long as a stage of K. */

    while (split > 1 && split * split > most) {
        split--;
    }

    if (split > 1) {
        l->split = split;
        l->tile = tile;
    }
}


static int
gemm_possible(const cu_gemm_t *p)
{
    int       fp8;
    uint32_t  size;

    fp8 = (p->g.x.scale != NULL);
    size = fp8 ? 1 : 2;

    return p->g.groups <= CU_GEMM_GROUPS
           && p->g.n != 0
           && p->g.k != 0
           && (uintptr_t) p->g.x.x % 16 == 0
           && (size_t) p->g.x.ld * size % 16 == 0
           && (p->type == CU_MM_INT4 || fp8 == (p->type == CU_MM_FP8))
           && (!fp8
               || ((uintptr_t) p->g.x.scale % 16 == 0
                   && p->g.x.ld_scale % 4 == 0
                   && p->g.x.ld_scale >= p->g.rows))
           && (p->g.offset != NULL || p->g.groups == 1)
           && (p->type == CU_MM_INT4 || p->maps != NULL || p->g.groups == 1)
           && (p->g.py == NULL || (!p->g.narrow && !p->add))
           && (p->m_up == NULL
               || (p->act.x != NULL
                   && fp8 == (p->act.scale != NULL)
                   && (p->type == CU_MM_INT4 || p->maps_up != NULL
                       || p->g.groups == 1)));
}


/*
 * Room for twice the rows that groups have if all have as many: matrices are
 * read once for most, and little is computed for nothing.
 */

uint32_t
cu_gemm_tile(const cu_gemm_t *p)
{
    uint32_t  tile, rows, most;

    most = (p->type == CU_MM_FP8
            || (p->m_up == NULL
                && (p->type == CU_MM_BF16 || p->g.x.scale == NULL)))
           ? 128 : 64;

    rows = p->g.rows / p->g.groups;

    if (p->g.groups > 1) {
        rows *= 2;
    }

    for (tile = 8; tile < most && tile < rows; tile *= 2) {
        /* void */
    }

    return tile;
}
