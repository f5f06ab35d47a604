# make install   .venv with Moorage in it, and nothing else
# make run       the service in the foreground; ARGS="..." are moorage serve's
# make test      everything: Debian packages (as root), lint, types, tests
# make asan      the datapath's tests, a hostile guest and a hostile worker, every memory access checked; FUZZ_SECONDS=10
# make bench     Moorage beside passt, libslirp and the least that is possible (20 minutes)
# make lint, types, check (both), format

PYTHON ?= python3
BIN := .venv/bin
EXTENSION := setup.py pyproject.toml $(shell find worker -name '*.pyx' -o -name '*.pxd')
STUBBED := $(subst /,.,$(patsubst %.pyi,%,$(shell find worker -name '*.pyi')))
SOURCES := proto supervisor worker api cli agent tests bench setup.py

FUZZ_SECONDS ?= 10
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
ASAN_TESTS := tests/fuzz $(wildcard tests/worker/test_engine_*.py tests/worker/ip tests/worker/link tests/worker/switch tests/worker/tcp tests/worker/wire)
LIBASAN = $(shell gcc -print-file-name=libasan.so)

.PHONY: install dev run test asan packages lint types check format agent bench clean

install: .venv/.installed

.venv/.installed: $(EXTENSION)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

dev: .venv/.dev

.venv/.dev: pyproject.toml | install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	touch $@

run: install
	exec $(BIN)/moorage serve $(ARGS)

packages:
	scripts/install-test-packages
	scripts/fetch-guest-kernel

# A build of its own, found before the checkout's: -P keeps the working directory from coming first. Python's own
# allocator would hide what lies beside a block. Freed memory is kept aside here, so growth cannot be measured. Who
# fuzzes for minutes wants no traceback on the way: taken while the engine runs, it ends the process here.
asan: dev
	MOORAGE_BUILD=asan $(BIN)/python setup.py --quiet build --build-base build/asan --build-lib build/asan/lib
	LD_PRELOAD=$(LIBASAN) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 MOORAGE_FUZZ_SECONDS=$(FUZZ_SECONDS) \
		PYTHONPATH=build/asan/lib:. $(BIN)/python -P -m pytest -q -p no:cacheprovider -o faulthandler_timeout=0 \
		$(PARALLEL) -k 'not without_growing' $(ASAN_TESTS)

test: install dev packages check asan
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

check: lint types

lint: dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint worker

types: install dev
	$(BIN)/mypy
	$(if $(STUBBED),$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml \
		--allowlist tests/project/stubtest-allowlist.txt --ignore-unused-allowlist $(STUBBED))

format: dev
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

# For guests: one file, which needs Python 3.9 and nothing else.
agent: dist/moorage-agent.pyz

dist/moorage-agent.pyz: scripts/build-agent $(wildcard agent/*.py) proto/__init__.py proto/framing.py \
		proto/go_flags.py pyproject.toml
	scripts/build-agent $@

bench: install dev packages
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf build dist *.egg-info .cache .mypy_cache .ruff_cache .pytest_cache .venv
	find worker -name '*.so' -delete
