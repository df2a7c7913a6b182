# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV ?= .venv
BENCH ?= scoring
VARIANT ?= cuda
BIN := $(VENV)/bin
export KUBEALIGN_CACHE ?= $(HOME)/.cache/kubealign
# Each of thousands of processes would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

##@ Start here
.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: fetch ## Align SmolLM2-135M on real prompts, end to end, on this machine (10 minutes on 2 cores)
	$(BIN)/kubealign run offline_alignment -f pipelines/kubealign_pipelines/params/demo.yaml \
	  --set policy=$(KUBEALIGN_CACHE)/smollm2 --set sources.0.uri=$(KUBEALIGN_CACHE)/llamafactory/alpaca_en_demo.json \
	  --output runs/demo

.PHONY: demo-salmon
demo-salmon: fetch ## All of SALMON on SmolLM2-135M, on this machine (12 minutes on 2 cores)
	$(BIN)/kubealign run salmon -f pipelines/kubealign_pipelines/params/salmon_demo.yaml \
	  --set policy=$(KUBEALIGN_CACHE)/smollm2 \
	  --set pmp_sources.0.uri=$(KUBEALIGN_CACHE)/llamafactory/dpo_en_demo.json --output runs/salmon

.PHONY: test
test: check fetch ## Everything CI runs: checks, unit tests, whole pipelines, the real small model, containers
	$(BIN)/pytest tests/container tests/local -n 2 --dist loadfile --no-loadscope-reorder

##@ Develop
.PHONY: check
check: lint unit ## What every change is held to: lint, unit tests and golden pipelines, their coverage

.PHONY: lint
lint: install ## ruff, mypy strict, import-linter, hadolint: a minute or two
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint images/*/Dockerfile

.PHONY: unit
unit: install ## Unit tests and golden pipelines, and how much of the source they run (at least 93 %)
	rm -f .coverage.*
	EXECUTED_LINES=1 $(BIN)/pytest tests/unit tests/golden -n 2 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: other-python
other-python: ## Unit tests under another Python than the locks' (PYTHON=python3.13 VENV=.venv313)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$$(grep -o '^torch==[^ ]*' images/locks/torch-cpu.txt)" --index-url $(TORCH_CPU_INDEX)
	$(PIP_INSTALL) --require-hashes -r images/locks/cpu.txt
	$(PIP_INSTALL) --no-build-isolation --editable .
	$(BIN)/pytest tests/unit

.PHONY: bench
bench: fetch ## Benchmarks against peers, ratios of one run (BENCH=scoring)
	$(BIN)/python tests/benchmarks/bench_$(BENCH).py $(KUBEALIGN_CACHE)/smollm2

.PHONY: gpu
gpu: ## Measure scoring and training on the NVIDIA card, at most 8 minutes; without one, rehearse on tiny models
	PYTHONPATH=components $(BIN)/python tests/benchmarks/gpu.py $$(nvidia-smi -L > /dev/null 2>&1 || echo --rehearse)
	$(BIN)/pytest -q tests/unit/engines -m gpu

.PHONY: format
format: install ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: golden
golden: install ## Rewrite the golden pipelines and the generated tables
	$(BIN)/python tests/golden/update.py

# The images take their pins from the locks. What no wheel is published of is built apart (sources.in).
UV_COMPILE := uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec
WHEELS := $(addprefix --no-emit-package ,deepspeed kfp-server-api rouge-score sqlitedict word2number)
CPU := -c images/locks/cpu.txt -c images/locks/torch-cpu.txt $(WHEELS) --no-emit-package torch \
  --no-emit-package triton $(addprefix --find-links ,$(PIP_FIND_LINKS))
CUDA := -c images/locks/gpu.txt $(WHEELS)

# What images/build.py builds for arm64 too: every pin must have a wheel there.
ON_ARM := data/requirements.txt locks/torch-cuda.txt train/cuda.txt
UV_ARM := uv pip install --quiet --dry-run --no-deps --require-hashes --only-binary :all: \
  --python-platform aarch64-manylinux_2_31 --python-version 3.11 --target build/arm

.PHONY: lock
lock: install ## Resolve the locks again (needs uv)
	for kind in cpu gpu; do \
	  uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    $${PIP_FIND_LINKS:+--find-links $$PIP_FIND_LINKS} --extra models --extra dev \
	    --no-emit-package kubealign --no-emit-package torchvision --no-emit-package torchaudio \
	    --no-emit-package torchcodec --no-emit-package rfc3987-syntax \
	    $$([[ $$kind == gpu ]] || echo --no-emit-package torch --no-emit-package triton) \
	    pyproject.toml images/locks/$$kind.in --output-file images/locks/$$kind.txt; \
	done
	$(UV_COMPILE) -c images/locks/cpu.txt images/locks/build.in -o images/locks/build.txt
	$(UV_COMPILE) -c images/locks/cpu.txt --no-deps images/locks/sources.in -o images/locks/sources.txt
	$(UV_COMPILE) $(CPU) pyproject.toml images/data/requirements.in -o images/data/requirements.txt
	$(UV_COMPILE) $(CUDA) images/locks/torch-cuda.in -o images/locks/torch-cuda.txt
	for image in sample train; do \
	  $(UV_COMPILE) $(CPU) pyproject.toml images/$$image/cpu.in -o images/$$image/cpu.txt; \
	  $(UV_COMPILE) $(CUDA) pyproject.toml images/$$image/cuda.in -o images/$$image/cuda.txt; \
	done
	for lock in $(ON_ARM); do $(UV_ARM) -r images/$$lock; done

.PHONY: task-names
task-names: install ## Write the names of the tasks of the lm-eval that is installed (after `make lock` moved it)
	$(BIN)/python -m kubealign_components.benchmark.names

.PHONY: picture
picture: install ## Take the README's picture of the last `make demo` (needs Chromium)
	PYTHONPATH=tests $(BIN)/python tests/picture.py $$(ls -td runs/demo/runs/*/ | head -1) .github/demo.png

