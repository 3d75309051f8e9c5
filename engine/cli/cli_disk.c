/*
 * The disk tier that the command line asks for: what names its blocks, and how
 * they come out of the ranks' KV memory and into it.
 */

#include "cli/cli_engine.h"

#include <stdio.h>
#include <string.h>

#include <xxhash.h>


/*
 * Grows when a backend's path comes to compute other bits than it did: blocks
 * of older engines are then no continuation.
 */
#define KV_ARITHMETIC  5


static uint64_t cli_kv_fingerprint(const cli_stack_t *st);
static void cli_kv_read(void *ctx, uint32_t rank, int32_t block, void *dst);
static void cli_kv_write(void *ctx, uint32_t rank, int32_t block,
    const void *src);


void
cli_stack_disk(cli_stack_t *st, const cli_engine_t *cli, sched_options_t *opt,
    void (*log)(int warning, const char *message))
{
    be_t  *be;

    if (cli->kv_cache_dir == NULL) {
        return;
    }

    be = cli_ranks_backend(st->ranks, 0);

    memset(&st->disk, 0, sizeof(st->disk));
    st->disk.dir = cli->kv_cache_dir;
    st->disk.size = cli->kv_cache_size;
    st->disk.block_size =
        be->kv_block_size(model_rank_kv(cli_ranks_rank(st->ranks, 0)));
    st->disk.fingerprint = cli_kv_fingerprint(st);
    st->disk.read = cli_kv_read;
    st->disk.write = cli_kv_write;
    st->disk.ctx = st;
    st->disk.log = log;

    opt->disk = &st->disk;
}


/*
 * Names all that decides the bytes of a block: the checkpoint, how it is
 * computed, how much of it a block holds.
 */

static uint64_t
cli_kv_fingerprint(const cli_stack_t *st)
{
    int   n;
    char  s[256];

    n = snprintf(s, sizeof(s), "%016llx %d %s %s %s %zu",
                 (unsigned long long) st->fingerprint, KV_ARITHMETIC,
                 cli_ranks_backend(st->ranks, 0)->name, st->path, st->compute,
                 st->disk.block_size);

    return XXH3_64bits(s, (size_t) n);
}


static void
cli_kv_read(void *ctx, uint32_t rank, int32_t block, void *dst)
{
    be_t         *be;
    cli_stack_t  *st = ctx;

    be = cli_ranks_backend(st->ranks, rank);

    be->kv_read(be, model_rank_kv(cli_ranks_rank(st->ranks, rank)), block,
                dst);
}


static void
cli_kv_write(void *ctx, uint32_t rank, int32_t block, const void *src)
{
    be_t         *be;
    cli_stack_t  *st = ctx;

    be = cli_ranks_backend(st->ranks, rank);

    be->kv_write(be, model_rank_kv(cli_ranks_rank(st->ranks, rank)), block,
                 src);
}
