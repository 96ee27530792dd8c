"""The contender that onnxruntime computes."""

import chainer_shared_patch
from contenders import Contender, make_activations
import onnx_chainer
import onnxruntime


class Library:
    """Makes the contender of inference."""

    def __init__(self, device):
        pass

    def make(self, name, row):
        link = chainer_shared_patch.SharedLinear(
            row.in_size, row.out_size, nobias=True, common_num=row.common_num
        )
        x, _ = make_activations(row)
        session = onnxruntime.InferenceSession(
            onnx_chainer.export(link, x).SerializeToString(),
            providers=['CPUExecutionProvider'],
        )
        inputs = {session.get_inputs()[0].name: x}
        return Contender(lambda: session.run(None, inputs))

    def synchronize(self):
        pass
