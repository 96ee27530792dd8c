"""Share the weight of Chainer's fully connected layers along their input.

Importing the plugin makes Chainer work on today's Python and NumPy, and
installs the patch unless the environment variable ``CHAINER_SHARED_PATCH`` is
0. With ``CHAINER_LEGACY=1``, it also gives back what Python and NumPy have
removed. Import it before Chainer if Chainer does not import by itself,
otherwise any time before training. Under the patch, with
``chainer.global_config.common_num = n``, a layer whose weight has the shape
``(out_size, in_size / n)`` uses it for each of the ``n`` blocks of its input.

.. admonition:: Example

    >>> import chainer_shared_patch
    >>> import chainer
    >>> import chainer.links as L
    >>> import numpy as np
    >>> layer = L.Linear(1000 // 10, 900, nobias=True)
    >>> with chainer.using_config('common_num', 10):
    ...     y = layer(np.ones((32, 1000), np.float32))
    >>> y.shape
    (32, 900)

"""

# ruff: noqa: E402, I001
from chainer_shared_patch import compat

compat.apply()

from chainer_shared_patch import (
    distributed as _distributed,
    config as _config,
    exporters as _exporters,
)
from chainer_shared_patch.convert import (
    SharedLayer,
    ShareReport,
    expand,
    load_npz,
    share,
)
from chainer_shared_patch.convert.plan import Plan, PlannedLayer, plan
from chainer_shared_patch.links import SharedLinear
from chainer_shared_patch.patch import (
    install,
    is_installed,
    patched,
    uninstall,
)
from chainer_shared_patch.summary import LinkSummary, Summary, summary

__version__ = '1.1.0'
__all__ = [
    'LinkSummary',
    'Plan',
    'PlannedLayer',
    'ShareReport',
    'SharedLayer',
    'SharedLinear',
    'Summary',
    'expand',
    'install',
    'is_installed',
    'load_npz',
    'patched',
    'plan',
    'share',
    'summary',
    'uninstall',
]

_distributed.register()
_exporters.register()
if _config.read_switch('CHAINER_LEGACY', '0'):
    compat.legacy.apply()
if _config.read_environment():
    install()
