# `make demo` and `make test` are all that a fresh machine needs; both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := $(filter-out turns tensorflow_peers cleanlab_peer small_networks small_recipes small_training,$(basename $(notdir $(wildcard benchmarks/*.py))))
export RUN

.PHONY: demo by-hand test test-long test-anywhere test-with lint bench bench-doubts bench-neighbour gpu gpu-wheels prove prove-import prove-rsa written tutorials torture fuzz memory two-machines workers sort load attack few-photos folds known quality \
	wheel pages static-page notebooks docs docs-check clean

demo: .venv/installed  ## train on real handwritten digits, print the test accuracy, write a report
	$(BIN)/alexnet train digits --epochs 3

test: .venv/installed-dev  ## every promise on a case or two, in five minutes; tests on real images need ALEXNET_TEST_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-long: .venv/installed-triton  ## all other tests: the other cases, browsers, several processes, killed trainings, notebooks, the GPU kernel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n auto --maxprocesses 2 --dist worksteal

test-with:  ## the tests of `make test` in a venv of its own: PYTHON=python3.13 AND="torch==2.15.0", or WITH=oldest.txt for the oldest libraries
	$(PYTHON) -m venv build/test-with
	build/test-with/bin/python -m pip install --quiet $(if $(WITH),-c $(WITH)) -e '.[dev]' $(AND)
	OMP_NUM_THREADS=1 build/test-with/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-anywhere: .venv/installed-dev  ## the tests of `make test` under each setting that one machine can simulate; takes hours. SETTINGS="avx2 busy" selects some
	$(BIN)/python -m proof.anywhere $(SETTINGS)

lint: .venv/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src/

bench: .venv/installed-bench  ## every benchmark but bench-neighbour; those without RUN=a run of CIFAR-10, ALEXNET_TEST_DATA, .venv-keras or .venv-cleanlab are skipped
	failed=; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

bench-doubts: .venv/installed-dev .venv-cleanlab/installed  ## wrong labels found, against cleanlab; needs RUN="runs/…", ALEXNET_TEST_DATA; ten minutes
	$(BIN)/python -m benchmarks.doubts $(RUN)

bench-neighbour: .venv/installed  ## `fast` and airbench94 or ResNet-18 on DATA="…", each for MINUTES=9, with SEED=0
	$(BIN)/python -m benchmarks.neighbour $(DATA) --minutes $(or $(MINUTES),9) --seed $(or $(SEED),0)

gpu:  ## check and time the GPU path in at most 12 minutes: needs PyTorch and the packages in build/gpu-wheels; also runs on a CPU
	$(PYTHON) -m proof.gpu

gpu-wheels:  ## download what `make gpu` needs besides PyTorch, for a machine without a network that has Python 3.12 on x86-64 Linux
	rm -rf build/gpu-wheels
	python3 -m pip download --quiet --only-binary=:all: --python-version 3.12 --implementation cp $(foreach n,_2_28 _2_27 _2_17 2014,--platform manylinux$(n)_x86_64) -d build/gpu-wheels pydantic
	python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $(foreach n,_2_28 _2_27 _2_17 2014,--platform manylinux$(n)_x86_64) -d build/gpu-wheels tomli-w captum faiss-cpu nvidia-ml-py

prove: .venv/installed-dev .venv-keras/installed  ## the four tutorials against real Keras; downloads TensorFlow (600 MB), takes 5 minutes
	rm -rf build/keras
	.venv-keras/bin/python -m proof.prove_keras reference build/keras
	$(BIN)/python -m proof.prove golden tests/golden/keras build/keras
	ALEXNET_KERAS=build/keras $(BIN)/python -m pytest -q -s -m "long or not long" tests/test_keras.py tests/test_keras_data.py
ifdef ALEXNET_TEST_DATA
	.venv-keras/bin/python -m proof.prove_keras trained $(ALEXNET_TEST_DATA) build/keras-trained
	$(BIN)/python -m proof.prove imported build/keras-trained
else
	@echo "ALEXNET_TEST_DATA names no folder of real images: networks trained in Keras and imported were not compared"
endif

prove-import: .venv/installed-dev  ## imported networks against torchvision, OpenCV and onnxruntime on 100 photos; needs ALEXNET_TEST_DATA
	$(PYTHON) -m venv build/prove-import
	build/prove-import/bin/python -m pip install --quiet -c constraints.txt -e '.[export]'
	build/prove-import/bin/python -m pip install --quiet --no-deps 'torchvision==0.29.*' 'opencv-python-headless<5'
	build/prove-import/bin/python -m proof.imported $(ALEXNET_TEST_DATA)/cats-dogs

prove-rsa:  ## dissimilarities and their correlations against rsatoolbox, in its own venv
	$(PYTHON) -m venv build/prove-rsa
	build/prove-rsa/bin/python -m pip install --quiet 'rsatoolbox<1'
	PYTHONPATH=src build/prove-rsa/bin/python -m proof.rsa

written: .venv/installed-torchvision .venv-keras/installed  ## real torchvision and Keras load what `alexnet export` writes; 5 minutes
	rm -rf build/written
	.venv-keras/bin/python -m proof.written keras build/written
	$(BIN)/python -m proof.written ours build/written
	.venv-keras/bin/python -m proof.written loaded build/written

