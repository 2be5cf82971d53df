PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: audit test lint install bench clean

# The main job on the embedded default: rates, a report and a database to query.
audit: install
	$(BIN)/eidetic demo --lake lake

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every benchmark, and the table in docs/benchmarks.md made from their results.
bench: install
	for file in benchmarks/*.py; do \
	  case $$file in */__init__.py|*/results.py) ;; \
	  *) $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1 ;; esac; \
	done

install: $(VENV)/installed

# torch first: the rest then finds it, and pip need not weigh another build of it.
$(VENV)/installed: requirements.lock setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf build lake .pytest_cache .mypy_cache .ruff_cache *.egg-info
