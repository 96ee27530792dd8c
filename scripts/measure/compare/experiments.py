"""What is compared: the rows of each table, and the runs they need.

A row is a dict of what is known of it, and a dict of the runs of seed 0, by
the column of their results.
"""

from measure.compare import networks, text
from measure.compare.networks import Run, make_smaller
from measure.compare.text import TextRun

ARTICLE = (784, 1000, 900, 10)
SMALL = (784, 1000, 10)
# How a trained network is shared: n of its layers.
CONVERSIONS = ((8, 10, 1), (14, 20, 1), (28, 25, 1), (56, 50, 1))
PLANNED = CONVERSIONS[2:]
ORDERS = (1, 4, 20)
TUNE_STEPS = 1000
# For each divisor of the parameters of 784-1000-10: the accuracy that the
# article on HashedNets reports, n of the layers, the numbers of orders, and
# dropout while it is trained for long.
HASHEDNETS = {
    8: (98.55, (8, 40), (1, 4), 0.3),
    64: (97.21, (98, 4), (1, 20), 0),
}
INPUT_ORDERS = ('contiguous', 'random', 'interleaved', '2x2')
LATERAL = (8, 32)  # n of the lateral weight
LATERAL_ORDERS = (4, 16, 64)


def train_smaller(run, budget, args):
    """Makes the run of a smaller network, trained for as long as any other."""
    return make_smaller(run, budget)._replace(
        epochs=args.epoch + min(20, 4 * args.epoch), learning_rate=2e-3
    )


def list_conversions(args):
    dense = Run(ARTICLE, epochs=args.epoch)
    yield {'network': 'dense'}, {'trained': dense}
    for n in CONVERSIONS[:: args.step]:
        uniform = Run(
            ARTICLE, n, dense_epochs=args.epoch, epochs=min(3, args.epoch)
        )
        budget = uniform.count_parameters()
        planned = uniform._replace(common_num=(1, 1, 1), max_parameters=budget)
        for orders in ORDERS[:: args.step]:
            run = uniform._replace(start='shared', orders=orders)
            yield {'network': 'shared'}, {'trained': run}
        if n in PLANNED:
            for orders in (1, 4, None)[:: args.step]:
                run = planned._replace(start='shared', orders=orders)
                yield {'network': 'shared, planned'}, {'trained': run}
            run = run._replace(tune_steps=TUNE_STEPS)
            yield {'network': 'shared, planned, tuned'}, {'trained': run}
        yield {'network': 'SVD'}, {'trained': networks.make_low_rank(uniform)}
        if n in PLANNED:
            run = planned._replace(start='SVD')
            yield {'network': 'SVD, best split'}, {'trained': run}
        run = train_smaller(dense, budget, args)
        yield {'network': f'smaller, {run}'}, {'trained': run}


def list_hashednets(args):
    def fine_tune(run, dropout=0):
        run = run._replace(dense_epochs=args.epoch, epochs=min(3, args.epoch))
        longer = run._replace(
            epochs=min(20, 4 * args.epoch),
            learning_rate=2e-3,
            dropout=dropout,
        )
        return {f'{each.epochs} epochs': each for each in (run, longer)}

    dense = Run(SMALL, epochs=args.epoch)
    total = dense.count_parameters()
    yield {'network': '784-1000-10, dense'}, {'trained': dense}
    for divisor, (reported, n, orders, dropout) in HASHEDNETS.items():
        budget = total // divisor
        yield (
            {
                'network': 'HashedNets on MNIST, as reported',
                'parameters': f'{budget:,}',
                'bytes': f'{4 * budget:,}',
                'trained': str(reported),
            },
            {},
        )
        for each in orders[:: args.step]:
            run = Run(SMALL, n, start='shared', orders=each)
            yield {'network': '784-1000-10, shared'}, fine_tune(run, dropout)
        run = Run(SMALL, max_parameters=budget, start='SVD')
        yield {'network': '784-1000-10, SVD'}, fine_tune(run, dropout)
        run = train_smaller(dense, budget, args)
        yield {'network': f'{run}, dense'}, {'trained': run}
    narrow = (784, 100, 10)
    for orders in (1, 4):
        run = Run(narrow, (7, 1), start='shared', orders=orders)
        yield {'network': '784-100-10, shared'}, fine_tune(run)
    run = Run(narrow, max_parameters=budget, start='SVD')
    yield {'network': '784-100-10, SVD'}, fine_tune(run)


def list_scratch(args):
    dense = Run(ARTICLE, epochs=args.epoch)
    shared = dense._replace(common_num=(1, 10, 1))
    yield {'network': '784-1000-900-10, dense'}, {'trained': dense}
    yield {'network': 'l2 shared'}, {'trained': shared}
    low_rank = networks.make_low_rank(shared)._replace(start=None)
    yield {'network': 'l2 of low rank'}, {'trained': low_rank}
    smaller = make_smaller(dense, shared.count_parameters())
    yield {'network': f'{smaller}, dense'}, {'trained': smaller}
    dense = Run(SMALL, epochs=args.epoch)
    yield {'network': '784-1000-10, dense'}, {'trained': dense}
    for order in INPUT_ORDERS[:: args.step]:
        run = dense._replace(common_num=(4, 1), order=order)
        yield {'network': f'l1 shared, {order}'}, {'trained': run}
    smaller = make_smaller(dense, run.count_parameters())
    yield {'network': f'{smaller}, dense'}, {'trained': smaller}
    run = dense._replace(common_num=(98, 4), order='random', orders=20)
    yield {'network': 'l1 and l2 shared, random'}, {'trained': run}


def list_text(args):
    iterations = 3 if args.quick else 1000
    yield {'network': 'dense'}, {'trained': TextRun(iterations=iterations)}
    for n in LATERAL[:: args.step]:
        shared = TextRun('shared', n, dense_iterations=iterations)
        runs = [
            ('shared', shared._replace(orders=orders))
            for orders in LATERAL_ORDERS[:: args.step]
        ]
        for name, run in [*runs, ('SVD', text.make_low_rank(shared))]:
            yield (
                {'network': name},
                {
                    f'{each} iterations': run._replace(iterations=each)
                    for each in (min(100, iterations), min(300, iterations))
                },
            )


# For each part: its title, what lists its rows, and the kind of its networks.
PARTS = {
    'convert': ('A trained network, converted', list_conversions, networks),
    'hashednets': ('The budgets of HashedNets', list_hashednets, networks),
    'scratch': ('Trained from scratch', list_scratch, networks),
    'text': ('A recurrent network on text', list_text, text),
}
