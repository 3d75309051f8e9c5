# Packages: what is missing is installed (with sudo when not root); nothing
# happens, and no package list is touched, where everything is there.

RUN_PKGS  := gcc libc6-dev nginx nginx-dev libcjson-dev libatomic-ops-dev \
             libpcre2-dev libxxhash-dev libssl-dev zlib1g-dev curl
TEST_PKGS := $(RUN_PKGS) g++ libcmocka-dev valgrind openssl python3-minimal \
             python3-numpy perl ca-certificates chromium

APT := $(if $(filter 0,$(shell id -u)),,sudo )env \
       DEBIAN_FRONTEND=noninteractive apt-get

# $(call install,PACKAGES)
define install
	@missing=; for p in $(1); do \
	    dpkg-query -W -f='$${db:Status-Abbrev}' $$p 2>/dev/null \
	        | grep -q '^ii' || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
	    echo "installing$$missing"; \
	    $(APT) -qq update >/dev/null \
	    && $(APT) -qq -y install --no-install-recommends $$missing \
	        >/dev/null; \
	fi
endef

.PHONY: deps deps-check
deps:
	$(call install,$(RUN_PKGS))

deps-check:
	$(call install,$(TEST_PKGS))
	$(if $(shell command -v node),,$(call install,nodejs))
	$(if $(shell command -v npm),,$(call install,npm))
