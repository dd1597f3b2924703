# Two commands on a fresh machine with Python 3.11 and gcc: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test slow lint clean
help:
	@echo "make demo   set up, then prepare, pretrain on two workers, and generate (minutes)"
	@echo "make test   set up, then the test suite"
	@echo "make slow   the slow tier: fault runs and large inputs"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove the virtual environment"

demo: $(VENV)/.done
	@$(BIN)/python jobs/demo.py

test: $(VENV)/.done
	@$(BIN)/python -m pytest -q

slow: $(VENV)/.done
	@$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.done
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy

clean:
	rm -rf $(VENV)

$(VENV)/.done: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes, once; the log is $(VENV)/setup.log)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0 > $(VENV)/setup.log 2>&1 \
		&& $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' >> $(VENV)/setup.log 2>&1 \
		|| { tail -20 $(VENV)/setup.log; exit 1; }
	@touch $@
