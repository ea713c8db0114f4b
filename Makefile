# make reproduce   run the notebooks in order     SCALE=smoke|mini|smol|paper|released  SEED=0  SET="a.b=v c.d=w"  ARGS="--only 20_ppo"  (ARGS="--accept-cost USD" where servers cost money)
# make test        lint, unit tests, notebooks    make test-fast leaves the notebooks and slow tests out
# make test-vllm   the tests that need real vLLM servers; sets vLLM up in .venv-vllm first
# make rehearse     all notebooks of SCALE=paper|released in small, on a CPU, with scripted servers; data: RLPA_ALOE, RLPA_PERSONACHAT
# make test-gpu     the first five minutes on a card: one table of checks     SCALE=paper  SET="a.b=v c.d=w"
# They set everything up by themselves in .venv. PYTHON=/path/to/python3.11 chooses the interpreter,
# TORCH_INDEX=https://download.pytorch.org/whl/cpu spares a machine without a GPU the download of CUDA.

SHELL := /bin/bash
SCALE ?= mini
SEED ?= 0
RUN_DIR ?= runs/$(notdir $(basename $(SCALE)))-$(SEED)
SET ?=
ARGS ?=
PYTHON ?=
TORCH_INDEX ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# pytest, and each notebook's kernel, use one thread: two processes with two threads each on two cores are far slower
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false
SHARED := -n 2 --dist loadfile

# Compiled modules stay in .venv and beside the library, whatever the shell says: each of a run's kernels and a test's processes would
# otherwise compile torch and transformers anew, about ten seconds of its time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install reproduce rehearse test test-fast test-vllm test-gpu lint lab tiny-model lock clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@chosen=""; for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then chosen="$$candidate"; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "No Python 3.11 or newer found (tried: $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)). Name one: make install PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! "$(PY)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "making $(VENV) with $$("$$chosen" --version)"; \
	  "$$chosen" -m venv --clear $(VENV) || { echo "$$chosen cannot make virtual environments (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	fi
	@echo "installing requirements.lock (the first time takes some minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: install
	$(PY) -m rlpa_lib reproduce --scale $(SCALE) --seed $(SEED) --run-dir $(RUN_DIR) $(foreach s,$(SET),--set '$(s)') $(ARGS)

lint: install
	$(PY) -m ruff check .

# runs/smoke-0 is the notebooks' default run directory; it is emptied, so that every test run executes everything. The notebooks run beside
# the unit tests, which two processes share, a file each: when the notebooks are done, both cores are still busy.
test: lint
	rm -rf runs/smoke-0
	@mkdir -p runs; $(OFFLINE) $(ONE_THREAD) $(PY) -m pytest notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=900 -p no:cacheprovider >runs/notebooks.log 2>&1 & \
	books=$$!; $(OFFLINE) $(ONE_THREAD) $(PY) -m pytest tests -m "not slow" $(SHARED); units=$$?; \
	wait $$books; books=$$?; echo "notebooks:"; cat runs/notebooks.log; exit $$((units || books))

test-fast: lint
	$(OFFLINE) $(ONE_THREAD) $(PY) -m pytest tests -m "not slow" $(SHARED)

test-vllm: install
	$(PY) -m rlpa_lib.agents.vllm_server setup $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
	$(OFFLINE) $(ONE_THREAD) $(PY) -m pytest tests/real_vllm -s

# SCALE here is paper unless it is given
GPU_SCALE = $(if $(filter command environment,$(firstword $(origin SCALE))),$(SCALE),paper)

rehearse: install
	$(OFFLINE) $(ONE_THREAD) $(PY) tests/rehearse.py --scale $(GPU_SCALE) $(foreach s,$(SET),--set '$(s)') $(ARGS)

test-gpu: install
	$(OFFLINE) RLPA_GPU_SCALE=$(GPU_SCALE) RLPA_GPU_SET="$(SET)" $(PY) -m pytest tests/gpu -rs $(ARGS)

lab: install
	$(PY) -m jupyter lab notebooks

# trains the built-in model from scratch and rewrites rlpa_lib/mini/weights
tiny-model: install
	$(OFFLINE) $(PY) -m rlpa_lib.mini.pretraining.train $(ARGS)

# for maintainers: after changing pyproject.toml and upgrading in .venv, write down what is installed
lock:
	@{ head -n 1 requirements.lock; $(PY) -m pip freeze --all --exclude pip --exclude rlpa-lib | sed 's/+cpu$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@{ sed '/^      - /d' environment.yml; sed -n 's/^\([^#].*\)/      - \1/p' requirements.lock; echo "      - --editable ."; } > environment.yml.new
	@mv environment.yml.new environment.yml

# results under runs/ are kept
clean:
	rm -rf $(VENV) .venv-vllm build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
