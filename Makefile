# normscope: two commands on a fresh machine are `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := pip install --quiet --disable-pip-version-check
# the versions that are known to go together; empty for the newest of everything
CONSTRAINTS ?= constraints.txt
PINS = $(addprefix -c ,$(CONSTRAINTS))
TORCH ?= torch
RUN := runs/demo
# one more than there are cores: many tests wait for a process or a page
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(8, 1 + len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))')
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TESTS = OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

.DEFAULT_GOAL := help
.PHONY: help demo test slow coverage mutants lowest sanitize lint docs notebooks dist bench scripts pictures assets clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

# torch goes first and alone, so that no other package chooses a build of it
.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) $(PINS) '$(TORCH)'
	$(BIN)/$(PIP) $(PINS) '$(TORCH)' -e .
	@touch $@

.venv/.dev: .venv/.core
	$(BIN)/$(PIP) $(PINS) '$(TORCH)' -e '.[dev]'
	@touch $@

demo: .venv/.core  ## train on the bundled digits, follow every class, write the report
	$(BIN)/normscope env --warm
	$(BIN)/normscope explain
	$(BIN)/normscope train --data digits --net mlp --norm batch,none,noaffine,affine_only,per_class --freeze-head --seeds 3 --out $(RUN) --overwrite

# one thread in each process: processes that spin for each other's cores are several times slower
test: .venv/.dev  ## the tests
	$(BIN)/normscope env --warm
	$(TESTS) -m "not slow" $(PYTEST_ARGS)

slow: .venv/.dev  ## the long tests: timm, several processes, Triton's programs, damaged files by the thousand
	$(BIN)/normscope env --warm
	$(TESTS) -m slow $(PYTEST_ARGS)

# the same tests, about half as long again; not part of .ci/run
coverage: .venv/.dev  ## the tests again, and the share of the code's lines that they run: 95 %
	$(BIN)/normscope env --warm
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run $(PYTEST) -m "not slow" $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# an hour or two, of which cover takes twenty minutes; each part stops and goes on where it was
mutants: .venv/.dev  ## change the code on purpose, 300 times, and count what the tests notice
	$(BIN)/$(PIP) $(PINS) '$(TORCH)' -e '.[dev,mutants]'
	$(BIN)/python tools/mutants cover
	$(BIN)/python tools/mutants run
	$(BIN)/python tools/mutants show

LOWEST := .venv-lowest/bin
LOWEST_TESTS = tests/test_functional.py tests/test_moments.py tests/layers tests/probe tests/lens/test_lens.py \
  tests/cli/test_cli.py tests/cli/test_inputs.py tests/test_files.py tests/test_damaged_files.py tests/experiment/test_data.py \
  tests/test_examples.py tests/report/test_records.py tests/cli/test_report.py tests/conversion/test_conversion.py \
  tests/folding/test_folding.py tests/doctor/test_checks.py tests/doctor/test_repair.py tests/kernels/test_cpu.py

lowest:  ## what pyproject.toml promises of old versions: them in .venv-lowest, and most tests
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/$(PIP) -c constraints-lowest.txt torch
	$(LOWEST)/$(PIP) -c constraints-lowest.txt -e '.[tables,plot,images,tensorboard]' \
	  pytest pytest-timeout pytest-xdist hypothesis expecttest
	$(LOWEST)/normscope env --warm
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(LOWEST_TESTS)

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

dist: .venv/.dev  ## sdist and wheel in dist/, checked and tried in a fresh environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	NORMSCOPE_DIST=dist $(BIN)/python -m pytest tests/test_wheel.py

bench: .venv/.core  ## figures side by side with peers, in one run
	$(BIN)/normscope env --warm
	$(BIN)/normscope bench $(BENCH_ARGS)

scripts:  ## check the types of the live network's scripts (needs npm)
	npx --yes --package typescript@7.0.2 tsc -p tools/tsconfig.json

pictures: .venv/.dev  ## take the README's pictures again (needs Chromium)
	$(BIN)/python tools/pictures.py

assets:  ## rebuild the chart bundle that reports carry (needs npm)
	$(PYTHON) tools/vendor_charts.py

clean:  ## remove the environment and all caches
	rm -rf .venv .venv-lowest dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
