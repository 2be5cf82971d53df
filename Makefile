PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AIRFLOW := build/airflow_venv

# What PyTorch is built for: cuda, as the lock has it, or cpu: the same versions without CUDA, from PyTorch's own index.
TORCH ?= cuda
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Further words for pytest.
PYTEST ?=

.PHONY: audit sweep test faults engines lint install bench airflow dataflow-template clean

# The main job on the embedded default: rates, a report and a database to query.
audit: install
	$(BIN)/eidetic demo --lake lake

# A dozen small models on the embedded pictures, trained, attacked and compared.
sweep: install
	$(BIN)/eidetic demo --lake sweep_lake --sweep demo/sweeps/small.toml --device all

# A file of tests for each process, of which there are half more than cores, since they wait for others of their own now and then;
# and in it one thread: those of several processes would wait for one another. In their order, and not the files of few tests last,
# which are the long ones. The engines have a target of their own.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )) \
	  --dist loadfile --no-loadscope-reorder --ignore tests/engines $(PYTEST)

# All that is done to lakes, of which make test does a sample, and the page made of what came of it.
faults: install
	rm -rf build/faults
	OMP_NUM_THREADS=1 EIDETIC_FAULTS=all $(BIN)/python -m pytest -q --numprocesses auto --dist worksteal tests/faults
	$(BIN)/python -m tests.faults.report

# The engines that are named, by default all, installed here, and the tests on them: an hour.
ENGINES ?= prism flink spark google_storage
engines: install
	-$(BIN)/python -m tests.engines.install $(ENGINES)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/engines $(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every benchmark, and the table in docs/benchmarks.md made from their results; at the end, those that could not run.
bench: install
	@failed=; for file in benchmarks/*.py; do \
	  case $$file in */__init__.py|*/results.py|*/marts_in_pandas.py|*/vectors.py) continue ;; esac; \
	  echo "$$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || failed="$$failed $$file"; \
	done; test -z "$$failed" || { echo "not measured:$$failed (why stands above)" >&2; exit 1; }

install: $(VENV)/installed

# pip says nothing for minutes, so what it is at is said first.
$(VENV)/installed: requirements.lock setup.py
	@test "$(TORCH)" = cuda -o "$(TORCH)" = cpu || { echo "TORCH is '$(TORCH)', expected cuda or cpu" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if test $(TORCH) = cpu; then \
	  mkdir -p build && sed -E '/^(nvidia-|cuda-|triton)/d; s/^(torch|torchvision)==.*/&+cpu/' requirements.lock > build/requirements.txt; \
	  echo "installing $$(grep -c == build/requirements.txt) packages into $(VENV): about 2 GB, with PyTorch for CPUs from $(CPU_INDEX); one to three minutes"; \
	else \
	  mkdir -p build && cp requirements.lock build/requirements.txt; \
	  echo "installing $$(grep -c == build/requirements.txt) packages into $(VENV): 7 GB, most of it PyTorch with CUDA; three to five minutes"; \
	  if ! command -v nvidia-smi > /dev/null; then \
	    if $(BIN)/python -c "import urllib.request; urllib.request.urlopen('$(CPU_INDEX)/torch/', timeout=5)" 2> /dev/null; then \
	      echo "this machine shows no GPU: without CUDA it is about 2 GB (Ctrl-C, then make TORCH=cpu …)"; \
	    else \
	      echo "this machine shows no GPU, but PyTorch without CUDA can't be had: $(CPU_INDEX) is not reachable"; \
	    fi; \
	  fi; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r build/requirements.txt $(if $(filter cpu,$(TORCH)),--extra-index-url $(CPU_INDEX))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Airflow pins other versions than Eidetic, so its DAG is tested in an environment of its own.
airflow: $(AIRFLOW)/installed

$(AIRFLOW)/installed: deploy/airflow_requirements.lock
	@echo "installing $$(grep -c == $<) packages into $(AIRFLOW): 1.6 GB; one to three minutes"
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/airflow_requirements.lock
	touch $@

# The Flex Template for Dataflow, with IMAGE=… and TEMPLATE=gs://…; without them what can be made here, and the commands for the rest.
dataflow-template: install
	@PYTHON=$(BIN)/python deploy/dataflow/template.sh

clean:
	rm -rf build lake sweep_lake .pytest_cache .mypy_cache .ruff_cache *.egg-info
