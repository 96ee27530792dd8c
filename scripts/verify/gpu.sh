#!/usr/bin/env bash
# Tests and measures everything on a machine with a GPU and CuPy, and no
# network. All output goes both to the terminal and to one file.
#
#   scripts/verify/gpu.sh WHEELS [RESULTS]
#
# WHEELS is a folder with the wheels that are missing there. On a machine with a
# package index, `make wheels` makes it, without NumPy and CuPy, so that those
# already installed stay. CHAINER may name a checkout of Chainer v7.8.1, to run
# its own GPU tests of what the patch and compat touch. PYTHON may name an
# interpreter with NumPy and CuPy that is not in a virtual environment.
# RESULTS is gpu-results.txt by default.
set -uo pipefail

wheels=$(realpath "${1:?a folder of wheels is needed}")
results=$(realpath "${2:-gpu-results.txt}")
chainer=${CHAINER:+$(realpath "$CHAINER")}
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD:$PWD/scripts
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

main() {
    local failed=0 python=$work/venv/bin/python tests=tests/chainer_tests
    set -x
    nvidia-smi
    "${PYTHON:-python3}" -m venv --system-site-packages "$work/venv" || return
    "$python" -c 'import numpy, cupy' || return
    "$python" -m pip install --quiet --no-index --find-links "$wheels" \
        'chainer_shared_patch[test]' mock || return
    "$python" -m chainer_shared_patch --info || failed=1
    REQUIRE_GPU=1 "$python" -m pytest -n 2 -rs tests/gpu || failed=1
    "$python" -m pytest -n auto --ignore tests/gpu || failed=1
    if [ -n "$chainer" ]; then
        "$python" scripts/upstream/run_chainer_tests.py "$chainer" \
            -m 'gpu and not multi_gpu and not cudnn and not chainerx' \
            $tests/functions_tests/connection_tests/test_linear.py \
            $tests/links_tests/connection_tests/test_linear.py \
            $tests/links_tests/rnn_tests $tests/optimizers_tests || failed=1
    fi
    "$python" scripts/train_mnist.py --device @cupy:0 --epoch 5 \
        --dataset sample --out "$work/train" || failed=1
    "$python" -m measure.benchmark --device @cupy:0 --dataset sample \
        --out "$work/benchmark" || failed=1
    { set +x; } 2> /dev/null
    [ $failed = 0 ] && echo 'everything passed'
}

main 2>&1 | tee "$results"
