/*
 * What this processor can do at most, measured: instructions that multiply,
 * alone and from registers, and reading memory from one end to the other.
 * For benchmarks, which set what the kernels reach against it.
 */

#ifndef BE_PEAK_H
#define BE_PEAK_H

#include <stddef.h>

#include "backend/cpu/be_team.h"


typedef enum {
    BE_PEAK_F32 = 0,                 /* what is multiplied */
    BE_PEAK_BF16,
    BE_PEAK_INT16
} be_peak_type_t;

typedef struct {
    const char       *name;          /* of the instruction */
    be_peak_type_t    type;
    const char       *path;          /* the first kernel path that has it */
    double          (*run)(void);    /* some of it; how many operations */
} be_peak_t;


/*
 * The fastest that a kernel path may use for a type: what it is to be
 * compared with.  Where a path has none for it, the one for floats.
 */
const be_peak_t *be_peak_of(const char *path, be_peak_type_t type);

/*
 * By all of the team: operations (a multiplication and an addition are two)
 * and bytes of `data` (64-byte aligned) per second, at best.
 */
double be_peak_measure(be_team_t *team, const be_peak_t *peak);
double be_peak_read(be_team_t *team, const void *data, size_t size);

#endif /* BE_PEAK_H */
