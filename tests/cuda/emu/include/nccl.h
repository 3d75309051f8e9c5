/*
 * The part of NCCL that the engine uses, for building against the stand-in
 * (emu_nccl.cc): names, values and meaning as NCCL's.
 */

#ifndef EMU_NCCL_H
#define EMU_NCCL_H

#include <limits.h>

#include "cuda_runtime_api.h"


#define NCCL_MAJOR  2
#define NCCL_MINOR  28
#define NCCL_PATCH  3
#define NCCL_VERSION(x, y, z)  ((x) * 10000 + (y) * 100 + (z))

#define NCCL_CONFIG_UNDEF_INT  INT_MIN
#define NCCL_CONFIG_MAGIC      0xcafebeef

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ncclComm  *ncclComm_t;

typedef struct {
    char  internal[128];
} ncclUniqueId;

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7
} ncclResult_t;

typedef enum {
    ncclInt8 = 0,
    ncclUint8 = 1
} ncclDataType_t;

typedef struct {
    size_t        size;
    unsigned int  magic;
    unsigned int  version;
    int           blocking;
} ncclConfig_t;

#define NCCL_CONFIG_INITIALIZER                                               \
    { sizeof(ncclConfig_t), NCCL_CONFIG_MAGIC,                                \
      NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH), NCCL_CONFIG_UNDEF_INT }


/*
 * The stand-in's own.  Its library, as dlopen() and dlsym() would find it; not
 * at all after emu_nccl_missing(1).  After emu_nccl_mute(rank, n) what that rank
 * sends from its n-th group on never comes to the others; n 0: all does.
 */
void *emu_nccl_dlopen(const char *name, int flags);
void *emu_nccl_dlsym(void *library, const char *name);
void emu_nccl_missing(int missing);
void emu_nccl_mute(int rank, int n);

/* Groups that went through, and bytes that were sent. */
unsigned long long emu_nccl_groups(void);
unsigned long long emu_nccl_bytes(void);

/* Communicators that are not closed. */
int emu_nccl_open(void);

#ifdef __cplusplus
}
#endif

#endif /* EMU_NCCL_H */
