#!/usr/bin/env bash
# Tests and measures everything on a machine with a GPU and CuPy, and no
# network. All output goes both to the terminal and to one file.
#
#   scripts/verify/gpu.sh WHEELS [RESULTS [DEVICE]]
#
# WHEELS is a folder with the wheels that are missing there. On a machine with a
# package index, `make wheels` makes it, without NumPy and CuPy, so that those
# already installed stay. CHAINER may name a checkout of Chainer v7.8.1, to run
# its own GPU tests of what the patch and compat touch. PYTHON may name an
# interpreter with NumPy and CuPy that is not in a virtual environment.
# RESULTS is gpu-results.txt by default, and DEVICE @cupy:0.
set -uo pipefail

if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: $0 WHEELS [RESULTS [DEVICE]]; WHEELS must be a folder" >&2
    exit 2
fi
wheels=$(realpath "$1")
mkdir -p "$(dirname "${2:-.}")"
results=$(realpath "${2:-gpu-results.txt}")
device=${3:-@cupy:0}
chainer=${CHAINER:+$(realpath "$CHAINER")}
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

run() {
    echo
    echo "\$ $*"
    "$@" 2>&1
    local status=$?
    if [ $status -ne 0 ]; then
        echo "exit status $status"
        failed+=("$*")
    fi
    return $status
}

main() {
    date -u
    nvidia-smi 2>&1 | head -n 15
    run "${PYTHON:-python3}" -m venv --system-site-packages "$work/venv" \
        || return 1
    python="$work/venv/bin/python"
    run "$python" -c 'import numpy, cupy' || return 1
    run "$python" -m pip install --quiet --no-index --find-links "$wheels" \
        'chainer_shared_patch[test]' mock || return 1
    run "$python" -m chainer_shared_patch --info
    run env REQUIRE_GPU=1 "$python" -m pytest --numprocesses 2 -rs tests/gpu
    run "$python" -m pytest --numprocesses auto --ignore tests/gpu
    if [ -n "$chainer" ]; then
        tests=tests/chainer_tests
        run "$python" scripts/upstream/chainer_tests.py "$chainer" \
            -m 'gpu and not multi_gpu and not cudnn and not chainerx' \
            $tests/functions_tests/connection_tests/test_linear.py \
            $tests/links_tests/connection_tests/test_linear.py \
            $tests/links_tests/rnn_tests $tests/optimizers_tests
    fi
    run "$python" scripts/train_mnist.py --device "$device" --epoch 5 \
        --dataset sample --out "$work/train"
    run env PYTHONPATH="$PWD:$PWD/scripts" "$python" -m measure.benchmark --device "$device" \
        --dataset sample --out "$work/benchmark"
    echo
    if [ ${#failed[@]} -eq 0 ]; then
        echo 'everything passed'
    else
        printf 'failed: %s\n' "${failed[@]}"
        return 1
    fi
}

main | tee "$results"
