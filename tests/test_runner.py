import multiprocessing
import os
import pstats
import py_compile
import re
import sys
import zipfile

from chainer_shared_patch import runner
from chainer_shared_patch.compat import importing
import pytest

from tests.helpers import run_python

SCRIPT = """
import os, sys
import chainer, chainer.functions as F, numpy

class Local:
    pass

if __name__ == '__main__':
    import helper_beside_the_script
    import pickle
    pickle.dumps(Local())
    print(sys.argv)
    print(os.path.isabs(__file__), os.path.basename(__file__))
    print(sys.path[0] == os.path.dirname(os.path.realpath(__file__)))
    print(chainer.config.common_num, chainer.config.shared_algorithm)
    print(F.linear(numpy.ones((1, 20), 'f'), numpy.ones((1, 2), 'f')).array)
"""
OUTPUT = """\
{}
True script.py
True
10 tile
[[20.]]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / 'helper_beside_the_script.py').write_text('')
    return tmp_path


def run(folder, *args, **environment):
    options = '-m', 'chainer_shared_patch', *args
    return run_python(*options, cwd=folder, **environment)


OPTIONS = ('--common-num', '10', '--algorithm', 'tile')


def test_script(folder):
    arguments = ['-v', '--common-num', '3', '--', '--info', 'x y']
    result = run(folder, *OPTIONS, 'script.py', *arguments)
    expected = OUTPUT.format(['script.py', *arguments])
    assert result.stdout == expected, result.stderr
    assert result.returncode == 0


WIDTH = """
import os, sys
import chainer.functions as F, numpy

if __name__ == '__main__':
    x, W = numpy.ones((1, 20), 'f'), numpy.ones((3, int(sys.argv[1])), 'f')
    for _ in range(2):
        F.linear(x, W)
    if os.fork() == 0:
        sys.exit()
    os.wait()
    {}
"""


@pytest.mark.parametrize('as_module', [False, True])
@pytest.mark.parametrize('ending', ['pass', 'sys.exit()'])
def test_says_what_was_shared(folder, as_module, ending):
    (folder / 'width.py').write_text(WIDTH.format(ending))
    command = ('-m', 'width') if as_module else ('width.py',)
    result = run(folder, *OPTIONS, *command, '2')
    assert (
        result.stderr
        == 'shared layers in this process: W of shape (3, 2) by 10 blocks\n'
    )
    assert result.returncode == 0


@pytest.mark.parametrize(
    ('ending', 'common_num', 'lines'),
    [
        (
            'pass',
            '10',
            ['no layer was shared in this process: no input was 10'],
        ),
        (
            'import chainer_shared_patch; chainer_shared_patch.uninstall()',
            '10',
            ['no layer was shared in this process: the patch is off'],
        ),
        ('pass', '1', []),
        ('sys.exit(3)', '10', []),
        ('0 / 0', '10', ['Traceback']),
    ],
)
def test_says_that_nothing_was_shared(folder, ending, common_num, lines):
    (folder / 'width.py').write_text(WIDTH.format(ending))
    result = run(folder, 'width.py', '20', CHAINER_COMMON_NUM=common_num)
    printed = result.stderr.splitlines()
    assert len(printed[:1]) == len(lines)
    assert 'no layer' not in ''.join(printed[1:])
    for start, line in zip(lines, printed):
        assert line.startswith(start)


def test_script_elsewhere(folder):
    (folder / 'sub').mkdir()
    path = os.path.join('..', 'script.py')
    result = run(folder / 'sub', *OPTIONS, path)
    assert result.stdout == OUTPUT.format([path]), result.stderr


def test_environment_reaches_the_script(folder):
    result = run(
        folder,
        'script.py',
        CHAINER_COMMON_NUM='10',
        CHAINER_SHARED_ALGORITHM='tile',
    )
    assert result.stdout == OUTPUT.format(['script.py']), result.stderr


def test_options_reach_child_processes(folder):
    (folder / 'parent.py').write_text(
        'import subprocess, sys\n'
        'subprocess.run([sys.executable, "-c", "import chainer_shared_patch,'
        'chainer; print(chainer.config.common_num)"])\n'
    )
    assert run(folder, *OPTIONS, 'parent.py').stdout == '10\n'


LEGACY = """
import multiprocessing, subprocess, sys
import numpy

