# Builds llm-engine, llm-ledger and ngx_http_llm_module, and runs everything
# around them.
#
#   make            engine, ledger and module, into build/
#   make run        installs what is missing, serves the shipped model
#   make check      all tests (installs what they need)
#   make bench      figures beside their peers
#   make gpu-bundle, check-gpu, bench-gpu, ptxas
#                   the CUDA backend on a GPU, see tests/gpu.mk
#
#   V=1             print the commands
#   SANITIZE=1      address and undefined-behaviour sanitizers
#   SANITIZE=thread thread sanitizer
#   NGINX_SRC=DIR   an nginx source tree instead of Debian's nginx-dev
#   CUDA_HOME=DIR   a CUDA toolkit, 12.9 or newer; CUDA_HOME= leaves it out
#   CUDA_EARLY=1    kernels that are launched early (engine/backend/cuda/
#                   cu_launch.cuh), not yet run on a GPU

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:

SANITIZE ?=
NGINX_SRC ?=

ifeq ($(SANITIZE),)
BUILD := build
else ifeq ($(SANITIZE),thread)
BUILD := build/tsan
SAN   := -fsanitize=thread
else
BUILD := build/asan
SAN   := -fsanitize=address,undefined -fno-sanitize-recover=undefined
endif

CC      ?= cc
Q       := $(if $(V),,@)
OPT     ?= -O2
CFLAGS  := -std=c11 -D_GNU_SOURCE $(OPT) -g -Wall -Wextra -Werror \
           -Wno-missing-field-initializers -ffp-contract=off -fno-math-errno \
           -pthread -Iengine $(SAN)
LDFLAGS := -pthread $(SAN)
LDLIBS  := -lcjson -latomic_ops -lpcre2-8 -lxxhash -lcrypto -lm

.PHONY: all engine ledger module clean
all: engine ledger module

engine: $(BUILD)/llm-engine
ledger: $(BUILD)/llm-ledger

include engine/backend/cuda/cuda.mk
include tests/tests.mk
include tests/module.mk
include tests/setup.mk

# Engine: everything below engine/ but the CUDA backend is one library, and
# main.c on top of it.

ENGINE_SRC := $(sort $(shell find engine -name '*.c' ! -path 'engine/main.c' \
                             ! -path 'engine/backend/cuda/*'))
ENGINE_OBJ := $(ENGINE_SRC:%.c=$(BUILD)/%.o)
LIB        := $(BUILD)/libllm.a

# Files for one instruction set are named after it and picked at run time.
%_avx2.o: ISA   := -mavx2 -mfma
%_avx512.o: ISA := -mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq
%_avx512bf16.o: ISA := -mavx2 -mfma -mavx512f -mavx512bw -mavx512vl \
                       -mavx512dq -mavx512bf16 -mavx512vnni
%_generic.o: ISA := -fno-tree-vectorize

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) $(ISA) -MMD -MP -c -o $@ $<

$(LIB): $(ENGINE_OBJ)
	@rm -f $@
	$(Q)ar rcs $@ $^

$(BUILD)/llm-engine: $(BUILD)/engine/main.o $(CUDA_OBJ) $(LIB)
	@echo "LD $@$(CUDA_NONE)$(CUDA_LESS)"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) $(LDLIBS)

# Ledger: a program of its own, with the reader of JSON from the library.

LEDGER_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard src/ledger/*.c)))

$(BUILD)/llm-ledger: $(LEDGER_OBJ) $(LIB)
	@echo "LD $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lcjson -lxxhash -lz -lcrypto

# Serving the shipped model, or MODEL=DIR.

MODEL ?= engine/models/wordnet-tiny

.PHONY: run
run: deps
	@$(MAKE) --no-print-directory all
	@nginx-conf/run.sh $(BUILD) $(MODEL) $(ENGINE_OPTIONS)

# Installing for Debian's nginx.  Files of /etc that exist stay as they are.

DESTDIR ?=
MODDIR  := /usr/lib/nginx/modules
MODCONF := /usr/share/nginx/modules-available

.PHONY: install
install: all
	install -D -m 755 $(BUILD)/llm-engine $(DESTDIR)/usr/bin/llm-engine
	install -D -m 755 $(BUILD)/llm-ledger $(DESTDIR)/usr/bin/llm-ledger
	install -D -m 644 $(BUILD)/ngx_http_llm_module.so \
	    $(DESTDIR)$(MODDIR)/ngx_http_llm_module.so
	install -d $(DESTDIR)$(MODCONF) $(DESTDIR)/etc/nginx/modules-enabled
	echo 'load_module modules/ngx_http_llm_module.so;' \
	    > $(DESTDIR)$(MODCONF)/mod-http-llm.conf
	ln -sf $(MODCONF)/mod-http-llm.conf \
	    $(DESTDIR)/etc/nginx/modules-enabled/50-mod-http-llm.conf
	install -D -m 644 nginx-conf/llm-engine.service \
	    $(DESTDIR)/lib/systemd/system/llm-engine.service
	test -e $(DESTDIR)/etc/llm-engine/llm-engine.conf \
	    || install -D -m 644 nginx-conf/llm-engine.conf \
	        $(DESTDIR)/etc/llm-engine/llm-engine.conf
	test -e $(DESTDIR)/etc/nginx/sites-available/llm \
	    || install -D -m 644 nginx-conf/https.conf \
	        $(DESTDIR)/etc/nginx/sites-available/llm
	install -d $(DESTDIR)/usr/share/llm-engine/wordnet-tiny
	install -m 644 engine/models/wordnet-tiny/*.json \
	    engine/models/wordnet-tiny/*.safetensors \
	    $(DESTDIR)/usr/share/llm-engine/wordnet-tiny
	install -m 644 $(addprefix nginx-conf/,usage-log.conf tiers.conf \
	    tiers.accounts cluster.conf cluster-foreign.conf) \
	    $(DESTDIR)/usr/share/llm-engine
	install -D -m 644 README.md $(DESTDIR)/usr/share/doc/llm-engine/README.md

clean:
	rm -rf build

-include $(ENGINE_OBJ:.o=.d) $(LEDGER_OBJ:.o=.d) $(BUILD)/engine/main.d
