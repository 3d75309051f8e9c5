/* As in CUDA, the runtime interface and, for C++, its vector types. */

#ifndef EMU_CUDA_RUNTIME_H
#define EMU_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#ifdef __cplusplus
#include "../emu_types.h"
#endif

#endif /* EMU_CUDA_RUNTIME_H */
