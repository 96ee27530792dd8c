"""Tries arbitrary inputs on what reads files, settings and arguments.

Each target (idx, snapshot, environment, options, linear, shared-linear,
share) knows which errors are documented and which results are right. Any
other outcome is a finding: its input is written to --out, and --replay tries
it again. Two engines run one after the other: atheris, if it is installed,
which follows the branches of the code, and Hypothesis.
"""

import argparse
import hashlib
import importlib.util
import os
from pathlib import Path
import re
import sys

# The processes of the engines inherit these paths.
sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
from engines import ENGINES, Trial, minimise, read_corpus, run

CORPUS = Path(__file__).resolve().parents[2] / 'tests/scripts/fuzz_corpus'
TARGETS = (
    *('idx', 'snapshot', 'environment', 'options'),
    *('linear', 'shared-linear', 'share'),
)


def parse_args():
    parser = argparse.ArgumentParser(
        prog='python scripts/fuzz',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'targets',
        nargs='*',
        metavar='TARGET',
        help='target to fuzz (default: all of the above)',
    )
    add(
        '--seconds',
        '-s',
        type=float,
        default=60,
        help='seconds for each target and engine (default: 60)',
    )
    add(
        '--inputs',
        '-n',
        type=int,
        help='number of inputs for each target and engine, instead of '
        '--seconds',
    )
    add(
        '--seed',
        type=int,
        default=0,
        help='seed for both engines (default: 0)',
    )
    add(
        '--engine',
        choices=tuple(ENGINES),
        help='use only this engine (default: all that are installed)',
    )
    add(
        '--out',
        '-o',
        default='result-fuzz',
        help='directory for the findings and the growing corpus '
        '(default: result-fuzz)',
    )
    add(
        '--corpus',
        default=str(CORPUS),
        help='directory with the corpus to start from (default: that of '
        'the tests)',
    )
    add(
        '--replay',
        nargs='+',
        metavar='FILE',
        help='try only these files, on one target, and show tracebacks',
    )
    add(
        '--minimise',
        type=int,
        metavar='N',
        help='do not fuzz; replace each corpus in --corpus with at most N '
        'of its files and of those that have grown in --out, chosen to reach '
        'as many branches as possible; files named by hand stay',
    )
    args = parser.parse_args()
    args.targets = args.targets or list(TARGETS)
    unknown = set(args.targets).difference(TARGETS)
    if unknown:
        parser.error(
            'there is no target {!r}; the targets are {}'.format(
                min(unknown), ', '.join(TARGETS)
            )
        )
    if args.replay and len(args.targets) != 1:
        parser.error('--replay needs exactly one target, that of the files')
    if args.seed < 0 or args.seconds < 0 or (args.inputs or 1) < 1:
        parser.error(
            '--seed and --seconds must not be negative, --inputs at least 1'
        )
    if args.engine == 'atheris' and not find_atheris():
        parser.error('atheris is not installed')
    return args


def find_atheris():
    return importlib.util.find_spec('atheris') is not None


def replay(name, paths):
    import targets

    trial = Trial(targets.TARGETS[name], os.devnull, name)
    for path in paths:
        data = Path(path).read_bytes()
        print(f'{path}: {trial.target(data, trial.directory.name)}')


def keep(name, args):
    """Replaces a corpus with the best of what has grown from it."""
    corpus = Path(args.corpus, name)
    corpus.mkdir(parents=True, exist_ok=True)
    contents = read_corpus(os.path.join(args.out, 'corpus', name))
    contents += read_corpus(corpus)
    chosen = minimise(name, contents, args.minimise)
    for path in corpus.iterdir():
        if re.fullmatch('[0-9a-f]{12}', path.name):  # others stay
            path.unlink()
    for content in chosen:
        digest = hashlib.sha1(content).hexdigest()[:12]
        (corpus / digest).write_bytes(content)
    size = sum(map(len, chosen))
    print(f'{name}: {len(chosen)} files, {size:,} bytes')


def main():
    args = parse_args()
    if args.minimise:
        for name in args.targets:
            keep(name, args)
        return
    if args.replay:
        replay(args.targets[0], args.replay)
        return
    os.makedirs(args.out, exist_ok=True)
    engines = [args.engine] if args.engine else list(ENGINES)
    if 'atheris' in engines and not find_atheris():
        engines.remove('atheris')
        print(
            'atheris is not installed (it has wheels for Linux on x86_64 and '
            'Python 3.11 to 3.13); only Hypothesis runs'
        )
    total = 0
    findings = []
    row = '{:<14}{:<12}{:>9}{:>6}{:>9}  {}'.format
    print(row('target', 'engine', 'inputs', 'seed', 'seconds', 'outcomes'))
    for name in args.targets:
        for engine in engines:
            report = run(engine, name, args)
            outcomes = ', '.join(
                '{} {:,}'.format(*pair)
                for pair in sorted(report['outcomes'].items())
            )
            number = '{:,}'.format(report['inputs'])
            seconds = '{:.0f}'.format(report['seconds'])
            print(
                row(name, engine, number, args.seed, seconds, outcomes),
                flush=True,
            )
            total += report['inputs']
            findings += [(name, *finding) for finding in report['findings']]
    print(f'{total:,} inputs, {len(findings)} findings')
    for name, path, text in findings:
        print(f'{name}: {path}\n  {text}')
    sys.exit(bool(findings))


if __name__ == '__main__':
    main()
