# make demo | make test | make lint | make train | make help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs soak mutants audit wheel train study controls families optimizers \
  minibatches zoo fullbatch untuned unusual generalization adapters moves quantisation theory publish clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools
	$(INSTALL) torch
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

demo: $(STAMP) ## evaluate the shipped learned optimizers and baselines; leaves runs/demo/
	$(BIN)/python eval_meta.py --config configs/demo.yaml --overwrite $(DEMO_FLAGS)

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest --numprocesses 2

lint: $(STAMP) ## style, types, and which folder imports which
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## the documentation as a site, in runs/docs/; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs runs/docs
	@echo runs/docs/index.html

soak: $(STAMP) ## the long forms of the tests of faults, scale and bad input (an hour)
	METAOPT_SOAK=1 METAOPT_FUZZ=soak $(BIN)/python -m pytest -rP -m soak

mutants: $(STAMP) ## small faults in symmetry/ and learned/, and which tests notice (an hour)
	$(INSTALL) mutmut
	$(BIN)/python scripts/mutants.py

audit: $(STAMP) ## known vulnerabilities of the pinned dependencies; needs network
	$(INSTALL) pip-audit
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

wheel: $(STAMP) ## a wheel and an sdist in dist/
	$(INSTALL) build
	$(BIN)/python -m build --outdir dist .

train: $(STAMP) ## meta-train LSTM(update,tele), resuming what is there
	$(BIN)/python train_meta.py --config configs/lstm_update_tele.yaml --resume

study: $(STAMP) ## train, tune and measure all of Figure 6, resuming what is there (hours)
	$(BIN)/python -m studies.learned_teleportation --out runs/study

controls: $(STAMP) ## why it wins: the same with one thing changed, resuming what is there (hours)
	$(BIN)/python -m studies.controls --out runs/controls

families: $(STAMP) ## the shipped optimizer on problems unlike those it was trained on
	$(BIN)/python -m studies.families --out runs/families

optimizers: $(STAMP) ## section 5.1 and appendix G on real data; needs MNIST in $$METAOPT_DATA
	for study in mnist momentum adagrad; do \
	  $(BIN)/python -m studies.optimizers $$study --out runs/optimizers || exit; done

minibatches: $(STAMP) ## the layerwise optimizer against tuned rivals; needs MNIST in $$METAOPT_DATA
	$(BIN)/python -m studies.minibatches --out runs/minibatches

zoo: $(STAMP) ## small full-batch networks of 324 kinds, resuming what is there (hours)
	$(BIN)/python -m studies.zoo --out runs/zoo

fullbatch: $(STAMP) ## real full-batch problems (20 minutes); needs MNIST in $$METAOPT_DATA
	$(BIN)/python -m studies.full_batch --out runs/full_batch

untuned: $(STAMP) ## four larger networks with default settings; needs CIFAR-10 in $$METAOPT_DATA
	$(BIN)/python -m studies.untuned --out runs/untuned

unusual: $(STAMP) ## small problems of 40 unusual kinds with default settings
	$(BIN)/python -m studies.unusual --out runs/unusual

generalization: $(STAMP) ## section 4 on real data; needs all three data sets in $$METAOPT_DATA
	for data in mnist fashion-mnist cifar10; do for study in correlation teleport; do \
	  $(BIN)/python -m studies.generalization $$study --dataset $$data \
	    --out runs/generalization || exit; done; done

adapters: $(STAMP) ## low-rank adapters, balanced at each step, against AdamW (half an hour)
	$(BIN)/python -m studies.adapters --out runs/adapters
	$(BIN)/python -m studies.adapters.rotations --out runs/rotations

moves: $(STAMP) ## a learned group element at GL sites, beside AdamW (a few minutes)
	$(BIN)/python -m studies.learned_moves --out runs/learned_moves

quantisation: $(STAMP) ## equalised before rounding; MNIST of $$METAOPT_DATA, if it is there
	$(BIN)/python -m studies.quantisation --out runs/quantisation

theory: $(STAMP) ## the paper's theorems against their bounds (minutes)
	$(BIN)/python -m studies.convergence all

publish: $(STAMP) ## ship the study's best optimizers, and put its tables and pictures into the docs
	$(BIN)/python scripts/publish.py

clean: ## remove what make and runs leave
	rm -rf $(VENV) runs build *.egg-info
