/*
 * A table of names in shared memory, with as many bytes for each as its user
 * wants.  It is made once, in an area of fixed size, and only ever grows.
 *
 * Names are added under the zone's lock and looked up with or without it: a
 * slot is filled before it is marked as used, so whoever is killed in between
 * leaves nothing that others would see.
 */

#ifndef NGX_HTTP_LLM_TABLE_H
#define NGX_HTTP_LLM_TABLE_H

#include <ngx_config.h>
#include <ngx_core.h>


#define NGX_HTTP_LLM_TABLE_NAME  256      /* bytes of a name at most */

typedef struct {
    ngx_uint_t   nslots;             /* a power of two */
    ngx_uint_t   n;                  /* in use */
    size_t       stride;
    u_char      *slots;
} ngx_http_llm_table_t;


/*
 * A table for names with `size` bytes each, zeros at first, in all the room
 * that a new zone has; NULL: there is not enough for any.
 *
 * ngx_http_llm_table_find() is the bytes of a name, NULL: it is not there.
 * ngx_http_llm_table_get() adds it then, NULL: the table is full or the name
 * too long.  ngx_http_llm_table_next() goes through all: `*i` is 0 at first;
 * NULL after the last one.
 */

ngx_http_llm_table_t *ngx_http_llm_table_create(ngx_slab_pool_t *shpool,
    size_t size);
void *ngx_http_llm_table_find(ngx_http_llm_table_t *table, ngx_str_t *name);
void *ngx_http_llm_table_get(ngx_http_llm_table_t *table, ngx_str_t *name);
void *ngx_http_llm_table_next(ngx_http_llm_table_t *table, ngx_uint_t *i,
    ngx_str_t *name);


#endif /* NGX_HTTP_LLM_TABLE_H */
