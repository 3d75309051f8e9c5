#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_flags.h"
#include "backend/cuda/cu_ptx.cuh"
#include "backend/cuda/cu_util.cuh"


/* A warp; lane r is for rank r. */

static __global__ void
flags_meet(cu_flags_t f)
{
    int       other, late;
    uint32_t  lane, want, seen, missing, gone;
    uint64_t  begin;

    cu_begin();

    lane = threadIdx.x;
    other = (lane < f.ranks && lane != f.rank);
    want = *f.count + 2;
    late = (f.stop[0] | f.stop[1]) != 0;

    __syncwarp();

    if (lane == 0) {
        *f.count = want;

        if (late) {
            f.stop[f.part] = 1;
        }
    }

    /* of what other threads have stored, too */

    __threadfence_system();

    if (other) {
        cu_store_release_sys(&f.flag[lane][f.rank], want | (late ? 1 : 0));
    }

    if (late) {
        return;
    }

    begin = cu_timer();

    do {
        seen = other ? cu_load_acquire_sys(&f.flag[f.rank][lane]) : want;
        gone = __ballot_sync(CU_ALL_LANES, seen & 1);
        missing = __ballot_sync(CU_ALL_LANES, (int32_t) (seen - want) < 0);
        late = __any_sync(CU_ALL_LANES, cu_timer() - begin > f.limit);

    } while (missing != 0 && gone == 0 && !late);

    if (missing == 0 && gone == 0) {
        return;
    }

    if (lane == 0) {
        f.stop[f.part] = 1;
        *f.late = (gone != 0) ? (uint32_t) __ffs((int) gone) | CU_FLAGS_OTHER
                              : (uint32_t) __ffs((int) missing);
        __threadfence_system();
    }

    if (other) {
        cu_store_release_sys(&f.flag[lane][f.rank], want | 1);
    }
}


int
cu_flags_meet(const cu_flags_t *f, void *stream)
{
    return CU_LAUNCH(flags_meet, dim3(1), dim3(CU_FLAGS_RANKS), 0,
                     (cudaStream_t) stream, *f);
}
