# Two commands set everything up on a fresh machine: `make quickstart` and `make test`.
# PYTHON is the interpreter (3.10 or later), VENV the folder of the virtual environment, QUICKSTART the folder of
# the run, PRETRAIN_MINUTES the length of `make pretrain`, TEST_WORKERS the number of processes that run tests:
# `make test TEST_WORKERS=8`.

PYTHON ?= python3
VENV ?= .venv
QUICKSTART ?= output/quickstart
TEST_WORKERS ?= 2
PRETRAIN_MINUTES ?= 30
export DETECTRON2_DATASETS ?= datasets

RUN = $(VENV)/bin/python

.PHONY: help install quickstart pretrain test gpu lint clean

help:
	@echo "make quickstart   install, train on drawn people, evaluate, draw, report: 8,000 iterations, 17 minutes of CPU time"
	@echo "make pretrain     install, train on drawn people of all kinds for PRETRAIN_MINUTES: weights to start from"
	@echo "make test         install, lint, check types, run the tests: about ten minutes on two CPU cores"
	@echo "make gpu          on a machine with a GPU: tests, measures, docs/gpu.md; nothing is installed, nine minutes"
	@echo "make lint         install, ruff and mypy alone"
	@echo "make install      the virtual environment .venv with this package and its tests' tools"
	@echo "make clean        remove the virtual environment and output/"

install: $(VENV)/installed

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --editable ".[report,test]"
	touch $@

quickstart: install
	$(RUN) tools/train_net.py --config-file configs/quickstart.yaml OUTPUT_DIR $(QUICKSTART)
	$(RUN) tools/train_net.py --config-file configs/quickstart.yaml --eval-only DATASETS.TEST "['synthetic_test']" \
		MODEL.WEIGHTS $(QUICKSTART)/model_final.pth OUTPUT_DIR $(QUICKSTART)/test
	$(RUN) tools/visualize_results.py --dataset synthetic_test \
		--results $(QUICKSTART)/test/inference/coco_instances_results.json --output $(QUICKSTART)/predictions \
		--metrics $(QUICKSTART)/metrics.json --num 8
	@echo "Predictions and the loss curve are in $(QUICKSTART)/predictions."
	$(RUN) tools/report.py $(QUICKSTART) --attention --output $(QUICKSTART)/report

pretrain: install
	$(RUN) tools/train_net.py --config-file configs/quickstart.yaml OUTPUT_DIR output/pretrain \
		DATASETS.TRAIN "['synthetic_train', 'synthetic_hard_train']" DATASETS.TEST "['synthetic_hard_val']" \
		INPUT.MIN_SIZE_TRAIN "[112, 128, 144, 160]" SOLVER.MAX_MINUTES $(PRETRAIN_MINUTES)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(TEST_WORKERS)

# With the packages that are there: nothing comes from a network.
gpu:
	PYTHONPATH=. $(or $(wildcard $(RUN)),$(PYTHON)) tools/gpu_report.py

clean:
	rm -rf $(VENV) output
