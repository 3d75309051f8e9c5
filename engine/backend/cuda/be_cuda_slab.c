/*
 * Memory of matrices.  A cudaMalloc() of a megabyte or more takes whole pages
 * of 2 MiB: of V2-Lite's experts (5.5 MiB a matrix) that is 2.5 GB for nothing,
 * of V3's (14 MiB and a description behind it) 11 GB a rank.  So large matrices
 * lie side by side in slabs, of a sixteenth of what there is or more, at most
 * SLAB_MAX; smaller ones are left to cudaMalloc(), which packs them itself.
 *
 * Slabs belong to a device, and all backends of the process share them, as one
 * of them may free what another one made (experts move).  A slab's parts are in
 * the order of their places; those beside each other that are free are one.
 */

#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda_slab.h"


#define SLAB_ALIGN    512
#define SLAB_LEAST    ((size_t) 8 << 20)
#define SLAB_MAX      ((size_t) 256 << 20)
#define SLAB_DEVICES  64


typedef struct {
    size_t  at;
    size_t  size;
    int     used;
} slab_part_t;

typedef struct slab_s  slab_t;

struct slab_s {
    slab_t       *next;
    uint8_t      *base;
    size_t        size;
    size_t        used;
    uint32_t      n;
    uint32_t      room;
    slab_part_t  *part;
};


static slab_t *slab_open(size_t size, int *rc);
static void *slab_take(slab_t *s, size_t size);
static int slab_insert(slab_t *s, uint32_t i);
static void slab_give(slab_t *s, uint32_t i);


static pthread_mutex_t  slab_lock = PTHREAD_MUTEX_INITIALIZER;
static slab_t          *slabs[SLAB_DEVICES];
static size_t           slab_bytes[SLAB_DEVICES];


int
be_cuda_slab_get(int device, size_t size, void **p)
{
    int      rc;
    size_t   each;
    slab_t  *s;

    *p = NULL;

    if (size < BE_CUDA_SLAB_LEAST || device < 0 || device >= SLAB_DEVICES) {
        return cudaMalloc(p, size);
    }

    size = (size + SLAB_ALIGN - 1) / SLAB_ALIGN * SLAB_ALIGN;
    pthread_mutex_lock(&slab_lock);

    for (s = slabs[device]; s != NULL && *p == NULL; s = s->next) {
        *p = (s->size - s->used >= size) ? slab_take(s, size) : NULL;
    }

    rc = 0;

    if (*p == NULL) {
        each = slab_bytes[device] / 16;
        each = (each < SLAB_LEAST) ? SLAB_LEAST : each;
        each = (each > SLAB_MAX) ? SLAB_MAX : each;
        each = (each < size) ? size : each;
        s = slab_open(each, &rc);

        /* the last bit of memory */

        if (s == NULL && each > size) {
            (void) cudaGetLastError();
            s = slab_open(size, &rc);
        }

        if (s != NULL) {
            s->next = slabs[device];
            slabs[device] = s;
            slab_bytes[device] += s->size;
            *p = slab_take(s, size);
        }
    }

    pthread_mutex_unlock(&slab_lock);

    return (*p != NULL) ? 0 : (rc != 0) ? rc : cudaErrorMemoryAllocation;
}


void
be_cuda_slab_put(int device, void *p)
{
    slab_t     *s, **from;
    uint32_t    i;

    if (p == NULL) {
        return;
    }

    pthread_mutex_lock(&slab_lock);
    from = (device >= 0 && device < SLAB_DEVICES) ? &slabs[device] : NULL;

    for ( /* void */ ; from != NULL && *from != NULL; from = &(*from)->next) {
        s = *from;

        if ((uint8_t *) p < s->base || (uint8_t *) p >= s->base + s->size) {
            continue;
        }

        /* As cudaFree() would: what is queued may still read it. */

        (void) cudaDeviceSynchronize();

        for (i = 0; i < s->n; i++) {
            if (s->base + s->part[i].at == (uint8_t *) p) {
                slab_give(s, i);
                break;
            }
        }

        if (s->used == 0) {
            *from = s->next;
            slab_bytes[device] -= s->size;
            (void) cudaFree(s->base);
            free(s->part);
            free(s);
        }

        p = NULL;
        break;
    }

    pthread_mutex_unlock(&slab_lock);
    (void) cudaFree(p);
}


static slab_t *
slab_open(size_t size, int *rc)
{
    slab_t  *s;

    s = calloc(1, sizeof(slab_t));

    if (s == NULL || !slab_insert(s, 0)) {
        *rc = cudaErrorMemoryAllocation;
        free(s);
        return NULL;
    }

    *rc = cudaMalloc((void **) &s->base, size);

    if (*rc != 0) {
        free(s->part);
        free(s);
        return NULL;
    }

    s->size = size;
    s->part[0].size = size;

    return s;
}


/* The first part that is large enough; the rest of it stays free. */

static void *
slab_take(slab_t *s, size_t size)
{
    size_t    left;
    uint32_t  i;

    for (i = 0; i < s->n; i++) {
        if (!s->part[i].used && s->part[i].size >= size) {
            break;
        }
    }

    if (i == s->n) {
        return NULL;
    }

    left = s->part[i].size - size;

    if (left > 0) {

        if (!slab_insert(s, i + 1)) {
            return NULL;
        }

        s->part[i + 1].at = s->part[i].at + size;
        s->part[i + 1].size = left;
        s->part[i].size = size;
    }

    s->part[i].used = 1;
    s->used += size;

    return s->base + s->part[i].at;
}


/* A free part of no size at place i; 0: there is no memory for it. */

static int
slab_insert(slab_t *s, uint32_t i)
{
    uint32_t      room;
    slab_part_t  *part;

    if (s->n == s->room) {
        room = s->room * 2 + 8;
        part = realloc(s->part, room * sizeof(slab_part_t));

        if (part == NULL) {
            return 0;
        }

        s->part = part;
        s->room = room;
    }

    memmove(&s->part[i + 1], &s->part[i], (s->n - i) * sizeof(slab_part_t));
    memset(&s->part[i], 0, sizeof(slab_part_t));
    s->n++;

    return 1;
}


static void
slab_give(slab_t *s, uint32_t i)
{
    s->used -= s->part[i].size;
    s->part[i].used = 0;

    if (i + 1 < s->n && !s->part[i + 1].used) {
        s->part[i].size += s->part[i + 1].size;
        memmove(&s->part[i + 1], &s->part[i + 2],
                (s->n - i - 2) * sizeof(slab_part_t));
        s->n--;
    }

    if (i > 0 && !s->part[i - 1].used) {
        s->part[i - 1].size += s->part[i].size;
        memmove(&s->part[i], &s->part[i + 1],
                (s->n - i - 1) * sizeof(slab_part_t));
        s->n--;
    }
}
