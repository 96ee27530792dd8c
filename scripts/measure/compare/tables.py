"""Tables of the comparison."""

import statistics

from tabulate import tabulate


def summarize(run, records, key):
    """Returns the mean and standard deviation over the seeds, in words."""
    figures = [record[key] for record in records]
    mean = statistics.mean(figures)
    spread = statistics.stdev(figures) if len(figures) > 1 else 0
    return f'{mean:.{run.decimals}f} ± {spread:.{run.decimals}f}'


def describe_layers(record):
    """Returns n or the rank of each layer, in words."""
    return ', '.join(
        'rank {rank}'.format(**layer)
        if layer['rank']
        else str(layer['common_num'])
        for layer in record['layers']
    )


def make_table(rows, records, seeds, speed):
    lines = []
    for labels, runs in rows:
        line = {'network': '', 'n of the layers': '', 'orders': '', **labels}
        for column, run in runs.items():
            found = [records[run._replace(seed=i)] for i in range(seeds)]
            # A plan may differ from seed to seed.
            layers = dict.fromkeys(map(describe_layers, found))
            line['n of the layers'] = '; '.join(layers)
            if run.start == 'shared':
                line['orders'] = run.orders or 'default'
            for size in ('parameters', 'bytes'):
                line[size] = f'{max(each[size] for each in found):,}'
            if run.start:
                line['at once'] = summarize(run, found, 'at once')
            line[column] = summarize(run, found, 'trained')
            for quantity, number in speed.get(run, {}).items():
                form = ',' if isinstance(number, int) else '.3g'
                line[quantity] = format(number, form)
        lines.append(line)
    return tabulate(lines, 'keys', 'pipe', disable_numparse=True)
