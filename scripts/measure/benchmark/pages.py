"""The two pages about what the benchmark measured."""

import json
from pathlib import Path

from contenders import CONTENDERS, INFERENCES
from report import (
    COLUMNS,
    describe_kernels,
    describe_spread,
    get_sweeps,
    get_targets,
    get_title,
    make_figures_table,
    make_inference_table,
    make_sharing_table,
    make_size_table,
    make_sweep_table,
    make_table,
    make_training_table,
)

PAGE = Path(__file__).resolve().parents[3] / 'docs' / 'performance.md'
BEGIN = '<!-- figures -->'
END = '<!-- end of figures -->'


def read_prose():
    """Returns the text before and after the figures in the page."""
    before, begin, rest = PAGE.read_text(encoding='utf-8').partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f'{PAGE} lacks {BEGIN} or {END}')
    return before, after


def read_results(path):
    if not path.exists():
        raise ValueError(f'there is no {path}; run the benchmark to write it')
    return json.loads(path.read_text())


def write(results, prose, out):
    """Draws the plots and writes the pages; returns all their names."""
    try:
        from plots import plot

        plots = plot(results, out / 'performance')
    except ImportError as error:
        print(f'no plots: {error}')
        plots = []
    plots = ['performance/' + name for name in plots]
    before, after = prose
    pages = {
        'performance.md': before + render_figures(results, plots) + after,
        'performance_tables.md': render_tables(results, plots),
    }
    for name, text in pages.items():
        (out / name).write_text(text, encoding='utf-8')
    return [*pages, *plots]


def join(parts):
    return '\n\n'.join(parts) + '\n'


def describe(results):
    versions = ', '.join(map(' '.join, results['versions'].items()))
    return [
        '<!-- not run: takes a quarter of an hour -->\n'
        '```console\n$ {command}\n```'.format(**results),
        '{date}, {machine}, {device}, {}. '.format(versions, **results)
        + describe_spread(results),
    ]


def show(plots):
    return [f'![{Path(name).stem}]({name})' for name in plots]


def render_figures(results, plots):
    """Renders the part from mark to mark, with the plots of times."""
    return join(
        [
            BEGIN,
            *describe(results),
            make_figures_table(results),
            *show(name for name in plots if 'time_against' in name),
            END,
        ]
    ).rstrip()


def render_tables(results, plots=()):
    """Renders everything."""
    targets = {
        get_title(row): get_targets(row, results['device'])
        for row in results['sizes']
    }
    parts = [
        '# Performance: all tables',
        *describe(results),
        '[performance.md](performance.md) says how these were measured. Each '
        'time is the median over the rounds; each ratio is the median of the '
        "rounds' ratios.",
        '## Contenders',
        make_table(
            {'': f'`{name}`', 'what it is': description}
            for name, (_, description) in {**CONTENDERS, **INFERENCES}.items()
        ),
        '## Targets',
        'Each figure is followed by its target, for a machine with two cores '
        'or an H100. The columns are:',
        '\n'.join(
            '- `{}`: {}'.format(*column)
            for column in COLUMNS.items()
            if any(column[0] in figures for figures in targets.values())
        ),
        make_table(
            {'': title, **figures} for title, figures in targets.items()
        ),
        '## Inference',
        "The article's layer, forward only, in `chainer.no_backprop_mode()` "
        'or `torch.inference_mode()`.',
        make_inference_table(results),
        '## Training on {}'.format(results['dataset']),
        "The article's network, including evaluation and reports; Chainer "
        'also draws plots and saves snapshots.',
        make_training_table(results),
        '## Sizes',
        '"It / product" shows how close a contender comes to the floor: the '
        'same products by the same BLAS, written into existing memory. "Peak" '
        'is the most memory in use during a pass, beyond what was in use when '
        'it began; "kept" is what forward leaves for backward besides y.',
    ]
    for row in results['sizes']:
        parts += [
            '### ' + get_title(row),
            make_size_table(row),
            describe_kernels(row),
        ]
    for swept, rows in get_sweeps(results).items():
        title = f'## Forward and backward against {swept}'
        parts += [title, make_sweep_table(rows, swept)]
    parts += [
        '## Converting an ordinary layer with `share`',
        'A random weight, without and with calibration inputs. "Peak" is the '
        'most memory in use beyond the original weight, which `share` keeps '
        'until it is done. Most of the time goes into grouping, which works '
        'on up to 2,048 columns at a time, in matrices of that size.',
        make_sharing_table(results),
    ]
    if plots:
        parts += ['## Plots', *show(plots)]
        parts.append(
            'The roofline shows how much of what memory and BLAS allow is '
            'reached. Points above the slope have their weights in a cache.'
        )
    return join(parts)
