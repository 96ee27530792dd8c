"""Tables and plots of what the benchmark has measured, beside its targets."""

import os

from benchmark_contenders import CONTENDERS, FLOOR, TRAININGS
import numpy
from tabulate import tabulate

PARTS = ('forward', 'backward', 'both')
MIB = 2**20
# What is wanted on a CPU. The keys are batch_size, in_size and n.
ARTICLE = (100, 1000, 10)
TIMES_FASTER = {
    ARTICLE: 6,
    (32, 25088, 7): 7,
    (128, 4096, 8): 8,
    (1024, 4096, 8): 0.9 * 8,
}
OF_TORCH_SUM = {
    ARTICLE: 1.2,
    **dict.fromkeys([(32, 25088, 7), (64, 4096, 8)], 1),
    **{(B, 4096, n): 1 for B in (128, 1024) for n in (2, 8, 64)},
}
OF_AN_EPOCH = 0.55
STYLES = {
    'sum': ('C3', 'o-'),
    'tile': ('C4', 's-'),
    'dense': ('C0', 'v-'),
    'torch-dense': ('C1', 'v--'),
    'torch-sum': ('C1', 'o--'),
    'product': ('k', 'x:'),
}


def get_title(row):
    return (
        '{name}: {link} of {in_size} to {out_size}, batch of {batch_size}, '
        'n = {common_num}, {dtype}'
    ).format(**row)


def get_samples(row, name, part='both'):
    """Returns the times of a contender by round; None where it is absent."""
    samples = row['contenders'].get(name, {}).get('seconds')
    return samples and numpy.array(samples)[:, PARTS.index(part)]


def get_seconds(row, name, part='both'):
    """Returns the median time of a contender; None where it is absent."""
    samples = get_samples(row, name, part)
    return None if samples is None else numpy.median(samples)


def get_ratio(row, name, other, part='both', other_part=None):
    """Returns the median ratio of a contender's time to another's."""
    samples = get_samples(row, name, part)
    others = get_samples(row, other, other_part or part)
    if samples is None or others is None:
        return None
    return numpy.median(samples / others)


def count_operations(row, n):
    """Returns the operations of the products of forward and backward."""
    return 6 * row['batch_size'] * row['in_size'] // n * row['out_size']


def count_bytes(row, n):
    """Returns the least that forward and backward read and write.

    Forward reads x and W, keeps the summed blocks and writes y; backward
    reads gy, W and the summed blocks, and writes gx and gW.
    """
    x, y = (row['batch_size'] * row[size] for size in ('in_size', 'out_size'))
    W = row['in_size'] // n * row['out_size']
    summed_x = 2 * x // n if n > 1 else x
    number = 2 * x + summed_x + 3 * W + 2 * y
    return number * numpy.dtype(row['dtype']).itemsize


def format_number(number):
    """Formats with three digits, or as many as are before the point."""
    if number >= 1000:
        return '{:.0f}'.format(number)
    return numpy.format_float_positional(
        number, 3, unique=False, fractional=False, trim='k'
    ).rstrip('.')


def format_target(number, wanted, sign):
    """Formats a number beside what is wanted, and marks what is missed."""
    if number is None:
        return None
    if wanted is None:
        return number
    text = format_number(number)
    met = float(text) <= wanted if sign == '≤' else float(text) >= wanted
    text += ' ({} {:.3g})'.format(sign, wanted)
    return text if met else '**{} missed**'.format(text)


def make_table(header, lines):
    cells = [
        [
            ''
            if cell is None
            else cell
            if isinstance(cell, str)
            else format_number(cell)
            for cell in line
        ]
        for line in lines
    ]
    align = ['left'] + ['right'] * (len(header) - 1)
    return tabulate(
        cells, header, 'pipe', disable_numparse=True, colalign=align
    )


def make_size_table(row):
    header = ['', *('{}, ms'.format(part) for part in PARTS)]
    header += ['dense / it', 'it / product']
    header += ['peak forward, MiB', 'kept, MiB', 'peak backward, MiB']
    lines = []
    for name, entry in row['contenders'].items():
        if 'absent' in entry:
            line = [name, entry['absent']]
        else:
            seconds = (get_seconds(row, name, part) for part in PARTS)
            line = [name, *(1e3 * each for each in seconds)]
            if name not in ('blocks', 'copy'):
                line.append(get_ratio(row, 'dense', name))
                line.append(get_ratio(row, name, 'product'))
            if name not in FLOOR:
                line += [number / MIB for number in entry['bytes']]
        lines.append(line + [None] * (len(header) - len(line)))
    return make_table(header, lines)


def make_target_table(rows, device):
    """Makes the table of what is wanted, and whether it is reached."""
    columns = CPU_TARGETS if device == '@numpy' else GPU_TARGETS
    lines = []
    for row in rows:
        targets = (get_target(row) for get_target in columns.values())
        cells = (format_target(*target) for target in targets)
        lines.append([get_title(row), *cells])
    return make_table(['', *columns], lines)


