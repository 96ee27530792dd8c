"""Plots of the times against n and against the batch size."""

import matplotlib
from matplotlib.figure import Figure
from measure.benchmark.report import get_milliseconds, get_sweeps
from measure.pictures import BLOCKS, SUM, TEXT, WEIGHT, style_axes

# By contender: its name in the legend, colour and line.
STYLES = {
    'tile': ('shared, by tiling W as in the article', SUM, 's-'),
    'dense': ('dense', WEIGHT, 'v-'),
    'torch-dense': ('PyTorch, dense', WEIGHT, 'v--'),
    'sum': ('shared', BLOCKS[0], 'o-'),
    'torch-sum': ('PyTorch, shared', BLOCKS[0], 'o--'),
    'product': ('the products of "shared" alone', TEXT, 'x:'),
}
# By what is swept: its label, and a place for the legend.
AXES = {
    'batch_size': ('batch size', 'lower right'),
    'common_num': ('n', 'center right'),
}


def plot(results, directory):
    """Writes the plots."""
    for swept, rows in get_sweeps(results).items():
        name = f'time_against_{swept}.svg'
        figure = Figure(figsize=(7.5, 4), layout='constrained')
        plot_sweep(figure.subplots(), rows, swept)
        # Without the date, the same times make the same file.
        with matplotlib.rc_context({'svg.hashsalt': name}):
            figure.savefig(
                directory / name, transparent=True, metadata={'Date': None}
            )


def plot_sweep(axes, rows, swept):
    for name, (label, color, style) in STYLES.items():
        times = [get_milliseconds(row, name) for row in rows]
        if None not in times:
            sizes = [row[swept] for row in rows]
            axes.loglog(sizes, times, style, color=color, label=label)
    axes.set_xticks([row[swept] for row in rows])
    axes.xaxis.set_major_formatter('{x:.0f}')
    axes.minorticks_off()
    if swept == 'batch_size':
        # Room for the legend, below the curves.
        axes.set_ylim(bottom=axes.get_ylim()[0] / 8)
    label, place = AXES[swept]
    axes.set_xlabel(label)
    axes.set_ylabel('forward and backward [ms]')
    style_axes(axes, place)
