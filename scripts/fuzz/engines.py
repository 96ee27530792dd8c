"""The engines that make the inputs, and the counting of outcomes."""

import collections
import gc
import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings

# Seconds and bytes that one input may take.
LIMIT = 10
MEMORY = 2**28


class Hang(BaseException):
    """Not an Exception, so that code under test does not catch it."""


class Trial:
    """Tries inputs on a target, and counts the outcomes.

    Args:
        target (callable): Takes bytes and a directory, and returns an outcome.
        out (str): The directory for the inputs of findings, the smallest one
            of each kind.
        name (str): The start of their file names.

    """

    def __init__(self, target, out, name):
        self.target = target
        self.out = out
        self.name = name
        self.directory = tempfile.TemporaryDirectory()
        self.inputs = 0
        self.outcomes = collections.Counter()
        self.findings = {}

    def __call__(self, data):
        """Returns the error and its kind if this is a finding."""
        self.inputs += 1
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            self.outcomes[self.target(data, self.directory.name)] += 1
        except (Exception, Hang, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f'{os.path.basename(frame.filename)}:{frame.lineno}'
            kind = type(error).__name__, where
            self._keep(data, kind, error)
            self.outcomes['finding'] += 1
            return error, kind
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return None, None

    def _keep(self, data, kind, error):
        if kind in self.findings:
            path, size, _ = self.findings[kind]
            if len(data) >= size:
                return
            os.remove(path)
        path = os.path.join(
            self.out,
            f'{self.name}-{hashlib.sha1(data).hexdigest()[:12]}',
        )
        with open(path, 'wb') as file:
            file.write(data)
        text = '{} at {}: {:.300}'.format(*kind, str(error))
        self.findings[kind] = path, len(data), text

    def report(self):
        return {
            'inputs': self.inputs,
            'outcomes': dict(self.outcomes),
            'findings': [
                (path, text) for path, _, text in self.findings.values()
            ],
        }


def _interrupt(*_):
    raise Hang(f'it takes longer than {LIMIT} seconds')


def _limit_memory():
    with open('/proc/self/statm') as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, limit)


def _make_trial(name, out, engine):
    import targets

    # Chainer warns of what a snapshot may lack; other warnings are mistakes.
    warnings.simplefilter('error')
    warnings.filterwarnings('ignore', category=UserWarning)
    return Trial(targets.TARGETS[name], out, name + '-' + engine)


def minimise(name, contents, number):
    """Chooses inputs that together take all branches that any input takes.

    Args:
        name (str): The target.
        contents (list): The inputs.
        number (int): The most inputs to choose.

    Returns:
        list: The inputs chosen, those with the most new branches first.

    """
    import targets

    target = targets.TARGETS[name]
    left = {}
    with tempfile.TemporaryDirectory() as directory:
        target(b'', directory)  # what happens only once belongs to no input
        for content in set(contents):
            tracer = _Tracer()
            gc.disable()  # what it calls belongs to no input either
            sys.settrace(tracer.enter)
            try:
                outcome = target(content, directory)
            finally:
                sys.settrace(None)
                gc.enable()
            left[content] = {outcome, *tracer.branches()}
    chosen = []
    while left and len(chosen) < number:
        # Of those with equally many branches, the shortest.
        best = max(left, key=lambda c: (len(left[c]), -len(c), c))
        covered = left.pop(best)
        if not covered:
            break
        chosen.append(best)
        for branches in left.values():
            branches -= covered
    return chosen


class _Tracer:
    """Counts pairs of successive lines in a function."""

    def __init__(self):
        self.counts = collections.Counter()

    def enter(self, frame, event, argument):
        code = frame.f_code
        last = 0

        def follow(frame, event, argument):
            nonlocal last
            if event == 'line':
                self.counts[code, last, frame.f_lineno] += 1
                last = frame.f_lineno
            return follow

        return follow

    def branches(self):
        """Counts twice as a different branch from once, four times as well."""
        return {
            (branch, count.bit_length())
            for branch, count in self.counts.items()
        }


def read_corpus(directory):
    """Returns the contents of the files of a directory, sorted by name."""
    contents = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        with open(entry.path, 'rb') as file:
            contents.append(file.read())
    return contents


