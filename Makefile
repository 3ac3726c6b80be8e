# Every target sets itself up: a virtual environment in .venv, pinned by constraints.txt, with this package editable.
# PYTHON=... chooses the Python for .venv. ARGS=... goes to the target's command.
# Commands run as `python -m`, because a package of the base Python has no script in .venv.

SHELL := /bin/sh
BIN := .venv/bin
READY := .venv/.ready
TOGETHER := -q --numprocesses logical --maxprocesses 4 --dist worksteal
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)

# The folder of torch and torchvision, if the base Python has them in the pinned versions. A .pth file lets .venv see
# them. The base Python may be the system's, conda's or another virtual environment's.
define FIND_TORCH
import importlib.metadata as m, re
pins = dict(re.findall(r"^(torch|torchvision)=+(\S+)", open("constraints.txt").read(), re.M))
try: found = {name: m.distribution(name) for name in pins}
except m.PackageNotFoundError: raise SystemExit
if all(found[name].version.split("+")[0] == pin for name, pin in pins.items()): print(found["torch"].locate_file(""))
endef
export FIND_TORCH

# Runs pip, reports progress every 15 seconds, and shows pip's messages if it fails.
define INSTALL
log=.venv/pip.log
.venv/bin/python -m pip install --disable-pip-version-check --no-color --progress-bar off -c constraints.txt -e '.[dev]' > $$log 2>&1 &
pip=$$!
trap 'kill $$pip 2>/dev/null; exit 130' INT TERM
seconds=0
while kill -0 $$pip 2>/dev/null; do
    sleep 1
    seconds=$$((seconds + 1))
    if [ $$((seconds % 15)) -eq 0 ]; then
        found=$$(grep -cE '^(Collecting|Processing) ' $$log)
        installed=$$(find .venv/lib -maxdepth 3 -name '*.dist-info' | wc -l)
        now=$$(grep -E '^ *(Downloading|Installing collected) ' $$log | tail -n 1 | sed -e 's/^ *//' -e 's/ collected packages: .*/ them/')
        echo "  $$seconds s: $$found packages found, $$((installed)) installed; $$(echo "$${now:-Looking for packages}" | cut -c 1-60)"
    fi
done
wait $$pip || { cat $$log >&2; echo "pip failed; see its messages above. Fix the cause and run make again." >&2; exit 1; }
echo "  installed in $$seconds s"
endef
export INSTALL

.PHONY: help reproduce verify accept test test-all lint bench fast lab book clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

reproduce: $(READY)  ## run all notebooks with the rows in data/rows, into figures/standard; ARGS="--only 05" or ARGS=--fresh
	@$(BIN)/python -m refinecam_lib.reproduce $(ARGS)

verify: $(READY)  ## measure a random sample of the rows in data/rows again and compare; ARGS="--minutes 10 --seed 7"
	@$(BIN)/python -m refinecam_lib.reproduce verify $(ARGS)

accept: $(READY)  ## make the last run's products the committed reference; ARGS="--profile photographs"
	@$(BIN)/python -m refinecam_lib.reproduce accept $(ARGS)

test: $(READY)  ## run the tests except the slow ones; ARGS="-k road"
	@$(BIN)/python -m pytest $(TOGETHER) -m "not slow" $(ARGS)

test-all: $(READY)  ## run every test
	@$(BIN)/python -m pytest $(TOGETHER) $(ARGS)

lint: $(READY)  ## check style, types and imports, that notebooks have no outputs, and that the reference is of today's notebooks
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache
	@$(BIN)/python -m nbstripout --verify --keep-id notebooks/*.ipynb
	@$(BIN)/python -m refinecam_lib.reproduce check

bench: $(READY)  ## time the library against public code, on the same images and maps
	@$(BIN)/python -m benchmarks $(ARGS)

fast: $(READY)  ## install OpenVINO, which then runs the passes without gradients; REFINECAM_ENGINE=torch turns it off
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fast]'

lab: $(READY)  ## open the notebooks in JupyterLab, with .venv as their kernel
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab --notebook-dir notebooks $(ARGS)

book: $(READY)  ## build the pages, notebooks and API as a site, book/index.html; ARGS=--own shows your last run
	@$(BIN)/python -m refinecam_lib.reproduce book $(ARGS)

clean:  ## delete .venv, caches and the last runs' figures; data and the reference stay
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build book
	rm -rf $(filter-out figures/reference,$(wildcard figures/*))

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "refinecam needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "[1/3] making .venv with $$($(PYTHON) --version); only needed once"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@torch=$$($(PYTHON) -c "$$FIND_TORCH"); site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	if [ -n "$$torch" ]; then echo "[2/3] using the torch in $$torch"; echo "$$torch" > "$$site/base_torch.pth"; \
	elif [ -n "$$($(BIN)/python -c "$$FIND_TORCH")" ]; then echo "[2/3] .venv has torch already"; \
	else echo "[2/3] $(PYTHON) has no torch of the pinned version; it will be downloaded (2 GB more on Linux with CUDA)"; fi
	@echo "[3/3] installing some $$(grep -c == constraints.txt) packages; this takes 1 to 5 minutes"; sh -c "$$INSTALL"
	@touch $@
