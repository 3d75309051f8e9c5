/*
 * A table of names in shared memory: open addressing, three quarters full at
 * most.
 */

#include "ngx_http_llm_table.h"


typedef struct {
    volatile ngx_uint_t  used;
    uint32_t             hash;
    uint32_t             len;
    u_char               name[NGX_HTTP_LLM_TABLE_NAME];
} ngx_http_llm_slot_t;


static ngx_http_llm_slot_t *ngx_http_llm_table_slot(
    ngx_http_llm_table_t *table, ngx_str_t *name, uint32_t hash);
static uint32_t ngx_http_llm_table_hash(ngx_str_t *name);


#define ngx_http_llm_table_at(table, i)                                      \
    ((ngx_http_llm_slot_t *) ((table)->slots + (i) * (table)->stride))

#define ngx_http_llm_table_bytes(slot)                                       \
    ((void *) ((u_char *) (slot) + sizeof(ngx_http_llm_slot_t)))


ngx_http_llm_table_t *
ngx_http_llm_table_create(ngx_slab_pool_t *shpool, size_t size)
{
    size_t                 room;
    ngx_uint_t             n;
    ngx_http_llm_table_t  *table;

    table = ngx_slab_calloc(shpool, sizeof(ngx_http_llm_table_t));
    if (table == NULL) {
        return NULL;
    }

    table->stride = ngx_align(sizeof(ngx_http_llm_slot_t) + size, 16);
    room = shpool->pfree * ngx_pagesize;

    for (n = 1; 2 * n * table->stride <= room; n *= 2) { /* void */ }

    if (n < 4) {
        return NULL;
    }

    table->slots = ngx_slab_calloc(shpool, n * table->stride);
    if (table->slots == NULL) {
        return NULL;
    }

    table->nslots = n;

    return table;
}


void *
ngx_http_llm_table_find(ngx_http_llm_table_t *table, ngx_str_t *name)
{
    ngx_http_llm_slot_t  *slot;

    slot = ngx_http_llm_table_slot(table, name,
                                   ngx_http_llm_table_hash(name));

    return slot->used ? ngx_http_llm_table_bytes(slot) : NULL;
}


void *
ngx_http_llm_table_get(ngx_http_llm_table_t *table, ngx_str_t *name)
{
    uint32_t              hash;
    ngx_http_llm_slot_t  *slot;

    hash = ngx_http_llm_table_hash(name);
    slot = ngx_http_llm_table_slot(table, name, hash);

    if (!slot->used) {

        if (table->n >= table->nslots / 4 * 3
            || name->len > NGX_HTTP_LLM_TABLE_NAME)
        {
            return NULL;
        }

        slot->hash = hash;
        slot->len = name->len;
        ngx_memcpy(slot->name, name->data, name->len);
        ngx_memzero(ngx_http_llm_table_bytes(slot),
                    table->stride - sizeof(ngx_http_llm_slot_t));

        ngx_memory_barrier();

        slot->used = 1;
        table->n++;
    }

    return ngx_http_llm_table_bytes(slot);
}


void *
ngx_http_llm_table_next(ngx_http_llm_table_t *table, ngx_uint_t *i,
    ngx_str_t *name)
{
    ngx_http_llm_slot_t  *slot;

    while (*i < table->nslots) {
        slot = ngx_http_llm_table_at(table, (*i)++);

        if (slot->used) {
            name->data = slot->name;
            name->len = slot->len;

            return ngx_http_llm_table_bytes(slot);
        }
    }

    return NULL;
}


/* Its slot, or the one that it would get. */

static ngx_http_llm_slot_t *
ngx_http_llm_table_slot(ngx_http_llm_table_t *table, ngx_str_t *name,
    uint32_t hash)
{
    ngx_uint_t            i;
    ngx_http_llm_slot_t  *slot;

    for (i = hash; /* void */ ; i++) {
        slot = ngx_http_llm_table_at(table, i & (table->nslots - 1));

        if (!slot->used
            || (slot->hash == hash && slot->len == name->len
                && ngx_memcmp(slot->name, name->data, name->len) == 0))
        {
            return slot;
        }
    }
}


/* FNV-1a */

static uint32_t
ngx_http_llm_table_hash(ngx_str_t *name)
{
    size_t    i;
    uint32_t  hash;

    hash = 2166136261u;

    for (i = 0; i < name->len; i++) {
        hash = (hash ^ name->data[i]) * 16777619u;
    }

    return hash;
}
