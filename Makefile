PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AIRFLOW := build/airflow_venv

.PHONY: audit test faults lint install bench airflow clean

# The main job on the embedded default: rates, a report and a database to query.
audit: install
	$(BIN)/eidetic demo --lake lake

# A file of tests for each core, and in it one thread: those of several processes would wait for one another.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

# All that is done to lakes, of which make test does a sample, and the page made of what came of it.
faults: install
	rm -rf build/faults
	OMP_NUM_THREADS=1 EIDETIC_FAULTS=all $(BIN)/python -m pytest -q --numprocesses auto tests/faults
	$(BIN)/python -m tests.faults.report

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

# Airflow pins other versions than Eidetic, so its DAG is tested in an environment of its own.
airflow: $(AIRFLOW)/installed

$(AIRFLOW)/installed: deploy/airflow_requirements.lock
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/airflow_requirements.lock
	touch $@

clean:
	rm -rf build lake .pytest_cache .mypy_cache .ruff_cache *.egg-info
