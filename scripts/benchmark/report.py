"""Tables and plots of what the benchmark measured, beside its targets."""

from contenders import CONTENDERS, TRAININGS
import numpy
from tabulate import tabulate

PARTS = ('forward', 'backward', 'both')
MEMORY = ('peak forward', 'kept', 'peak backward')
MIB = 2**20
# What is wanted on a CPU. The keys are batch_size, in_size and n.
TIMES_FASTER = {
    (100, 1000, 10): 6,
    (32, 25088, 7): 7,
    (128, 4096, 8): 8,
    (1024, 4096, 8): 0.9 * 8,
}
OF_TORCH_SUM = {
    (100, 1000, 10): 1.2,
    (32, 25088, 7): 1,
    **{(B, 4096, n): 1 for B in (128, 1024) for n in (2, 8, 64)},
    (64, 4096, 8): 1,
}
OF_AN_EPOCH = 0.55
# What the sweeps compare, with colors and styles for the plots.
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
    """Returns a contender's time in each round; None where it is absent."""
    samples = row['contenders'].get(name, {}).get('seconds')
    return samples and numpy.array(samples)[:, PARTS.index(part)]


def get_milliseconds(row, name, part='both'):
    """Returns a contender's median time; None where it is absent."""
    samples = get_samples(row, name, part)
    return None if samples is None else 1e3 * numpy.median(samples)


def get_ratio(row, name, other, part='both', other_part=None):
    """Returns the median ratio of a contender's time to another's."""
    samples = get_samples(row, name, part)
    others = get_samples(row, other, other_part or part)
    if samples is None or others is None:
        return None
    return numpy.median(samples / others)


def get_nbytes(row, *sizes):
    """Returns the bytes of an array with these sizes of a row as its shape."""
    itemsize = numpy.dtype(row['dtype']).itemsize
    return itemsize * numpy.prod([row[size] for size in sizes]).item()


def count_operations(row, n):
    """Returns the operations of the products of forward and backward."""
    return 6 * row['batch_size'] * row['in_size'] // n * row['out_size']


def count_bytes(row, n):
    """Returns the fewest bytes that forward and backward can move.

    Forward reads x and W, keeps the summed blocks and writes y; backward
    reads gy, W and the summed blocks, and writes gx and gW.
    """
    x = get_nbytes(row, 'batch_size', 'in_size')
    y = get_nbytes(row, 'batch_size', 'out_size')
    W = get_nbytes(row, 'in_size', 'out_size') // n
    summed_x = 2 * x // n if n > 1 else x
    return 2 * x + summed_x + 3 * W + 2 * y


def format_number(number):
    """Formats with three digits, or as many as precede the point."""
    if number >= 1000:
        return '{:.0f}'.format(number)
    return numpy.format_float_positional(
        number, 3, unique=False, fractional=False, trim='k'
    ).rstrip('.')


def format_target(number, sign, wanted):
    """Formats a number beside what is wanted, and marks what is missed."""
    if number is None or wanted is None:
        return number
    text = format_number(number)
    met = float(text) <= wanted if sign == '≤' else float(text) >= wanted
    text += ' ({} {:.3g})'.format(sign, wanted)
    return text if met else '**{} missed**'.format(text)


def make_table(lines):
    """Makes a table of lines, which are dicts by column."""
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


def make_size_table(row):
    lines = []
    for name, entry in row['contenders'].items():
        line = {'': name}
        for part in PARTS:
            line[part + ', ms'] = get_milliseconds(row, name, part)
        if 'absent' in entry:
            line['forward, ms'] = entry['absent']
        if name not in ('blocks', 'copy'):
            line['dense / it'] = get_ratio(row, 'dense', name)
            line['it / product'] = get_ratio(row, name, 'product')
        for part, number in zip(MEMORY, entry.get('bytes', ())):
            line[part + ', MiB'] = number / MIB
        lines.append(line)
    return make_table(lines)


def get_bandwidth(row, part):
    """Returns the bytes that a kernel moves per second, in units of a copy."""
    ratio = get_ratio(row, 'copy', 'blocks', 'forward', part)
    return ratio and ratio * (1 + 1 / row['common_num']) / 2


