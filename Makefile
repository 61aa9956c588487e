# make demo and make test are all a newcomer needs; both set up first. Needs: make and a Python >= 3.11 with venv.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
BIN := .venv/bin
BENCHMARKS := start_up class_softmax optimizer_memory container_softmax attention_loader training_step backbones synthetic index_scale templates all_pairs planning head_speed gallery serve
FACES ?= ../shared/faces112/train
SOURCES ?= $(HOME)/.cache/attfc/sources
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
EXAMPLES := .venv-examples
# Bytecode is kept, whatever the shell says: without it every process of the tests compiles torch anew, for seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test examples check test-slow bench gpu study docs site links format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train AttFC on synthetic faces, evaluate on unseen identities, write the report (minutes)"
	@echo "make test       the default tests            make test-slow  the slow ones too"
	@echo "make check      format, lint, types, docstring examples, size of the source, plain sentences, the site"
	@echo "make examples   runs examples/ in an environment of its own, .venv-examples (minutes)"
	@echo "make site       the documentation as pages: open build/site/index.html; make links tries its links to elsewhere"
	@echo "make bench      benchmarks -> benchmarks/results/*.json"
	@echo "make gpu        what a GPU must show, in under nine minutes -> benchmarks/results/gpu/; PART=tests|heads|networks|train: one part, eight minutes"
	@echo "make study      docs/study.md: cells that are missing, then tables and figures"
	@echo "make docs       regenerate the tables in docs/ from benchmarks/results/, and docs/examples.md from examples/"

setup: .venv/.ready

.venv/.ready: pyproject.toml uv.lock
	@test -n "$(PYTHON)" || { echo "attfc needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python cannot make a virtual environment: on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.6,<1"
	$(BIN)/uv sync --frozen --inexact --quiet
	@touch .venv/.ready

demo: setup
	$(BIN)/attfc train demo

test: setup
	$(BIN)/pytest -n $(JOBS) --dist worksteal

test-slow: setup
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "slow or not slow"

# Lightning, Transformers, Accelerate and a kernel for the notebook, which development does without.
$(EXAMPLES)/.ready: .venv/.ready
	UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(EXAMPLES) $(BIN)/uv sync --frozen --no-default-groups --group examples --python $(BIN)/python --quiet
	@touch $(EXAMPLES)/.ready

examples: $(EXAMPLES)/.ready
	JOBS=$(JOBS) $(EXAMPLES)/bin/python .ci/examples.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --doctest-modules src
	$(BIN)/python .ci/house.py
	$(BIN)/python .ci/plain.py
	@$(MAKE) --no-print-directory site
	$(BIN)/pytest tests/integration/test_site.py

bench: setup
	@for script in $(BENCHMARKS); do echo "benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done
	@if test -d $(FACES); then echo "benchmarks/stores.py"; $(BIN)/python benchmarks/stores.py --root $(FACES); \
	else echo "benchmarks/stores.py left out, it needs real faces: make bench FACES=FOLDER (identity/*.jpg)"; fi

# GPU_PYTHON=python3 takes an interpreter that has torch already, and sets nothing up.
gpu: $(if $(GPU_PYTHON),,setup)
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py $(addprefix --only ,$(PART)) $(GPU_OPTIONS)

study: setup
	@for study in vectors_tune vectors_tail vectors_long vectors_dense vectors_many vectors_border vectors_trained vectors_options vectors_flip vectors_conflict vectors_100k vectors_1m; do $(BIN)/attfc study run benchmarks/studies/$$study.yaml -o benchmarks/results/studies/$$study --parallel $(JOBS) || exit 1; done
	@if test -d $(FACES)/../val; then $(BIN)/python benchmarks/face_sources.py $(FACES)/.. $(SOURCES) || exit 1; \
	test -d $(SOURCES)/synthetic_val || $(BIN)/attfc data convert synthetic:identities=3000,images=4,seed=1,first=1000000 $(SOURCES)/synthetic_val || exit 1; \
	test -d $(SOURCES)/synthetic_10k || $(BIN)/attfc data convert synthetic:identities=10000,images=2-20,seed=1 $(SOURCES)/synthetic_10k || exit 1; \
	test -d $(SOURCES)/synthetic_30k || $(BIN)/attfc data convert synthetic:identities=30000,images=2-20,seed=1 $(SOURCES)/synthetic_30k || exit 1; \
	for study in faces_tune faces_trained_tune faces_heads faces_seeds faces_folds faces_folds_long faces_long faces_seeds_long faces_options faces_tail faces_seeds_tail faces_flip faces_web_to_lfw faces_lfw_to_web synthetic_tune synthetic_10k synthetic_30k; do $(BIN)/attfc study run benchmarks/studies/$$study.yaml -o benchmarks/results/studies/$$study --faces $(SOURCES) --parallel $(JOBS) || exit 1; done; \
	else echo "studies of faces left out: make study FACES=FOLDER/train, with FOLDER/val beside it (person/*.jpg)"; fi
	$(BIN)/python benchmarks/tables.py

docs: setup
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python .ci/examples.py --page

# Warnings, and links within the site that lead nowhere, end it.
site: setup
	$(BIN)/uv sync --frozen --inexact --quiet --group site
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
	@echo "open build/site/index.html"

links: site
	@if $(BIN)/python -c "import socket; socket.create_connection(('github.com', 443), 5)" 2>/dev/null; \
	then $(BIN)/python -m sphinx -q -b linkcheck -d build/doctrees docs build/links; else echo "no network: links to elsewhere were not tried"; fi

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(EXAMPLES) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
