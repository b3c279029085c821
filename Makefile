# make quickstart   set up everything and compare BF16 and FP16 in a real verl run on two CPU cores
# make test         set up everything and run every check and test
VENV ?= .venv
OUT ?= runs/quickstart
BIN := $(VENV)/bin

.PHONY: setup quickstart test lint unit docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

setup:
	@scripts/setup.sh $(VENV)

quickstart: setup
	$(BIN)/fp16-patch recipes run quickstart --out $(OUT)

test: setup lint
	$(BIN)/python -m pytest

# the default while working: seconds
unit: setup
	$(BIN)/python -m pytest -m "not distributed and not end_to_end"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the generated parts of docs/
docs: setup
	$(BIN)/python scripts/generate_docs.py

clean:
	rm -rf $(VENV) runs build dist
