# Two commands on a fresh machine with Python 3.11 and gcc: `make demo` and `make test`.
# PYTHON=… names another interpreter. pip reads its usual settings, so PIP_EXTRA_INDEX_URL can name
# an index with the CPU build of torch.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
KILL ?= 0
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/setup.log
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo test slow gpu lint results clean
help:
	@echo "make demo    set up, then prepare, pretrain on two workers, generate, export and serve: minutes on two cores"
	@echo "             (KILL=1 kills a worker on the way)"
	@echo "make test    set up, then the test suite: under 15 minutes on two cores"
	@echo "make slow    the slow tier: fault runs and large inputs, an hour or more"
	@echo "make gpu     the tests that need a CUDA device"
	@echo "make results TASK=en_sst2   a task of jobs/configs/tasks with all its arms, into docs/results"
	@echo "make lint    ruff, mypy and codespell"
	@echo "make setup   the virtual environment $(VENV) alone"
	@echo "make clean   remove $(VENV)"

setup: $(VENV)/.done

demo: $(VENV)/.done
	@KILL=$(KILL) $(BIN)/python jobs/demo.py

# A file stays on one worker, of one thread; the third one fills the time in which others wait for
# processes that they started.
test: $(VENV)/.done
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.done
	@$(BIN)/python -m pytest -q -m slow

gpu: $(VENV)/.done
	@$(BIN)/python -m pytest -q -m gpu -rs

lint: $(VENV)/.done-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/codespell -L atention

results: $(VENV)/.done
	@$(BIN)/python jobs/results.py --config jobs/configs/tasks/$(TASK).yaml --docs docs/results

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python " + \
		sys.version.split()[0] + "; 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

# torch comes first: DeepSpeed looks for it when its package is built. pip's output is shown only when
# it fails; it warns of much that a user can do nothing about.
$(VENV)/.done: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV): once, a few minutes ($(LOG) tells how it goes)"
	@{ $(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt) && $(PIP) --editable '.[test]'; } \
		> $(LOG) 2>&1 || { tail -n 30 $(LOG); echo "setting up $(VENV) failed; all of it is in $(LOG)"; exit 1; }
	@touch $@

$(VENV)/.done-dev: $(VENV)/.done
	@$(PIP) --editable '.[dev]' >> $(LOG) 2>&1 || { tail -n 20 $(LOG); exit 1; }
	@touch $@