def get(_):
    return sys.modules['numpy'].asscalar(numpy.ones(1))

if __name__ == '__main__':
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map_async(get, [0]).get(60))
    command = 'import chainer_shared_patch, numpy; numpy.asscalar'
    subprocess.run([sys.executable, '-c', command], check=True)
"""


def test_legacy_reaches_child_processes(folder):
    (folder / 'old.py').write_text(LEGACY)
    result = run(folder, '--legacy', 'old.py')
    methods = multiprocessing.get_all_start_methods()
    assert result.stdout == '[1.0]\n' * len(methods), result.stderr
    assert result.returncode == 0
    result = run(folder, 'old.py')
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    # In another process, so that no line of this one can be named.
    assert last == (
        'chainer_shared_patch: since NumPy 1.23, numpy.asscalar is gone: run '
        'the program with --legacy'
    )


def test_explains_errors_in_the_library_that_has_made_them(folder):
    library = folder / 'site-packages' / 'old_library.py'
    library.parent.mkdir()
    library.write_text('import numpy\ndef f():\n    return numpy.asscalar(1)')
    (folder / 'use.py').write_text('import old_library\nold_library.f()')
    result = run(folder, 'use.py', PYTHONPATH=str(library.parent))
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f'chainer_shared_patch: {library}, line 3: since')


def test_script_has_no_future_but_its_own(folder):
    code = 'def f(a: int): pass\nprint(f.__annotations__, __builtins__.len)'
    (folder / 'future.py').write_text(code)
    expected = run_python('future.py', cwd=folder).stdout
    assert run(folder, 'future.py').stdout == expected != ''


PARENT = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing, sys
import chainer

class Result:
    def __init__(self):
        self.common_num = chainer.config.common_num

def get(_):
    return Result()

def get_from_grandchild(method):
    # A process of a pool may have no children of its own.
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(get, 0).result(60)

if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(1) as pool:
        print(pool.map_async(get, [0]).get(60)[0].common_num)
    with ProcessPoolExecutor(1, context) as pool:
        print(pool.submit(get, 0).result(60).common_num)
        child = pool.submit(get_from_grandchild, sys.argv[1])
        print(child.result(60).common_num)
"""


@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
@pytest.mark.parametrize('as_module', [False, True])
def test_processes_return_instances_of_the_program(folder, method, as_module):
    (folder / 'parent.py').write_text(PARENT)
    command = ('-m', 'parent') if as_module else ('parent.py',)
    result = run(folder, *OPTIONS, *command, method)
    assert result.stdout == '10\n10\n10\n', result.stderr


PRINT = """
import sys
print(__name__, sys.argv, sys.path, __spec__ and __spec__.name, __file__)
import chainer
print(chainer.config.common_num)
"""


def make_programs(folder):
    """Makes PRINT in every form in which Python runs a program."""
    (folder / 'print.py').write_text(PRINT)
    (folder / 'directory').mkdir()
    (folder / 'directory' / '__main__.py').write_text(PRINT)
    with zipfile.ZipFile(folder / 'archive.zip', 'w') as archive:
        archive.writestr('__main__.py', PRINT)
    py_compile.compile(str(folder / 'print.py'), str(folder / 'compiled.pyc'))


@pytest.mark.parametrize(
    'command',
    [
        ('print.py',),
        ('-m', 'print'),
        ('directory',),
        ('-m', 'directory'),
        ('archive.zip',),
        ('compiled.pyc',),
    ],
    ids=lambda command: ' '.join(command)[:12].strip(),
)
def test_every_form_of_program(folder, command):
    make_programs(folder)
    arguments = (*command, '-c', '--info', 'x')
    expected = run_python(*arguments, cwd=folder)
    result = run(folder, *OPTIONS, *arguments)
    line, common_num = result.stdout.splitlines()
    # Chainer alone may fail to import, after that line.
    assert line == expected.stdout.splitlines()[0], result.stderr
    assert line.startswith('__main__ ')
    assert common_num == '10'


