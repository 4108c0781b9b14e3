# make install | train | test | check | bench | torture | clean       Each works alone on a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
STAMP  := $(VENV)/.installed

.PHONY: install train test check bench torture clean

install: $(STAMP)

# constraints.txt pins what was tested. torch goes first: everything else is then resolved against it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# The main job: LoRA on real reviews. Started again it finds the finished run and prints its result.
train: install
	$(BIN)/peftlab train experiment=first_run

test: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Side by side with transformers.Trainer + HF peft on the same data and recipe; minutes.
bench: install
	$(BIN)/python benchmarks/against_trainer.py

# Kill a run at random moments and start it again, many times: it must end with the same bits; minutes.
torture: install
	$(BIN)/python benchmarks/torture.py

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache
