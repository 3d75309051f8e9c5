/*
 * Stand-ins for nginx's own functions.  The tree is not balanced: its keys are
 * hashes, so it is no deeper than a random one.
 */

#include "shim/ngx_shim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>


size_t    shim_slab_left = SIZE_MAX / 2;
size_t    shim_slab_used;
uint64_t  shim_locks;

ngx_uint_t            ngx_pagesize = 4096;
volatile ngx_msec_t   ngx_current_msec;
volatile ngx_time_t  *ngx_cached_time;

ngx_pid_t  ngx_pid;
ngx_int_t  ngx_process_slot;

/* In front of each piece. */

typedef struct shim_head_s  shim_head_t;

struct shim_head_s {
    shim_head_t  *next;
    shim_head_t **prev;
    size_t        size;
    size_t        pad;
};

static shim_head_t  *shim_heads;
static ngx_time_t    shim_time;
static int           shim_held;


static size_t shim_class(size_t size);
static void shim_put(ngx_rbtree_t *tree, ngx_rbtree_node_t *node,
    ngx_rbtree_node_t *with);


void
shim_clock(uint64_t ms)
{
    ngx_current_msec = ms;
    shim_time.sec = (time_t) (ms / 1000);
    ngx_cached_time = &shim_time;
}


void
ngx_shmtx_lock(ngx_shmtx_t *mtx)
{
    (void) mtx;

    assert(!shim_held);
    shim_held = 1;
    shim_locks++;
}


void
ngx_shmtx_unlock(ngx_shmtx_t *mtx)
{
    (void) mtx;

    assert(shim_held);
    shim_held = 0;
}


/* nginx's slab rounds small sizes to powers of two. */

static size_t
shim_class(size_t size)
{
    size_t  n;

    for (n = 8; n < size; n *= 2) {
        /* void */
    }

    return n;
}


void *
ngx_slab_alloc_locked(ngx_slab_pool_t *pool, size_t size)
{
    size_t        n;
    shim_head_t  *head;

    (void) pool;

    assert(shim_held);

    n = shim_class(size);

    if (n > shim_slab_left) {
        return NULL;
    }

    head = malloc(sizeof(*head) + size);
    assert(head != NULL);

    memset(head + 1, 0xa5, size);
    head->size = n;
    head->next = shim_heads;
    head->prev = &shim_heads;

    if (head->next != NULL) {
        head->next->prev = &head->next;
    }

    shim_heads = head;
    shim_slab_left -= n;
    shim_slab_used += n;

    return head + 1;
}


void *
ngx_slab_calloc_locked(ngx_slab_pool_t *pool, size_t size)
{
    void  *p;

    p = ngx_slab_alloc_locked(pool, size);

    return p != NULL ? memset(p, 0, size) : NULL;
}


void *
ngx_slab_calloc(ngx_slab_pool_t *pool, size_t size)
{
    void  *p;

    ngx_shmtx_lock(&pool->mutex);
    p = ngx_slab_calloc_locked(pool, size);
    ngx_shmtx_unlock(&pool->mutex);

    return p;
}


void
ngx_slab_free_locked(ngx_slab_pool_t *pool, void *p)
{
    shim_head_t  *head;

    (void) pool;

    assert(shim_held);

    head = (shim_head_t *) p - 1;
    *head->prev = head->next;

    if (head->next != NULL) {
        head->next->prev = head->prev;
    }

    shim_slab_left += head->size;
    shim_slab_used -= head->size;
    free(head);
}


void
shim_slab_start(size_t size)
{
    shim_head_t  *head, *next;

    for (head = shim_heads; head != NULL; head = next) {
        next = head->next;
        free(head);
    }

    shim_heads = NULL;
    shim_slab_left = size;
    shim_slab_used = 0;
}


void
ngx_rbtree_insert_value(ngx_rbtree_node_t *root, ngx_rbtree_node_t *node,
    ngx_rbtree_node_t *sentinel)
{
    ngx_rbtree_node_t  **p;

    for (p = &root; *p != sentinel; /* void */) {
        root = *p;
        p = node->key < root->key ? &root->left : &root->right;
    }

    *p = node;
    node->parent = root;
    node->left = sentinel;
    node->right = sentinel;
}


void
ngx_rbtree_insert(ngx_rbtree_t *tree, ngx_rbtree_node_t *node)
{
    assert(shim_held);

    if (tree->root == tree->sentinel) {
        node->parent = NULL;
        node->left = tree->sentinel;
        node->right = tree->sentinel;
        tree->root = node;
        return;
    }

    tree->insert(tree->root, node, tree->sentinel);
}


void
ngx_rbtree_delete(ngx_rbtree_t *tree, ngx_rbtree_node_t *node)
{
    ngx_rbtree_node_t  *next, *nil;

    assert(shim_held);

    nil = tree->sentinel;

    if (node->left == nil || node->right == nil) {
        shim_put(tree, node, node->left == nil ? node->right : node->left);
        return;
    }

    for (next = node->right; next->left != nil; next = next->left) {
        /* void */
    }

    if (next->parent != node) {
        shim_put(tree, next, next->right);
        next->right = node->right;
        next->right->parent = next;
    }

    shim_put(tree, node, next);
    next->left = node->left;
    next->left->parent = next;
}


/* `with` takes the place of `node` below its parent. */

static void
shim_put(ngx_rbtree_t *tree, ngx_rbtree_node_t *node, ngx_rbtree_node_t *with)
{
    if (node->parent == NULL) {
        tree->root = with;

    } else if (node == node->parent->left) {
        node->parent->left = with;

    } else {
        node->parent->right = with;
    }

    if (with != tree->sentinel) {
        with->parent = node->parent;
    }
}
