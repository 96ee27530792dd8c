"""Makes docs/performance_tables.md of what the benchmark measured."""

from measure.benchmark.cases import (
    CONTENDERS,
    INFERENCES,
    ORDERED,
    SWEPT,
    TRAININGS,
)
import numpy
from tabulate import tabulate

PARTS = ('forward', 'backward', 'both')
MEMORY = ('peak forward', 'kept', 'peak backward')
MIB = 2**20
RATIOS = [
    ('dense', 'sum'),
    ('sum', 'narrow'),
    ('sum', 'product'),
    ('sum', 'torch-sum'),
    ('product', 'torch-product'),
    ('dense-patched', 'dense'),
]
ORDERED_RATIOS = [
    ('orders-1', 'narrow'),
    ('orders-4', 'narrow'),
    ('orders-20', 'narrow'),
    ('dense', 'orders-20'),
]


def get_title(row):
    return (
        '{name}: {link} of {in_size} to {out_size}, batch of {batch_size}, '
        'n = {common_num}, {dtype}'
    ).format(**row)


def get_samples(row, name, part='both'):
    """Returns a contender's time in each round; None where it is absent."""
    samples = row['contenders'].get(name, {}).get('seconds')
    return samples and numpy.array(samples)[:, PARTS.index(part)]


def get_milliseconds(row, name, part='both'):
    """Returns a contender's median time; None where it is absent."""
    samples = get_samples(row, name, part)
    return None if samples is None else 1e3 * numpy.median(samples)


def divide(samples, others):
    """Returns the median of the rounds' ratios; None where one is absent."""
    if samples is None or others is None:
        return None
    return numpy.median(numpy.divide(samples, others))


def get_ratio(row, name, other, part='both'):
    return divide(get_samples(row, name, part), get_samples(row, other, part))


def format_number(number):
    """Formats with three digits, or all of those before the point."""
    if number >= 1000:
        return f'{number:.0f}'
    return numpy.format_float_positional(
        number, 3, unique=False, fractional=False, trim='k'
    ).rstrip('.')


def make_table(lines):
    """Makes a table from lines, each a dict by column."""
    cells = [
        {
            column: format_number(cell) if isinstance(cell, float) else cell
            for column, cell in line.items()
        }
        for line in lines
    ]
    if not cells:
        return 'Nothing was measured.'
    return tabulate(
        cells,
        'keys',
        'pipe',
        disable_numparse=True,
        stralign='right',
        colalign=['left'],
    )


def make_ratios_table(rows, pairs):
    return make_table(
        {
            '': get_title(row),
            **{' / '.join(pair): get_ratio(row, *pair) for pair in pairs},
        }
        for row in rows
    )


def make_size_table(row):
    lines = []
    for name, entry in row['contenders'].items():
        line = {'': name}
        for part in PARTS:
            line[part + ', ms'] = get_milliseconds(row, name, part)
        if 'absent' in entry:
            line['forward, ms'] = entry['absent']
        if name not in ('blocks', 'copy'):
            line['dense / time'] = get_ratio(row, 'dense', name)
            line['time / product'] = get_ratio(row, name, 'product')
        for part, number in zip(MEMORY, entry.get('bytes', ())):
            line[part + ', MiB'] = number / MIB
        lines.append(line)
    return make_table(lines)


def make_inference_table(rows):
    return make_table(
        {
            '': name,
            'batch size': str(row['batch_size']),
            'ms': entry.get('absent', get_milliseconds(row, name, 'forward')),
            'time / torch-sum': get_ratio(row, name, 'torch-sum', 'forward'),
        }
        for row in rows
        for name, entry in row['contenders'].items()
    )