def get_peak(row):
    """Returns the peak memory of sum, in units of the dense weight."""
    forward, _, backward = row['contenders']['sum']['bytes']
    W = get_nbytes(row, 'in_size', 'out_size')
    if row['link'] == 'StatelessLSTM':
        W *= 4
    return max(forward, backward) / W


def get_kept(row):
    """Returns what sum keeps more than dense, in units of a block of x."""
    _, kept, _ = row['contenders']['sum']['bytes']
    _, dense_kept, _ = row['contenders']['dense']['bytes']
    block = get_nbytes(row, 'batch_size', 'in_size') / row['common_num']
    return (kept - dense_kept) / block


def get_targets(row, device):
    """Returns the figures of a row beside what is wanted, by column."""
    key = row['batch_size'], row['in_size'], row['common_num']
    faster = get_ratio(row, 'dense', 'sum')
    of_torch = get_ratio(row, 'sum', 'torch-sum')
    if device == '@numpy':
        patched = get_ratio(row, 'dense-patched', 'dense')
        of_copy = get_ratio(row, 'blocks', 'copy', 'forward')
        of_write = get_ratio(row, 'blocks', 'copy', 'backward')
        targets = [
            ('dense / sum', faster, '≥', TIMES_FASTER.get(key)),
            ('sum / torch-sum', of_torch, '≤', OF_TORCH_SUM.get(key)),
            ('dense-patched / dense', patched, '≤', 1.02),
            ('sum_blocks / copy', of_copy, '≤', 1.1),
            ('tile_blocks / write', of_write, '≤', 1.1),
        ]
    else:
        summing, tiling = (
            get_bandwidth(row, part) for part in ('forward', 'backward')
        )
        times_faster = 0.8 * 8 if key == (8192, 8192, 8) else None
        # No cache of a GPU holds that.
        large = get_nbytes(row, 'batch_size', 'in_size') >= 64 * MIB
        targets = [
            ('dense / sum', faster, '≥', times_faster),
            ('sum / torch-sum', of_torch, '≤', 1 if large else None),
            ('sum_blocks, GB/s / copy', summing, '≥', 0.85 if large else None),
            ('tile_blocks, GB/s / copy', tiling, '≥', 0.85 if large else None),
        ]
    targets += [
        ('peak / dense W', get_peak(row), '≤', 1),
        ('kept beyond dense / (x / n)', get_kept(row), '≤', 1),
    ]
    return {column: format_target(*target) for column, *target in targets}


def make_sharing_table(results):
    lines = []
    for row in results['sharing']:
        dense_W = get_nbytes(row, 'in_size', 'out_size')
        large = row['in_size'] * row['out_size'] >= 25088 * 4096
        lines.append(
            {
                '': '{in_size} to {out_size}, n = {common_num}'.format(**row),
                'calibration inputs': str(row['examples']),
                'seconds': format_target(
                    row['seconds'], '≤', 120 if large else None
                ),
                'peak / dense W': row['bytes'] / dense_W,
            }
        )
    return make_table(lines)


def make_training_table(results):
    comparable = results['dataset'] == 'MNIST' and not results['quick']
    dense = results['training'].get('dense', {}).get('seconds')
    lines = []
    for name, entry in results['training'].items():
        line = {'': TRAININGS[name][1]}
        line['seconds per epoch'] = entry.get('absent')
        line["it / Chainer's dense"] = None
        if 'seconds' in entry:
            line['seconds per epoch'] = numpy.median(entry['seconds'])
        if 'seconds' in entry and dense:
            ratio = numpy.median(numpy.divide(entry['seconds'], dense))
            wanted = OF_AN_EPOCH if name == 'sum' and comparable else None
            line["it / Chainer's dense"] = format_target(ratio, '≤', wanted)
        lines.append(line)
    return make_table(lines)


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
    lines = []
    for row in rows:
        line = {swept: str(row[swept])}
        for name in STYLES:
            line[name + ', ms'] = get_milliseconds(row, name)
        line['dense / sum'] = get_ratio(row, 'dense', 'sum')
        lines.append(line)
    return make_table(lines)


