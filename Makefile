# `make demo` and `make test` are all a fresh machine needs: git, a Rust toolchain, make, root.
# What is missing is installed by setup.sh; nothing is asked.

SHELL := /bin/sh
NIX_FILES = $(shell git ls-files '*.nix')
.DEFAULT_GOAL := help
.PHONY: help setup build build-tests demo test test-nix test-clients lint bench bench-environment soak fuzz install clean

CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# firn looks for firn-agent beside its own executable, so the two are gathered in one folder.
OUT := $(TARGET)/firn
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/firn
PREFIX ?= /usr/local
# An environment with so many paths, in Nix.
OF_PATHS = (import $(CURDIR)/nix/tests/packages.nix { root = $(CACHE)/nix/root; }).many $(1)
FUZZ_SECONDS ?= 60

# Where setup.sh puts programs, after everything the user has.
export PATH := $(PATH):$(HOME)/.cargo/bin:$(HOME)/.local/bin:/usr/local/bin:$(CACHE)/tools/bin

# Both programs are static: one agent runs in every guest and jail, whatever libc is there, and firn
# on every host. With musl where setup.sh could get it: a program that is linked with glibc asks the
# processor some forty questions before it starts, and in a VM the hypervisor answers each of them. The
# target is named because build scripts and macros must stay dynamic. The HTTP parser would ask it too, for
# instructions that are of no use to requests as short as ours.
HOST_TARGET = $(shell rustc -vV | sed -n 's/^host: //p')
MUSL_TARGET = $(subst -gnu,-musl,$(HOST_TARGET))
STATIC_TARGET = $(shell if [ -d "$$(rustc --print target-libdir --target $(MUSL_TARGET) 2>/dev/null)" ] \
    && command -v musl-gcc >/dev/null; then echo $(MUSL_TARGET); else echo $(HOST_TARGET); fi)
STATIC_CARGO = CARGO_CFG_HTTPARSE_DISABLE_SIMD=1 CC_$(subst -,_,$(MUSL_TARGET))=musl-gcc RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" $(CARGO)

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Install what is missing from Debian and crates.io
	@./setup.sh run

build: ## Build firn and firn-agent into target/firn
	$(STATIC_CARGO) build --release --locked -p firn --target $(STATIC_TARGET)
	$(STATIC_CARGO) build --profile agent --locked -p firn-agent --target $(STATIC_TARGET)
	@mkdir -p $(OUT)
	@install -C -m 755 $(TARGET)/$(STATIC_TARGET)/release/firn $(TARGET)/$(STATIC_TARGET)/agent/firn-agent $(OUT)/

# What the suite needs besides: an agent that does what it must not, and the beginning of another init.
build-tests: build
	$(STATIC_CARGO) build --profile agent --locked -p firn-tests --bin hostile-agent --bin stage-one --target $(STATIC_TARGET)
	@install -C -m 755 $(TARGET)/$(STATIC_TARGET)/agent/hostile-agent $(TARGET)/$(STATIC_TARGET)/agent/stage-one $(OUT)/

# doctor only informs here: the run shows whether a sandbox can be had.
demo: setup build ## Set up, build, and run a command in a microVM
	-$(OUT)/firn doctor
	$(OUT)/firn run -v -- python3 -c 'print(6*7)'

test: ## Set up, build, and run the whole suite, real guests included
	@./setup.sh run test
	@$(MAKE) --no-print-directory build-tests
	FIRN_TEST_BIN=$(OUT) $(CARGO) nextest run --locked --workspace $(if $(CI),--profile ci) $(NEXTEST)
	$(CARGO) test --locked --workspace --doc --quiet

# nix/README.md says what is checked and what is not.
test-nix: ## Check what is written in Nix, and run what it builds
	@./setup.sh run nix
	@$(MAKE) --no-print-directory build
	./nix/tests/run $(OUT)

# The advisory database is a git repository that not every machine can reach: `cargo deny check
# advisories` is left to those that can.
lint: ## Check formatting, lints, documentation, dependencies and spelling
	@./setup.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	cargo-deny --all-features check bans licenses sources
	cargo-machete --skip-target-dir
	typos
	nixfmt --check $(NIX_FILES)
	deadnix --fail $(NIX_FILES)

