import multiprocessing
import os
import subprocess
import sys

import pytest

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


def python(folder, *args, **environment):
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run(folder, *args, **environment):
    return python(folder, '-m', 'chainer_shared_patch', *args, **environment)


OPTIONS = ('--common-num', '10', '--algorithm', 'tile')


def test_script(folder):
    arguments = ['-v', '--common-num', '3', '--', '--info', 'x y']
    result = run(folder, *OPTIONS, 'script.py', *arguments)
    expected = OUTPUT.format(['script.py', *arguments])
    assert result.stdout == expected, result.stderr
    assert result.returncode == 0


def test_script_elsewhere(folder):
    (folder / 'sub').mkdir()
    path = os.path.join('..', 'script.py')
    result = run(folder / 'sub', *OPTIONS, path)
    assert result.stdout == OUTPUT.format([path]), result.stderr


def test_module(folder):
    result = run(folder, *OPTIONS, '-m', 'script', '-m', 'x')
    path = os.path.join(os.path.realpath(folder), 'script.py')
    assert result.stdout == OUTPUT.format([path, '-m', 'x']), result.stderr


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


def test_script_has_no_future_but_its_own(folder):
    code = 'def f(a: int): pass\nprint(f.__annotations__, __builtins__.len)'
    (folder / 'future.py').write_text(code)
    expected = python(folder, 'future.py').stdout
    assert run(folder, 'future.py').stdout == expected != ''


@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
@pytest.mark.parametrize('as_module', [False, True])
def test_options_reach_processes_of_multiprocessing(folder, method, as_module):
    (folder / 'parent.py').write_text(
        'import multiprocessing, sys\n'
        'import chainer\n'
        'def get(_):\n'
        '    return chainer.config.common_num\n'
        'if __name__ == "__main__":\n'
        '    context = multiprocessing.get_context(sys.argv[1])\n'
        '    with context.Pool(1) as pool:\n'
        '        print(pool.map_async(get, [0]).get(60))\n'
    )
    command = ('-m', 'parent') if as_module else ('parent.py',)
    result = run(folder, *OPTIONS, *command, method)
    assert result.stdout == '[10]\n', result.stderr


def test_switched_off(folder):
    (folder / 'off.py').write_text(
        'import chainer_shared_patch as plugin; print(plugin.is_installed())'
    )
    result = run(folder, 'off.py', CHAINER_SHARED_PATCH='0')
    assert result.stdout == 'False\n', result.stderr


@pytest.mark.parametrize(
    'ending',
    [
        'sys.exit(3)',
        'sys.exit()',
        'sys.exit("message")',
        'raise ValueError("message")',
        'os._exit(4)',
        'import atexit; atexit.register(lambda: print(numpy.pi)); numpy = os',
        'invalid syntax',
    ],
)
@pytest.mark.parametrize('as_module', [False, True])
def test_exit_status_is_pythons(folder, ending, as_module):
    code = 'import os, sys\nimport math as numpy\n' + ending
    (folder / 'ending.py').write_text(code)
    command = ('-m', 'ending') if as_module else ('ending.py',)
    expected = python(folder, *command)
    result = run(folder, *command)
    assert result.returncode == expected.returncode
    assert result.stdout == expected.stdout
    if expected.stderr:
        last = expected.stderr.splitlines()[-1]
        assert result.stderr.splitlines()[-1] == last


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ((), 'script'),
        (('-m',), 'module'),
        (('nowhere.py',), "'nowhere.py'"),
        (('--common-num', '0', 'script.py'), '--common-num'),
        (('--common-num', 'ten', 'script.py'), "'ten'"),
        (('--algorithm', 'mean', 'script.py'), "'mean'"),
        (('--nonsense', 'script.py'), 'nonsense'),
    ],
)
def test_bad_command_line(folder, arguments, words):
    result = run(folder, *arguments)
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]


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
    result = run(folder, '--info', CHAINER_SHARED_PATCH='0')
    assert 'Patch: off' in result.stdout
