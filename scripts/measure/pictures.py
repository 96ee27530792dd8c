"""Draws the pictures of the README.

sharing.svg shows what a shared layer computes. accuracy.svg shows accuracy
against bytes; its figures are those of the tables in docs/comparison.md, which
"make compare" measured.
"""

from pathlib import Path
import re

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DOCS = Path(__file__).resolve().parents[2] / 'docs'

# They stand out from a white page and from a black one.
BLOCKS = '#3b7dc4', '#2f8f5b', '#b0611c'
SUM, WEIGHT, OUTPUT = '#7d6bb5', '#b5476b', '#6b7280'
TEXT = '#808080'

KINDS = {
    'shared': ('shared, 4 orders', BLOCKS[0], 'o'),
    'one order': ('shared, one order', SUM, 'v'),
    'SVD': ('SVD that sees the data', BLOCKS[2], 's'),
    'smaller': ('smaller network', BLOCKS[1], '^'),
    'dense': ('ordinary network', WEIGHT, 'D'),
    'hashed': ('784 – 1000 – 10: HashedNets, reported', OUTPUT, 'X'),
    'small': ('784 – 1000 – 10: shared, 4 and 20 orders', BLOCKS[0], '*'),
}
UNCONNECTED = 'hashed', 'small'
# For each budget of HashedNets, the network that is shown.
SMALL = {('784-1000-10, shared', '4'), ('784-1000-10, shared', '20')}


def style_axes(axes, legend):
    """Makes axes legible on light and dark pages, and adds the legend."""
    for label in axes.xaxis.label, axes.yaxis.label:
        label.set_color(TEXT)
    axes.tick_params(which='both', color=TEXT, labelcolor=TEXT)
    axes.grid(color=TEXT, alpha=0.3)
    axes.spines[:].set_color(TEXT)
    axes.legend(loc=legend, labelcolor=TEXT, framealpha=0)


def read_table(heading):
    """Returns the rows below a heading of docs/comparison.md, as dicts."""
    page = (DOCS / 'comparison.md').read_text(encoding='utf-8')
    _, section = page.split(f'\n## {heading}\n')
    lines = re.search(r'(?:^\|.*\n)+', section, re.MULTILINE).group()
    header, _, *rows = (
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in lines.splitlines()
    )
    return [dict(zip(header, row)) for row in rows]


def read_points():
    """Returns (bytes, accuracy as it is written) of each kind of network.

    Where n or the ranks were also chosen within a number of parameters, that
    network is shown.
    """
    points = {kind: {} for kind in KINDS}
    size = 0
    for row in read_table('A trained network, converted'):
        kind, _, choice = row['network'].partition(', ')
        if kind == 'shared':
            kind = {'1': 'one order', '4': 'shared'}.get(row['orders'])
        if kind in points and choice != 'planned, tuned':
            points[kind][size] = row['bytes'], row['trained']
        size += kind == 'smaller'  # the last one of a size
    for row in read_table('The budgets of HashedNets'):
        if row['network'] == 'HashedNets on MNIST, as reported':
            points['hashed'][row['bytes']] = row['bytes'], row['trained']
        elif (row['network'], row['orders']) in SMALL:
            points['small'][row['bytes']] = row['bytes'], row['20 epochs']
    return {kind: list(points[kind].values()) for kind in KINDS}


def read_accuracy(text):
    """Returns mean and standard deviation."""
    mean, _, spread = text.partition('±')
    return float(mean), float(spread or 0)


def draw_accuracy():
    """Returns a figure of accuracy against bytes."""
    figure = Figure(figsize=(8, 3.4), layout='constrained')
    axes = figure.subplots()
    for kind, points in read_points().items():
        label, color, marker = KINDS[kind]
        sizes, accuracy, spread = zip(
            *(
                (int(size.replace(',', '')), *read_accuracy(accuracy))
                for size, accuracy in points
            )
        )
        axes.errorbar(
            sizes,
            accuracy,
            spread,
            color=color,
            marker=marker,
            markersize=7,
            linestyle='' if kind in UNCONNECTED else '-',
            capsize=3,
            label=label,
        )
    axes.set(xscale='log', ylim=(96.4, 98.9))
    axes.set_xticks([50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000])
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.minorticks_off()
    axes.set_xlabel('bytes of weights and orders')
    axes.set_ylabel('test accuracy on MNIST [%]')
    style_axes(axes, 'lower right')
    return figure


def draw_sharing():
    """Returns a figure of both ways to compute a shared layer."""
    figure = Figure(figsize=(9, 4.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 90), ylim=(0, 47))
    axes.axis('off')

    def box(x, y, width, height, color, text=''):
        axes.add_patch(
            Rectangle(
                (x, y), width, height, color=color, linewidth=0, snap=False
            )
        )
        axes.text(
            x + width / 2,
            y + height / 2,
            text,
            color='white',
            fontsize=15,
            ha='center',
            va='center_baseline',
        )

    def write(x, y, text, size=15, ha='center'):
        axes.text(
            x, y, text, color=TEXT, fontsize=size, ha=ha, va='center_baseline'
        )

    names = '$x_0$', '$x_1$', '$x_2$'
    write(2, 45, 'One product with the wide weight', 15, 'left')
    for i, (name, color) in enumerate(zip(names, BLOCKS)):
        box(2 + 10 * i, 29, 9.8, 7, color, name)
        box(38, 36.2 - 7.2 * i, 11, 7, WEIGHT, '$W^T$')
    write(17, 26, '(B, in_size)', 13)
    write(35, 32.5, '·', 22)
    write(43.5, 18.8, '(in_size, out_size)', 13)
    write(53, 32.5, '=', 18)
    box(57, 29, 11, 7, OUTPUT, '$y$')
    write(62.5, 26, '(B, out_size)', 13)

    write(2, 14, 'The same: sum the blocks, multiply once', 15, 'left')
    for i, (name, color) in enumerate(zip(names, BLOCKS)):
        box(2 + 13.5 * i, 4, 9.8, 7, color, name)
    for x in (13.65, 27.15):
        write(x, 7.5, '+', 18)
    write(40.7, 7.5, '=', 18)
    box(43, 4, 9.8, 7, SUM, r'$\Sigma x_j$')
    write(54.8, 7.5, '·', 22)
    box(57, 4, 11, 7, WEIGHT, '$W^T$')
    write(62.5, 1.2, '(in_size / n, out_size)', 13)
    write(70.3, 7.5, '=', 18)
    box(73, 4, 11, 7, OUTPUT, '$y$')
    return figure


def describe_points():
    """Returns the figures of accuracy.svg, in words."""
    words = []
    for kind, points in read_points().items():
        words.append(f'{KINDS[kind][0]}: {", ".join(map(" ".join, points))}')
    return '; '.join(words)


def draw(out):
    """Writes both pictures to a directory."""
    for name, figure, description in (
        ('sharing.svg', draw_sharing(), 'What a shared layer computes'),
        ('accuracy.svg', draw_accuracy(), describe_points()),
    ):
        # Without the date, and named by their content, they stay the same.
        with matplotlib.rc_context({'svg.hashsalt': name}):
            figure.savefig(
                out / name,
                transparent=True,
                metadata={'Date': None, 'Description': description},
            )


if __name__ == '__main__':
    draw(DOCS / 'images')
