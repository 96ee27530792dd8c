"""Tables of the comparison."""

import statistics

from tabulate import tabulate


def summarize(run, records, key):
    """Returns the mean and standard deviation over the seeds, in words."""
    figures = [record[key] for record in records]
    mean = statistics.mean(figures)
    spread = statistics.stdev(figures) if len(figures) > 1 else 0
    # With spaces where no line breaks.
    return f'{mean:.{run.decimals}f}\xa0±\xa0{spread:.{run.decimals}f}'


def describe_layers(record):
    """Returns n or the ranks of the layers, in words."""
    layers = record['layers']
    if any(layer['rank'] for layer in layers):
        ranks = (str(layer['rank'] or 'full') for layer in layers)
        return 'ranks ' + ', '.join(ranks)
    if any(layer['common_num'] > 1 for layer in layers):
        return ', '.join(str(layer['common_num']) for layer in layers)
    return ''


def make_table(rows, records, seeds, speed):
    columns = ['network', 'n or rank', 'orders', 'parameters', 'bytes']
    if any(run.start for _, runs in rows for run in runs.values()):
        columns.append('at once')
    lines = []
    for labels, runs in rows:
        line = {**dict.fromkeys(columns, ''), **labels}
        for column, run in runs.items():
            found = [records[run._replace(seed=i)] for i in range(seeds)]
            # A plan may differ from seed to seed.
            layers = dict.fromkeys(map(describe_layers, found))
            line['n or rank'] = '; '.join(layers)
            if any(layer['common_num'] > 1 for layer in found[0]['layers']):
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
    names = dict.fromkeys(name for line in lines for name in line)
    sides = [
        'left' if name in ('network', 'n or rank') else 'right'
        for name in names
    ]
    return tabulate(
        lines, 'keys', 'pipe', colalign=sides, disable_numparse=True
    )
