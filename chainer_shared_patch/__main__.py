"""Runs the command line of ``python -m chainer_shared_patch``."""

from chainer_shared_patch import runner

if __name__ == '__main__':
    runner.main()
