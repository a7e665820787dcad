# make demo | run | drill | test | test-slurm | ui | docs | lint | bench: each sets up what it needs. PYTHON and PIP_ARGS may be given on the command line.
PYTHON ?= python3
PIP_ARGS ?=
CORES ?= 2
# A file's tests stay in one process, since they share what was expensive to make.
PARALLEL := --numprocesses $(CORES) --dist loadfile
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo run drill test test-unit test-fast test-mlflow test-slurm estimate docs lint format ui sync bench bench-gpu config-docs clean-environment \
	study-ssl_trajectories study-what_matters study-digits study-fashion study-architectures study-protocols study-equal_bytes clean test-minimum
.DEFAULT_GOAL := demo

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.slurm: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[slurm]'
	touch $@

demo: $(VENV)/.run  ## the whole pipeline on the default config
	$(BIN)/snakemake --cores $(CORES) --quiet rules
	@cat results/digits_1pct/report/summary.md
	@echo "The page with all of it: results/digits_1pct/report/index.html   Runs, curves and pictures: make ui"

run: $(VENV)/.run  ## snakemake, after what a killed run left is cleared away; ARGS='--configfile ...'
	$(BIN)/mkdt run --cores $(CORES) $(ARGS)

drill: $(VENV)/.dev  ## kill random processes of a small run 25 times, then compare every file with an undisturbed run
	MKDT_DRILL_ROUNDS=25 $(BIN)/pytest -s tests/workflow/test_drill.py

test: $(VENV)/.dev lint  ## lint, types, unit and workflow tests
	$(BIN)/pytest $(PARALLEL)

test-fast: $(VENV)/.dev  ## without the slow part
	$(BIN)/pytest $(PARALLEL) -m "not slow and not mlflow"

test-unit: $(VENV)/.dev  ## the unit tests of one package: make test-unit PKG=distill
	$(BIN)/pytest $(PARALLEL) tests/unit/$(PKG)

test-minimum:  ## the fast part with the lower bounds of pyproject.toml, in .venv-minimum (Python 3.11, 7 GB)
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	sed -nE 's/^    "([A-Za-z0-9-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml > .venv-minimum/lowest.txt
	.venv-minimum/bin/python -m pip install --quiet $(PIP_ARGS) --constraint .venv-minimum/lowest.txt --editable '.[dev]'
	.venv-minimum/bin/python -m pytest $(PARALLEL) -m "not slow and not mlflow"

test-mlflow: $(VENV)/.dev  ## tracking with slow, dying and unavailable stores
	$(BIN)/pytest $(PARALLEL) --dist load -m mlflow tests

test-slurm: $(VENV)/.dev $(VENV)/.slurm  ## the workflow, its jobs killed in every way, on a SLURM of its own on this machine (root, Debian); skipped elsewhere
	$(BIN)/pytest -m slurm -rs --durations=5 tests/slurm

estimate: $(VENV)/.run  ## docs/estimates.md: jobs, memory and disk of every experiment
	$(BIN)/python -m mkdt.jobs.estimate_tables config/config.yaml config/experiments/*.yaml config/experiments/paper/*.yaml > docs/estimates.md

docs: $(VENV)/.docs  ## build/site: the pages, the Python API; a link that leads nowhere is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs/site . build/site

lint: $(VENV)/.dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

ui: $(VENV)/.run  ## the MLflow UI on http://127.0.0.1:5000
	@mkdir -p results
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow server --backend-store-uri sqlite:///results/mlflow.db \
		--artifacts-destination results/mlartifacts --host 127.0.0.1 --port 5000 --workers 1

sync: $(VENV)/.run  ## send to MLflow what has not reached it yet, each value once
	$(BIN)/mkdt track sync

config-docs: $(VENV)/.run  ## config/README.md from the schema
	$(BIN)/python -c 'from mkdt.config.schema import reference; print(reference(), end="")' > config/README.md

clean: $(VENV)/.run  ## what can be made again: experts whose sets are there, what no result shares; asks first
	$(BIN)/mkdt clean

clean-environment:
	rm -rf $(VENV)

study-ssl_trajectories: $(VENV)/.run  ## docs/studies/ssl_trajectories.md: its sets and tables, then the variances
	$(BIN)/snakemake --cores 1 --configfile config/studies/ssl_trajectories.yaml
	$(BIN)/python workflow/studies/ssl_trajectories.py

bench: $(VENV)/.run  ## speed and memory against plain implementations, as ratios
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/stages.py

bench-gpu: $(VENV)/.run  ## the engine at the paper's sizes on a GPU
	$(BIN)/python benchmarks/gpu.py

study-what_matters: $(VENV)/.run  ## docs/studies/what_matters.md: table and figure from the levels that are measured
	$(BIN)/python workflow/studies/what_matters.py

study-digits: $(VENV)/.run  ## docs/studies/digits.md
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/digits.yaml
	$(BIN)/python workflow/studies/digits.py

study-fashion: $(VENV)/.run  ## docs/studies/fashion.md; downloads Fashion-MNIST
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/fashion.yaml
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/fashion.yaml config/studies/fashion_rates.yaml
	$(BIN)/python workflow/studies/fashion.py

study-protocols: $(VENV)/.run  ## docs/studies/protocols.md
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/protocols.yaml
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/protocols.yaml config/studies/protocols_paper.yaml
	$(BIN)/python workflow/studies/protocols.py

study-equal_bytes: $(VENV)/.run  ## docs/studies/equal_bytes.md
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/equal_bytes.yaml
	for rung in raw uint8 space; do \
		$(BIN)/snakemake --cores $(CORES) --quiet rules \
			--configfile config/studies/equal_bytes.yaml config/studies/equal_bytes_$$rung.yaml || exit 1; \
	done
	$(BIN)/python workflow/studies/equal_bytes.py

study-architectures: $(VENV)/.run  ## docs/studies/architectures.md
	$(BIN)/snakemake --cores $(CORES) --quiet rules --configfile config/studies/architectures.yaml
	$(BIN)/python workflow/studies/architectures.py
