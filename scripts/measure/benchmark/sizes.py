"""The layers and batch sizes that the benchmark measures."""

from typing import NamedTuple


class Row(NamedTuple):
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


ARTICLE = Row('article', 100, 1000, 900, 10)
# An ordinary layer this small shows what the patch costs per call.
SMALLEST = Row('smallest', 1, 10, 10, 10)
SIZES = [
    ARTICLE,
    ARTICLE._replace(batch_size=1),
    Row('fc6', 32, 25088, 4096, 7),
    *(
        Row('fc7', batch_size, 4096, 4096, n)
        for batch_size in (128, 1024)
        for n in (2, 8, 64)
    ),
    Row('LSTM step', 64, 4096, 1024, 8, 'StatelessLSTM'),
    SMALLEST,
]
GPU_SIZES = [Row('large', 8192, 8192, 8192, 8)]
# The layers to convert, without and with calibration inputs.
SHARINGS = [
    (row, examples)
    for row in (ARTICLE, SIZES[2], SIZES[4])
    for examples in (0, 1000)
]
QUICK_SIZES = [ARTICLE, Row('fc7', 128, 4096, 4096, 8), SMALLEST]
INFERENCE_SIZES = [
    ARTICLE._replace(batch_size=batch_size, inference=True)
    for batch_size in (1, 32)
]
# What the sweeps over n and batch size need besides.
SWEEPS = [
    *(Row('fc7', 128, 4096, 4096, n) for n in (4, 16, 32, 128)),
    *(Row('fc7', batch_size, 4096, 4096, 8) for batch_size in (1, 8, 32, 512)),
]
