"""Small problems in double precision whose hypergradients are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jacrev

from hpo_ray.gradients.products import Loss

Tensors = Mapping[str, Tensor]
SHAPES = {"matrix": (2, 2), "number": (), "line": (2,)}
"""Of a dict with several entries, seven numbers in all."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def basis(seed: int, rows: int, columns: int) -> Tensor:
    """Orthonormal columns."""
    q: Tensor = torch.linalg.qr(normal(seed, rows, columns)).Q
    return q


def spread(kappa: float, size: int) -> Tensor:
    """Numbers from 1 down to 1 / kappa, evenly in their logarithms."""
    return torch.logspace(0.0, -math.log10(kappa), size, dtype=torch.float64)


def symmetric(seed: int, eigenvalues: Tensor) -> Tensor:
    q = basis(seed, len(eigenvalues), len(eigenvalues))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def split(vector: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    parts = vector.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.reshape(shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def relative(got: Tensors | Tensor, want: Tensors | Tensor) -> float:
    """|got - want| / |want| over all entries, whose names and shapes must be the same."""
    if isinstance(got, Tensor):
        assert isinstance(want, Tensor)
        got, want = {"": got}, {"": want}
    assert not isinstance(want, Tensor)
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in want.items()}
    a, b = flat(got), flat({name: want[name] for name in got})
    return float((a - b).norm() / b.norm())


@dataclass(frozen=True)
class Problem:
    """An inner problem at its minimum.

    Attributes:
        inner: loss.
        outer: loss.
        params: the minimum.
        hparams: where.
        matrix: Hessian in the weights, (P, P).
        b: gradient of the outer loss in the weights, (P,).
        pull: the hypergradient that an adjoint (P,) gives.
    """

    inner: Loss
    outer: Loss
    params: dict[str, Tensor]
    hparams: dict[str, Tensor]
    matrix: Tensor
    b: Tensor
    pull: Callable[[Tensor], dict[str, Tensor]]

    def adjoint(self, damping: float = 0.0) -> Tensor:
        solution: Tensor = torch.linalg.solve(
            self.matrix + damping * torch.eye(len(self.b), dtype=torch.float64), self.b
        )
        return solution

    def grads(self, damping: float = 0.0) -> dict[str, Tensor]:
        return self.pull(self.adjoint(damping))


def data(seed: int, rows: int, size: int, kappa: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(X, y, validation X, validation y), where X'X / rows has eigenvalues from 1 to 1 / kappa."""
    x = (basis(seed, rows, size) * (spread(kappa, size) * rows).sqrt()) @ basis(seed + 1, size, size).T
    y = x @ normal(seed + 2, size) + 0.3 * normal(seed + 3, rows)
    return x, y, normal(seed + 4, 9, size), normal(seed + 5, 9)


def ridge(seed: int = 0, kappa: float = 10.0, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Problem:
    """f = |Xw - y|^2 / 2n + 1/2 sum exp(l_j) w_j^2, and its gradient in each l_j: -exp(l_j) w_j (A^-1 b)_j."""
    shapes = {"w": (6,)} if shapes is None else shapes
    size = sum(math.prod(shape) for shape in shapes.values())
    x, y, xv, yv = data(seed, 20, size, kappa)
    decay = normal(seed + 6, size) * 0.5 - math.log(kappa) - 1.0

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        w = flat(params)
        return (x @ w - y).square().sum() / 40 + 0.5 * (flat(hparams).exp() * w.square()).sum()

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return (xv @ flat(params) - yv).square().mean() / 2

    matrix = x.T @ x / 20 + decay.exp().diag()
    w = torch.linalg.solve(matrix, x.T @ y / 20)
    return Problem(
        inner=inner,
        outer=outer,
        params=split(w, shapes),
        hparams=split(decay, shapes),
        matrix=matrix,
        b=xv.T @ (xv @ w - yv) / 9,
        pull=lambda v: split(-decay.exp() * w * v, shapes),
    )


def data_weights(seed: int = 0, kappa: float = 10.0) -> Problem:
    """f = sum s_i r_i^2 / 2n + rho/2 |w|^2, and its gradient in each s_i: -r_i x_i' A^-1 b / n."""
    x, y, xv, yv = data(seed, 14, 4, kappa)
    s = 0.5 + torch.rand(14, generator=generator(seed + 6), dtype=torch.float64)
    rho = 0.5 / kappa

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        return (hparams["s"] * (x @ params["w"] - y).square()).sum() / 28 + 0.5 * rho * params["w"].square().sum()

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return (xv @ params["w"] - yv).square().mean() / 2

    matrix = (x.T * s) @ x / 14 + rho * torch.eye(4, dtype=torch.float64)
    w = torch.linalg.solve(matrix, (x.T * s) @ y / 14)
    return Problem(
        inner=inner,
        outer=outer,
        params={"w": w},
        hparams={"s": s},
        matrix=matrix,
        b=xv.T @ (xv @ w - yv) / 9,
        pull=lambda v: {"s": -(x @ w - y) * (x @ v) / 14},
    )


def logistic(seed: int = 0, kappa: float = 10.0) -> Problem:
    """Logistic regression with a decay of its own for each weight, by Newton's method."""
    x, y, xv, yv = data(seed, 24, 4, kappa)
    y, yv = torch.where(y > 0, 1.0, -1.0).double(), torch.where(yv > 0, 1.0, -1.0).double()
    decay = normal(seed + 6, 4) * 0.5 - 2.0

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        fit = torch.nn.functional.softplus(-y * (x @ params["w"])).mean()
        return fit + 0.5 * (hparams["decay"].exp() * params["w"].square()).sum()

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return torch.nn.functional.softplus(-yv * (xv @ params["w"])).mean()

    w = minimum(inner, {"w": torch.zeros(4, dtype=torch.float64)}, {"decay": decay})["w"]
    p = torch.sigmoid(x @ w)
    return Problem(
        inner=inner,
        outer=outer,
        params={"w": w},
        hparams={"decay": decay},
        matrix=(x.T * (p * (1 - p))) @ x / 24 + decay.exp().diag(),
        b=xv.T @ (-yv * torch.sigmoid(-yv * (xv @ w))) / 9,
        pull=lambda v: {"decay": -decay.exp() * w * v},
    )


@dataclass(frozen=True)
class Quadratic:
    """f = 1/2 (w - c)' A (w - c), trained from `start`, and F = 1/2 |w - goal|^2."""

    matrix: Tensor
    center: Tensor
    start: Tensor
    goal: Tensor

    def inner(self, params: Tensors, hparams: Tensors, step: int = 0) -> Tensor:
        e = params["w"] - self.center
        return 0.5 * e @ self.matrix @ e

    def outer(self, params: Tensors, hparams: Tensors) -> Tensor:
        return 0.5 * (params["w"] - self.goal).square().sum()

    def schedule_grads(self, rates: Tensor) -> Tensor:
        """dF / d rate_t = -b_T' A prod_{s != t} (I - rate_s A) e_0."""
        maps = [torch.eye(len(self.start), dtype=torch.float64) - rate * self.matrix for rate in rates]

        def product(leave: int | None) -> Tensor:
            e = self.start - self.center
            for index, step in enumerate(maps):
                e = e if index == leave else step @ e
            return e

        b = self.center + product(None) - self.goal
        return torch.stack([-b @ self.matrix @ product(t) for t in range(len(rates))])


def quadratic(seed: int = 0, kappa: float = 10.0, size: int = 5) -> Quadratic:
    return Quadratic(
        symmetric(seed, spread(kappa, size)), normal(seed + 1, size), normal(seed + 2, size), normal(seed + 3, size)
    )


def network(seed: int = 0) -> tuple[Loss, Loss, dict[str, Tensor], dict[str, Tensor]]:
    """(inner, outer, first weights, hparams): a tanh network with one hidden layer, with a decay for each of its layers
    and the weights of two halves of its data as hyperparameters.
    """
    x, xv = normal(seed, 12, 2), normal(seed + 1, 8, 2)
    y, yv = (x[:, 0] * x[:, 1]).tanh(), (xv[:, 0] * xv[:, 1]).tanh()

    def forward(params: Tensors, x: Tensor) -> Tensor:
        return torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        halves = (forward(params, x) - y).square().view(2, 6).mean(1) / 2
        decay = hparams["decay"].exp()
        weight = decay[0] * (params["w1"].square().sum() + params["b1"].square().sum())
        return (hparams["share"] * halves).sum() + (weight + decay[1] * params["w2"].square().sum()) / 2

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return (forward(params, xv) - yv).square().mean() / 2

    params = {"w1": normal(seed + 2, 2, 3), "b1": 0.1 * normal(seed + 3, 3), "w2": normal(seed + 4, 3)}
    hparams = {
        "decay": torch.tensor([-4.5, -4.0], dtype=torch.float64),
        "share": torch.tensor([0.6, 0.4], dtype=torch.float64),
    }
    return inner, outer, params, hparams


def dense(loss: Loss, params: Tensors, hparams: Tensors) -> Callable[[Tensor], Tensor]:
    """The loss as a function of one vector of weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([tensor.numel() for tensor in params.values()])
        return loss({n: p.reshape(shapes[n]) for n, p in zip(shapes, parts, strict=True)}, dict(hparams))

    return of


def minimum(loss: Loss, params: Tensors, hparams: Tensors, tol: float = 1e-14, steps: int = 300) -> dict[str, Tensor]:
    """A strict minimum, by Newton's method on |Hessian| + damping that is lowered as steps succeed."""
    of = dense(loss, params, hparams)
    slope, curvature = grad(of), jacrev(grad(of))
    w, damping = flat(params).detach(), 1.0
    values = torch.empty(0)
    for _ in range(steps):
        g = slope(w)
        if g.norm() < tol:
            break
        values, vectors = torch.linalg.eigh(curvature(w))
        shift = 0.0 if values[0] > 0 and g.norm() < 1e-4 else damping
        moved = w - vectors @ ((vectors.T @ g) / (values.abs() + shift))
        if shift and of(moved) > of(w):
            damping *= 4
            continue
        w, damping = moved, damping / 3
    # The last Newton steps only shuffle rounding errors about, so the gradient need not be quite below tol.
    assert slope(w).norm() < 30 * tol and torch.linalg.eigvalsh(curvature(w))[0] > 0
    return split(w, {name: tuple(tensor.shape) for name, tensor in params.items()})


def slope_of(function: Callable[[float], float], h: float) -> float:
    """The derivative at 0 by central differences of fourth order: an error of h^4 f^(5) / 30 + 1.5 |noise of f| / h."""
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)
