/*
 * Tags of KV blocks: names that others have for prefixes.
 *
 * A tag stands for a prefix; it is given to the block that holds the prefix's
 * last token.  As a block holds more tokens than that one, a tag may be on
 * several blocks, and a block has several tags.  A tag is resident while it is
 * on any block, and is reported when it is not any more.
 *
 * Only blocks in the rank's memory count here.  A tag is reported when its last
 * block leaves that, even if the disk tier keeps the block: whoever routes by
 * the reports forgets it early, and a request may go to another rank, to which
 * the disk is as near.  What the disk tier drops is not reported.  The tags of
 * ACCEPTED count on disk as well, see sched_disk_tags().
 *
 * There is room for KV_TAGS tags per block on average; one that finds none is
 * reported at once, so that nobody believes in it.
 */

#ifndef SCHED_KV_TAGS_H
#define SCHED_KV_TAGS_H

#include <stdint.h>


#define KV_TAGS  4

typedef void (*kv_tag_lost_pt)(void *ctx, uint64_t tag);

typedef struct {
    uint64_t  tag;
    uint32_t  blocks;                /* that it is on */
    int32_t   chain;                 /* next of the bucket, or of the free */
} kv_tag_t;

typedef struct {
    int32_t   tag;
    int32_t   next;                  /* of the block, or of the free */
} kv_tag_ref_t;

typedef struct {
    uint32_t         n_blocks;
    uint32_t         size;           /* of tag and ref each */
    kv_tag_t        *tag;
    kv_tag_ref_t    *ref;
    int32_t         *first;          /* [n_blocks] -1: none */
    int32_t         *bucket;
    uint32_t         mask;
    uint32_t         n_tag;          /* used so far, those free again too */
    uint32_t         n_ref;
    int32_t          free_tag;
    int32_t          free_ref;
    uint32_t         n_resident;
    kv_tag_lost_pt   lost;
    void            *lost_ctx;
} kv_tags_t;


/* 0, or -1: no memory.  kv_tags_close() reports nothing. */
int kv_tags_open(kv_tags_t *t, uint32_t n_blocks, kv_tag_lost_pt lost,
    void *ctx);
void kv_tags_close(kv_tags_t *t);

/* Gives a block a tag, which it may have already. */
void kv_tags_add(kv_tags_t *t, int32_t block, uint64_t tag);

/* Takes all tags from a block. */
void kv_tags_drop(kv_tags_t *t, int32_t block);

/* Whether a block has it; whether it is resident. */
int kv_tags_has(const kv_tags_t *t, int32_t block, uint64_t tag);
int kv_tags_resident(const kv_tags_t *t, uint64_t tag);

#endif /* SCHED_KV_TAGS_H */
