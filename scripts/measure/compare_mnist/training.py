"""Runs: training of networks, each with a results file of its own."""

from concurrent.futures import ProcessPoolExecutor, as_completed
import functools
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import time

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
from machine import count_cores
from networks import Network, convert
import numpy
from train_mnist import load_dataset

BATCH_SIZE = 100
THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


def evaluate(model, images, labels):
    """Returns the accuracy."""
    correct = 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for i in range(0, len(images), 1000):
            y = model(images[i : i + 1000]).array
            correct += int((y.argmax(1) == labels[i : i + 1000]).sum())
    return correct / len(images)


class Store:
    """The directory of results, each in a file named after its key."""

    def __init__(self, directory, fingerprint):
        self.directory = directory
        self.fingerprint = fingerprint

    def get_path(self, key, suffix):
        text = json.dumps([self.fingerprint, key])
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.directory / (name + suffix)

    def write(self, path, content):
        """Writes a file completely or not at all."""
        temporary = path.with_suffix(f'.{os.getpid()}')
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def save(self, key, record):
        content = json.dumps({'key': key, 'record': record}, indent=1)
        self.write(self.get_path(key, '.json'), content.encode())

    def load(self, key, check):
        """Returns a record that passes the check, or None."""
        path = self.get_path(key, '.json')
        try:
            record = json.loads(path.read_text())['record']
            check(record)
            return record
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever JSON, NumPy and check raise
            print(f'{path} is damaged and recomputed: {error!r}')
            return None

    def save_model(self, run, model):
        content = io.BytesIO()
        chainer.serializers.save_npz(content, model, compression=False)
        self.write(self.get_path(run.key, '.npz'), content.getvalue())

    def load_model(self, run):
        model = Network(run)
        chainer.serializers.load_npz(self.get_path(run.key, '.npz'), model)
        return model

    def load_run(self, run):
        """Returns the record of a run, or None if it must be computed."""

        def check(record):
            assert record['parameters'] > 0
            assert len(record['accuracies']) == run.epochs + 1
            assert all(0 <= each <= 1 for each in record['accuracies'])
            if run.is_dense:
                self.load_model(run)

        return self.load(run.key, check)


@functools.lru_cache(maxsize=1)
def read_dataset(name):
    """Returns the training and test data, and a description of them."""
    *parts, description = load_dataset(name)
    parts = [chainer.dataset.concat_examples(part[:]) for part in parts]
    return (*parts, description)


def train(optimizer, images, labels):
    optimizer.update(
        lambda: F.softmax_cross_entropy(optimizer.target(images), labels)
    )


def compute(run, store, dataset):
    """Trains a network and saves the result."""
    (images, labels), test, _ = read_dataset(dataset)
    numpy.random.seed(run.seed)
    if run.start:
        model = store.load_model(run.dense)
        convert(model, run, images)
    else:
        model = Network(run)
    optimizer = chainer.optimizers.Adam(run.learning_rate)
    optimizer.setup(model)
    accuracies = [evaluate(model, *test)]
    for epoch in range(run.epochs):
        order = numpy.random.permutation(len(images))
        for i in range(0, len(order), BATCH_SIZE):
            done = (epoch + i / len(order)) / run.epochs
            optimizer.alpha = run.learning_rate * (1 - done)
            batch = order[i : i + BATCH_SIZE]
            train(optimizer, images[batch], labels[batch])
        accuracies.append(evaluate(model, *test))
    if run.is_dense:  # other runs start from it
        store.save_model(run, model)
    parameters = sum(parameter.size for parameter in model.params())
    record = {'parameters': parameters, 'accuracies': accuracies}
    store.save(run.key, record)
    return record


def compute_missing(runs, store, dataset):
    """Returns the record of each run, and computes those that are missing."""
    dense = [run.dense for run in runs if run.start]
    runs = list(dict.fromkeys(dense + runs))
    records = {run: store.load_run(run) for run in runs}
    missing = [run for run in runs if not records[run]]
    there = len(runs) - len(missing)
    print(f'{there} of {len(runs)} runs are already done')
    sys.stdout.flush()
    begin = time.monotonic()
    total = left = sum(1 + run.epochs for run in missing)
    # Several processes with one thread are faster than one with several.
    os.environ.update(dict.fromkeys(THREADS, '1'))
    with ProcessPoolExecutor(
        min(count_cores(), 8),
        multiprocessing.get_context('spawn'),
        # Ctrl-C ends them at once, and without a traceback.
        signal.signal,
        (signal.SIGINT, signal.SIG_DFL),
    ) as executor:
        try:
            # Runs that start from a dense network wait for all of those.
            for late in (False, True):
                futures = {
                    executor.submit(compute, run, store, dataset): run
                    for run in missing
                    if bool(run.start) == late
                }
                for future in as_completed(futures):
                    run = futures[future]
                    records[run] = future.result()
                    left -= 1 + run.epochs
                    seconds = time.monotonic() - begin
                    text = '{} runs, {:.0f} min left; {}, seed {}: {:.2%}'
                    text = text.format(
                        sum(not record for record in records.values()),
                        seconds * left / (total - left) / 60,
                        run,
                        run.seed,
                        records[run]['accuracies'][-1],
                    )
                    print(text, flush=True)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return records