def get_key(row):
    return tuple(row[size] for size in ('batch_size', 'in_size', 'common_num'))


def get_bandwidth(row, part):
    """Returns the bytes that a kernel moves per second, in units of a copy."""
    ratio = get_ratio(row, 'copy', 'blocks', 'forward', part)
    return ratio and ratio * (1 + 1 / row['common_num']) / 2


def get_peak(row):
    """Returns the most that sum takes, in units of the dense weight."""
    forward, _, backward = row['contenders']['sum']['bytes']
    W = row['in_size'] * row['out_size']
    if row['link'] == 'StatelessLSTM':
        W *= 4
    return max(forward, backward) / (W * numpy.dtype(row['dtype']).itemsize)


def get_kept(row):
    """Returns what sum keeps more than dense, in units of a block of x."""
    if 'dense' not in row['contenders']:
        return None
    _, kept, _ = row['contenders']['sum']['bytes']
    _, dense_kept, _ = row['contenders']['dense']['bytes']
    block = row['batch_size'] * row['in_size'] / row['common_num']
    return (kept - dense_kept) / block / numpy.dtype(row['dtype']).itemsize


def is_large(row):
    """Whether x has 64 MiB, which no cache of a GPU holds."""
    size = row['batch_size'] * row['in_size']
    return size * numpy.dtype(row['dtype']).itemsize >= 64 * MIB


# By what is measured: the figure, what is wanted of it, in which sense.
CPU_TARGETS = {
    'dense / sum': lambda row: (
        get_ratio(row, 'dense', 'sum'),
        TIMES_FASTER.get(get_key(row)),
        '≥',
    ),
    'sum / torch-sum': lambda row: (
        get_ratio(row, 'sum', 'torch-sum'),
        OF_TORCH_SUM.get(get_key(row)),
        '≤',
    ),
    'dense-patched / dense': lambda row: (
        get_ratio(row, 'dense-patched', 'dense'),
        1.02,
        '≤',
    ),
    'sum_blocks / copy': lambda row: (
        get_ratio(row, 'blocks', 'copy', 'forward'),
        1.1,
        '≤',
    ),
    'tile_blocks / write': lambda row: (
        get_ratio(row, 'blocks', 'copy', 'backward'),
        1.1,
        '≤',
    ),
    'peak / dense W': lambda row: (get_peak(row), 1, '≤'),
    'kept beyond dense / (x / n)': lambda row: (get_kept(row), 1, '≤'),
}
GPU_TARGETS = {
    'dense / sum': lambda row: (
        get_ratio(row, 'dense', 'sum'),
        0.8 * 8 if get_key(row) == (8192, 8192, 8) else None,
        '≥',
    ),
    'sum / torch-sum': lambda row: (
        get_ratio(row, 'sum', 'torch-sum'),
        1 if is_large(row) else None,
        '≤',
    ),
    'sum_blocks, GB/s / copy': lambda row: (
        get_bandwidth(row, 'forward'),
        0.85 if is_large(row) else None,
        '≥',
    ),
    'tile_blocks, GB/s / copy': lambda row: (
        get_bandwidth(row, 'backward'),
        0.85 if is_large(row) else None,
        '≥',
    ),
    'peak / dense W': CPU_TARGETS['peak / dense W'],
    'kept beyond dense / (x / n)': CPU_TARGETS['kept beyond dense / (x / n)'],
}


def make_training_table(results):
    training = results['training']
    comparable = results['dataset'] == 'MNIST' and not results['quick']
    dense = training.get('dense', {}).get('seconds')
    lines = []
    for name, entry in training.items():
        line = [TRAININGS[name][1], entry.get('absent'), None]
        if 'seconds' in entry:
            line[1] = numpy.median(entry['seconds'])
        if 'seconds' in entry and dense:
            ratio = numpy.median(numpy.divide(entry['seconds'], dense))
            wanted = OF_AN_EPOCH if name == 'sum' and comparable else None
            line[2] = format_target(ratio, wanted, '≤')
        lines.append(line)
    return make_table(['', 'seconds per epoch', "it / Chainer's dense"], lines)


def get_sweeps(results):
    """Returns by its column the rows in which nothing else changes."""
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
    names = [name for name in STYLES if name in rows[0]['contenders']]
    header = [swept, *('{}, ms'.format(name) for name in names), 'dense / sum']
    lines = []
    for row in rows:
        seconds = [get_seconds(row, name) for name in names]
        milliseconds = [each and 1e3 * each for each in seconds]
        ratio = get_ratio(row, 'dense', 'sum')
        lines.append([str(row[swept]), *milliseconds, ratio])
    return make_table(header, lines)


