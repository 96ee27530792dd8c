"""Low-rank layers, fitted to what a trained network computes.

They are the peer that shared layers are compared with.
"""

from chainer_shared_patch.convert.calibrate import run
import chainer
import chainer.functions as F
import chainer.links as L
import numpy


class Fit:
    """A linear layer, refitted to give the outputs y for the inputs x.

    The fit is a ridge regression around W. Projected on the leading
    eigenvectors of the fitted outputs, it is the best fit of a lower rank
    (Izenman, "Reduced-rank regression for the multivariate linear model",
    1975).
    """

    def __init__(self, link, x, y):
        x, y, W = (each.astype('d') for each in (x, y, link.W.array))
        self.has_bias = link.b is not None
        self.x_mean = x.mean(axis=0) * self.has_bias
        self.y_mean = y.mean(axis=0) * self.has_bias
        x = x - self.x_mean
        dots = x.T @ x
        # As share does.
        ridge = 0.03 * numpy.trace(dots) / min(x.shape)
        dots += ridge * numpy.eye(len(dots))
        residual = y - self.y_mean - x @ W.T
        self.W = W + numpy.linalg.solve(dots, x.T @ residual).T
        fitted = x @ self.W.T
        _, vectors = numpy.linalg.eigh(fitted.T @ fitted)
        self.vectors = vectors[:, ::-1]

    def factorize(self, rank):
        """Returns two linear layers; the first has as many units as rank."""
        U = self.vectors[:, :rank]
        V = U.T @ self.W
        b = self.y_mean - U @ (V @ self.x_mean) if self.has_bias else None
        (out_size, _), (_, in_size) = U.shape, V.shape
        return chainer.Sequential(
            L.Linear(in_size, rank, nobias=True, initialW=V),
            L.Linear(rank, out_size, not self.has_bias, U, b),
        )


def record(model, link, inputs):
    """Returns what a link is given and what it returns for some inputs."""
    pairs = []
    run(model, [(inputs,)], {link: lambda *pair: pairs.append(pair)})
    return [numpy.concatenate(each) for each in zip(*pairs)]


def convert_to_low_rank(model, ranks, inputs):
    """Factorizes layers in the order of a dict of their paths and ranks."""
    links = dict(model.namedlinks())
    outputs = {path: record(model, links[path], inputs)[1] for path in ranks}
    for path, rank in ranks.items():
        x, _ = record(model, links[path], inputs)
        low_rank = Fit(links[path], x, outputs[path]).factorize(rank)
        parent, _, name = path.rpartition('/')
        delattr(links.get(parent, model), name)
        links.get(parent, model).add_link(name, low_rank)


def choose_ranks(layers, x, max_parameters):
    """Returns the ranks of a perceptron's layers that fit best.

    Of all splits that use up the parameters, which leave out the biases, this
    is the one whose outputs have the smallest KL divergence from the dense
    network's. Rank 0 keeps a layer as it is.
    """
    outputs = []
    h = x
    for layer in layers:
        outputs.append(layer(h).array)
        h = F.relu(outputs[-1]).array
    log_p = F.log_softmax(outputs[-1]).array
    areas = [layer.W.size for layer in layers]
    # What a rank costs.
    sides = [sum(layer.W.shape) for layer in layers]

    def split(i, x, left):
        """Yields loss and ranks from layer i on, which is given x."""
        if i == len(layers):
            log_q = F.log_softmax(x).array
            yield (numpy.exp(log_p) * (log_p - log_q)).sum(), ()
            return
        x = F.relu(x).array if i else x
        least, most = sum(sides[i + 1 :]), sum(areas[i + 1 :])
        fit = Fit(layers[i], x, outputs[i])
        for rank in range(areas[i] // sides[i] + 1):
            rest = left - (rank * sides[i] if rank else areas[i])
            # Not if a rank more would leave the later layers enough.
            if least <= rest and (not rank or rest < most + sides[i]):
                layer = fit.factorize(rank) if rank else layers[i]
                for loss, ranks in split(i + 1, layer(x).array, rest):
                    yield loss, (rank, *ranks)

    with chainer.no_backprop_mode():
        return min(split(0, x, max_parameters))[1]
