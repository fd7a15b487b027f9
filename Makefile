# Parlance. `make` lists the targets.
#
# There is one build profile, release, and cargo's own target directory: nothing is built twice.

SHELL := /bin/bash -o pipefail
CARGO ?= cargo

# Where `make run` keeps conversations and weights.
DATA ?= data
MODEL_DIR ?= models
# What else `make run` passes on, for example: make run ARGS="--listen 127.0.0.1:9000 --model scripted"
ARGS ?=

export PARLANCE_MODEL_DIR := $(abspath $(MODEL_DIR))

.DEFAULT_GOAL := help
.PHONY: help run test test-servers fault-suite test-wgpu test-cuda check services services-stop bench bench-cluster bench-inference notices

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build, fetch the model and start a node at http://127.0.0.1:8080
	@.ci/services build
	$(CARGO) build --release -p parlance
	target/release/parlance model fetch
	target/release/parlance up --data $(DATA) $(ARGS)

services: ## Install and start what the tests need (Debian 12; asks for root where needed)
	@.ci/services build
	@.ci/services test

services-stop: ## Stop the servers that `make services` started
	@.ci/services stop

# The planted binary is built as a by-product of a test's, so that every dependency is built with the same features and only once. What
# that leaves at target/release/parlance is put right by the build behind it.
test: services ## Build everything and pass all tests
	$(CARGO) test --release --workspace --no-run --features parlance/planted-bugs --test cli
	$(CARGO) test --release --workspace --no-run
	target/release/parlance model fetch
	target/release/parlance model fetch all-minilm-l6-v2
	$(CARGO) test --release --workspace --no-fail-fast 2>&1 | tee target/test.log
	@.ci/count target/test.log

# They take minutes and 3 GB of memory.
test-servers: services ## Try the record store on three servers, one and two of them dead
	$(CARGO) test --release -p parlance-cluster-records --test scylla -- --ignored

fault-suite: services ## Break five nodes, three brokers and what lies between 200 times (half an hour)
	$(CARGO) test --release --workspace --test faults -- --ignored --nocapture

# Software Vulkan takes minutes, and the features build burn anew: neither belongs to `make test`.
test-wgpu: ## Compute the tests' models by wgpu, on Mesa's software Vulkan where there is no GPU
	@.ci/services build
	@.ci/services wgpu
	$(CARGO) build --release -p parlance
	target/release/parlance model fetch
	$(CARGO) test --release -p parlance-inference-model --features wgpu --lib --test reference -- on_wgpu --show-output

# Where the download is impossible, `.ci/llvm` lays out an LLVM that is installed.
test-cuda: ## Compute the tests' models by CUDA: needs a GPU, and downloads an LLVM for the build
	@.ci/services build
	$(CARGO) build --release -p parlance
	target/release/parlance model fetch
	$(CARGO) test --release -p parlance-inference-model --features cuda --lib --test reference -- on_cuda --show-output

# DOCS_RS=1 keeps the build script of burn's CUDA backend from downloading an LLVM, which a check does not need.
check: ## Formatting, lints, licences, documentation
	@.ci/services build
	@.ci/services check
	$(CARGO) fmt --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	DOCS_RS=1 $(CARGO) clippy --release -p parlance-inference-model --all-targets --features cuda,wgpu -- -D warnings
	$(CARGO) deny --log-level error check bans licenses sources
	@.ci/notices --check
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --no-deps --workspace

bench: ## Measure turns per second, memory per session and the models
	@.ci/services build
	$(CARGO) build --release -p parlance
	target/release/parlance model fetch
	$(CARGO) bench --quiet --workspace --bench turns --bench http --bench sessions --bench model --bench models --bench reuse --bench products \
		--bench batching --bench context

bench-cluster: services ## Measure turns over Kafka and over several nodes, failover and hand-over
	$(CARGO) bench --quiet --workspace --bench cluster

bench-inference: ## Measure the model over HTTP beside llama.cpp's server, and vLLM if `.ci/services vllm` installed it
	@.ci/services build
	$(CARGO) build --release -p parlance
	target/release/parlance model fetch
	@.ci/services peers
	$(CARGO) bench --quiet --workspace --bench inference

notices: ## Write THIRD-PARTY-NOTICES.md anew
	@.ci/notices
