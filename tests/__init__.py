import os

# The tests make their own settings, before Chainer reads those of the shell.
for name in list(os.environ):
    if name.startswith('CHAINER_'):
        del os.environ[name]

# What CuPy misses where there is no GPU is not what tests of standard error
# look for.
os.environ['PYTHONWARNINGS'] = (
    'ignore::UserWarning:cupy._environment,ignore:cuDNN is not'
)
