# Tests.  Unit tests: each tests/unit/test_*.c is one cmocka program linked
# with the engine's library.  tests/*.c are helper programs (the scripted
# engine, clients), tests/bench/*.c benchmarks, tests/fuzz/*.c fuzzers.

UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/%)

include tests/cuda.mk
include tests/gpu.mk

TOOL_SRC := $(sort $(wildcard tests/*.c tests/bench/*.c))
TOOL_BIN := $(TOOL_SRC:tests/%.c=$(BUILD)/tests/%)

TEST_LINK = $(CC) $(CFLAGS) -Itests -MMD -MP $(LDFLAGS) -o $@ $< \
            $(BUILD)/libllm.a $(LDLIBS)

.PHONY: tests
tests: $(UNIT_BIN) $(TOOL_BIN)

$(BUILD)/tests/test_%: tests/unit/test_%.c $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(TEST_LINK) -lcmocka

# The parts of llm-ledger that nginx's module has too.

LEDGER_PART := $(patsubst %,$(BUILD)/src/ledger/ledger_%.o,decimal zone price \
                 journal)

$(BUILD)/tests/test_ledger_%: tests/unit/test_ledger_%.c $(LEDGER_PART)
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) -Isrc -Itests -MMD -MP $(LDFLAGS) -o $@ $< \
	    $(LEDGER_PART) -lcmocka

$(BUILD)/tests/scripted_engine: tests/scripted_engine.c \
        $(sort $(wildcard tests/scripted/*.[ch])) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) -Itests $(LDFLAGS) -o $@ $(filter %.c,$^) \
	    $(BUILD)/libllm.a $(LDLIBS)

$(BUILD)/tests/chan_client: tests/chan_client.c \
        $(sort $(wildcard tests/client/*.[ch])) $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) -Itests $(LDFLAGS) -o $@ $(filter %.c,$^) \
	    $(BUILD)/libllm.a $(LDLIBS)

$(BUILD)/tests/%: tests/%.c $(BUILD)/libllm.a
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(TEST_LINK)

-include $(UNIT_BIN:=.d) $(TOOL_BIN:=.d)


# npm packages: oracles and clients, and the node that they ask for.

.PHONY: npm
npm:
	@tests/npm.sh


# What `make check` runs, in this order; each is a target of its own.  One that
# hangs is ended, so that its name is the last thing said.

STAGE_LIMIT := $(if $(LONG),0,2400)

.PHONY: check check-unit check-ledger check-tokenizer check-reference \
        check-determinism check-nodes check-nginx check-long check-fuzz \
        check-sanitize

CHECKS := check-unit check-ledger check-tokenizer check-reference \
          check-determinism check-nodes check-nginx

check: deps-check
	@$(MAKE) --no-print-directory npm
	@$(MAKE) --no-print-directory -j2 all tests
	@set -e; for t in $(CHECKS); do \
	    echo; echo "=== $$t"; \
	    timeout -k 10 $(STAGE_LIMIT) $(MAKE) --no-print-directory $$t \
	        || { echo "failed: $$t"; exit 1; }; \
	done
	@echo; echo "all checks passed"

check-unit: tests
	@mkdir -p $(BUILD)/log
	@printf '%s\n' $(UNIT_BIN) | xargs -P 2 -I{} tests/unit.sh {} $(BUILD)/log
	$(BUILD)/tests/bench/bench_route --talks 2000 --check

check-tokenizer: tests npm
	tests/tokenizer/check.sh $(BUILD)/tests/tok_tool $(or $(COUNT),20000)

PY := /usr/bin/python3

check-ledger: ledger
	$(PY) tests/ledger.py $(BUILD)/llm-ledger

check-reference: engine
	$(PY) tests/reference/selftest.py
	$(PY) tests/reference/refuse.py $(BUILD)/llm-engine
	$(PY) tests/reference/compare.py $(BUILD)/llm-engine \
	    --weights fp8,int8,int4
	$(PY) tests/reference/quality.py $(BUILD)/llm-engine

check-determinism: engine tests
	@mkdir -p $(BUILD)/checkpoints
	@test -e $(BUILD)/checkpoints/drafts/config.json \
	    || $(PY) tests/reference/make_checkpoint.py --style v3 --seed 7 \
	        --set max_position_embeddings=4096 --drafts 0.15 \
	        $(BUILD)/checkpoints/drafts
	tests/determinism.sh $(BUILD) $(BUILD)/checkpoints/drafts
	WEIGHTS=$(if $(LONG),int4,int8) tests/determinism.sh $(BUILD) \
	    $(BUILD)/checkpoints/drafts

check-nodes: engine tests $(BUILD)/tests/cuda/llm-engine
	@mkdir -p $(BUILD)/checkpoints
	@test -e $(BUILD)/checkpoints/drafts/config.json \
	    || $(PY) tests/reference/make_checkpoint.py --style v3 --seed 7 \
	        --set max_position_embeddings=4096 --drafts 0.15 \
	        $(BUILD)/checkpoints/drafts
	tests/nodes.sh $(BUILD) engine/models/wordnet-tiny \
	    $(BUILD)/checkpoints/drafts
	tests/nodes_cuda.sh $(BUILD) $(BUILD)/checkpoints/drafts

# Debian's nginx is not built with a sanitizer, so its runtime comes first.

ifneq ($(NGINX_SRC),)
RUN_NGINX  := NGINX=$(abspath $(BUILD))/nginx
else ifneq ($(findstring address,$(SAN)),)
NGINX_WRAP := env LD_PRELOAD=$(shell $(CC) -print-file-name=libasan.so) \
              ASAN_OPTIONS=detect_leaks=0
endif

check-nginx: all tests npm
	BUILD=$(abspath $(BUILD)) $(RUN_NGINX) NGINX_WRAP="$(NGINX_WRAP)" \
	    prove -j2 t/

check-long: deps-check npm
	LONG=1 $(MAKE) check COUNT=100000
	$(PY) tests/reference/compare.py $(BUILD)/llm-engine --long
	$(MAKE) check-sanitize
	$(MAKE) check-fuzz

# Sanitizers: the units, then nginx (one built with them with NGINX_SRC=DIR),
# module and both engines.  valgrind: the AVX2 kernels, the module.  A soak.

VALGRIND_T := $(addprefix t/,abort.t api.t body.t errors.t flow.t params.t \
                             variables.t engine.t route.t early.t price.t \
                             ledger.t metrics.t status.t)

check-sanitize: all tests npm
	$(MAKE) SANITIZE=1 check-unit check-ledger check-nginx
	$(MAKE) SANITIZE=thread check-unit
	$(RUN_NGINX) tests/valgrind.sh $(abspath $(BUILD)) $(VALGRIND_T)
	BUILD=$(abspath $(BUILD)) $(RUN_NGINX) prove -v tests/soak.pl


# Fuzzers (clang), FUZZ_TIME seconds each, from their seeds.

FUZZ_TIME ?= 660
FUZZ_NAME := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BIN  := $(FUZZ_NAME:%=$(BUILD)/fuzz/fuzz_%)

FUZZ_CC   := clang -std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Iengine -Itests/unit \
             -Wno-unknown-warning-option -fsanitize=fuzzer,address,undefined \
             -fno-sanitize-recover=undefined
FUZZ_SRC   = $(filter-out %_avx2.c %_avx512.c %_avx512bf16.c %_amx.c, \
             $(wildcard $(FUZZ_DIRS:%=engine/%/*.c))) \
             $(if $(filter model,$(FUZZ_DIRS)),engine/backend/be_quant.c)

$(BUILD)/fuzz/fuzz_ring: FUZZ_DIRS := channel
$(BUILD)/fuzz/fuzz_tokenizer: FUZZ_DIRS := tokenizer json
$(BUILD)/fuzz/fuzz_config: FUZZ_DIRS := model ep json
$(BUILD)/fuzz/fuzz_safetensors: FUZZ_DIRS := model ep json
$(BUILD)/fuzz/fuzz_packed: FUZZ_DIRS := model ep json

$(BUILD)/fuzz/fuzz_%: tests/fuzz/fuzz_%.c $(wildcard engine/*/*.[ch])
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(FUZZ_CC) -o $@ $< $(FUZZ_SRC) $(LDLIBS)

$(BUILD)/fuzz/fuzz_journal: tests/fuzz/fuzz_journal.c \
                            $(wildcard src/ledger/*.[ch])
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(FUZZ_CC) -Isrc -o $@ $< \
	    $(patsubst $(BUILD)/%.o,%.c,$(LEDGER_PART))

check-fuzz:
	$(call install,clang libclang-rt-14-dev)
	$(MAKE) $(FUZZ_BIN)
	@set -e; for f in $(FUZZ_NAME); do \
	    echo "== fuzz_$$f"; mkdir -p $(BUILD)/fuzz/corpus/$$f; \
	    $(BUILD)/fuzz/fuzz_$$f -max_total_time=$(FUZZ_TIME) \
	        -max_len=65536 -artifact_prefix=$(BUILD)/fuzz/ \
	        $(BUILD)/fuzz/corpus/$$f tests/fuzz/seeds/$$f; \
	done


# Figures, beside their peers: channel, kernels, engine, nginx.

.PHONY: bench
bench: all tests
	$(BUILD)/tests/bench/bench_channel
	$(BUILD)/tests/bench/bench_kernels
	@mkdir -p $(BUILD)/checkpoints
	@test -e $(BUILD)/checkpoints/bench/config.json \
	    || $(PY) tests/reference/make_checkpoint.py --style bench --seed 1 \
	        $(BUILD)/checkpoints/bench
	$(BUILD)/llm-engine bench --model $(BUILD)/checkpoints/bench
	$(BUILD)/tests/bench/bench_moves $(BUILD)/checkpoints/bench
	$(BUILD)/tests/bench/bench_route
	$(BUILD)/tests/bench/bench_ahead engine/models/wordnet-tiny
	$(BUILD)/tests/bench/bench_prefill --model $(BUILD)/checkpoints/bench \
	    --prompt-tokens 8192
	$(PY) tests/bench/busy.py $(BUILD)/llm-engine $(BUILD)/checkpoints/bench
	BUILD=$(abspath $(BUILD)) tests/bench/front.pl
	BUILD=$(abspath $(BUILD)) tests/bench/policy.pl
	$(if $(PEER),@$(MAKE) --no-print-directory bench-peers)

# PEER: built trees of llama.cpp and ik_llama.cpp, one or more.  The same
# weights as GGUF_BF16 and GGUF_INT8 files, or CONVERT, a script that makes
# them (tests/bench/peers.py says how it is called).

PEER_MODEL ?= $(BUILD)/checkpoints/h130
PEER_ARGS  ?=

.PHONY: bench-peers
bench-peers: engine
	@mkdir -p $(BUILD)/checkpoints
	@test -e $(PEER_MODEL)/config.json \
	    || $(PY) tests/reference/make_checkpoint.py --style h130 --seed 1 \
	        $(PEER_MODEL)
	$(PY) tests/bench/peers.py --engine $(BUILD)/llm-engine \
	    --model $(PEER_MODEL) --work $(BUILD)/checkpoints \
	    $(PEER:%=--peer %) $(CONVERT:%=--convert %) \
	    $(GGUF_BF16:%=--gguf bf16=%) $(GGUF_INT8:%=--gguf int8=%) \
	    $(PEER_ARGS)
