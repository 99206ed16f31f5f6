# Two commands matter: `make serve` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Given on make's command line (make serve PORT=9000); otherwise tallow's own configuration decides. Assigned with
# `=`, not `?=`: some shells export HOST with the name of the machine.
HOST =
PORT =
MODEL =
ARGS =

# Where .ci/tools puts pip if the system has none.
export PATH := $(CURDIR)/target/venv/bin:$(PATH)

NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help serve test clients tools fmt lint doc bench prove soak miri check-arm clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-9s %s\n", $$1, $$2 }'
	@echo "  make serve takes HOST=, PORT=, MODEL= and ARGS= (any flag of tallow serve)"

serve: ## build the release binary, fetch the model if need be, serve on 127.0.0.1:8080
	@cargo run --release --locked -- serve \
	  $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)') $(if $(MODEL),--model '$(MODEL)') $(ARGS)

test: tools ## install what the tests need where possible, then run all of them
ifeq ($(NEXTEST),yes)
	@cargo nextest run --locked --no-fail-fast
	@cargo test --locked --doc
else
	@echo "cargo-nextest is not installed: running plain cargo test"
	@cargo test --locked --no-fail-fast
endif

clients: tools ## every client that people have, the large ones and a real model too
	@TALLOW_CLIENTS=all cargo test --locked --test clients

tools: ## see to compiler, Python and pip
	@.ci/tools

fmt: ## format the code
	@cargo fmt

lint: ## clippy, warnings are errors
	@cargo clippy --locked --all-targets -- -D warnings

doc: ## the crate's documentation, warnings are errors
	@RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

bench: ## benchmarks
	@cargo bench --locked --bench '*'

# The promises alone come last and one at a time: they measure, and the machine should do nothing else. The table is
# printed whatever failed, and the end is 1 if anything did.
prove: tools ## every proof at its full length, then the table of promises
	@rm -rf target/promises; status=0; \
	TALLOW_CLIENTS=all TALLOW_SIM_SCHEDULES=$${TALLOW_SIM_SCHEDULES:-200000} TALLOW_FUZZ_CASES=$${TALLOW_FUZZ_CASES:-1000000} \
	  PROPTEST_CASES=$${PROPTEST_CASES:-20000} TALLOW_GOLDEN_PROMPTS=$${TALLOW_GOLDEN_PROMPTS:-64} TALLOW_PROMISES=long \
	  TALLOW_RESTARTS=$${TALLOW_RESTARTS:-100} TALLOW_RESTARTS_REAL=$${TALLOW_RESTARTS_REAL:-10} \
	  cargo test --locked --profile fast --no-fail-fast --lib --tests -- \
	  $(patsubst tests/promises/%.rs,--skip %::,$(wildcard tests/promises/p[0-9]*.rs)) || status=1; \
	TALLOW_PROMISES=long cargo test --locked --profile fast --test promises -- --skip restart:: --test-threads 1 --nocapture || status=1; \
	tests/promises/table || status=1; \
	exit $$status

soak: tools ## clients of every manner for TALLOW_SOAK_SECONDS (600), after which nothing may be held
	@TALLOW_PROMISES=long cargo test --locked --profile fast --test promises p18_ -- --nocapture

miri: ## the kernels' portable and generic parts under the interpreter that finds undefined behaviour (nightly, half an hour)
	@MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --locked -p tallow-kernels

check-arm: ## type-check the NEON path (needs: rustup target add aarch64-unknown-linux-gnu)
	@cargo check --locked --workspace --lib --target aarch64-unknown-linux-gnu

clean: ## remove what was built
	@cargo clean
