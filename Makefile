# Every target sets itself up: a virtual environment in .venv, pinned by constraints.txt, the package editable in it.
# PYTHON=... chooses the Python that .venv is made from; ARGS=... is passed on to the command behind the target.
# Commands run as `python -m`, since a package found in the base Python has no script in .venv.

SHELL := /bin/sh
BIN := .venv/bin
READY := .venv/.ready
TOGETHER := -q --numprocesses logical --maxprocesses 4 --dist worksteal
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)

# The folder of a torch and torchvision that the base Python already has in the pinned versions; a .pth file lets .venv
# see them, whether that Python is the system's, conda's or another virtual environment's.
define FIND_TORCH
import importlib.metadata as m, re
pins = dict(re.findall(r"^(torch|torchvision)=+(\S+)", open("constraints.txt").read(), re.M))
try: found = {name: m.distribution(name) for name in pins}
except m.PackageNotFoundError: raise SystemExit
if all(found[name].version.split("+")[0] == pin for name, pin in pins.items()): print(found["torch"].locate_file(""))
endef
export FIND_TORCH

.PHONY: help reproduce accept test test-all lint bench lab book clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

reproduce: $(READY)  ## run all notebooks at the quick profile into figures/quick; ARGS="--only 05 --profile standard"
	@$(BIN)/python -m refinecam_lib.reproduce $(ARGS)

accept: $(READY)  ## make the last run's products the committed reference; ARGS="--profile standard"
	@$(BIN)/python -m refinecam_lib.reproduce --accept $(ARGS)

test: $(READY)  ## the tests, without the slow ones; ARGS="-k road"
	@$(BIN)/python -m pytest $(TOGETHER) -m "not slow" $(ARGS)

test-all: $(READY)  ## every test, the slow ones too
	@$(BIN)/python -m pytest $(TOGETHER) $(ARGS)

lint: $(READY)  ## style and types of the code, and no outputs in the notebooks
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy && $(BIN)/python -m nbstripout --verify --keep-id notebooks/*.ipynb

bench: $(READY)  ## time the library against public code, on the same images and maps
	@$(BIN)/python -m benchmarks $(ARGS)

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/python -m jupyterlab --notebook-dir notebooks $(ARGS)

book: $(READY)  ## the executed notebooks as HTML to read, book/index.html
	@$(BIN)/python -m refinecam_lib.book $(ARGS)

clean:  ## delete .venv, caches and the last runs' figures; data and the reference stay
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build book
	rm -rf $(filter-out figures/reference,$(wildcard figures/*))

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "refinecam needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setting up .venv with $$($(PYTHON) --version) (once; the packages are listed in pyproject.toml)"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@torch=$$($(PYTHON) -c "$$FIND_TORCH"); site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	if [ -n "$$torch" ]; then echo "using the torch in $$torch"; echo "$$torch" > "$$site/base_torch.pth"; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
