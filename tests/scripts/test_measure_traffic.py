import re
import subprocess
import sys

from .test_train_mnist import SCRIPTS


def test_theory(mpiexec):
    result = subprocess.run(
        [sys.executable, 'measure_traffic.py', '--ranks', '2', '4']
        + '--layer 1000 1000 1 --layer 1000 1000 10'.split(),
        cwd=str(SCRIPTS),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    rows = [
        [float(number) for number in re.findall(r'[\d.]+', line)[2:]]
        for line in result.stdout.splitlines()
        if '→' in line
    ]
    assert [row[:4] for row in rows] == [
        [1, 2, 4, 4],
        [1, 4, 4, 6],
        [10, 2, 0.4, 0.4],
        [10, 4, 0.4, 0.6],
    ]
    for *_, theory, sent, _, memory in rows:
        # What is printed is rounded, and the ranks have more to say.
        assert theory <= sent <= theory + 0.02
        assert memory > 0
