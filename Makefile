# The two commands are `make train` and `make test`. Each first sets up a virtual
# environment in .venv, unless it exists and is up to date.
#
#   make train EPOCHS=3 DATASET=~/mnist ARGS='--seed 1'
#   make test ARGS='-k patch'
#   PYTHON=python3.12 make test

VENV := .venv
EPOCHS ?= 20
DATASET ?= auto
RANKS ?= 2
ARGS ?=
# Passed in the environment, because a shell expands nothing in values there.
export DATASET OUT
# Or cuda13x.
CUDA ?= cuda12x

ifneq ($(origin PYTHON), undefined)
ifneq ($(wildcard $(VENV)/bin/python),)
INTERPRETER := -c 'import sys; print(sys.base_prefix, sys.version)'
ifneq ($(shell $(VENV)/bin/python $(INTERPRETER)), \
       $(shell $(PYTHON) $(INTERPRETER)))
# Another interpreter than that of .venv was asked for: make .venv again.
.PHONY: $(VENV)/bin/python
endif
endif
endif
PYTHON ?= python3

# pip reads the first up to version 25.2, the second from 25.3 on.
export PIP_CONSTRAINT := $(strip $(PIP_CONSTRAINT) build-constraints.txt)
export PIP_BUILD_CONSTRAINT := \
    $(strip $(PIP_BUILD_CONSTRAINT) build-constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help train train-distributed test benchmark compare test-gpu wheels \
    wheelhouse docs test-kernels test-all mutation lint format audit dist smoke clean

help:
	@echo 'make train        train the network of the article on MNIST (EPOCHS=20 DATASET=auto OUT=result)'
	@echo 'make train-distributed'
	@echo '                  train it on RANKS=2 processes'
	@echo 'make test         run the tests'
	@echo 'make benchmark    compare the speed with the alternatives (a quarter of an hour)'
	@echo 'make compare      compare accuracy and size with the alternatives (three quarters of an hour)'
	@echo 'make test-gpu     run the tests that need CuPy and a GPU'
	@echo 'make wheels       collect the wheels that scripts/verify/gpu.sh needs'
	@echo 'make wheelhouse   build wheels that install without the two variables'
	@echo 'make test-kernels run the arithmetic tests with each BLAS kernel'
	@echo 'make test-all     run all tests with several versions of Python and NumPy'
	@echo 'make mutation     look for changes to the code that no test notices (hours)'
	@echo 'make lint         check style and types'
	@echo 'make format       format the code'
	@echo 'make docs         make a site of docs/ in build/docs'
	@echo 'make audit        check the licences and vulnerabilities of what is installed'
	@echo 'make dist         build the sdist and the wheel'
	@echo 'make smoke        check that the wheel works in an empty environment'
	@echo 'make clean        remove everything made by the above, except results'

train: $(VENV)/installed-plot
	$(VENV)/bin/python scripts/train_mnist.py --epoch $(EPOCHS) \
	    --dataset="$$DATASET" --out="$${OUT:-result}" $(ARGS)

# Open MPI must be told if this is root, as in containers. Each rank has one BLAS
# thread, and leaves its core to others while it waits.
train-distributed: $(VENV)/installed-plot,mpi
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	$(VENV)/bin/mpiexec --allow-run-as-root --map-by :OVERSUBSCRIBE \
	    --mca mpi_yield_when_idle 1 -n $(RANKS) \
	    $(VENV)/bin/python scripts/train_mnist_distributed.py \
	    --epoch $(EPOCHS) --dataset="$$DATASET" --out="$${OUT:-result}" $(ARGS)

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

benchmark: $(VENV)/installed-plot,onnx
	PYTHONPATH=scripts $(VENV)/bin/python -m measure.benchmark \
	    --dataset="$$DATASET" --out="$${OUT:-result-benchmark}" $(ARGS)

compare: $(VENV)/installed-onnx
	PYTHONPATH=scripts $(VENV)/bin/python -m measure.compare \
	    --dataset="$$DATASET" --out="$${OUT:-result-compare}" $(ARGS)

test-gpu: $(VENV)/installed-test,$(CUDA)
	$(VENV)/bin/python -m pytest -rs tests/gpu $(ARGS)

# For a machine with the same version of Python, and its own NumPy and CuPy.
wheels: $(VENV)/bin/python
	$(VENV)/bin/python -m pip wheel --quiet --wheel-dir wheels '.[test]' mock
	rm -rf build wheels/numpy-*.whl

# Chainer has no wheel of its own. Everything else that is needed has one.
wheelhouse: $(VENV)/bin/python
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir wheelhouse \
	    chainer==7.8.1 .
	rm -rf build

# NumPy's OpenBLAS adds in a different order with each kind of kernel. These are
# the kinds that this processor can run, judging by its instructions.
has = $(shell grep -sow -m 1 $(1) /proc/cpuinfo)
KERNELS = Nehalem $(if $(call has,avx),Sandybridge) \
    $(if $(call has,avx2),Haswell) $(if $(call has,avx512f),SkylakeX)

test-kernels: $(VENV)/installed-test
	for kernel in $(KERNELS); do \
	    echo "OpenBLAS with the kernels for $$kernel"; \
	    OPENBLAS_CORETYPE=$$kernel $(VENV)/bin/python -m pytest \
	        --numprocesses auto -m arithmetic tests || exit; \
	done

# With every Python installed, including those of pyenv that are not selected.
test-all: export PATH := \
    $(PATH)$(shell printf ':%s' "$$(pyenv root 2> /dev/null)"/versions/*/bin)
test-all: $(VENV)/installed-dev test-kernels
	$(VENV)/bin/tox run $(ARGS)

# While it runs, it changes the files of the package, and then changes them back.
mutation: SESSION := build/mutation.sqlite
mutation: $(VENV)/installed-mutation test
	mkdir -p build
	$(VENV)/bin/cosmic-ray init --force mutation.toml $(SESSION)
	$(VENV)/bin/cr-filter-operators $(SESSION) mutation.toml
	$(VENV)/bin/cosmic-ray exec mutation.toml $(SESSION)
	$(VENV)/bin/cr-report --surviving-only --show-diff $(SESSION)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Without a network. All pages are read again, so that each warning is seen.
docs: $(VENV)/installed-docs
	$(VENV)/bin/sphinx-build -qEnW --keep-going docs build/docs
	@echo 'The site is build/docs/index.html'

# Of what "pip install" installs, and EXTRAS=[onnx,plot] of that too. These
# licences let programs of any licence use a package.
LICENSES = MIT;MIT License;BSD License;BSD-3-Clause;3-Clause BSD License;$\
    BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0;MIT-CMU;PSF-2.0;$\
    Apache Software License;Apache-2.0;Apache-2.0 OR BSD-2-Clause;$\
    MPL-2.0 AND MIT;$\
    Mozilla Public License 2.0 (MPL 2.0);Python Software Foundation License
audit: AUDITED := .audit/bin/python
audit: $(VENV)/installed-audit
	$(VENV)/bin/python -m venv --clear --without-pip .audit
	$(VENV)/bin/python -m pip --python $(AUDITED) install --quiet \
	    --use-pep517 '.$(EXTRAS)'
	$(VENV)/bin/cyclonedx-py environment --output-reproducible \
	    --pyproject pyproject.toml --output-file sbom.json $(AUDITED)
	$(VENV)/bin/pip-licenses --with-system --python $(AUDITED) \
	    --allow-only '$(LICENSES)'
	$(VENV)/bin/pip-audit --vulnerability-service osv \
	    --path .audit/lib/python*/site-packages

# The same bytes for the same commit, Python and setuptools.
dist: export SOURCE_DATE_EPOCH ?= \
    $(or $(shell git log -1 --format=%ct 2> /dev/null),315532800)
dist: $(VENV)/installed-dev
	rm -rf dist
	$(VENV)/bin/pyproject-build

smoke: dist
	$(VENV)/bin/python -m venv --clear .smoke
	.smoke/bin/python -m pip install --quiet dist/*.whl
	.smoke/bin/python scripts/verify/smoke.py

clean:
	rm -rf $(VENV) .audit .smoke build dist wheels wheelhouse sbom.json *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	    .hypothesis .tox

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9) and \
	    "Python 3.9 or later is needed, but $(PYTHON) is %d.%d;" \
	    " choose another with PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/installed-%: $(VENV)/bin/python setup.cfg setup.py pyproject.toml \
        build-constraints.txt
	@echo 'Installing chainer_shared_patch and what "make" needs into $(VENV) ...'
# An environment made by uv has no pip.
	@$(VENV)/bin/python -m pip --version > /dev/null 2>&1 \
	    || $(VENV)/bin/python -m ensurepip > /dev/null
	@$(VENV)/bin/python -m pip install --quiet --use-pep517 \
	    --editable '.[$*]'
	@touch $@
