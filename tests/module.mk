# The module, built by nginx's own configure and make in a tree of symbolic
# links below $(BUILD), so that neither Debian's nginx-dev nor NGINX_SRC is
# written to.  With NGINX_SRC an nginx that loads it is built too,
# $(BUILD)/nginx: with Debian's headers the installed nginx does.

NGINX_DIR  := $(abspath $(or $(NGINX_SRC),/usr/share/nginx/src))
NGINX_TREE := $(abspath $(BUILD))/nginx$(subst /,_,$(NGINX_DIR))

# nginx itself copies nothing from NULL and stores words anywhere.

NGINX_SAN  := $(strip $(SAN) $(if $(SAN),-fno-omit-frame-pointer \
              -fno-sanitize=nonnull-attribute \
              -fno-sanitize=alignment \
              -DNGX_DEBUG_PALLOC=1))
NGINX_OPT  := $(if $(SAN),-O1,-O2)

ifeq ($(NGINX_SRC),)
NGINX_CONF := . ./conf_flags; set -- "$${NGX_CONF_FLAGS[@]}"
NGINX_HARD := -fstack-protector-strong -D_FORTIFY_SOURCE=2
NGINX_GOAL := modules
else
NGINX_CONF := set -- --with-compat --with-debug --with-threads \
              --with-http_ssl_module --with-http_v2_module \
              --with-http_auth_request_module --with-http_realip_module \
              --with-http_sub_module --with-http_addition_module \
              --with-http_stub_status_module \
              --http-client-body-temp-path=body_temp \
              --http-proxy-temp-path=proxy_temp \
              --http-fastcgi-temp-path=fastcgi_temp \
              --http-uwsgi-temp-path=uwsgi_temp \
              --http-scgi-temp-path=scgi_temp
NGINX_GOAL := binary modules
endif

# Renamed, not copied over: an nginx may have the old file mapped.

INSTALL_IF = cmp -s $(NGINX_TREE)/objs/$(1) $(BUILD)/$(1) \
             || { cp $(NGINX_TREE)/objs/$(1) $(BUILD)/$(1).new \
                  && mv -f $(BUILD)/$(1).new $(BUILD)/$(1); }

.PHONY: module
module: $(NGINX_TREE)/objs/Makefile
	+$(MAKE) -C $(NGINX_TREE) -f objs/Makefile $(NGINX_GOAL) \
	    >$(NGINX_TREE)/make.log 2>&1 \
	    || { grep -B2 -A8 -E 'error|warning|\*\*\*' \
	         $(NGINX_TREE)/make.log; exit 1; }
	$(call INSTALL_IF,ngx_http_llm_module.so)
ifneq ($(NGINX_SRC),)
	$(call INSTALL_IF,nginx)
endif

# nginx lists sources and headers when it is configured.

$(NGINX_TREE)/objs/Makefile: config tests/module.mk \
                             $(wildcard engine/channel src)
	@rm -rf $(NGINX_TREE) && mkdir -p $(NGINX_TREE)
	@for f in $(NGINX_DIR)/*; do case $${f##*/} in \
	    objs|Makefile) ;; *) ln -s $$f $(NGINX_TREE)/ ;; esac; done
	@test -x $(NGINX_TREE)/configure \
	    || ln -sf auto/configure $(NGINX_TREE)/configure
	cd $(NGINX_TREE) && bash -c '$(NGINX_CONF); ./configure "$$@" \
	    --with-cc="$(CC)" --add-dynamic-module=$(CURDIR) \
	    --with-cc-opt="-g $(NGINX_OPT) $(NGINX_HARD) $(NGINX_SAN)" \
	    --with-ld-opt="$(SAN)"' >configure.log 2>&1 \
	    || { tail -20 $(NGINX_TREE)/configure.log; exit 1; }


# The zones' code with stand-ins for nginx's: a benchmark and tests.

SHIM_INC := $(addprefix -isystem $(NGINX_TREE)/,src/core src/event \
            src/event/modules src/os/unix objs)
