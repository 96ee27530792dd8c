"""What is compared: layers of several sizes, computed in several ways."""

from typing import NamedTuple


class Layer(NamedTuple):
    """A layer and its batch size."""

    name: str
    batch_size: int
    in_size: int
    out_size: int
    common_num: int
    link: str = 'Linear'
    dtype: str = 'float32'
    inference: bool = False

    @property
    def k(self):
        """The columns of a block."""
        return self.in_size // self.common_num


ARTICLE = Layer('article', 100, 1000, 900, 10)
# An ordinary layer this small shows what the patch costs per call.
SMALLEST = Layer('smallest', 1, 10, 10, 10)
FC6 = Layer('fc6', 32, 25088, 4096, 7)
FC7 = Layer('fc7', 128, 4096, 4096, 8)
SIZES = [
    ARTICLE,
    ARTICLE._replace(batch_size=1),
    FC6,
    *(
        FC7._replace(batch_size=batch_size, common_num=n)
        for batch_size in (128, 1024)
        for n in (2, 8, 64)
    ),
    Layer('LSTM step', 64, 4096, 1024, 8, 'StatelessLSTM'),
    SMALLEST,
]
QUICK_SIZES = [ARTICLE, FC7, SMALLEST]
GPU_SIZES = [Layer('large', 8192, 8192, 8192, 8)]
INFERENCE_SIZES = [
    ARTICLE._replace(batch_size=batch_size, inference=True)
    for batch_size in (1, 32)
]
# What the sweeps over n and batch size need besides.
SWEEPS = [
    *(FC7._replace(common_num=n) for n in (4, 16, 32, 128)),
    *(FC7._replace(batch_size=batch_size) for batch_size in (1, 8, 32, 512)),
]
ORDERED_SIZES = [
    ARTICLE,
    ARTICLE._replace(out_size=1000),
    FC7,
    FC7._replace(batch_size=1024),
]
# The layers to convert, without and with calibration inputs.
CONVERSIONS = [(layer, n) for layer in (ARTICLE, FC6, FC7) for n in (0, 1000)]

# By name: the library that computes it, and what it is.
CONTENDERS = {
    'sum': ('chainer', 'this plugin: sums the blocks of x, then multiplies'),
    'tile': ('chainer', "the article's algorithm: builds the wide weight"),
    'dense': ('chainer', "Chainer's ordinary layer, without the patch"),
    'dense-patched': ('chainer', 'the same layer under the patch'),
    'torch-dense': ('torch', "PyTorch's own layer"),
    'torch-sum': ('torch', 'PyTorch with the sum written by hand, eager'),
    'torch-compile': ('torch', 'the same through `torch.compile`'),
    'narrow': ('chainer', "Chainer's ordinary layer on in_size / n inputs"),
    'blocks': ('chainer', '`sum_blocks`; in backward, `tile_blocks`'),
    'copy': ('chainer', 'a copy of x; in backward, one write of a new gx'),
    'product': ('chainer', "only the layer's matrix products: the floor"),
    'torch-product': ('torch', 'the same products in PyTorch'),
}
SWEPT = ('sum', 'tile', 'dense', 'torch-dense', 'torch-sum', 'product')
INFERENCES = {
    'sum': CONTENDERS['sum'],
    'SharedLinear': ('chainer', "this plugin's link, without the patch"),
    'torch-sum': CONTENDERS['torch-sum'],
    'onnxruntime': ('onnxruntime', 'the same link, exported to ONNX'),
}
ORDERED = {
    'narrow': CONTENDERS['narrow'],
    'dense': CONTENDERS['dense'],
    **{
        f'orders-{g}': ('chainer', f'`SharedLinear` with random orders: {g}')
        for g in (1, 4, 20)
    },
}
TRAININGS = {
    'sum': ('chainer', 'Chainer, shared: `scripts/train_mnist.py`'),
    'dense': ('chainer', 'Chainer, dense: `CHAINER_SHARED_PATCH=0`'),
    'dense-own-adam': ('chainer', "the same, with Chainer's own Adam"),
    'torch-sum': ('torch', 'PyTorch, shared, eager'),
    'torch-dense': ('torch', 'PyTorch, dense, eager'),
    'torch-sum-fused': ('torch', 'PyTorch, shared, fused Adam'),
    'torch-dense-fused': ('torch', 'PyTorch, dense, fused Adam'),
}
