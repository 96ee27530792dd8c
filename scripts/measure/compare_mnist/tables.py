"""Tables and figures of the comparison."""

import statistics

from matplotlib.figure import Figure
import numpy
from tabulate import tabulate


def summarize(records, run, seeds, epoch):
    """Returns mean and standard deviation of the accuracy, in percent."""
    percents = [
        100 * records[run._replace(seed=seed)]['accuracies'][epoch]
        for seed in range(seeds)
    ]
    return statistics.mean(percents), numpy.std(percents, ddof=seeds > 1)


def make_table(rows, records, seeds, speed):
    lines = []
    for labels, runs in rows:
        line = dict(labels)
        for run in runs:
            line['parameters'] = '{:,}'.format(records[run]['parameters'])
            epochs = {'trained': run.epochs}
            if run.start:
                column = f'epoch {{}} at {run.learning_rate:g}'
                epochs = {column.format(e): e for e in (1, run.epochs)}
                epochs = {'at once': 0, **epochs}
            for column, epoch in epochs.items():
                mean, spread = summarize(records, run, seeds, epoch)
                line[column] = f'{mean:.2f} ± {spread:.2f}'
            for column, number in speed.get(run, {}).items():
                form = ',' if isinstance(number, int) else '.3g'
                line[column] = format(number, form)
        lines.append(line)
    return tabulate(lines, 'keys', 'pipe', disable_numparse=True)


def plot(path, title, rows, records, seeds):
    """Plots test error against parameters; dotted before fine-tuning."""
    figure = Figure(layout='constrained')
    axes = figure.subplots()
    series = {}
    for labels, (run, *_) in rows:
        parameters = records[run]['parameters']
        for epoch in (0, run.epochs) if run.start else (run.epochs,):
            mean, spread = summarize(records, run, seeds, epoch)
            series.setdefault((labels['network'], epoch > 0), []).append(
                (parameters, 100 - mean, spread)
            )
    names = list(dict.fromkeys(name for name, _ in series))
    for (name, trained), points in series.items():
        axes.errorbar(
            *numpy.transpose(sorted(points)),
            fmt='o-' if trained else 'o:',
            color=f'C{names.index(name)}',
            capsize=3,
            label=name if trained else '_',
        )
    axes.set(title=title, xlabel='parameters', ylabel='test error [%]')
    axes.locator_params(axis='x', nbins=5)
    axes.xaxis.set_major_formatter('{x:,.0f}')
    errors = [error for points in series.values() for _, error, _ in points]
    if max(errors) > 10 * min(errors):
        axes.set_yscale('log', subs=(2, 5))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_formatter('{x:g}')
    at_once = any(not trained for _, trained in series)
    figure.legend(
        loc='outside right upper',
        title='dotted: before\nfine-tuning' if at_once else None,
    )
    figure.savefig(path)
