/*
 * The part of CUDA's runtime interface that the engine uses, for building
 * against the emulator: names, values and meaning as CUDA's.  What is queued
 * on a stream runs when somebody waits for it, not before: a result that was
 * not waited for is seen to be missing.
 */

#ifndef EMU_CUDA_RUNTIME_API_H
#define EMU_CUDA_RUNTIME_API_H

#include <stddef.h>
#include <stdint.h>


#define CUDART_VERSION  13000
#define CUDA_VERSION    13000
#define CUDART_CB

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorSymbolNotFound = 500,
    cudaErrorNotReady = 600,
    cudaErrorPeerAccessAlreadyEnabled = 704,
    cudaErrorHostMemoryAlreadyRegistered = 712,
    cudaErrorHostMemoryNotRegistered = 713,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureWrongThread = 908,
    cudaErrorGraphExecUpdateFailure = 910,
    cudaErrorUnknown = 999
} cudaError_t;

typedef struct CUstream_st     *cudaStream_t;
typedef struct CUevent_st      *cudaEvent_t;
typedef struct CUgraph_st      *cudaGraph_t;
typedef struct CUgraphExec_st  *cudaGraphExec_t;
typedef struct CUgraphNode_st  *cudaGraphNode_t;

typedef void (*cudaHostFn_t)(void *);

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

typedef enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2
} cudaStreamCaptureMode;

typedef enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
    cudaStreamCaptureStatusInvalidated = 2
} cudaStreamCaptureStatus;

enum cudaMemoryType {
    cudaMemoryTypeUnregistered = 0,
    cudaMemoryTypeHost = 1,
    cudaMemoryTypeDevice = 2,
    cudaMemoryTypeManaged = 3
};

enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess = 0,
    cudaDriverEntryPointSymbolNotFound = 1,
    cudaDriverEntryPointVersionNotSufficent = 2
};

#define cudaStreamDefault              0
#define cudaStreamNonBlocking          1
#define cudaGraphInstantiateFlagUseNodePriority  8
#define cudaEventDefault               0
#define cudaEventBlockingSync          1
#define cudaEventDisableTiming         2
#define cudaHostAllocDefault           0
#define cudaHostAllocPortable          1
#define cudaHostAllocMapped            2
#define cudaHostAllocWriteCombined     4
#define cudaHostRegisterDefault        0
#define cudaHostRegisterPortable       1
#define cudaHostRegisterMapped         2
#define cudaHostRegisterReadOnly       8
#define cudaEnableDefault              0
#define cudaDeviceScheduleAuto         0
#define cudaDeviceScheduleSpin         1
#define cudaDeviceScheduleYield        2
#define cudaDeviceScheduleBlockingSync 4

typedef struct dim3 {
    unsigned int  x, y, z;

#ifdef __cplusplus
    dim3(unsigned int a = 1, unsigned int b = 1, unsigned int c = 1)
        : x(a), y(b), z(c) { }
#endif
} dim3;

typedef struct cudaDeviceProp {
    char    name[256];
    size_t  totalGlobalMem;
    size_t  sharedMemPerBlock;
    size_t  sharedMemPerBlockOptin;
    size_t  sharedMemPerMultiprocessor;
    int     regsPerBlock;
    int     regsPerMultiprocessor;
    int     warpSize;
    int     maxThreadsPerBlock;
    int     maxThreadsPerMultiProcessor;
    int     major;
    int     minor;
    int     multiProcessorCount;
    int     l2CacheSize;
    int     memoryBusWidth;
    int     asyncEngineCount;
    int     cooperativeLaunch;
    int     integrated;
    int     pciDomainID;
    int     pciBusID;
    int     pciDeviceID;
} cudaDeviceProp;

typedef struct cudaPointerAttributes {
    enum cudaMemoryType  type;
    int                  device;
    void                *devicePointer;
    void                *hostPointer;
} cudaPointerAttributes;

typedef struct cudaGraphExecUpdateResultInfo {
    int              result;
    cudaGraphNode_t  errorNode;
    cudaGraphNode_t  errorFromNode;
} cudaGraphExecUpdateResultInfo;

typedef struct cudaFuncAttributes {
    size_t  sharedSizeBytes;
    size_t  localSizeBytes;
    int     maxThreadsPerBlock;
    int     numRegs;
    int     maxDynamicSharedSizeBytes;
} cudaFuncAttributes;


cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr,
    int device);
cudaError_t cudaSetDeviceFlags(unsigned int flags);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer);
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);

cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);

cudaError_t cudaMalloc(void **p, size_t size);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t size);
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned int flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t size, unsigned int flags);
cudaError_t cudaHostUnregister(void *p);
cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned int flags);
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a,
    const void *p);

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n,
    enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n,
    enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src,
    int src_device, size_t n, cudaStream_t stream);
cudaError_t cudaMemcpy2D(void *dst, size_t dpitch, const void *src,
    size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src,
    size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind,
    cudaStream_t stream);
cudaError_t cudaMemset(void *p, int value, size_t n);
cudaError_t cudaMemsetAsync(void *p, int value, size_t n,
    cudaStream_t stream);

cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream,
    unsigned int flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream,
    unsigned int flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
    unsigned int flags);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f,
    void *data);

cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from,
    cudaEvent_t to);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream,
    cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
    cudaStreamCaptureStatus *status);
cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned int flags);
cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t *node,
    cudaGraph_t graph, const cudaGraphNode_t *before, size_t n,
    cudaGraph_t child);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
    unsigned long long flags);
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
    cudaGraphExecUpdateResultInfo *info);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes,
    size_t *n);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute attr,
    int value);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **f,
    unsigned int version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result);
cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **f,
    unsigned long long flags, enum cudaDriverEntryPointQueryResult *result);


/*
 * The emulator's own.  emu_set_device() is for before the first other call:
 * how many devices there are, their multiprocessors and memory.  The n-th
 * allocation of device memory from now on fails after emu_fail_malloc(n), the
 * n-th of pinned memory after emu_fail_pinned(n), the n-th kernel to be
 * launched or captured after emu_fail_launch(n), the n-th graph to be launched
 * after emu_fail_graph(n); 0: none.  emu_in_use() is the bytes of device memory
 * that were not freed; emu_launches() counts kernels.
 */
void emu_set_device(int count, int multiprocessors, size_t memory);
void emu_fail_malloc(int n);
void emu_fail_pinned(int n);
void emu_fail_launch(int n);
void emu_fail_graph(int n);
size_t emu_in_use(void);
unsigned long long emu_launches(void);

#ifdef __cplusplus
}
#endif

#endif /* EMU_CUDA_RUNTIME_API_H */
