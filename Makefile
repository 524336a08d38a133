# normscope: two commands on a fresh machine are `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
# one more than there are cores: many tests wait for a process or a page
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(8, 1 + len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))')
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test slow sanitize lint docs notebooks bench scripts pictures assets clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

# torch goes first and alone, so that no other package chooses a build of it
.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.core
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.core  ## train on the bundled digits, follow every class, write the report
	$(BIN)/normscope env --warm
	$(BIN)/normscope explain
	$(BIN)/normscope train --data digits --net mlp --norm batch,none,noaffine,affine_only,per_class --freeze-head --seeds 3 --out $(RUN) --overwrite

# one thread in each process: processes that spin for each other's cores are several times slower
test: .venv/.dev  ## the tests
	$(BIN)/normscope env --warm
	$(TESTS) -m "not slow" $(PYTEST_ARGS)

slow: .venv/.dev  ## the long tests: architectures of timm, training on several processes
	$(BIN)/normscope env --warm
	$(TESTS) -m slow $(PYTEST_ARGS)

# its library is built apart, in its own entry of the cache: about a minute at first
sanitize: .venv/.dev  ## the kernels' tests and a fuzz of wrong calls under sanitizers (needs g++)
	$(BIN)/python tools/sanitize.py $(PYTEST_ARGS)

lint: .venv/.dev  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.dev  ## the documentation, as docs/_build/index.html
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

notebooks: .venv/.dev  ## execute the notebooks in examples/ and write their outputs
	$(BIN)/python tools/notebooks.py $(NOTEBOOKS)

bench: .venv/.core  ## figures side by side with peers, in one run
	$(BIN)/normscope env --warm
	$(BIN)/normscope bench $(BENCH_ARGS)

scripts:  ## check the types of the live network's scripts (needs npm)
	npx --yes --package typescript@7.0.2 tsc -p tools/tsconfig.json

pictures: .venv/.dev  ## take the README's pictures again (needs Chromium; after make demo)
	$(BIN)/python tools/pictures.py

assets:  ## rebuild the chart bundle that reports carry (needs npm)
	$(PYTHON) tools/vendor_charts.py

clean:  ## remove the environment and all caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
