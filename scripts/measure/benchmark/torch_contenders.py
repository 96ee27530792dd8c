"""The contenders that PyTorch computes."""

import json
import os
import tempfile
import time

import chainer_shared_patch  # noqa: F401
import chainer
from contenders import Contender, make_activations, make_operands
from sizes import ARTICLE
import torch
import train_mnist


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
    """Makes contenders, measures their memory, and trains."""

    def __init__(self, device):
        # The profiler and the compiler print; errors come as exceptions.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        name, _, index = device.partition(':')
        self.device = torch.device(
            'cuda:' + (index or '0') if name == '@cupy' else 'cpu'
        )

    def make(self, name, row):
        if name == 'torch-product':
            return self._make_product(row)
        module = self._make_module(row, dense=name == 'torch-dense')
        if name == 'torch-compile':
            torch.compiler.reset()
            module = torch.compile(module, dynamic=False)
        x, gy = (
            torch.tensor(array, device=self.device)
            for array in make_activations(row)
        )
        state = ()
        if row.link == 'StatelessLSTM':
            state = tuple(gy.clone().requires_grad_() for _ in 'hc')
        if not row.inference:
            x.requires_grad_()

        def forward():
            return module(x, state)[0] if state else module(x)

        def backward(output):
            output.backward(gy)

        def reset():
            module.zero_grad()
            for tensor in (x, *state):
                tensor.grad = None

        if row.inference:
            return Contender(forward, context=torch.inference_mode)
        return Contender(forward, backward, reset)

    def _make_product(self, row):
        operands = [
            [torch.tensor(array, device=self.device) for array in each]
            for each in make_operands(row)
        ]
        results = [[torch.empty_like(a) for a in each] for each in operands]

        def forward():
            for (x, W, _), (_, _, y) in zip(operands, results):
                torch.mm(x, W.t(), out=y)

        def backward(_):
            for (x, W, gy), (gx, gW, _) in zip(operands, results):
                torch.mm(gy, W, out=gx)
                torch.mm(gy.t(), x, out=gW)

        return Contender(forward, backward)

    def _make_module(self, row, dense):
        columns = row.in_size if dense else row.k
        options = {'device': self.device, 'dtype': getattr(torch, row.dtype)}
        if row.link == 'Linear':
            module = torch.nn.Linear(
                columns, row.out_size, bias=False, **options
            )
        else:
            module = torch.nn.LSTMCell(columns, row.out_size, **options)
        return module if dense else SharedModule(row.common_num, module)

    def synchronize(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def measure_memory(self, function):
        """Returns the result of a call, the bytes it left and its peak."""
        if self.device.type == 'cuda':
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            result = function()
            left = torch.cuda.memory_allocated(self.device) - before
            peak = torch.cuda.max_memory_allocated(self.device) - before
            return result, left, peak
        with torch.profiler.profile(profile_memory=True) as profile:
            result = function()
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'trace.json')
            profile.export_chrome_trace(path)
            with open(path) as file:
                events = json.load(file)['traceEvents']
        left = peak = 0
        for event in events:
            if event['name'] == '[memory]':
                left += event['args']['Bytes']
                peak = max(peak, left)
        return result, left, peak

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
                for array in chainer.dataset.concat_examples(pairs)
            ]
            for pairs in train_mnist.load_dataset(dataset)[:2]
        )

        def evaluate(x, t):
            y = network(x)
            accuracy = (y.argmax(1) == t).float().mean()
            return torch.nn.functional.cross_entropy(y, t.long()), accuracy

        seconds = []
        for _ in range(epochs):
            start = time.perf_counter()
            report = []
            for indexes in torch.randperm(len(x)).split(ARTICLE.batch_size):
                loss, accuracy = evaluate(x[indexes], t[indexes])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                report.append((loss.item(), accuracy.item()))
            with torch.no_grad():
                for batch in zip(
                    test_x.split(ARTICLE.batch_size),
                    test_t.split(ARTICLE.batch_size),
                ):
                    report.append([each.item() for each in evaluate(*batch)])
            seconds.append(time.perf_counter() - start)
        return seconds
