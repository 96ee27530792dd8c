"""Tables and figures of the comparison."""

import dataclasses
import shlex
import statistics
import sys
import time

from experiments import PARTS
import numpy
from tabulate import tabulate
from training import BATCH_SIZE

FIGURES = ('scratch', 'convert')  # the parts with a figure


def summarize(records, run, seeds, epoch):
    """Returns mean and standard deviation of the accuracy, in percent."""
    percents = [
        100 * records[dataclasses.replace(run, seed=seed)]['accuracies'][epoch]
        for seed in range(seeds)
    ]
    return statistics.mean(percents), numpy.std(percents, ddof=seeds > 1)


def format_summary(records, run, seeds, epoch):
    mean, spread = summarize(records, run, seeds, epoch)
    return f'{mean:.2f}' + (f' ± {spread:.2f}' if seeds > 1 else '')


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
                line[column] = format_summary(records, run, seeds, epoch)
            for column, number in speed.get(run, {}).items():
                line[column] = (
                    f'{number:,}'
                    if isinstance(number, int)
                    else f'{number:.3g}'
                )
        lines.append(line)
    return tabulate(lines, 'keys', 'pipe', disable_numparse=True)


def plot(axes, title, rows, records, seeds):
    """Plots test error against parameters; dotted before fine-tuning."""
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
    axes.figure.legend(
        loc='outside right upper',
        title='dotted: before\nfine-tuning' if at_once else None,
    )


def write_plots(parts, records, seeds, out):
    """Writes the figures; returns the names of their files."""
    from matplotlib.figure import Figure

    names = []
    for part in FIGURES:
        if part in parts:
            figure = Figure(layout='constrained')
            title, _ = PARTS[part]
            plot(figure.subplots(), title, parts[part], records, seeds)
            names.append(f'{part}.png')
            figure.savefig(out / names[-1])
    return names


def render(args, description, tables, plots):
    """Renders everything as Markdown."""
    parts = [
        '{}, {}'.format(time.strftime('%Y-%m-%d'), description),
        '```console\n$ {}\n```'.format(shlex.join(['python', *sys.argv])),
        'Test accuracy in percent, the mean{} over {} seeds; Adam, batches '
        'of {}, {} epochs from scratch, a learning rate that falls '
        'linearly to zero.'.format(
            ' ± standard deviation' * (args.seeds > 1),
            args.seeds,
            BATCH_SIZE,
            args.epoch,
        ),
    ]
    for part, table in tables.items():
        parts += ['## ' + PARTS[part][0], table]
    parts += [f'![{name}]({name})' for name in plots]
    return '\n\n'.join(parts) + '\n'
