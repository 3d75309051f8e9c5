/*
 * Weights into memory of huge pages.
 *
 * A mapped file comes in pages of 4 kB, and reading weights at the memory's
 * speed then waits for page tables: a core reads a third more from huge pages
 * in a virtual machine.  The copy takes the place of the mapping, so that
 * nothing that points into it changes.
 */

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "model/model_shards.h"


static int load_file(const model_t *model, shard_t *f, char *err);


int
model_load(model_t *model, char *err)
{
    uint32_t         i;
    model_shards_t  *s;

    s = model->shards;

    for (i = 0; i < s->n_files; i++) {
        if (s->file[i].map != NULL && load_file(model, &s->file[i], err) != 0)
        {
            return -1;
        }
    }

    return 0;
}


static int
load_file(const model_t *model, shard_t *f, char *err)
{
    void  *p;

    p = mmap(NULL, f->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        return model_error(err, "%s/%s: no memory for its %zu bytes: %s",
                           model->dir, f->name, f->size, strerror(errno));
    }

    (void) madvise(p, f->size, MADV_HUGEPAGE);
    memcpy(p, f->map, f->size);

    if (mprotect(p, f->size, PROT_READ) == -1
        || mremap(p, f->size, f->size, MREMAP_MAYMOVE | MREMAP_FIXED, f->map)
           == MAP_FAILED)
    {
        model_error(err, "%s/%s: cannot move into memory: %s", model->dir,
                    f->name, strerror(errno));
        (void) munmap(p, f->size);

        return -1;
    }

    return 0;
}