.PHONY: clean
clean: ## Remove the environment and what runs have written here
	rm -rf $(VENV) runs build

##@ Deploy
.PHONY: images
images: ## Build the container images (VARIANT=cpu, KINDS="data train", BASE_IMAGE=, REGISTRY=, PUSH=1, BUILD_ARGS=)
	$(PYTHON) images/build.py $(KINDS) --variant $(VARIANT) $(addprefix --base-image ,$(BASE_IMAGE)) \
	  $(addprefix --registry ,$(REGISTRY)) $(if $(PUSH),--push) $(addprefix --platform ,$(PLATFORM)) \
	  $(addprefix --build-arg ,$(BUILD_ARGS))

.PHONY: sbom
sbom: install ## Write a CycloneDX bill of materials of each image to build/sbom
	$(BIN)/python images/sbom.py

.PHONY: components
components: install ## Write the components as files that other pipelines load (REGISTRY=, OWNERS="a b")
	$(BIN)/kubealign components --output build/components $(addprefix --registry ,$(REGISTRY)) \
	  $(addprefix --owner ,$(OWNERS))

##@ Install
.PHONY: install
install: $(VENV)/.installed ## Create .venv from the CPU lock

$(VENV)/.installed: images/locks/cpu.txt images/locks/torch-cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	{ $(PIP_INSTALL) --no-compile --require-hashes -r images/locks/torch-cpu.txt 2>/dev/null || \
	  $(PIP_INSTALL) --no-compile --require-hashes -r images/locks/torch-cpu.txt --index-url $(TORCH_CPU_INDEX); } & \
	  $(PIP_INSTALL) --no-compile --require-hashes -r images/locks/cpu.txt || { wait; exit 1; }; wait $$!  # pip works on one core
	$(PIP_INSTALL) --no-build-isolation --editable .
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; some files are of other Pythons
	touch $@

.PHONY: install-gpu
install-gpu: ## Create .venv with CUDA builds of torch and vLLM instead
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --require-hashes -r images/locks/gpu.txt
	$(PIP_INSTALL) --no-build-isolation --editable .
	touch $(VENV)/.installed

.PHONY: fetch
fetch: install ## Fetch SmolLM2-135M-Instruct and real data into the cache
	$(BIN)/python -m kubealign.quickstart
