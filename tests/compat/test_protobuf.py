import chainer_shared_patch  # noqa: F401
import chainer
from chainer.exporters import caffe
import chainer.functions as F
import chainer.links as L
from chainer.links.caffe import CaffeFunction
import numpy

from tests.helpers import integers


class Network(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(6, 4)
            self.l2 = L.Linear(4, 3)

    def forward(self, x):
        return self.l2(F.relu(self.l1(x)))


def test_caffe_files_are_written_and_read(tmp_path, random):
    network = Network()
    # Of integers, the sums are exact.
    for param in network.params():
        param.array[...] = integers(random)(*param.shape)
    x = integers(random)(2, 6).astype('f')
    with chainer.using_config('train', False):
        caffe.export(network, [chainer.Variable(x)], str(tmp_path), True)
        prototxt = (tmp_path / 'chainer_model.prototxt').read_text()
        assert prototxt.count('type: "InnerProduct"') == 2
        function = CaffeFunction(str(tmp_path / 'chainer_model.caffemodel'))
        names = [name for name, _, _ in function.layers]
        (y,) = function(inputs={'data': x}, outputs=[names[-1]])
        numpy.testing.assert_array_equal(y.array, network(x).array)