tutorials: .venv/installed-dev  ## train the four tutorials to their last epoch, in pieces if MINUTES=12; minutes on a GPU, days on a CPU
	$(BIN)/python -m proof.tutorials $(if $(MINUTES),--minutes $(MINUTES)) $(NAMES)

by-hand: .venv/installed  ## train the network in NumPy on digits; takes a minute
	$(BIN)/python -m alexnet.scratch

torture: .venv/installed-dev  ## kill trainings at random moments, 205 times; takes a quarter of an hour
	$(BIN)/python -m proof.torture

workers: .venv/installed-dev  ## kill a random worker of trainings on several processes, 20 times; takes a quarter of an hour
	$(BIN)/python -m proof.workers

sort: .venv/installed-dev  ## kill `predict --sort` at random moments, 20 times; needs ALEXNET_TEST_DATA, takes ten minutes
	$(BIN)/python -m proof.sort

two-machines: .venv/installed-dev  ## train on two machines, network namespaces, from an object store; needs Linux, root and ALEXNET_TEST_DATA
	$(BIN)/python -m pip install --quiet --target build/objects 'moto[s3,server]' s3fs
	PYTHONPATH=src:.:build/objects $(BIN)/python -m proof.two_machines $(ALEXNET_TEST_DATA)/cats-dogs

memory: .venv/installed-dev  ## train from 50,000 images of 256x256 and watch the memory; takes 10 GB of disk
	$(BIN)/python -m proof.memory

few-photos: .venv/installed-dev  ## from nothing, head and finetune on 50, 200 and 700 photos, from RUN="runs/… runs/…"; needs ALEXNET_TEST_DATA
	$(BIN)/python -m proof.few_photos build/few-photos $(RUN)

folds: .venv/installed-dev  ## the accuracy of one split and of five folds, on 700 photos, from RUN="runs/…"; needs ALEXNET_TEST_DATA
	$(BIN)/python -m proof.folds build/folds $(RUN)

known: .venv/installed-dev  ## how well runs tell images of none of their classes, three seeds; needs ALEXNET_TEST_DATA
	$(BIN)/python -m proof.known build/known

quality: .venv/installed-dev  ## how often `data check` calls clean photos bad and finds degraded ones, cues of real classes; needs ALEXNET_TEST_DATA
	$(BIN)/python -m proof.quality

fuzz: .venv/installed-dev  ## read 20,000 damaged images in every way
	$(BIN)/python -m proof.fuzz

load: .venv/installed-bench  ## 10,000 requests to RUN="runs/…", against a plain loop; needs ALEXNET_TEST_DATA
	$(BIN)/python -m proof.load $(RUN)

attack: .venv/installed-attack  ## attack a server with everything that it should survive, including 20,000 damaged images
	$(BIN)/python -m proof.attack

wheel: .venv/installed-dev  ## build the wheel, install it into an empty venv, run every command; takes five minutes
	$(BIN)/python -m proof.wheel

pages: .venv/installed-pages  ## open the reports of RUNS="runs/…" in Chromium; needs chromium
	$(BIN)/python -m proof.pages $(RUNS)

static-page: .venv/installed-pages  ## export RUN="runs/…" as a page and open it in Chromium: odd photos, offline, keyboard; needs the archive of onnxruntime-web
	$(BIN)/python -m proof.static_page $(RUN)

notebooks: .venv/installed-dev  ## run the notebooks and store what they print; needs ALEXNET_TEST_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m proof.notebooks

docs: .venv/installed-docs  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-check: .venv/installed-dev docs  ## run the code of the site and of README, and check links; takes a quarter of an hour
	$(BIN)/python -m proof.docs

clean:  ## remove what was installed and built; runs stay
	rm -rf .venv .venv-keras .venv-cleanlab site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing PyTorch and the rest into .venv: 1.4 GB, once; a minute or more"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing PyTorch, and what tests need, into .venv: 2 GB, once; a minute or more"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ .venv/installed

.venv/installed-bench: .venv/installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,export]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt openvino  # without openvino-telemetry, which reports each import
	touch $@

.venv/installed-triton: .venv/installed-dev  # for the GPU kernel's tests, on Linux alone: 1 GB
	if [ "$$(uname)" = Linux ]; then $(BIN)/python -m pip install --quiet 'triton==3.9.*'; fi
	touch $@

.venv/installed-torchvision: .venv/installed-dev  # for proofs alone: its own dependencies would replace torch
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	touch $@

.venv/installed-pages: .venv/installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,pages]'
	touch $@

.venv/installed-attack: .venv/installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,attack]'
	touch $@

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@ .venv/installed

.venv-cleanlab/installed: .venv/bin/python  # in a venv of its own, as it brings pandas
	$(PYTHON) -m venv .venv-cleanlab
	.venv-cleanlab/bin/python -m pip install --quiet 'cleanlab==2.9.*'
	touch $@

.venv-keras/installed: proof/requirements.txt
	$(PYTHON) -m venv .venv-keras
	.venv-keras/bin/python -m pip install --quiet -r proof/requirements.txt
	touch $@
