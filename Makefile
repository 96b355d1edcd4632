# `make` alone explains itself. Recipes run from any directory: make -C /path/to/spark-butler demo
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.ONESHELL:

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK_FLAGS := --universal --python-version 3.12 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

# pytest's arguments, e.g. make test ARGS="-k plan -x"
ARGS ?=

.PHONY: help
help: ## Show this list
	@echo 'usage: make TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(INSTALLED) ## Make the environment in .venv/ (PYTHON=... names an interpreter)

$(INSTALLED): pyproject.toml requirements.lock requirements-java.lock tools/install.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" tools/install.sh

.PHONY: lock
lock: $(INSTALLED) ## Bring the lock files up to the newest versions that fit pyproject.toml
	@uv=$$(tools/install.sh --uv)
	"$$uv" pip compile $(LOCK_FLAGS) --upgrade --extra demo --extra test pyproject.toml -o requirements.lock
	"$$uv" pip compile $(LOCK_FLAGS) --upgrade --extra docs --constraints requirements.lock pyproject.toml -o requirements-docs.lock
	"$$uv" pip compile $(LOCK_FLAGS) --upgrade --extra stores --constraints requirements.lock pyproject.toml -o requirements-stores.lock
	sed -n 's/^java = \["\(.*\)"\]$$/\1/p' pyproject.toml | "$$uv" pip compile $(LOCK_FLAGS) --upgrade - -o requirements-java.lock

.PHONY: demo
demo: $(INSTALLED) ## Simulate a night, process it on Spark and S3, draw pictures (in demo-data/)
	@$(RUN) python jobs/demo.py

.PHONY: demo-server
demo-server: $(INSTALLED) ## Serve the demo's object store again, to look around in its repository
	@$(RUN) python jobs/demo.py --serve

.PHONY: test
test: $(INSTALLED) ## Run the tests (ARGS="-k word" chooses)
	@$(RUN) python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: test-unit
test-unit: $(INSTALLED) ## Run the tests that need neither Java nor an S3 server and run no graph
	@$(RUN) python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m unit $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## Run the tests that need minutes: lost workers, large objects, published executor tests
	@$(RUN) python -m pytest -o timeout=3600 -m slow $(ARGS)

.PHONY: test-stores
test-stores: $(INSTALLED) ## Run on each object store that is installed, over http and TLS (table in docs/stores.md)
	@VENV="$(VENV)" tools/install.sh --stores
	$(RUN) STORES_TABLE=1 python -m pytest -o timeout=3600 -m stores $(ARGS)

.PHONY: test-deployment
test-deployment: $(INSTALLED) ## Check the files of conf/ against the schemas of the services, with all linters
	@uv=$$(tools/install.sh --uv)
	[ -d .venv-deployment ] || "$$uv" venv --quiet --python $(BIN)/python .venv-deployment
	"$$uv" pip install --quiet --python .venv-deployment/bin/python -c requirements.lock -e ".[deployment,test]"
	[ -d .venv-airflow ] || "$$uv" venv --quiet --python $(BIN)/python .venv-airflow
	"$$uv" pip install --quiet --python .venv-airflow/bin/python "apache-airflow>=3,<4" apache-airflow-providers-apache-spark
	.venv-deployment/bin/python -m pytest tests/conf $(ARGS)

.PHONY: test-notebooks
test-notebooks: $(INSTALLED) ## Execute the notebooks of docs/notebooks/ in a kernel, and stop a cell
	@$(RUN) python -m pytest -o timeout=3600 -m "slow or not slow" tests/integration/test_notebooks.py $(ARGS)

.PHONY: test-upstream
test-upstream: $(INSTALLED) ## Run pipe_base's and ctrl_mpexec's published executor tests on Spark
	@$(RUN) python -m pytest -o timeout=3600 -m slow tests/integration/upstream $(ARGS)

