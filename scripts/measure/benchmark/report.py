"""Tables of what the benchmark measured, beside its targets."""

from contenders import TRAININGS
import numpy
from tabulate import tabulate

PARTS = ('forward', 'backward', 'both')
MEMORY = ('peak forward', 'kept', 'peak backward')
MIB = 2**20
# Targets on a CPU. The keys are batch_size, in_size and n.
TIMES_FASTER = {
    (100, 1000, 10): 6,
    (32, 25088, 7): 7,
    (128, 4096, 8): 8,
    (1024, 4096, 8): 0.9 * 8,
}
OF_TORCH_SUM = {(100, 1000, 10): 1}
# What the columns of the table of targets show.
COLUMNS = {
    'dense / sum': "how many times faster `sum` is than Chainer's ordinary "
    'layer',
    'sum / narrow': 'the time of `sum` relative to a layer that needs no sum; '
    'at most 1.05 is nearly the same target as `dense / sum` of at least 0.95 '
    'of `dense / narrow`, the most that Chainer allows',
    'sum / product': 'the time of `sum` relative to the floor',
    'sum / torch-sum': 'the time of `sum` relative to PyTorch with the same '
    'sum',
    'product / torch-product': 'the part of that ratio due to the BLAS',
    'dense-patched / dense': 'the time of an ordinary layer under the patch '
    'relative to its time without',
    'dense-patched - dense, µs': 'the difference between the two, for a '
    'layer so small that it shows',
    'sum_blocks, GB/s / copy': 'the bytes per second of `sum_blocks` '
    'relative to a copy',
    'tile_blocks, GB/s / copy': 'the same for `tile_blocks`',
    'peak / dense W': 'the peak memory of a pass relative to the wide weight',
    'kept beyond dense / (x / n)': 'what forward keeps for backward and an '
    'ordinary layer does not, relative to one block of x',
}
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


def get_key(row):
    return row['batch_size'], row['in_size'], row['common_num']


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


def get_ratio(row, name, other, part='both', other_part=None):
    """Returns the median ratio of a contender's time to another's."""
    return divide(
        get_samples(row, name, part),
        get_samples(row, other, other_part or part),
    )


def get_microseconds_more(row, name, other):
    """Returns how much longer a contender takes than another."""
    samples, others = get_samples(row, name), get_samples(row, other)
    return 1e6 * numpy.median(samples - others)


def get_nbytes(row, *sizes):
    """Returns the bytes of an array with these sizes of a row as its shape."""
    itemsize = numpy.dtype(row['dtype']).itemsize
    return itemsize * numpy.prod([row[size] for size in sizes]).item()


def format_number(number):
    """Formats with three digits, or all of those before the point."""
    if number >= 1000:
        return f'{number:.0f}'
    return numpy.format_float_positional(
        number, 3, unique=False, fractional=False, trim='k'
    ).rstrip('.')


def format_target(number, sign, wanted):
    """Formats a number with its target, and marks it if missed."""
    if number is None or wanted is None:
        return number
    text = format_number(number)
    met = float(text) <= wanted if sign == '≤' else float(text) >= wanted
    text += f' ({sign} {wanted:.3g})'
    return text if met else f'**{text} missed**'


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


def describe_kernels(row):
    """Returns a sentence about the array kernels of a row."""
    return (
        '`sum_blocks` takes {} times as long as a copy of x, and '
        '`tile_blocks` {} times as long as one write of a new gx.'
    ).format(
        *(
            format_number(get_ratio(row, 'blocks', 'copy', part))
            for part in ('forward', 'backward')
        )
    )


def get_bandwidth(row, part):
    """Returns the bytes that a kernel moves per second, in units of a copy."""
    ratio = get_ratio(row, 'copy', 'blocks', 'forward', part)
    return ratio and ratio * (1 + 1 / row['common_num']) / 2


def get_peak(row):
    """Returns the peak memory of sum, in units of the wide weight."""
    forward, _, backward = row['contenders']['sum']['bytes']
    W = get_nbytes(row, 'in_size', 'out_size')
    if row['link'] == 'StatelessLSTM':
        W *= 4
    return max(forward, backward) / W


def get_kept(row):
    """Returns what sum keeps beyond dense, in units of a block of x."""
    _, kept, _ = row['contenders']['sum']['bytes']
    _, dense_kept, _ = row['contenders']['dense']['bytes']
    block = get_nbytes(row, 'batch_size', 'in_size') / row['common_num']
    return (kept - dense_kept) / block