def run_hypothesis(name, args, corpus, grown, send):
    """Tries bytes, text, and small edits of files of the corpus."""
    import hypothesis
    from hypothesis import strategies as st

    trial = _make_trial(name, args.out, 'hypothesis')
    _limit_memory()

    @st.composite
    def edited(draw):
        content = draw(st.sampled_from(corpus or [b'']))
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + 4)))
        new = draw(st.binary(max_size=4))
        return content[:start] + new + content[stop:]

    inputs = st.one_of(
        st.binary(max_size=64),
        edited(),
        st.text(max_size=64).map(lambda text: text.encode('utf-8', 'replace')),
    )
    known = set()
    start = time.monotonic()
    end = start + args.seconds
    seed = args.seed
    # Hypothesis has no time limit, and slows down in long runs.
    while True:
        number = 1000
        if args.inputs:
            number = min(number, args.inputs - trial.inputs)
        elif time.monotonic() > end:
            number = 0
        if number <= 0:
            break

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=number,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            print_blob=False,
        )
        @hypothesis.given(inputs)
        def run(data):
            if args.inputs is None and time.monotonic() > end:
                return
            error, kind = trial(data)
            if kind is not None and kind not in known:
                raise error

        try:
            run()
        except (Exception, Hang, SystemExit):
            # By now its smallest example is kept.
            known.update(trial.findings)
        seed += 1
    send({**trial.report(), 'seconds': time.monotonic() - start})


def run_atheris(name, args, corpus, grown, send):
    """Follows the branches of inputs, and keeps inputs that take new ones."""
    import atheris

    # What is under test, and what decides in it. Some is already imported.
    for module in ('argparse', 'gzip', 'zipfile'):
        sys.modules.pop(module, None)
    with atheris.instrument_imports(
        include=[
            'chainer_shared_patch',
            'train_mnist',
            'chainer.serializers',
            'chainer.training',
            'gzip',
            'argparse',
            'zipfile',
            'numpy.lib',
        ],
    ):
        trial = _make_trial(name, args.out, 'atheris')
    start = None

    def run(data):
        nonlocal start
        if start is None:
            start = time.monotonic()
            _limit_memory()
        trial(data)
        elapsed = time.monotonic() - start
        if (
            trial.inputs >= args.inputs
            if args.inputs
            else elapsed > args.seconds
        ):
            trial.directory.cleanup()
            send({**trial.report(), 'seconds': elapsed})
            # libFuzzer does not return.
            os._exit(0)

    for content in corpus:
        path = os.path.join(grown, hashlib.sha1(content).hexdigest())
        with open(path, 'wb') as file:
            file.write(content)
    arguments = [
        sys.argv[0],
        f'-seed={args.seed or 2**32 - 1}',  # 0 lets it choose
        '-max_len=8192',
        '-len_control=0',
        '-timeout=0',
        '-handle_alrm=0',
        '-rss_limit_mb=0',
        f'-artifact_prefix={args.out}/{name}-libfuzzer-',
        grown,
    ]
    atheris.Setup(arguments, run)
    atheris.Fuzz()


ENGINES = {'atheris': run_atheris, 'hypothesis': run_hypothesis}


def run(engine, name, args):
    """Runs an engine in a process of its own, and returns its report."""
    corpus, grown = (
        os.path.join(directory, name)
        for directory in (args.corpus, os.path.join(args.out, 'corpus'))
    )
    os.makedirs(grown, exist_ok=True)
    contents = read_corpus(corpus) if os.path.isdir(corpus) else []
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    log = os.path.join(args.out, f'{name}-{engine}.log')
    process = context.Process(
        target=_work, args=(engine, name, args, contents, grown, sender, log)
    )
    process.start()
    sender.close()
    try:
        report = receiver.recv()
    except EOFError:
        report = {'inputs': 0, 'outcomes': {}, 'seconds': 0, 'findings': []}
    process.join()
    if process.exitcode or not report['inputs']:
        text = f'the engine ended with status {process.exitcode}'
        report['findings'].append((log, text))
    return report


def _work(engine, name, args, contents, grown, sender, log):
    # libFuzzer and the code under test write a lot.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 2)
    ENGINES[engine](name, args, contents, grown, sender.send)
