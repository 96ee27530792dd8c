"""Runs: trainings of networks, each with a results file of its own."""

from concurrent.futures import ProcessPoolExecutor, as_completed
import functools
import hashlib
import json
import multiprocessing
import os

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
from datasets import load_dataset
from measure.compare_mnist.networks import Network, Run, convert
from measure.machine import count_cores
import numpy

BATCH_SIZE = 100
THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


@functools.lru_cache(maxsize=1)
def read_dataset(name):
    """Returns the training and test data, and a description of them."""
    *parts, description = load_dataset(name)
    parts = [chainer.dataset.concat_examples(part[:]) for part in parts]
    return (*parts, description)


def get_path(run, dataset, out):
    """Returns the path of a run's results, which its settings determine."""
    text = json.dumps([read_dataset(dataset)[-1], run])
    return out / 'runs' / f'{hashlib.sha256(text.encode()).hexdigest()}.json'


def evaluate(model, images, labels):
    """Returns the accuracy."""
    correct = 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for i in range(0, len(images), 1000):
            y = model(images[i : i + 1000]).array
            correct += int((y.argmax(1) == labels[i : i + 1000]).sum())
    return correct / len(images)


def train(optimizer, images, labels):
    optimizer.update(
        lambda: F.softmax_cross_entropy(optimizer.target(images), labels)
    )


def compute(run, dataset, out):
    """Trains a network and writes the results; returns them."""
    (images, labels), test, _ = read_dataset(dataset)
    numpy.random.seed(run.seed)
    if run.start:
        model = Network(run.dense)
        path = get_path(run.dense, dataset, out).with_suffix('.npz')
        chainer.serializers.load_npz(path, model)
        convert(model, run, images)
    else:
        model = Network(run)
    optimizer = chainer.optimizers.Adam(run.learning_rate).setup(model)
    accuracies = [evaluate(model, *test)]
    for epoch in range(run.epochs):
        order = numpy.random.permutation(len(images))
        for i in range(0, len(order), BATCH_SIZE):
            done = (epoch + i / len(order)) / run.epochs
            optimizer.alpha = run.learning_rate * (1 - done)
            batch = order[i : i + BATCH_SIZE]
            train(optimizer, images[batch], labels[batch])
        accuracies.append(evaluate(model, *test))
    path = get_path(run, dataset, out)
    if run == Run(run.sizes, epochs=run.epochs, seed=run.seed):
        # Other runs start from it.
        chainer.serializers.save_npz(path.with_suffix('.npz'), model)
    parameters = sum(parameter.size for parameter in model.params())
    record = {'parameters': parameters, 'accuracies': accuracies}
    # Completely or not at all.
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps({**record, 'run': run._asdict()}))
    os.replace(temporary, path)
    return record


def compute_missing(runs, dataset, out):
    """Returns the record of each run, and computes those that are missing."""
    runs = list(dict.fromkeys([run.dense for run in runs if run.start] + runs))
    records = {}
    for run in runs:
        path = get_path(run, dataset, out)
        if path.exists():
            records[run] = json.loads(path.read_text())
    print(f'{len(records)} of {len(runs)} runs are already done', flush=True)
    # Several processes with one thread are faster than one with several.
    os.environ.update(dict.fromkeys(THREADS, '1'))
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(count_cores(), 8), context) as executor:
        # Runs that start from a dense network wait for all of those.
        for late in (False, True):
            futures = {
                executor.submit(compute, run, dataset, out): run
                for run in runs
                if run not in records and bool(run.start) == late
            }
            for future in as_completed(futures):
                run = futures[future]
                records[run] = future.result()
                accuracy = records[run]['accuracies'][-1]
                left = len(runs) - len(records)
                text = f'{run}, seed {run.seed}: {accuracy:.2%}'
                print(f'{left} runs left; {text}', flush=True)
    return records
