/*
 * Tags of KV blocks: a table by tag, a list by block.  All memory is taken at
 * the start; what is freed goes to lists.
 */

#include "sched/kv_tags.h"

#include <stdlib.h>
#include <string.h>


static int32_t *kv_tags_bucket(const kv_tags_t *t, uint64_t tag);
static int32_t kv_tags_find(const kv_tags_t *t, uint64_t tag);
static int32_t kv_tags_new(kv_tags_t *t, uint64_t tag);
static int32_t kv_tags_new_ref(kv_tags_t *t);
static void kv_tags_unref(kv_tags_t *t, int32_t index);


int
kv_tags_open(kv_tags_t *t, uint32_t n_blocks, kv_tag_lost_pt lost, void *ctx)
{
    uint32_t  n;

    memset(t, 0, sizeof(kv_tags_t));

    t->n_blocks = n_blocks;
    t->size = n_blocks * KV_TAGS;
    t->free_tag = -1;
    t->free_ref = -1;
    t->lost = lost;
    t->lost_ctx = ctx;

    for (n = 64; n < t->size; n *= 2) {
        /* void */
    }

    t->mask = n - 1;
    t->tag = calloc(t->size, sizeof(kv_tag_t));
    t->ref = calloc(t->size, sizeof(kv_tag_ref_t));
    t->first = malloc(n_blocks * sizeof(int32_t));
    t->bucket = malloc(n * sizeof(int32_t));

    if (t->tag == NULL || t->ref == NULL || t->first == NULL
        || t->bucket == NULL)
    {
        kv_tags_close(t);
        return -1;
    }

    memset(t->first, 0xff, n_blocks * sizeof(int32_t));
    memset(t->bucket, 0xff, n * sizeof(int32_t));

    return 0;
}


void
kv_tags_close(kv_tags_t *t)
{
    free(t->tag);
    free(t->ref);
    free(t->first);
    free(t->bucket);
    memset(t, 0, sizeof(kv_tags_t));
}


/* Tags are hashes as they come, but nobody promises it. */

static int32_t *
kv_tags_bucket(const kv_tags_t *t, uint64_t tag)
{
    return &t->bucket[((tag * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & t->mask];
}


static int32_t
kv_tags_find(const kv_tags_t *t, uint64_t tag)
{
    int32_t  i;

    i = *kv_tags_bucket(t, tag);

    while (i >= 0 && t->tag[i].tag != tag) {
        i = t->tag[i].chain;
    }

    return i;
}


int
kv_tags_resident(const kv_tags_t *t, uint64_t tag)
{
    return kv_tags_find(t, tag) >= 0;
}


int
kv_tags_has(const kv_tags_t *t, int32_t block, uint64_t tag)
{
    int32_t  i;

    for (i = t->first[block]; i >= 0; i = t->ref[i].next) {
        if (t->tag[t->ref[i].tag].tag == tag) {
            return 1;
        }
    }

    return 0;
}


void
kv_tags_add(kv_tags_t *t, int32_t block, uint64_t tag)
{
    int32_t  i, ref;

    if (kv_tags_has(t, block, tag)) {
        return;
    }

    ref = kv_tags_new_ref(t);
    i = kv_tags_find(t, tag);

    if (ref < 0) {
        if (i < 0) {
            t->lost(t->lost_ctx, tag);
        }

        return;
    }

    if (i < 0) {
        i = kv_tags_new(t, tag);     /* never more of them than refs */
    }

    t->tag[i].blocks++;
    t->ref[ref].tag = i;
    t->ref[ref].next = t->first[block];
    t->first[block] = ref;
}


static int32_t
kv_tags_new_ref(kv_tags_t *t)
{
    int32_t  ref;

    ref = t->free_ref;

    if (ref >= 0) {
        t->free_ref = t->ref[ref].next;

    } else if (t->n_ref < t->size) {
        ref = (int32_t) t->n_ref++;
    }

    return ref;
}


static int32_t
kv_tags_new(kv_tags_t *t, uint64_t tag)
{
    int32_t  i, *head;

    i = t->free_tag;

    if (i >= 0) {
        t->free_tag = t->tag[i].chain;
    } else {
        i = (int32_t) t->n_tag++;
    }

    head = kv_tags_bucket(t, tag);

    t->tag[i].tag = tag;
    t->tag[i].blocks = 0;
    t->tag[i].chain = *head;
    *head = i;
    t->n_resident++;

    return i;
}


void
kv_tags_drop(kv_tags_t *t, int32_t block)
{
    int32_t  ref, next;

    for (ref = t->first[block]; ref >= 0; ref = next) {
        next = t->ref[ref].next;

        kv_tags_unref(t, t->ref[ref].tag);

        t->ref[ref].next = t->free_ref;
        t->free_ref = ref;
    }

    t->first[block] = -1;
}


static void
kv_tags_unref(kv_tags_t *t, int32_t index)
{
    int32_t   *p;
    kv_tag_t  *tag;

    tag = &t->tag[index];

    if (--tag->blocks > 0) {
        return;
    }

    p = kv_tags_bucket(t, tag->tag);

    while (*p != index) {
        p = &t->tag[*p].chain;
    }

    *p = tag->chain;
    tag->chain = t->free_tag;
    t->free_tag = index;
    t->n_resident--;

    t->lost(t->lost_ctx, tag->tag);
}
