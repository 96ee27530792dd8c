"""The bytes that ranks send."""

from measure import traffic


def test_traffic_is_that_of_theory(mpiexec):
    sent, memory = traffic.measure(4, (1000, 1000, 10))
    size = 4 * 1000 * 1000 / 10
    theory = 2 * 3 / 4 * size
    # The ranks have a few hundred bytes more to say.
    assert theory <= sent <= theory + 10_000
    assert memory > 0
