# The CUDA backend, where there is a toolkit: nvcc in CUDA_HOME, or else in
# /usr/local/cuda or the path.  Its objects are linked with the engine, and not
# in the library, which is the same everywhere.  cudart is linked statically;
# the driver and cuBLASLt are loaded when the backend is opened, so that the
# engine starts where they are not.

ifeq ($(origin CUDA_HOME),undefined)
CUDA_HOME := $(or $(patsubst %/bin/nvcc,%,$(wildcard /usr/local/cuda/bin/nvcc)), \
                  $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v nvcc))))
endif

NVCC ?= $(wildcard $(addsuffix /bin/nvcc,$(strip $(CUDA_HOME))))

# 12.9 or newer: nothing, or why not
CUDA_OLD = $(shell $(NVCC) --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p' \
    | awk '{ if ($$1 * 100 + $$2 < 1209) print "nvcc " $$1 "." $$2 " is older than 12.9" }')

ifneq ($(SANITIZE),)
CUDA_NONE := , without the cuda backend: no sanitizers on devices
else ifeq ($(strip $(NVCC)),)
CUDA_NONE := , without the cuda backend: there is no nvcc (12.9 or newer)
else ifneq ($(strip $(CUDA_OLD)),)
CUDA_NONE := , without the cuda backend: $(strip $(CUDA_OLD))
endif

ifeq ($(CUDA_NONE),)
CUDA_LESS := $(if $(wildcard $(strip $(CUDA_HOME))/include/nccl.h /usr/include/nccl.h),,, without NCCL: there is no nccl.h)
endif

CUDA_SRC := $(sort $(wildcard engine/backend/cuda/*.c engine/backend/cuda/*.cu))

ifeq ($(CUDA_NONE),)

CUDA_OBJ  := $(CUDA_SRC:%=$(BUILD)/%.o)
CUDA_LIBS := $(firstword $(wildcard $(addprefix $(strip $(CUDA_HOME))/, \
               lib64/libcudart_static.a lib/libcudart_static.a \
               targets/x86_64-linux/lib/libcudart_static.a))) \
             -ldl -lrt

NVCCFLAGS := -std=c++17 -O3 --compress-mode=size -Iengine \
             -gencode arch=compute_90a,code=sm_90a \
             $(if $(RACECHECK),-DCU_RACECHECK) \
             $(if $(CUDA_EARLY),-DCU_EARLY) -Werror all-warnings -Xcompiler -Wall,-Werror,-fno-exceptions,-fno-threadsafe-statics

# The same draws as the CPU's: no multiplication and addition becomes one.
$(BUILD)/engine/backend/cuda/cu_sample.cu.o: NVCC_OPT := -fmad=false

$(BUILD)/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo "NVCC $<"
	$(Q)$(if $(findstring ccache,$(CC)),ccache )$(NVCC) $(NVCCFLAGS) \
	    $(NVCC_OPT) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(BUILD)/engine/backend/cuda/%.c.o: engine/backend/cuda/%.c
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) -isystem $(strip $(CUDA_HOME))/include -MMD -MP \
	    -c -o $@ $<

-include $(CUDA_OBJ:.o=.d)

endif
