"""The layers that PyTorch computes."""

import os
import time

import chainer_shared_patch  # noqa: F401
import chainer
from datasets import load_dataset
from measure.benchmark.cases import ARTICLE
from measure.benchmark.timing import (
    Contender,
    make_activations,
    make_operands,
    make_product,
)
import torch


class SharedModule(torch.nn.Module):
    """Applies a module to the sum of its input's blocks."""

    def __init__(self, common_num, module):
        super().__init__()
        self.common_num = common_num
        self.module = module

    def forward(self, x, *state):
        blocks = x.view(len(x), self.common_num, -1)
        return self.module(blocks.sum(1), *state)


class Library:
    """Makes contenders, and trains."""

    def __init__(self, device):
        # The compiler prints; errors come as exceptions.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        name, _, index = device.partition(':')
        self.device = torch.device(
            'cuda:' + (index or '0') if name == '@cupy' else 'cpu'
        )

    def make(self, name, layer):
        if name == 'torch-product':
            operands = [
                [torch.tensor(array, device=self.device) for array in each]
                for each in make_operands(layer)
            ]
            results = [list(map(torch.empty_like, each)) for each in operands]
            return make_product(torch.mm, operands, results)
        module = self._make_module(layer, dense=name == 'torch-dense')
        if name == 'torch-compile':
            torch.compiler.reset()
            module = torch.compile(module, dynamic=False)
        x, gy = (
            torch.tensor(array, device=self.device)
            for array in make_activations(layer)
        )
        state = ()
        if layer.link == 'StatelessLSTM':
            state = tuple(gy.clone().requires_grad_() for _ in 'hc')
        if not layer.inference:
            x.requires_grad_()

        def forward():
            return module(x, state)[0] if state else module(x)

        def backward(output):
            output.backward(gy)

        def reset():
            module.zero_grad()
            for tensor in (x, *state):
                tensor.grad = None

        if layer.inference:
            return Contender(forward, context=torch.inference_mode)
        return Contender(forward, backward, reset)

    def _make_module(self, layer, dense):
        columns = layer.in_size if dense else layer.k
        options = {'device': self.device, 'dtype': getattr(torch, layer.dtype)}
        if layer.link == 'Linear':
            module = torch.nn.Linear(
                columns, layer.out_size, bias=False, **options
            )
        else:
            module = torch.nn.LSTMCell(columns, layer.out_size, **options)
        return module if dense else SharedModule(layer.common_num, module)

    def synchronize(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def train(self, name, dataset, epochs):
        """Trains as train_mnist.py does; returns the seconds of each epoch."""
        network = torch.nn.Sequential(
            torch.nn.Linear(784, ARTICLE.in_size, device=self.device),
            torch.nn.ReLU(),
            self._make_module(ARTICLE, dense='dense' in name),
            torch.nn.ReLU(),
            torch.nn.Linear(ARTICLE.out_size, 10, device=self.device),
        )
        optimizer = torch.optim.Adam(
            network.parameters(), fused='fused' in name
        )
        (x, t), (test_x, test_t) = (
            [
                torch.tensor(array, device=self.device)
                for array in chainer.dataset.concat_examples(pairs[:])
            ]
            for pairs in load_dataset(dataset)[:2]
        )

        def evaluate(x, t):
            y = network(x)
            accuracy = (y.argmax(1) == t).float().mean()
            return torch.nn.functional.cross_entropy(y, t.long()), accuracy

        seconds = []
        for _ in range(epochs):
            start = time.perf_counter()
            for indexes in torch.randperm(len(x)).split(ARTICLE.batch_size):
                loss, accuracy = evaluate(x[indexes], t[indexes])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item(), accuracy.item()  # as train_mnist.py reports them
            with torch.no_grad():
                batches = (
                    a.split(ARTICLE.batch_size) for a in (test_x, test_t)
                )
                for batch in zip(*batches):
                    for result in evaluate(*batch):
                        result.item()
            seconds.append(time.perf_counter() - start)
        return seconds