PROFILE = """
import os, runpy, sys
assert sys.modules['__main__'].__file__ == __file__

class Local:
    pass

if __name__ == '__main__':
    import pickle
    print(type(pickle.loads(pickle.dumps(Local()))) is Local, sys.argv)
"""


@pytest.mark.parametrize(
    'tool',
    [
        ('cProfile', '-o', 'profile', '-m'),
        ('trace', '--count', '--coverdir=counts', '--module'),
    ],
    ids=lambda tool: tool[0],
)
def test_tools_that_run_modules(folder, tool):
    (folder / 'profiled.py').write_text(PROFILE)
    name, *options = tool
    command = ('-m', name, *options, 'chainer_shared_patch', 'profiled.py')
    result = run_python(*command, 'x', cwd=folder)
    assert result.stdout.endswith("True ['profiled.py', 'x']\n"), result.stderr
    assert result.returncode == 0
    if name == 'trace':
        counts = (folder / 'counts' / 'profiled.cover').read_text()
        assert re.search('^ *1: import os', counts, re.M)
    else:
        paths = {
            path for path, _, _ in pstats.Stats(str(folder / 'profile')).stats
        }
        assert str(folder / 'profiled.py') in paths


@pytest.mark.parametrize(
    'ending',
    [
        'sys.exit(3)',
        'raise ValueError("message")',
        'import atexit; atexit.register(lambda: print(numpy.pi)); numpy = os',
        'invalid syntax',
    ],
)
@pytest.mark.parametrize('as_module', [False, True])
def test_exit_status_is_pythons(folder, ending, as_module):
    code = 'import os, sys\nimport math as numpy\n' + ending
    (folder / 'ending.py').write_text(code)
    command = ('-m', 'ending') if as_module else ('ending.py',)
    expected = run_python(*command, cwd=folder)
    result = run(folder, *command)
    assert result.returncode == expected.returncode
    assert result.stdout == expected.stdout
    # No frame of the runner shows, nor those that Python has of -m.
    expected, actual = (
        re.sub('0x[0-9a-f]+', '0x...', each.stderr)
        for each in (run_python('ending.py', cwd=folder), result)
    )
    assert actual == expected


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ((), 'give a program'),
        (('-m',), '-m MODULE'),
        (('nowhere.py',), "no such file: 'nowhere.py'"),
        (('-',), "no such file: '-'"),
        (('-c', 'pass'), '-c'),
        (('--common-num', '0', 'script.py'), '--common-num'),
        (('--common-num', 'ten', 'script.py'), "'ten'"),
        (('--algorithm', 'mean', 'script.py'), "'mean'"),
        (('--nonsense', 'script.py'), 'nonsense'),
    ],
)
def test_bad_command_line(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, 'argv', ['__main__.py', *arguments])
    with pytest.raises(SystemExit) as info:
        runner.main()
    assert info.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('python -m chainer_shared_patch: error: ')
    assert words in line


def test_info(folder):
    result = run(folder, '--info', CHAINER_COMMON_NUM='7')
    assert result.returncode == 0, result.stderr
    for words in (
        'chainer_shared_patch: ',
        'Python: ',
        'NumPy: ',
        'CuPy:',
        'Chainer: 7.8.1',
        'Patch: installed',
        'chainer.global_config.common_num: 7',
        'chainer.datasets.mnist: ',
    ):
        assert words in result.stdout
    lines = re.findall('^  chainer.backends.cuda: .*', result.stdout, re.M)
    needed = importing.is_met('cupy >= 14')
    for line in lines:
        assert line.endswith('applied' if needed else 'not needed')
    assert lines
    result = run(folder, '--info', CHAINER_SHARED_PATCH='0')
    assert 'Patch: off' in result.stdout


@pytest.mark.parametrize(
    'options', [('--enable', 'train.py'), ('--enable', '--disable')]
)
def test_options_that_run_no_program(folder, options):
    result = run(folder, *options)
    assert result.returncode == 2
    assert 'run no program' in result.stderr or 'not allowed' in result.stderr
