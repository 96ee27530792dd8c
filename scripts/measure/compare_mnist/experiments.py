"""What is compared: the rows of each table, and the runs they need."""

from measure.compare_mnist.networks import Run, make_low_rank, make_smaller

ARTICLE = (784, 1000, 900, 10)
SMALL = (784, 1000, 10)
COMMON_NUMS = (2, 5, 10, 20, 50, 100)
# How a trained network is shared: n of its layers.
CONVERSIONS = [(1, n, 1) for n in (2, 5, 10, 20, 50)]
CONVERSIONS += [(4, 10, 1), (14, 20, 1)]
STARTS = ('contiguous', 'grouped', 'calibrated', 'svd')
LEARNING_RATES = (1e-3, 3e-4)
ORDERS = ('contiguous', 'random', 'interleaved', '2x2')
# For each divisor of the parameters of 784-1000-10: the accuracy that the
# article on HashedNets reports, and networks within that budget.
HASHEDNETS = {
    8: (
        98.55,
        Run(SMALL, (8, 40), start='calibrated', dropout=0.3),
        Run(SMALL, rank=(49, 0), start='svd', dropout=0.3),
    ),
    64: (
        97.21,
        Run(SMALL, (98, 4), start='calibrated'),
        Run((784, 100, 10), (7, 1), start='calibrated'),
        Run((784, 100, 10), rank=(12, 0), start='svd'),
    ),
}


def list_scratch(args):
    yield {'network': 'dense', 'n': 1}, [Run(ARTICLE, epochs=args.epoch)]
    for n in COMMON_NUMS[:: args.step]:
        run = Run(ARTICLE, (1, n, 1), epochs=args.epoch)
        smaller = make_smaller(run, run.count_parameters())
        yield {'network': 'shared', 'n': n}, [run]
        yield {'network': 'low-rank', 'n': n}, [make_low_rank(run)]
        yield {'network': 'smaller', 'n': n}, [smaller]


def list_conversions(args):
    def list_runs(**kwargs):
        return [
            Run(
                ARTICLE,
                dense_epochs=args.epoch,
                epochs=min(3, args.epoch),
                learning_rate=rate,
                **kwargs,
            )
            for rate in LEARNING_RATES[:: args.step]
        ]

    dense = {'network': 'dense', 'n of l1, l2': '1, 1'}
    yield dense, list_runs(start='unchanged')
    for common_num in CONVERSIONS[args.step - 1 :: args.step]:
        n = '{}, {}'.format(*common_num[:2])
        for start in STARTS:
            runs = list_runs(common_num=common_num, start=start)
            if start == 'svd':
                runs = list(map(make_low_rank, runs))
            yield {'network': start, 'n of l1, l2': n}, runs


def list_hashednets(args):
    for divisor, (reported, *runs) in HASHEDNETS.items():
        budget = Run(SMALL).count_parameters() // divisor
        label = {'budget': f'{budget:,}'}
        yield {**label, 'network': 'HashedNets', 'trained': str(reported)}, []
        for run in [*runs, make_smaller(Run(SMALL), budget)]:
            run = run._replace(
                dense_epochs=args.epoch if run.start else None,
                epochs=min(30, 4 * args.epoch),
                learning_rate=2e-3,
            )
            yield {**label, 'network': str(run)}, [run]


def list_first_layer(args):
    run = Run(SMALL, epochs=args.epoch)
    yield {'order': 'not shared'}, [run]
    for order in ORDERS:
        yield {'order': order}, [run._replace(common_num=(4, 1), order=order)]


# For each part: its title, and what lists its rows with their runs of seed 0.
PARTS = {
    'scratch': ('Trained from scratch', list_scratch),
    'convert': ('A trained dense network, converted', list_conversions),
    'hashednets': ('The budgets of HashedNets', list_hashednets),
    'first-layer': ('The first layer shared by 4', list_first_layer),
}
