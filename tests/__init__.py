import os
import signal

# The tests make their own settings, before Chainer reads those of the shell.
for name in list(os.environ):
    if name.startswith('CHAINER_'):
        del os.environ[name]

# What CuPy misses where there is no GPU is not what tests of standard error
# look for.
os.environ['PYTHONWARNINGS'] = (
    'ignore::UserWarning:cupy._environment,ignore:cuDNN is not'
)

# Where a shell runs the tests in its background, they ignore Ctrl-C, and what
# they start would do so too.
signal.signal(signal.SIGINT, signal.default_int_handler)
