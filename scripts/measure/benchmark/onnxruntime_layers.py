"""The layer that onnxruntime computes."""

import chainer_shared_patch
from measure.benchmark.timing import Contender, make_activations
import onnx_chainer
import onnxruntime


class Library:
    """Makes the contender of inference."""

    def __init__(self, device):
        pass

    def make(self, name, layer):
        link = chainer_shared_patch.SharedLinear(
            layer.in_size, layer.out_size, True, common_num=layer.common_num
        )
        x, _ = make_activations(layer)
        session = onnxruntime.InferenceSession(
            onnx_chainer.export(link, x).SerializeToString(),
            providers=['CPUExecutionProvider'],
        )
        inputs = {session.get_inputs()[0].name: x}
        return Contender(lambda: session.run(None, inputs))

    def synchronize(self):
        pass
