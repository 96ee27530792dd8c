"""Plots of what the benchmark measured."""

from matplotlib.figure import Figure
import numpy
from report import STYLES, get_milliseconds, get_nbytes, get_sweeps


def plot(results, directory):
    """Writes the plots; returns the names of their files."""
    names = []

    def save(name, draw, *args):
        figure = Figure(layout='constrained')
        draw(figure.subplots(), *args)
        figure.savefig(directory / name)
        names.append(name)

    for swept, rows in get_sweeps(results).items():
        name = f'time_against_{swept}.png'
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
    axes.set_title(f'Linear of 4096 to 4096, {fixed}, float32')
    axes.set_xlabel(swept)
    axes.set_ylabel('forward + backward [ms]')
    axes.legend()


def count_operations(row, n):
    """Returns the operations of the products, forward and backward."""
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


def get_point(row, name):
    """Returns a contender's operations per byte and GFLOP/s, if present."""
    time = get_milliseconds(row, name)
    n = 1 if name == 'dense' else row['common_num']
    operations = count_operations(row, n)
    return time and (operations / count_bytes(row, n), operations / time / 1e6)


def plot_roofline(axes, results):
    """Draws the speeds reached, and what memory and BLAS allow."""
    rows = [
        row
        for row in results['sizes'] + results['sweeps']
        if row['link'] == 'Linear'
        and row['dtype'] == 'float32'
        and row['name'] != 'smallest'
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
