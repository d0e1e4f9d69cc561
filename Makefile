# The commands that people and CI type. `make` alone lists them.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# make install CONSTRAINTS=constraints.txt installs the exact versions of the lock file
CONSTRAINTS ?=
# tests run in one process per core; one that has finished its part takes tests from the others
PROCESSES := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: help install demo site test test-slow test-lowest audit lint format lock

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## create .venv and install repa-pipe with all development tools into it

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on --editable '.[demo,dev]' $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	@touch $@

demo: install  ## encode, train and sample on real images, then write an HTML report
	$(BIN)/repa-pipe demo

test test-slow test-lowest: export OMP_NUM_THREADS = 1

test: install lint  ## run lint and all tests but the slow ones (minutes)
	$(BIN)/python -m pytest $(PROCESSES)

test-slow: install  ## run only the slow tests (up to an hour, up to 10 GB of memory)
	$(BIN)/python -m pytest $(PROCESSES) -m slow

# Dependencies that users get at their declared lowest versions; test tools, and what dependencies need, at the newest.
test-lowest: install  ## run the tests with the lowest versions that pyproject.toml allows (build/lowest, 7 GB)
	$(BIN)/python -m pip install --quiet uv
	@mkdir -p build
	$(BIN)/uv pip compile --quiet --no-deps --resolution lowest-direct --extra demo --extra cloud --extra ray-train pyproject.toml > build/lowest.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/lowest
	$(BIN)/uv pip install --quiet --python build/lowest --editable '.[demo,dev]' --constraint build/lowest.txt
	build/lowest/bin/python -m pytest $(PROCESSES)

audit: install  ## look up the versions of constraints.txt in the database of known vulnerabilities (needs a network)
	$(BIN)/python -m pip install --quiet pip-audit
	@mkdir -p build
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict 2> build/audit.txt || { \
	  grep --quiet --extended-regexp 'could not be audited|ConnectionError' build/audit.txt \
	    && echo 'nothing was audited: pypi.org gave no answer (no network?)'; tail -n 1 build/audit.txt; exit 1; }

# The files of the package without those around them (.venv, tests), for tools that read all of a package.
PARTS := $(wildcard *.py) py.typed $(patsubst %/,%,$(dir $(wildcard */__init__.py)))
build/package/repa_pipe: $(PARTS)
	@rm -rf build/package && mkdir -p $@
	@ln -s $(PARTS:%=../../../%) $@

site: install build/package/repa_pipe  ## build the documentation site in build/site
	$(BIN)/python -m mkdocs build --strict

lint: install build/package/repa_pipe  ## check formatting, style, spelling, wording, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/python tests/wording.py
	MYPYPATH=build/package $(BIN)/mypy -p repa_pipe
	$(BIN)/lint-imports

format:  ## format the code and apply automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: install  ## write the versions installed in .venv to constraints.txt
	@mkdir -p build
	$(BIN)/python -m pip list --format freeze --exclude-editable --exclude pip --exclude setuptools > build/versions.txt
	@# the comment at the top of the file stays; a suffix such as +cpu names a package index, not a version
	{ sed '/^[^#]/,$$d' constraints.txt; sed 's/+.*//' build/versions.txt; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