def get_spread(results):
    """Returns the median factor between the rounds of a contender."""
    samples = [
        get_samples(row, name)
        for row in results['sizes'] + results['sweeps']
        for name in row['contenders']
    ]
    factors = [max(each) / min(each) for each in samples if each is not None]
    return numpy.median(factors) if factors else 1


def render(results, plots=()):
    """Renders everything as Markdown."""
    versions = ', '.join(map(' '.join, results['versions'].items()))
    spread = get_spread(results)
    parts = [
        '{date}, {machine}, {device}, {}'.format(versions, **results),
        '```console\n$ {command}\n```'.format(**results),
        '## Contenders',
        make_table(
            ['', 'what it is'],
            [
                ['`{}`'.format(name), description]
                for name, (_, description) in CONTENDERS.items()
            ],
        ),
        '"Peak" is the most memory that a pass takes beyond what is there '
        'when it begins, and "kept" what forward leaves for backward besides '
        'y. Each column is a median of its own, and so is each ratio, of the '
        'ratios within a round.',
        'From its fastest round to its slowest, a contender took {:.2f} times '
        'as long, in the median{}.'.format(
            spread,
            ': **the machine was busy, and this is no measurement**'
            if spread > 1.5
            else '',
        ),
        '## Targets',
        'What the project aims at, on a machine of two cores or on an H100; '
        'docs/performance.md says what is measured.',
        make_target_table(results['sizes'], results['device']),
        '## Training on {}'.format(results['dataset']),
        make_training_table(results),
        '## Sizes',
    ]
    for row in results['sizes']:
        parts += ['### ' + get_title(row), make_size_table(row)]
    for swept, rows in get_sweeps(results).items():
        title = '## Forward and backward against {}'.format(swept)
        parts += [title, make_sweep_table(rows, swept)]
    parts += ['![{0}]({0})'.format(name) for name in plots]
    return '\n\n'.join(parts) + '\n'


def plot(results, directory):
    """Writes the plots; returns the names of their files."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    def save(name):
        figure.savefig(os.path.join(directory, name))
        pyplot.close(figure)
        names.append(name)

    names = []
    for swept, rows in get_sweeps(results).items():
        figure, axes = pyplot.subplots(layout='constrained')
        plot_sweep(axes, rows, swept)
        save('time_against_{}.png'.format(swept))
    figure, axes = pyplot.subplots(layout='constrained')
    plot_roofline(axes, results)
    save('roofline.png')
    return names


def plot_sweep(axes, rows, swept):
    for name, (color, style) in STYLES.items():
        seconds = [get_seconds(row, name) for row in rows]
        if None not in seconds:
            axes.loglog(
                [row[swept] for row in rows],
                numpy.multiply(seconds, 1e3),
                style,
                color=color,
                label=name,
            )
    axes.set_xticks([row[swept] for row in rows])
    axes.xaxis.set_major_formatter('{x:.0f}')
    axes.minorticks_off()
    fixed = {'batch_size': 'n = 8', 'common_num': 'batch of 128'}[swept]
    axes.set_title('Linear of 4096 to 4096, {}, float32'.format(fixed))
    axes.set_xlabel(swept)
    axes.set_ylabel('forward + backward [ms]')
    axes.legend()


def plot_roofline(axes, results):
    """Draws what is reached of what memory and BLAS allow."""
    rows = [
        row
        for row in results['sizes'] + results['sweeps']
        if row['link'] == 'Linear' and row['dtype'] == 'float32'
    ]
    all_points = []
    for name in ('dense', 'torch-sum', 'product', 'sum'):
        points = []
        for row in rows:
            seconds = get_seconds(row, name)
            if seconds:
                n = 1 if name == 'dense' else row['common_num']
                operations = count_operations(row, n)
                intensity = operations / count_bytes(row, n)
                points.append((intensity, operations / seconds / 1e9))
        if points:
            color, style = STYLES[name]
            axes.loglog(*zip(*points), style[0], color=color, label=name)
            all_points += points
    # The largest, which caches do not hold.
    copies = [
        (row['batch_size'] * row['in_size'], seconds)
        for row in rows
        for seconds in [get_seconds(row, 'copy', 'forward')]
        if seconds
    ]
    if copies:
        size, seconds = max(copies)
        bandwidth = 2e-9 * 4 * size / seconds
        intensities, speeds = numpy.sort(all_points, 0).T
        roof = numpy.minimum(intensities * bandwidth, speeds[-1])
        label = 'largest copy, fastest product: {:.0f} GB/s, {:.0f} GFLOP/s'
        label = label.format(bandwidth, speeds[-1])
        axes.loglog(intensities, roof, 'k-', label=label)
    axes.set_title('Linear, float32')
    axes.set_xlabel('operations per byte')
    axes.set_ylabel('GFLOP/s, forward + backward')
    axes.legend()