def make_training_table(trainings):
    dense, in_torch = (
        trainings.get(name, {}).get('seconds')
        for name in ('dense', 'torch-sum')
    )
    lines = []
    for name, entry in trainings.items():
        seconds = entry.get('seconds')
        lines.append(
            {
                '': TRAININGS[name][1],
                'seconds per epoch': entry.get('absent')
                or numpy.median(seconds),
                'time / dense': divide(seconds, dense),
                'time / PyTorch, shared, eager': divide(seconds, in_torch),
            }
        )
    return make_table(lines)


def make_conversion_table(rows):
    return make_table(
        {
            '': '{in_size} to {out_size}, n = {common_num}'.format(**row),
            'calibration inputs': str(row['examples']),
            'seconds': row['seconds'],
            'peak / dense W': row['bytes']
            / (4 * row['in_size'] * row['out_size']),
        }
        for row in rows
    )


def get_sweeps(results):
    """Returns the rows of each sweep, by the size that changes."""
    rows = [
        row
        for row in results['sizes'] + results['sweeps']
        if row['name'] == 'fc7' and row['dtype'] == 'float32'
    ]
    sweeps = {
        'common_num': [row for row in rows if row['batch_size'] == 128],
        'batch_size': [row for row in rows if row['common_num'] == 8],
    }
    return {
        swept: sorted(rows, key=lambda row: row[swept])
        for swept, rows in sweeps.items()
        if len(rows) > 1
    }


def make_sweep_table(rows, swept):
    return make_table(
        {
            swept: str(row[swept]),
            **{f'{name}, ms': get_milliseconds(row, name) for name in SWEPT},
            'dense / sum': get_ratio(row, 'dense', 'sum'),
        }
        for row in rows
    )


def render(results):
    """Renders the page."""
    versions = ', '.join(map(' '.join, results['versions'].items()))
    machine = results['machine']
    if results['device'] != '@numpy':
        machine += f', {results["device"]}'
    parts = [
        '# Performance: all tables',
        '<!-- not run: takes a quarter of an hour -->\n'
        '```console\n$ {command}\n```'.format(**results),
        f'{results["date"]}, {machine}, {versions}.',
        '[Performance](performance.md) says how these were measured. Each '
        'time is the median over the rounds; each ratio is the median of the '
        "rounds' ratios.",
        '## Contenders',
        '\n'.join(
            f'- `{name}`: {description}'
            for name, (_, description) in {
                **CONTENDERS,
                **INFERENCES,
                **ORDERED,
            }.items()
        ),
        '## Ratios of the times of forward and backward',
        make_ratios_table(results['sizes'], RATIOS),
        '## Several orders',
        'Forward and backward of a layer whose slices of the outputs each sum '
        'the inputs in an order of their own.',
        make_ratios_table(results['orders'], ORDERED_RATIOS),
        '## Inference',
        "The article's layer, forward only, in `chainer.no_backprop_mode()` "
        'or `torch.inference_mode()`.',
        make_inference_table(results['inference']),
        '## Training on {}'.format(results['dataset']),
        "The article's network, including evaluation and reports; Chainer "
        'also draws plots and saves snapshots.',
        make_training_table(results['training']),
        '## Times and memory of each layer',
        '"Time / product" shows how close a contender comes to the floor: the '
        'same products by the same BLAS, written into existing memory. "Peak" '
        'is the most memory in use during a pass, beyond what was in use when '
        'it began; "kept" is what forward leaves for backward besides y.',
    ]
    for row in results['sizes']:
        parts += ['### ' + get_title(row), make_size_table(row)]
    for swept, rows in get_sweeps(results).items():
        title = f'## Forward and backward against {swept}'
        parts += [title, make_sweep_table(rows, swept)]
    parts += [
        '## Converting an ordinary layer with `share`',
        'A random weight, without and with calibration inputs. "Peak" is the '
        'most memory in use beyond the original weight, which `share` keeps '
        'until it is done. Most of the time goes into grouping, which works '
        'on up to 2,048 columns at a time, in matrices of that size.',
        make_conversion_table(results['sharing']),
    ]
    return '\n\n'.join(parts) + '\n'