def get_targets(row, device):
    """Returns the figures of a row with their targets, by column."""
    key = get_key(row)
    if row['name'] == 'smallest':
        more = get_microseconds_more(row, 'dense-patched', 'dense')
        wanted = 1 if device == '@numpy' else None
        return {'dense-patched - dense, µs': format_target(more, '≤', wanted)}
    faster = get_ratio(row, 'dense', 'sum')
    of_torch = get_ratio(row, 'sum', 'torch-sum')
    if device == '@numpy':
        patched = get_ratio(row, 'dense-patched', 'dense')
        of_narrow = get_ratio(row, 'sum', 'narrow')
        of_product = get_ratio(row, 'sum', 'product')
        of_blas = get_ratio(row, 'product', 'torch-product')
        batched = row['batch_size'] >= 32
        large = batched and row['in_size'] >= 4096 and row['link'] == 'Linear'
        targets = [
            ('dense / sum', faster, '≥', TIMES_FASTER.get(key)),
            ('sum / narrow', of_narrow, '≤', 1.05 if batched else 1.15),
            ('sum / product', of_product, '≤', 1.06 if large else None),
            ('sum / torch-sum', of_torch, '≤', OF_TORCH_SUM.get(key)),
            ('product / torch-product', of_blas, '≤', None),
            ('dense-patched / dense', patched, '≤', 1.02),
            ('dense-patched - dense, µs', None, '≤', None),
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


def make_inference_table(results):
    lines = []
    for row in results['inference']:
        for name, entry in row['contenders'].items():
            ratio = get_ratio(row, name, 'torch-sum', 'forward')
            wanted = 1.3 if name in ('sum', 'SharedLinear') else None
            time = get_milliseconds(row, name, 'forward')
            line = {'': name, 'batch size': str(row['batch_size'])}
            line['ms'] = entry.get('absent', time)
            line['it / torch-sum'] = format_target(ratio, '≤', wanted)
            lines.append(line)
    return make_table(lines)


def get_epochs(results, name):
    """Returns the seconds per epoch in each round; None where it is absent."""
    return results['training'].get(name, {}).get('seconds')


def make_training_table(results):
    comparable = results['dataset'] == 'MNIST' and not results['quick']
    lines = []
    for name, entry in results['training'].items():
        seconds = get_epochs(results, name)
        wanted = comparable and name in ('sum', 'sum-blockwise')
        line = {'': TRAININGS[name][1]}
        line['seconds per epoch'] = entry.get('absent') or numpy.median(
            seconds
        )
        for title, other, most in (
            ("it / Chainer's dense", 'dense', 0.55),
            ('it / PyTorch, shared, eager', 'torch-sum', 1.4),
        ):
            ratio = divide(seconds, get_epochs(results, other))
            line[title] = format_target(ratio, '≤', most if wanted else None)
        lines.append(line)
    return make_table(lines)


def format_time(seconds):
    """Formats the median of the seconds in each round, if present."""
    if seconds is None:
        return None
    time = numpy.median(seconds)
    if time < 1:
        return format_number(1e3 * time) + ' ms'
    return format_number(time) + ' s'


def make_figures_table(results):
    """Makes the table of the most important figures."""
    trios = {}
    for row in results['sizes'] + results['inference']:
        title = '{in_size} to {out_size}, batch of {batch_size}, '
        title += 'n = {common_num}, '
        title += 'inference' if row['inference'] else 'forward and backward'
        part = 'forward' if row['inference'] else 'both'
        if row['inference'] or get_key(row) in TIMES_FASTER:
            trios[title.format(**row)] = [
                get_samples(row, name, part)
                for name in ('sum', 'dense', 'torch-sum')
            ]
    for name, title in (
        ('sum', 'an epoch, ' + results['dataset']),
        ('sum-blockwise', 'the same with `--blockwise-adam`'),
    ):
        trios[title] = [
            get_epochs(results, each) for each in (name, 'dense', 'torch-sum')
        ]
    return make_table(
        {
            '': title,
            'shared': format_time(shared),
            'dense': format_time(dense),
            'PyTorch, shared': format_time(by_torch),
            'dense / shared': divide(dense, shared),
            'shared / PyTorch': divide(shared, by_torch),
        }
        for title, (shared, dense, by_torch) in trios.items()
        if shared is not None
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
    lines = []
    for row in rows:
        line = {swept: str(row[swept])}
        for name in STYLES:
            line[name + ', ms'] = get_milliseconds(row, name)
        line['dense / sum'] = get_ratio(row, 'dense', 'sum')
        lines.append(line)
    return make_table(lines)


def describe_spread(results):
    """Returns a sentence about how much a contender's rounds differ."""
    samples = [
        get_samples(row, name)
        for row in results['sizes'] + results['sweeps']
        for name in row['contenders']
    ]
    factors = [max(each) / min(each) for each in samples if each is not None]
    spread = numpy.median(factors) if factors else 1
    sentence = (
        f"A contender's slowest round took {spread:.2f} times as long as its "
        'fastest, in the median over all contenders and sizes.'
    )
    if spread > 1.5:
        sentence += ' **The machine was busy: do not trust these times.**'
    return sentence
