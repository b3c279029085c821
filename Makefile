# make quickstart   set up everything and compare BF16 and FP16 in a real verl run on two CPU cores
#                   (FRAMEWORK=openrlhf: in a real OpenRLHF run)
# make recipes-toy  run the toy section of every recipe, about two hours (RECIPES="sanity-gspo ...": those), and write
#                   docs/recipes-toy.md
# make toy-experiment  SEEDS="1 2 ...": how much mismatch training tolerates, into docs/results-toy.md; 20 minutes a run on two
#                   busy cores, 18 runs or 6 hours a seed (ARMS="bits-5 ...", RECIPES="dose-response": those)
# make test         set up everything and run every check and test but faults and cluster, two folders of tests at a time
#                   (JOBS=0: one after the other)
# make test-faults  break something in real runs, one test at a time, about 15 minutes (docs/test-faults.md)
# make test-cluster  run both frameworks on two Ray nodes of this machine, about 8 minutes (docs/test-cluster.md)
VENV ?= .venv
FRAMEWORK ?= verl
RECIPE := $(if $(filter verl,$(FRAMEWORK)),quickstart,quickstart-$(FRAMEWORK))
OUT ?= runs/$(RECIPE)
BIN := $(VENV)/bin

ifeq ($(filter $(subst $() ,_,$(FRAMEWORK)),verl openrlhf),)
$(error FRAMEWORK=$(FRAMEWORK) is unknown; allowed: verl, openrlhf)
endif

RECIPES ?=
JOBS ?= 2

ARMS ?= bf16 fp16 bits-7 bits-6 bits-5 bits-4 bits-3 bits-2 bits-1
SEEDS ?=

.PHONY: help setup quickstart recipes-toy toy-experiment test test-faults test-cluster lint unit docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make\|   \)/\1/p' Makefile

setup:
	@scripts/setup.sh $(VENV)

quickstart: setup
	$(BIN)/fp16-patch recipes run $(RECIPE) --out $(OUT)

recipes-toy: setup
	$(BIN)/python scripts/recipes_toy.py runs/toy $(RECIPES)

toy-experiment: setup
	$(BIN)/python scripts/toy_experiment.py runs/toy-experiment \
	  $(if $(RECIPES),--recipes $(RECIPES)) --arms $(ARMS) --seeds $(SEEDS)

test: setup lint
	$(BIN)/python -m pytest -m "not faults and not cluster" -n $(JOBS) --no-loadscope-reorder

test-faults: setup
	$(BIN)/python -m pytest -m faults tests/end_to_end

test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests/end_to_end/cluster

# the default while working: a few minutes
unit: setup
	$(BIN)/python -m pytest -m "not distributed and not end_to_end and not faults and not cluster"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# the generated parts of docs/
docs: setup
	$(BIN)/python scripts/generate_docs.py

clean:
	rm -rf $(VENV) runs build dist
