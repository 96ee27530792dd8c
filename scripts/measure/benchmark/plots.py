"""Plots of the times against n and against the batch size."""

from matplotlib.figure import Figure
from measure.benchmark.cases import SWEPT
from measure.benchmark.report import get_milliseconds, get_sweeps

STYLES = dict(
    zip(
        SWEPT,
        [
            *(('C3', 'o-'), ('C4', 's-'), ('C0', 'v-')),
            *(('C1', 'v--'), ('C1', 'o--'), ('k', 'x:')),
        ],
    )
)
FIXED = {'batch_size': 'n = 8', 'common_num': 'batch of 128'}


def plot(results, directory):
    """Writes the plots; returns their names."""
    names = []
    for swept, rows in get_sweeps(results).items():
        figure = Figure(layout='constrained')
        plot_sweep(figure.subplots(), rows, swept)
        names.append(f'time_against_{swept}')
        figure.savefig(directory / f'{names[-1]}.png')
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
    axes.set_title(f'Linear of 4096 to 4096, {FIXED[swept]}, float32')
    axes.set_xlabel(swept)
    axes.set_ylabel('forward + backward [ms]')
    axes.legend()