SHIM_SRC := $(addprefix src/ngx_http_llm_,tags.c prefix.c pick.c bucket.c \
                                       table.c) \
            tests/shim/ngx_shim.c
SHIM_DEP := $(SHIM_SRC) \
            $(addprefix src/ngx_http_llm_,prefix.h bucket.h table.h) \
            tests/shim/ngx_shim.h $(BUILD)/libllm.a $(NGINX_TREE)/objs/Makefile
SHIM_CC   = $(CC) $(CFLAGS) $(SHIM_INC) -Isrc -Itests $(LDFLAGS) -o $@ \
            $(filter %.c,$^) $(BUILD)/libllm.a $(LDLIBS)

ROUTE_SRC := $(sort $(wildcard tests/bench/route/*.c))

$(BUILD)/tests/bench/bench_route: tests/bench/bench_route.c $(ROUTE_SRC) \
                                  tests/bench/route/route.h $(SHIM_DEP)
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(SHIM_CC)

SHIM_TEST := $(addprefix $(BUILD)/tests/test_http_,prefix pick tags table \
                                                   bucket)

$(SHIM_TEST): $(BUILD)/tests/%: tests/unit/%.c $(SHIM_DEP) \
                                tests/unit/prefix_zone.h
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(SHIM_CC) -lcmocka


# What looks at answers that pass needs nginx's types and no code of it.

$(BUILD)/tests/test_http_scan: tests/unit/test_http_scan.c \
        src/ngx_http_llm_scan.c src/ngx_http_llm_scan.h \
        | $(NGINX_TREE)/objs/Makefile
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) $(SHIM_INC) -Isrc $(LDFLAGS) -o $@ $< \
	    src/ngx_http_llm_scan.c -lcmocka

# A request's JSON before anything is built from it, likewise.

$(BUILD)/tests/test_http_json: tests/unit/test_http_json.c \
        $(addprefix src/ngx_http_llm_,json_check.c error_set.c params.h) \
        $(BUILD)/libllm.a | $(NGINX_TREE)/objs/Makefile
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) $(SHIM_INC) -Isrc $(LDFLAGS) -o $@ \
	    $(filter %.c,$^) $(BUILD)/libllm.a $(LDLIBS) -lcmocka

# Kept replies, with stand-ins for what they are made of and happen to.

$(BUILD)/tests/test_http_reply: tests/unit/test_http_reply.c \
        src/ngx_http_llm_reply.c $(wildcard src/*.h) $(BUILD)/libllm.a \
        | $(NGINX_TREE)/objs/Makefile
	@mkdir -p $(@D)
	@echo "CC $<"
	$(Q)$(CC) $(CFLAGS) -Wno-unused-parameter $(FUZZ_INC) \
	    -isystem $(NGINX_TREE)/src/http/v2 -Isrc $(LDFLAGS) -o $@ $< \
	    src/ngx_http_llm_reply.c $(BUILD)/libllm.a $(LDLIBS) -lcmocka

# Fuzzers of the module (clang).  The request parser needs nginx's headers
# and no nginx code.

FUZZ_INC := $(addprefix -isystem $(NGINX_TREE)/,src/core src/event \
            src/event/modules src/os/unix src/http src/http/modules \
            objs)
FUZZ_REQ := $(addprefix src/ngx_http_llm_,json.c json_check.c \
              error_set.c params.c chat.c completion.c peek.c tags.c)

$(BUILD)/fuzz/fuzz_request: tests/fuzz/fuzz_request.c $(FUZZ_REQ) \
                            $(wildcard src/*.h) \
                            $(wildcard engine/channel/*.[ch]) \
                            | $(NGINX_TREE)/objs/Makefile
	@mkdir -p $(@D)
	clang -std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wno-unknown-warning-option \
	    -fsanitize=fuzzer,address,undefined \
	    -fno-sanitize-recover=undefined $(FUZZ_INC) -Isrc -Iengine -o $@ \
	    $< $(FUZZ_REQ) $(wildcard engine/channel/*.c) -lcjson -latomic_ops