def describe_spread(results):
    """Returns a sentence on how much the rounds of a contender differ."""
    samples = [
        get_samples(row, name)
        for row in results['sizes'] + results['sweeps']
        for name in row['contenders']
    ]
    factors = [max(each) / min(each) for each in samples if each is not None]
    spread = numpy.median(factors) if factors else 1
    sentence = (
        "A contender's slowest round took {:.2f} times as long as its "
        'fastest, in the median over all contenders and sizes.'
    ).format(spread)
    if spread > 1.5:
        sentence += ' **The machine was busy: do not trust these times.**'
    return sentence


def render(results, plots=()):
    """Renders everything as Markdown."""
    versions = ', '.join(map(' '.join, results['versions'].items()))
    parts = [
        '{date}, {machine}, {device}, {}'.format(versions, **results),
        '```console\n$ {command}\n```'.format(**results),
        '## Contenders',
        make_table(
            {'': '`{}`'.format(name), 'what it is': description}
            for name, (_, description) in CONTENDERS.items()
        ),
        '"Peak" is the most memory in use during a pass, beyond what was in '
        'use when it began, and "kept" is what forward leaves for backward '
        'besides y. Each time is the median over the rounds, and each ratio '
        "the median of the rounds' ratios.",
        describe_spread(results),
        '## Targets',
        'The aims of the project on a machine with two cores, or on an H100; '
        'docs/performance.md explains what is measured.',
        make_table(
            {'': get_title(row), **get_targets(row, results['device'])}
            for row in results['sizes']
        ),
        '## Training on {}'.format(results['dataset']),
        make_training_table(results),
        '## Converting a dense layer with `share`',
        make_sharing_table(results),
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
    from matplotlib.figure import Figure

    names = []

    def save(name, draw, *args):
        figure = Figure(layout='constrained')
        draw(figure.subplots(), *args)
        figure.savefig(directory / name)
        names.append(name)

    for swept, rows in get_sweeps(results).items():
        name = 'time_against_{}.png'.format(swept)
        save(name, plot_sweep, rows, swept)
    if results['sizes']:
        save('roofline.png', plot_roofline, results)
    return names


def plot_sweep(axes, rows, swept):
    for name, (color, style) in STYLES.items():
        times = [get_milliseconds(row, name) for row in rows]
        if None not in times:
            sizes = [row[swept] for row in rows]
            axes.loglog(sizes, times, style, color=color, label=name)
    axes.set_xticks([row[swept] for row in rows])
    axes.xaxis.set_major_formatter('{x:.0f}')
    axes.minorticks_off()
    fixed = {'batch_size': 'n = 8', 'common_num': 'batch of 128'}[swept]
    axes.set_title('Linear of 4096 to 4096, {}, float32'.format(fixed))
    axes.set_xlabel(swept)
    axes.set_ylabel('forward + backward [ms]')
    axes.legend()


def get_point(row, name):
    """Returns a contender's operations per byte and GFLOP/s, if present."""
    time = get_milliseconds(row, name)
    n = 1 if name == 'dense' else row['common_num']
    operations = count_operations(row, n)
    return time and (operations / count_bytes(row, n), operations / time / 1e6)


def plot_roofline(axes, results):
    """Draws the speeds reached beside what memory and BLAS allow."""
    rows = [
        row
        for row in results['sizes'] + results['sweeps']
        if row['link'] == 'Linear' and row['dtype'] == 'float32'
    ]
    all_points = []
    for name in ('dense', 'torch-sum', 'product', 'sum'):
        color, style = STYLES[name]
        points = list(filter(None, (get_point(row, name) for row in rows)))
        if points:
            axes.loglog(*zip(*points), style[0], color=color, label=name)
        all_points += points
    copies = [
        (get_nbytes(row, 'batch_size', 'in_size'), time)
        for row in rows
        for time in [get_milliseconds(row, 'copy', 'forward')]
        if time
    ]
    if copies:
        x, time = max(copies)  # The largest, which caches do not hold.
        bandwidth = 2 * x / time / 1e6
        intensities, speeds = numpy.sort(all_points, 0).T
        roof = numpy.minimum(intensities * bandwidth, speeds[-1])
        label = 'largest copy, fastest product: {:.0f} GB/s, {:.0f} GFLOP/s'
        label = label.format(bandwidth, speeds[-1])
        axes.loglog(intensities, roof, 'k-', label=label)
    axes.set_title('Linear, float32')
    axes.set_xlabel('operations per byte')
    axes.set_ylabel('GFLOP/s, forward + backward')
    axes.legend()
