"""The problem that hypergradients are timed on, and references for them. Needs torch alone.

A classifier with two hidden layers, 128 inputs, 10 classes and a batch of 256 random examples, at random weights. The
inner loss is cross entropy plus 0.5 sum_i exp(lambda_i) w_i^2: as many hyperparameters as weights. The outer loss is
cross entropy of a second batch. The weights are at no minimum, since the time and the linear system don't depend on
that; the decay is large enough for the Hessian of the inner loss to be positive definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

INPUTS, CLASSES, BATCH, RATE = 128, 10, 256, 0.1
DECAY = 0.4, 4.0  # lowest and highest
Tensors = dict[str, Tensor]


class Problem:
    """The losses, and where their derivatives are taken.

    Args:
        size: about how many weights.
        dtype: of all tensors; the values are the same, rounded.
        device: of all tensors.
        shared: one decay for each of the six tensors of weights in place of one for each weight.
        batch: examples in each loss.

    Attributes:
        params: the weights.
        hparams: the logarithms of the decay, `decay/NAME` for the weights NAME.
        size: how many weights there are.
    """

    def __init__(
        self, size: int, dtype: torch.dtype, device: str = "cpu", shared: bool = False, batch: int = BATCH
    ) -> None:
        spread = INPUTS + CLASSES + 2
        width = max(2, round((math.sqrt(spread**2 + 4 * (size - CLASSES)) - spread) / 2))
        random = torch.Generator().manual_seed(0)
        shapes = {
            "w1": (width, INPUTS),
            "b1": (width,),
            "w2": (width, width),
            "b2": (width,),
            "w3": (CLASSES, width),
            "b3": (CLASSES,),
        }
        self.params: Tensors = {}
        self.hparams: Tensors = {}
        lowest, highest = (math.log(decay) for decay in DECAY)
        for name, shape in shapes.items():
            scale = 0.1 if len(shape) == 1 else 1 / math.sqrt(shape[1])
            weights = torch.randn(shape, generator=random).mul_(scale)
            decays = torch.rand(() if shared else shape, generator=random).mul_(highest - lowest).add_(lowest)
            self.params[name] = weights.to(device, dtype)
            self.hparams[f"decay/{name}"] = decays.to(device, dtype)
        self.size = sum(tensor.numel() for tensor in self.params.values())
        self._batches = [
            (
                torch.randn(batch, INPUTS, generator=random).mul_(0.5).to(device, dtype),
                torch.randint(CLASSES, (batch,), generator=random).to(device),
            )
            for _ in range(2)
        ]

    def inner_loss(self, params: Tensors, hparams: Tensors, step: int = 0) -> Tensor:
        """Cross entropy and decay."""
        decay = [(hparams[f"decay/{name}"].exp() * w * w).sum() for name, w in params.items()]
        return _fit(params, *self._batches[0]) + 0.5 * torch.stack(decay).sum()

    def outer_loss(self, params: Tensors, hparams: Tensors) -> Tensor:
        """Cross entropy of other examples."""
        return _fit(params, *self._batches[1])

    def leaves(self) -> tuple[Tensors, Tensors]:
        """(weights, hyperparameters) with graphs of their own."""
        params, hparams = (
            {name: tensor.detach().requires_grad_() for name, tensor in d.items()} for d in (self.params, self.hparams)
        )
        return params, hparams


def _fit(params: Tensors, x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["w1"].T + params["b1"])
    hidden = torch.tanh(hidden @ params["w2"].T + params["b2"])
    return cross_entropy(hidden @ params["w3"].T + params["b3"], y)


class Bare:
    """Autograd and nothing else: the gradients that every implicit hypergradient is made of."""

    def __init__(self, problem: Problem) -> None:
        params, hparams = problem.leaves()
        self._params, self._hparams = list(params.values()), list(hparams.values())
        self.b = torch.autograd.grad(problem.outer_loss(params, hparams), self._params)
        self._gradient = torch.autograd.grad(problem.inner_loss(params, hparams), self._params, create_graph=True)

    def product(self, v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Hessian times v."""
        return torch.autograd.grad(self._gradient, self._params, v, retain_graph=True)

    def mixed(self, v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The mixed derivative times v."""
        return torch.autograd.grad(self._gradient, self._hparams, v, retain_graph=True)


def bare_implicit(problem: Problem, k: int) -> Callable[[], Sequence[Tensor]]:
    """The floor: both gradients, K Hessian-vector products, the mixed product; all of b, without any algebra."""

    def call() -> Sequence[Tensor]:
        bare = Bare(problem)
        for _ in range(k):
            bare.product(bare.b)
        return bare.mixed(bare.b)

    return call


def bare_unrolled(problem: Problem, steps: int) -> Callable[[], Sequence[Tensor]]:
    """The derivative through gradient descent as autograd has it, with all graphs kept."""

    def call() -> Sequence[Tensor]:
        params, hparams = problem.leaves()
        for _ in range(steps):
            found = torch.autograd.grad(problem.inner_loss(params, hparams), list(params.values()), create_graph=True)
            params = {name: w - RATE * g for (name, w), g in zip(params.items(), found, strict=True)}
        return torch.autograd.grad(problem.outer_loss(params, hparams), list(hparams.values()))

    return call


def reference_cg(problem: Problem, ks: Sequence[int]) -> dict[int, list[Tensor]]:
    """The hypergradients of the iterates K of conjugate gradients, as Hestenes and Stiefel wrote them."""
    bare, found = Bare(problem), {}
    x, r, p = [torch.zeros_like(t) for t in bare.b], list(bare.b), list(bare.b)
    rho = _dot(r, r)
    for k in range(1, max(ks) + 1):
        ap = bare.product(p)
        alpha = rho / _dot(p, ap)
        x = [a + alpha * b for a, b in zip(x, p, strict=True)]
        r = [a - alpha * b for a, b in zip(r, ap, strict=True)]
        before, rho = rho, _dot(r, r)
        p = [a + rho / before * b for a, b in zip(r, p, strict=True)]
        if k in ks:
            found[k] = [-g for g in bare.mixed(x)]
    return found


def reference_neumann(problem: Problem, alpha: float, ks: Sequence[int]) -> dict[int, list[Tensor]]:
    """The hypergradients of the Neumann series with K terms."""
    bare, found = Bare(problem), {}
    term, total = list(bare.b), list(bare.b)
    for k in range(1, max(ks) + 1):
        if k in ks:
            found[k] = [-alpha * g for g in bare.mixed(total)]
        if k < max(ks):
            term = [a - alpha * b for a, b in zip(term, bare.product(term), strict=True)]
            total = [a + b for a, b in zip(total, term, strict=True)]
    return found


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((u * v).sum()) for u, v in zip(a, b, strict=True))


def relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """|found - reference| / |reference| over all tensors, in double precision."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, reference, strict=True)]
    return math.sqrt(
        sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    )
