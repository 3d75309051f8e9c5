/*
 * Devices: how many there are, what they say of themselves, and errors.
 */

#include <stdlib.h>
#include <string.h>

#include "emu_runtime.h"


#define EMU_SMS     4
#define EMU_MEMORY  ((size_t) 8 << 30)


static int dev_wanted(void);


static int                       dev_count = dev_wanted();
static int                       dev_sms = EMU_SMS;
static size_t                    dev_memory = EMU_MEMORY;
static thread_local int          dev_current;
static thread_local cudaError_t  dev_error;


/* A program that does not ask for devices has one, or CU_EMU_DEVICES. */

static int
dev_wanted(void)
{
    const char  *n;

    n = getenv("CU_EMU_DEVICES");

    return n != NULL ? atoi(n) : 1;
}


void
emu_set_device(int count, int multiprocessors, size_t memory)
{
    dev_count = count;
    dev_sms = multiprocessors;
    dev_memory = memory;
}


int
emu_device(void)
{
    return dev_current;
}


int
emu_device_count(void)
{
    return dev_count;
}


int
emu_device_sms(void)
{
    return dev_sms;
}


size_t
emu_device_memory(void)
{
    return dev_memory;
}


cudaError_t
emu_error(cudaError_t e)
{
    dev_error = e;

    return e;
}


cudaError_t
cudaGetLastError(void)
{
    cudaError_t  e;

    e = dev_error;
    dev_error = cudaSuccess;

    return e;
}


cudaError_t
cudaPeekAtLastError(void)
{
    return dev_error;
}


cudaError_t
cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;

    return cudaSuccess;
}


cudaError_t
cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;

    return cudaSuccess;
}


cudaError_t
cudaGetDeviceCount(int *count)
{
    *count = dev_count;

    return (dev_count == 0) ? emu_error(cudaErrorNoDevice) : cudaSuccess;
}


cudaError_t
cudaSetDevice(int device)
{
    if (device < 0 || device >= dev_count) {
        return emu_error(cudaErrorInvalidDevice);
    }

    dev_current = device;

    return cudaSuccess;
}


cudaError_t
cudaGetDevice(int *device)
{
    *device = dev_current;

    return cudaSuccess;
}


cudaError_t
cudaSetDeviceFlags(unsigned int)
{
    return cudaSuccess;
}


cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *prop, int device)
{
    if (device < 0 || device >= dev_count) {
        return emu_error(cudaErrorInvalidDevice);
    }

    memset(prop, 0, sizeof(cudaDeviceProp));
    strcpy(prop->name, "emulator");
    prop->totalGlobalMem = dev_memory;
    prop->sharedMemPerBlock = EMU_SMEM_PLAIN;
    prop->sharedMemPerBlockOptin = EMU_SMEM_OPTIN;
    prop->sharedMemPerMultiprocessor = 228 << 10;
    prop->regsPerBlock = 65536;
    prop->regsPerMultiprocessor = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->major = 9;
    prop->multiProcessorCount = dev_sms;
    prop->l2CacheSize = 50 << 20;
    prop->memoryBusWidth = 5120;
    prop->asyncEngineCount = 3;
    prop->cooperativeLaunch = 1;
    prop->pciBusID = device;

    return cudaSuccess;
}


cudaError_t
cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    if (device < 0 || device >= dev_count) {
        return emu_error(cudaErrorInvalidDevice);
    }

    switch (attr) {

    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;

    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = EMU_SMEM_PLAIN;
        break;

    case cudaDevAttrWarpSize:
        *value = 32;
        break;

    case cudaDevAttrClockRate:
        *value = 1755000;
        break;

    case cudaDevAttrMultiProcessorCount:
        *value = dev_sms;
        break;

    case cudaDevAttrMemoryClockRate:
        *value = 2619000;
        break;

    case cudaDevAttrGlobalMemoryBusWidth:
        *value = 5120;
        break;

    case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        break;

    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = 2048;
        break;

    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        break;

    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;

    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = 228 << 10;
        break;

    case cudaDevAttrCooperativeLaunch:
        *value = 1;
        break;

    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = EMU_SMEM_OPTIN;
        break;

    default:
        return emu_error(cudaErrorInvalidValue);
    }

    return cudaSuccess;
}


cudaError_t
cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = device != peer && device < dev_count && peer < dev_count;

    return cudaSuccess;
}


cudaError_t
cudaDeviceEnablePeerAccess(int peer, unsigned int)
{
    return (peer < 0 || peer >= dev_count || peer == dev_current)
           ? emu_error(cudaErrorInvalidDevice) : cudaSuccess;
}


cudaError_t
cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;

    return cudaSuccess;
}


const char *
cudaGetErrorName(cudaError_t e)
{
    return cudaGetErrorString(e);
}


const char *
cudaGetErrorString(cudaError_t e)
{
    switch (e) {

    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined:
        return "capture was not joined to its origin stream";
    case cudaErrorStreamCaptureWrongThread:
        return "capture was begun by another thread";
    case cudaErrorLaunchOutOfResources:
        return "too many resources requested for launch";
    case cudaErrorGraphExecUpdateFailure:
        return "the graph update was not performed";
    default:
        return "unknown error";
    }
}
