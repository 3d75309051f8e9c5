/*
 * Opens a backend by its name.
 */

#include <stdio.h>
#include <string.h>

#include "backend/backend.h"


/* NULL where the program is linked without it. */
#pragma weak be_cuda_open
#pragma weak be_cuda_memory
#pragma weak be_cuda_peer_id


be_t *
be_open(const char *name, const be_options_t *opt, char *err)
{
    if (strcmp(name, "cpu") == 0) {
        return be_cpu_open(opt, err);
    }

    if (strcmp(name, "cuda") == 0 && be_cuda_open != NULL) {
        return be_cuda_open(opt, err);
    }

    snprintf(err, ERR_LEN, "backend \"%s\" is not built in; there is: cpu%s",
             name, be_cuda_open != NULL ? ", cuda" : "");

    return NULL;
}


int
be_memory(const char *name, uint32_t ranks, uint64_t *bytes, uint32_t *shared,
    char *err)
{
    if (strcmp(name, "cuda") == 0 && be_cuda_memory != NULL) {
        return be_cuda_memory(ranks, bytes, shared, err);
    }

    return 1;
}


int
be_peer_id(const char *name, uint8_t *id, char *err)
{
    if (strcmp(name, "cuda") == 0 && be_cuda_peer_id != NULL) {
        return be_cuda_peer_id(id, err);
    }

    snprintf(err, ERR_LEN, "backend \"%s\" has no exchange between processes",
             name);

    return -1;
}