# npm and pip fetch the clients, once; they are too heavy for each run of the suite.
test-clients: ## Drive firn mcp with real clients: Inspector, conformance suite, Python SDK, Codex
	@./setup.sh run
	@$(MAKE) --no-print-directory build
	./tests/clients/run $(OUT)

bench: setup build ## Measure firn against its floors, see docs/BENCHMARKS.md
	$(STATIC_CARGO) build --profile agent --locked -p firn-tests --bin guest-floor --target $(STATIC_TARGET)
	@install -C -m 755 $(TARGET)/$(STATIC_TARGET)/agent/guest-floor $(OUT)/
	FIRN_TEST_BIN=$(OUT) $(CARGO) bench --locked -p firn-tests --bench jail -- $(BENCH_JAIL)
	FIRN_TEST_BIN=$(OUT) $(CARGO) bench --locked -p firn-tests --bench vm -- $(BENCH)
	FIRN_TEST_BIN=$(OUT) $(CARGO) bench --locked -p firn-tests --bench daemon -- $(BENCH_DAEMON)
	FIRN_TEST_BIN=$(OUT) $(CARGO) bench --locked -p firn-tests --bench session -- $(BENCH_SESSION)
	@$(MAKE) --no-print-directory bench-environment

# Of two environments that differ in the number of their paths, which Nix builds.
bench-environment: setup build
	@./setup.sh run nix
	$(CACHE)/nix/bin/nix build --impure --quiet --out-link $(TARGET)/bench-many --expr '$(call OF_PATHS,400)'
	$(CACHE)/nix/bin/nix build --impure --quiet --out-link $(TARGET)/bench-few --expr '$(call OF_PATHS,1)'
	FIRN_TEST_BIN=$(OUT) $(CARGO) bench --locked -p firn-tests --bench environment -- \
	    $(TARGET)/bench-many $(TARGET)/bench-few $(BENCH_ENVIRONMENT)

soak: ## Run the long tests
	@./setup.sh run test
	@$(MAKE) --no-print-directory build
	FIRN_TEST_BIN=$(OUT) $(CARGO) nextest run --locked -p firn-tests --profile soak \
	    --run-ignored ignored-only -E 'test(soak)' $(NEXTEST)

# Sanitizers are unstable options: RUSTC_BOOTSTRAP lets the stable compiler take them. New inputs
# go to the corpus, which is not committed; the seeds are.
fuzz: ## Fuzz the protocol's decoder for FUZZ_SECONDS (60)
	@./setup.sh fuzz
	@mkdir -p protocol/fuzz/corpus/decoder
	cd protocol && RUSTC_BOOTSTRAP=1 cargo-fuzz fuzz run decoder fuzz/corpus/decoder fuzz/seeds/decoder \
	    -- -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -print_final_stats=1

# The units name the program by its whole path.
SYSTEMD_UNITS = system/firn.service system/firn.socket user/firn.service user/firn.socket

install: build ## Install firn, firn-agent, completions and systemd units to PREFIX (/usr/local)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(OUT)/firn $(OUT)/firn-agent
	@mkdir -p $(OUT)/completions
	$(OUT)/firn completions bash >$(OUT)/completions/firn
	$(OUT)/firn completions zsh >$(OUT)/completions/_firn
	$(OUT)/firn completions fish >$(OUT)/completions/firn.fish
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(OUT)/completions/firn
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(OUT)/completions/_firn
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(OUT)/completions/firn.fish
	@for unit in $(SYSTEMD_UNITS); do \
	    mkdir -p $(OUT)/systemd/$${unit%/*} $(DESTDIR)$(PREFIX)/lib/systemd/$${unit%/*} && \
	    sed 's|/usr/local/bin|$(PREFIX)/bin|' packaging/systemd/$$unit >$(OUT)/systemd/$$unit && \
	    install -m 644 $(OUT)/systemd/$$unit $(DESTDIR)$(PREFIX)/lib/systemd/$$unit || exit 1; \
	done

clean: ## Remove what was built
	$(CARGO) clean
	rm -rf protocol/fuzz/target protocol/fuzz/corpus protocol/fuzz/artifacts
