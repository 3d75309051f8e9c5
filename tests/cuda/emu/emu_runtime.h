/*
 * Streams, events, graphs, launches, devices and memory behind the runtime
 * interface: what their files need of each other.
 */

#ifndef EMU_RUNTIME_H
#define EMU_RUNTIME_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#include "cuda_runtime_api.h"


#define EMU_SMEM_PLAIN  (48 << 10)   /* shared memory of a block */
#define EMU_SMEM_OPTIN  232448       /* where its kernel asked for more */


/* Thread sanitizer is slow, and here nothing is shared: its own memory. */

#if defined(__SANITIZE_THREAD__)
#define EMU_UNSEEN  __attribute__((no_sanitize_thread))
#else
#define EMU_UNSEEN
#endif

typedef std::function<void()>  emu_op_t;


/* Queues an operation, or adds it to the graph that the stream captures. */
cudaError_t emu_queue(cudaStream_t stream, const char *what, emu_op_t op);

/* Not while `stream` captures: the error, else 0. */
cudaError_t emu_may_wait(cudaStream_t stream);
int emu_captures(cudaStream_t stream);
int emu_any_capture(void);

/* Whether a capture forbids this thread what could wait. */
int emu_unsafe(void);

/* The current one for the null stream. */
int emu_stream_device(cudaStream_t stream);

/* Runs what is queued: on one stream, on all (that block) of the device. */
void emu_drain(cudaStream_t stream);
void emu_drain_all(int blocking_only);

/* Has what is queued on idle streams run, in threads of their own. */
void emu_kick(void);

/* From now on what is queued may wait for what other threads do. */
void emu_apart(void);

/* Device and pinned memory: EMU_HOST means neither. */

typedef enum { EMU_HOST, EMU_PINNED, EMU_DEVICE } emu_place_t;

/* Where p lies; `left` is how many bytes from p on belong to it. */
emu_place_t emu_place(const void *p, size_t *left);

/* Ends the program if something wrote around an allocation. */
void emu_check_memory(const char *after);
void emu_memory_reset(void);

/* Seconds, of a clock that only goes on. */
double emu_now(void);

/* Notes an error of this thread, and returns it. */
cudaError_t emu_error(cudaError_t e);
int emu_device(void);
int emu_device_count(void);
size_t emu_device_memory(void);
int emu_device_sms(void);

/* What a stand-in for a library gives to dlsym(): NULL, there is none. */

typedef struct {
    const char  *name;
    void        *f;
} emu_call_t;

template <size_t N>
static inline void *
emu_call(const emu_call_t (&calls)[N], const char *name)
{
    for (auto &c : calls) {
        if (strcmp(c.name, name) == 0) {
            return c.f;
        }
    }

    return NULL;
}

#endif /* EMU_RUNTIME_H */
