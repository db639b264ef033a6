# make demo: install, run four methods over three seeds, compare them.   make test: install, run every test.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export WANDB_ERROR_REPORTING := false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast browser lint docs dist clean

help:  ## Say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# In "compat" mode the checkout is a folder on the path: a script beside it, where Python takes the checkout's
# folder for a package of the same name, still finds the package.
# The stamp makes a second `make` install nothing; a change of what is to be installed makes it anew.
$(VENV)/installed: pyproject.toml
	@echo "Installing into $(VENV), step 1 of 2: $(TORCH)."
	@echo "This takes some minutes, by the network: about 2.5 GB, most of it PyTorch."
	$(PYTHON) -m venv $(VENV)
	@date +%s > $(VENV)/began
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(TORCH)
	@echo "Installing into $(VENV), step 2 of 2: fedprune and what it needs."
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile \
		--config-settings editable_mode=compat --editable '.[sim,study,metrics,audio,text,export,tensorboard,mlflow,wandb,dev,docs]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip would take one core. Templates do not compile.
	@touch $@
	@echo "Installed into $(VENV) in $$(($$(date +%s) - $$(cat $(VENV)/began))) s."

install: $(VENV)/installed  ## Create .venv and install fedprune into it

demo: install  ## Run four methods over three seeds, compare them, and write a page about it
	$(BIN)/fedprune study run studies/quickstart.yaml
	$(BIN)/fedprune study report studies/quickstart.yaml

test: install  ## Run every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-fast: install  ## Run the tests that take a moment
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow"

browser:  ## Install Chromium, in which tests open reports, where there is none (Debian or Ubuntu, as root)
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ apt-get update && apt-get install -y --no-install-recommends chromium; }

lint: install  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## Build the documentation site into build/site; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: install  ## Build and check what is published: dist/ has the wheel and the source archive
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## Remove what the other targets made
	rm -rf $(VENV) runs build dist *.egg-info