.PHONY: test-spark-versions
test-spark-versions: ## Run the engine's conformance suite on PySpark 3.5, 4.0 and the newest (VERSIONS="4.1 4.2.1")
	@PYTHON="$(PYTHON)" VERSIONS="$(VERSIONS)" tools/test_spark_versions.sh $(ARGS)

.PHONY: env-archive
env-archive: $(INSTALLED) ## Pack the environment with its Python for clusters, into dist/ (ARGS="--with psycopg[binary]")
	@$(RUN) python tools/env_archive.py $(ARGS)

.PHONY: chaos
chaos: $(INSTALLED) ## Kill things around runs on a Spark cluster, and compare (ARGS="--seeds 3 --store ceph --registry postgresql")
	@$(RUN) python -m tests.integration.chaos $(ARGS)

.PHONY: bench
bench: bench-engines bench-temporaries bench-planning bench-ingest bench-prefetch bench-scaling ## Measure all of what follows, in some four hours

.PHONY: bench-temporaries
bench-temporaries: $(INSTALLED) ## Measure what handing a dataset over costs (table and plot in docs/)
	@$(RUN) python benchmarks/temporaries.py $(ARGS)

.PHONY: bench-engines
bench-engines: $(INSTALLED) ## Run graphs of mock quanta here and by pipetask run-qbb (ARGS="--sizes 400 --repeats 1")
	@$(RUN) python benchmarks/performance.py $(ARGS)

.PHONY: bench-scaling
bench-scaling: $(INSTALLED) ## Simulate runs on 1 to 10,000 slots (ARGS="--graph my.qg --times seconds.json")
	@$(RUN) python benchmarks/scaling.py $(ARGS)

.PHONY: bench-planning
bench-planning: $(INSTALLED) ## Plan and give out graphs of up to a million quanta (ARGS="--visits 320")
	@$(RUN) python benchmarks/planning.py $(ARGS)

.PHONY: bench-prefetch
bench-prefetch: $(INSTALLED) ## Measure prefetch with 100 ms of latency for each GET (ARGS="--cases ccd --delay 0.03")
	@$(RUN) python benchmarks/prefetch.py $(ARGS)

.PHONY: bench-science
bench-science: $(INSTALLED) ## Measure catalogs beside those of sep, photutils, SExtractor and SCAMP (ARGS="--scenes dense --seeds 3 4")
	@$(RUN) python benchmarks/science.py $(ARGS)

.PHONY: bench-libraries
bench-libraries: $(INSTALLED) ## Measure steps of process_ccd beside astroscrappy, photutils, ccdproc and astroalign
	@uv=$$(tools/install.sh --uv)
	"$$uv" pip install --quiet --python $(BIN)/python -e ".[bench]"
	$(RUN) python benchmarks/libraries.py $(ARGS)

.PHONY: bench-ingest
bench-ingest: $(INSTALLED) ## Measure how fast the driver fills a registry (ARGS="--size 400")
	@$(RUN) python benchmarks/ingest.py $(ARGS)

.PHONY: docs
docs: $(INSTALLED) ## Build the documentation with the API reference, into build/docs/
	@VENV="$(VENV)" tools/install.sh --docs
	$(RUN) python tools/build_docs.py

.PHONY: lint
lint: $(INSTALLED) ## Check style, wording, spelling (American), types and imports between packages
	@$(RUN); export PATH
	ruff check .
	ruff format --check .
	python tools/check_words.py
	codespell
	lint-imports
	mypy --strict spark_butler pyspark_butler jobs tests

.PHONY: lint-words
lint-words: $(INSTALLED) ## Check spelling (American) and wording
	@$(RUN); export PATH
	codespell
	python tools/check_words.py

.PHONY: format
format: $(INSTALLED) ## Put the code into its standard form
	@$(RUN); export PATH
	ruff check --fix-only .
	ruff format .

.PHONY: clean
clean: ## Remove caches and what the demo made
	rm -rf demo-data build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.uv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove the environment, too
	rm -rf $(VENV) .uv
