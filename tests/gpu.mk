# On a GPU: make gpu-bundle makes one folder, build/gpu, that runs the checks
# and the benchmarks where nothing is installed but a driver, python3 with
# numpy and, for the fastest products in BF16, cuBLASLt:
#
#     build/gpu/check.sh      make check-gpu
#     build/gpu/bench.sh      make bench-gpu
#     build/gpu/e2e.sh        V2-Lite's sizes, through nginx
#
# tests/cuda/gpu_*.c and bench_*.c (or .cc) are its programs, each with the
# kernels that it uses.  Libraries are linked statically where Debian has them
# so, the others are carried.

GPU      := $(BUILD)/gpu
GPU_SRC  := $(sort $(wildcard tests/cuda/gpu_*.c tests/cuda/gpu_*.cc \
              tests/cuda/bench_*.c tests/cuda/bench_*.cc))
GPU_BIN  := $(basename $(GPU_SRC:tests/cuda/%=$(GPU)/bin/%))
GPU_NGINX = $(or $(wildcard /usr/sbin/nginx),$(shell command -v nginx))
GPU_INC   = -Itests -Itests/unit -isystem $(strip $(CUDA_HOME))/include
GPU_AR    := $(BUILD)/libllm-cuda.a
GPU_LINK  = $(LDFLAGS) '-Wl,-rpath,$$ORIGIN/../lib' -o $@ $(1) \
            $(GPU_ALL) $(GPU_AR) $(BUILD)/libllm.a $(CUDA_LIBS) -lcjson -lcmocka \
            -Wl,-Bstatic -lpcre2-8 -lxxhash -lcrypto -latomic_ops \
            -Wl,-Bdynamic -lm

ifeq ($(CUDA_NONE),)

# be_open() finds the backend if it is there, which does not bring it there

$(GPU)/bin/llm-engine $(GPU)/bin/gpu_model: GPU_ALL := -Wl,-u,be_cuda_open

$(GPU)/bin/llm-engine: $(BUILD)/engine/main.o $(GPU_AR) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "LD $@"
	$(Q)$(CC) $(call GPU_LINK,$(BUILD)/engine/main.o)

$(GPU_AR): $(CUDA_OBJ)
	@rm -f $@
	@echo "AR $@"
	$(Q)ar rcs $@ $^

$(GPU)/bin/%: tests/cuda/%.c $(GPU_AR) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CC $@"
	$(Q)$(CC) $(CFLAGS) $(GPU_INC) -c -o $(BUILD)/gpu_$*.o $<
	$(Q)$(CC) $(call GPU_LINK,$(BUILD)/gpu_$*.o)

$(GPU)/bin/%: tests/cuda/%.cc $(GPU_AR) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CXX $@"
	$(Q)g++ -std=c++17 -D_GNU_SOURCE $(OPT) -g -Wall -Iengine $(GPU_INC) \
	    -fno-exceptions -fno-threadsafe-statics -c \
	    -o $(BUILD)/gpu_$*.o $<
	$(Q)$(CC) $(call GPU_LINK,$(BUILD)/gpu_$*.o) -static-libgcc \
	    -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic

tests: $(GPU_BIN)

.PHONY: gpu-bundle
gpu-bundle: $(GPU)/bin/llm-engine $(GPU_BIN) $(BUILD)/tests/bench/sse_load \
            $(BUILD)/ngx_http_llm_module.so
	@rm -rf $(GPU)/lib
	@mkdir -p $(GPU)/lib $(GPU)/reference $(GPU)/wordnet-tiny
	@for l in cjson cmocka; do \
	    cp -L $$(ldd $(GPU)/bin/gpu_model $(GPU)/bin/llm-engine \
	             | awk -v l=lib$$l.so '$$1 ~ "^" l { print $$3; exit }') \
	        $(GPU)/lib/; \
	done
	@cp tests/reference/*.py $(GPU)/reference/
	@cp engine/models/wordnet-tiny/*.json \
	    engine/models/wordnet-tiny/*.safetensors $(GPU)/wordnet-tiny/
	@cp tests/cuda/check.sh tests/cuda/bench.sh tests/cuda/libraries.sh $(GPU)/
	@cp tests/cuda/e2e.sh tests/cuda/e2e.py $(GPU)/
	@cp $(BUILD)/tests/bench/sse_load $(GPU)/bin/
	@rm -rf $(GPU)/nginx
	@mkdir -p $(GPU)/nginx
	@cp $(BUILD)/ngx_http_llm_module.so $(GPU)/nginx/
	@cp $(GPU_NGINX) $(GPU)/nginx/nginx
	@cp -L $$(ldd $(GPU_NGINX) $(BUILD)/ngx_http_llm_module.so \
	    | awk '$$3 ~ "lib(crypt|crypto|ssl|pcre2-8|z|cjson|xxhash)\\.so" { print $$3 }' \
	    | sort -u) $(GPU)/nginx/
	@strip -g $(GPU)/bin/* $(GPU)/nginx/*
	@du -sh $(GPU)
	@test $$(du -sm $(GPU) | cut -f1) -le 60

else

.PHONY: gpu-bundle
gpu-bundle:
	@echo "gpu-bundle$(CUDA_NONE)"
	@false

endif

.PHONY: check-gpu bench-gpu ptxas
check-gpu: $(if $(CUDA_NONE),,gpu-bundle)
	$(GPU)/check.sh

bench-gpu: $(if $(CUDA_NONE),,gpu-bundle)
	$(GPU)/bench.sh

# What the assembler and the machine code say of the kernels; no GPU needed.

ptxas:
	@NVCC="$(NVCC)" NVCCFLAGS="$(NVCCFLAGS)" BUILD=$(BUILD) \
	    tests/cuda/ptxas.sh $(filter %.cu,$(CUDA_SRC))
