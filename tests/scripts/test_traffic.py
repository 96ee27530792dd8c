import re
import subprocess
import sys

from .test_train_mnist import SCRIPTS


def test_traffic_is_that_of_theory(mpiexec):
    layer = ['--layer', '1000', '1000', '10']
    result = subprocess.run(
        [sys.executable, 'measure/traffic.py', '--ranks', '4', *layer],
        cwd=str(SCRIPTS),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (row,) = [
        [float(number) for number in re.findall(r'[\d.]+', line)]
        for line in result.stdout.splitlines()
        if '→' in line
    ]
    *layer, size, theory, sent, _, memory = row
    assert layer == [1000, 1000, 10, 4]
    assert size == round(4 * 1000 * 1000 / 10 / 1e6, 2)
    assert theory == round(2 * 3 / 4 * size, 2)
    # What is printed is rounded, and the ranks have more to say.
    assert theory <= sent <= theory + 0.02
    assert memory > 0
