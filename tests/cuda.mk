# CUDA without a GPU.  The kernels (engine/backend/cuda/*.cu) and the device
# backend's host code are compiled once more by g++ against the emulator,
# tests/cuda/emu, into build/libcuemu.a; tests/cuda/test_*.c and *.cc are
# cmocka programs linked with it, and part of check-unit.  So are
# tests/cuda/gpu_*.c and *.cc, which use nothing of the emulator's own and are
# built once more for a GPU (tests/gpu.mk).  Of the benchmarks a tiny run on the
# emulator shows that they work: make build/tests/cuda/bench_layer, --small.
#
# With SANITIZE=1 or thread they are part of check-unit as well, one with
# SANITIZE=thread build/tsan/tests/cuda/test_cuda_ranks.  Threads of a launch are
# one to thread sanitizer, ranks' threads, that wait by flags too, are not.

ifeq ($(origin CXX),default)
CXX := $(if $(findstring ccache,$(CC)),ccache )g++
endif

EMU_INC  := -DCU_EMU -Itests/cuda/emu/include -Itests/cuda/emu -Iengine
EMU_WARN := -Wall -Wextra -Werror -Wno-missing-field-initializers \
            -Wno-unknown-pragmas -Wno-psabi
EMU_CXX   = $(CXX) -std=c++17 -D_GNU_SOURCE $(OPT) -g $(EMU_WARN) \
            -ffp-contract=off -fno-math-errno -pthread $(EMU_INC) $(SAN)
EMU_CC    = $(CC) $(filter-out -Iengine,$(CFLAGS)) $(EMU_INC)

EMU_SRC := $(sort $(wildcard tests/cuda/emu/*.cc engine/backend/cuda/*.cu \
             engine/backend/cuda/*.c))
EMU_OBJ := $(EMU_SRC:%=$(BUILD)/emu/%.o)
EMU_LIB := $(BUILD)/libcuemu.a

$(BUILD)/emu/%.cc.o: %.cc
	@mkdir -p $(@D)
	@echo "CXX $<"
	$(Q)$(EMU_CXX) -MMD -MP -c -o $@ $<

$(BUILD)/emu/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo "CXX $<"
	$(Q)$(EMU_CXX) -DCU_EARLY -x c++ -MMD -MP -c -o $@ $<

$(BUILD)/emu/%.c.o: %.c
	@mkdir -p $(@D)
	@echo "CC $< (emulated)"
	$(Q)$(EMU_CC) -MMD -MP -c -o $@ $<

$(EMU_LIB): $(EMU_OBJ)
	@rm -f $@
	$(Q)ar rcs $@ $^

# Products in software want the vector units.
$(BUILD)/emu/tests/cuda/emu/%.o: OPT := -O3

CUDA_TEST_SRC := $(sort $(wildcard tests/cuda/test_*.c tests/cuda/test_*.cc \
                   tests/cuda/gpu_*.c tests/cuda/gpu_*.cc))
CUDA_TEST_BIN := $(CUDA_TEST_SRC:tests/%=$(BUILD)/tests/%)
CUDA_TEST_BIN := $(basename $(CUDA_TEST_BIN))

CUDA_TEST_LINK = -Itests -Itests/unit -MMD -MP $(LDFLAGS) -o $@ $< \
                 $(EMU_LIB) $(LIB) $(LDLIBS) -lcmocka -lstdc++

$(BUILD)/tests/cuda/%: tests/cuda/%.cc $(EMU_LIB) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CXX $<"
	$(Q)$(EMU_CXX) $(CUDA_TEST_LINK)

$(BUILD)/tests/cuda/%: tests/cuda/%.c $(EMU_LIB) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(EMU_CC) $(CUDA_TEST_LINK)

UNIT_BIN += $(CUDA_TEST_BIN)

# The engine with the device backend on the emulator, for tests alone.

EMU_ENGINE := $(BUILD)/tests/cuda/llm-engine
EMU_BE_OBJ := $(filter $(BUILD)/emu/engine/%,$(EMU_OBJ))

$(EMU_ENGINE): $(BUILD)/engine/main.o $(EMU_LIB) $(LIB)
	@mkdir -p $(@D)
	@echo "LD $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $< $(EMU_BE_OBJ) $(EMU_LIB) $(LIB) $(LDLIBS) \
	    -lstdc++

-include $(EMU_OBJ:.o=.d) $(CUDA_TEST_BIN:=.d)
