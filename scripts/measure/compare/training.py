"""Runs: trainings of networks, each with a results file of its own."""

from concurrent.futures import ProcessPoolExecutor, as_completed
import hashlib
import json
import multiprocessing
import os

from chainer_shared_patch import SharedLinear
from chainer_shared_patch.blocks import count_orders
import chainer
from measure.machine import count_cores
import numpy

THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


def get_path(run, description, out):
    """Returns the path of a run's results, which its settings determine."""
    text = json.dumps([description, run])
    return out / 'runs' / f'{hashlib.sha256(text.encode()).hexdigest()}.json'


def count_bytes(model):
    """Returns the bytes of a model's parameters and orders."""
    arrays = [parameter.array for parameter in model.params()]
    for link in model.links():
        if isinstance(link, SharedLinear) and link.order is not None:
            arrays.append(link.order)
    return sum(array.nbytes for array in arrays)


def describe(layer):
    """Returns n, the rank and the number of orders of a layer."""
    if isinstance(layer, chainer.Sequential):
        return {'common_num': 1, 'rank': layer[0].out_size, 'orders': 1}
    n = getattr(layer, 'common_num', 1)
    orders = count_orders(getattr(layer, 'order', None))
    return {'common_num': n, 'rank': 0, 'orders': orders}


def compute(train, run, data, path, dense):
    """Trains a network and writes the results; returns them."""
    numpy.random.seed(run.seed)
    model, record = train(run, data, dense)
    record['parameters'] = model.count_params()
    record['bytes'] = count_bytes(model)
    record['layers'] = [describe(layer) for layer in model.layers]
    if not run.start:
        # Other runs may start from it.
        chainer.serializers.save_npz(path.with_suffix('.npz'), model)
    # Completely or not at all.
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps({**record, 'run': run._asdict()}))
    os.replace(temporary, path)
    return record


def compute_missing(kind, runs, data, out):
    """Returns the record of each run, and computes those that are missing.

    The module kind reads the data and trains.
    """
    *_, description = kind.read(data)
    runs = list(dict.fromkeys([run.dense for run in runs if run.start] + runs))
    paths = {run: get_path(run, description, out) for run in runs}
    records = {
        run: json.loads(path.read_text())
        for run, path in paths.items()
        if path.exists()
    }
    print(f'{len(records)} of {len(runs)} runs are already done', flush=True)
    # Several processes with one thread are faster than one with several.
    os.environ.update(dict.fromkeys(THREADS, '1'))
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(count_cores(), 8), context) as executor:
        # Runs that start from a dense network wait for all of those.
        for late in (False, True):
            futures = {}
            for run in runs:
                if run not in records and bool(run.start) == late:
                    dense = (
                        paths[run.dense].with_suffix('.npz') if late else None
                    )
                    future = executor.submit(
                        compute, kind.train, run, data, paths[run], dense
                    )
                    futures[future] = run
            for future in as_completed(futures):
                run = futures[future]
                records[run] = future.result()
                left = len(runs) - len(records)
                trained = records[run]['trained']
                text = f'{run}, seed {run.seed}: {trained:.{run.decimals}f}'
                print(f'{left} runs left; {text}', flush=True)
    return records
