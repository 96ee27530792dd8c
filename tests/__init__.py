import os

# The tests make their own settings, before Chainer reads those of the shell.
for name in list(os.environ):
    if name.startswith('CHAINER_'):
        del os.environ[name]
