"""Solvers of A v = b for a symmetric A that is known by its products only: v is the adjoint of a hypergradient.

Each solves (A + damping I) v = b, and measures what it says of its residual with that matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpo_ray.gradients.errors import HypergradientError, NonFiniteLoss, NonPositiveCurvature, SolverDiverged

Product = Callable[[Tensor], Tensor]
"""A v of a vector (P,)."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        vector: v, (P,).
        residual: |A v - b| / |b|, damping included; 0 where b is 0. `nan` if it was not to be measured.
        iterations: how many were taken.
        converged: whether the residual is at or below the solver's `tol`.
    """

    vector: Tensor
    residual: float
    iterations: int
    converged: bool


class Solver(ABC):
    """A way to solve A v = b."""

    tol: float
    """The residual at or below which a solution counts as converged."""

    def solve(self, product: Product, b: Tensor, start: Tensor | None = None) -> Solution:
        """Solves (A + damping I) v = b.

        Args:
            product: A v; A is symmetric.
            b: (P,).
            start: (P,), a guess. Solvers that don't iterate have no use for one.

        Raises:
            NonPositiveCurvature: A + damping I was seen not to be positive definite.
            SolverDiverged: the iteration can't converge.
        """
        norm = b.norm().item()
        if norm == 0.0:
            return Solution(torch.zeros_like(b), 0.0, 0, True)
        damping = float(getattr(self, "damping", 0.0))
        damped = product if damping == 0.0 else (lambda v: product(v).add_(v, alpha=damping))
        solution = self._solve(damped, b, norm, start)
        if not math.isfinite(solution.residual) and not (isinstance(self, Identity) and not self.measure):
            raise NonFiniteLoss(f"{type(self).__name__}: a Hessian-vector product is not finite")
        return solution

    @abstractmethod
    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution: ...

    def _solution(self, v: Tensor, residual: float, iterations: int) -> Solution:
        return Solution(v, residual, iterations, residual <= self.tol)


@dataclass(frozen=True)
class ConjugateGradient(Solver):
    """The method of conjugate gradients (Hestenes and Stiefel 1952), the best for a positive definite A.

    In exact arithmetic it is done after as many iterations as b has components in different eigenspaces of A, at most
    P, and its error falls by (sqrt(kappa) - 1) / (sqrt(kappa) + 1) with each. Bias: the residual, and the damping.
    Cost: a product for each iteration, one more with a start, and one to verify that it has converged. Memory: 4 P.

    The residual that the recurrence carries along drifts away from b - A v by rounding. So where it says that the end
    is reached, the true one is computed, and the iteration starts anew from there if that is not so.

    Args:
        tol: stop at this residual; 0 runs all iterations.
        max_iter: iterations at most.
        damping: added to A's diagonal.
    """

    tol: float = 1e-6
    max_iter: int = 20
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self, tol=self.tol >= 0, max_iter=self.max_iter >= 1, damping=self.damping >= 0)

    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution:
        x, r = _begin(product, b, start)
        p = r.clone()
        rho = r.dot(r)
        size, target, iteration = math.sqrt(rho.item()), self.tol * norm, 0
        top, along = 0.0, rho.item()  # eigenvalue, as far as the directions have shown it; |p|^2
        trusted = max(target, torch.finfo(b.dtype).eps * norm)  # below it the recurrence is about its own rounding
        while iteration < self.max_iter and size > target:
            iteration += 1
            ap = product(p)
            curvature = p.dot(ap)
            numbers = [rho, curvature]
            alpha = rho / curvature
            _add(x, p, alpha)
            _add(r, ap, -alpha)
            del ap  # its memory is the next product's
            rho = r.dot(r)
            before, positive, square = torch.stack([*numbers, rho]).tolist()
            # |p'Ap| below the rounding of Ap is no curvature: then alpha is noise, as large as it likes. Residuals are
            # orthogonal, so that |Ap| follows from their lengths.
            if positive > 0.0:
                top = max(top, math.sqrt((before + square) / along) * positive / before)
            if positive <= 10 * torch.finfo(p.dtype).eps * top * along:
                raise NonPositiveCurvature(positive / along, iteration, self.damping)
            size = math.sqrt(square)
            if not math.isfinite(size):
                break
            if size <= trusted:
                r = b - product(x)
                rho = r.dot(r)
                along = rho.item()
                size = math.sqrt(along)
                p = r.clone()
            else:
                torch.add(r, p, alpha=square / before, out=p)
                along = square + (square / before) ** 2 * along
        return self._solution(x, size / norm, iteration)


@dataclass(frozen=True)
class Neumann(Solver):
    """A truncated Neumann series, v = alpha sum_{k<K} (I - alpha A)^k b (Lorraine et al. 2020, theorem 2, algorithm 3).

    Its error is -(I - alpha A)^K A^-1 b exactly, so it underestimates along directions of little curvature: a bias
    towards few large steps of training. With a `start` v0 the same series of b - A v0 is added to it.
    Cost: K products (the last of them measures the residual), one to verify that it has converged, and up to 20 to find
    a step. Memory: 3 P.

    Args:
        terms: K.
        step_size: alpha, or `auto`: the inverse of the top eigenvalue by power iteration.
        damping: added to A's diagonal.
        tol: what counts as converged; all terms are taken in any case.

    Raises:
        SolverDiverged: a series with this step has no limit, since |I - alpha A| > 1. It is noticed soon after a term
            is larger than the one before, from when on all would be.
    """

    terms: int = 20
    step_size: float | Literal["auto"] = "auto"
    damping: float = 0.0
    tol: float = 1e-6

    def __post_init__(self) -> None:
        _check(self, terms=self.terms >= 1, damping=self.damping >= 0, tol=self.tol >= 0)
        _check_step(self, self.step_size)

    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution:
        x, size, iterations = _richardson(self, product, b, start, self.terms, stop=0.0)
        return self._solution(x, size / norm, iterations)


@dataclass(frozen=True)
class FixedPoint(Solver):
    """The fixed point of v <- v + alpha (b - A v), to a tolerance (Grazzi et al., ICML 2020).

    That is their iteration for the map theta -> theta - alpha (gradient of the inner loss). Its terms are those of
    `Neumann`, which takes a set number of them; here the residual says how many. Cost: a product for each iteration,
    one more with a start, one to verify that it has converged, up to 20 to find a step. Memory: 3 P.

    Args:
        tol: stop at this residual.
        max_iter: iterations at most.
        step_size: alpha, or `auto`: the inverse of the top eigenvalue by power iteration.
        damping: added to A's diagonal.

    Raises:
        SolverDiverged: as `Neumann`.
    """

    tol: float = 1e-6
    max_iter: int = 100
    step_size: float | Literal["auto"] = "auto"
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self, tol=self.tol >= 0, max_iter=self.max_iter >= 1, damping=self.damping >= 0)
        _check_step(self, self.step_size)

    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution:
        x, size, iterations = _richardson(self, product, b, start, self.max_iter, stop=self.tol * norm)
        return self._solution(x, size / norm, iterations)


@dataclass(frozen=True)
class Nystrom(Solver):
    """A Nystrom approximation of A of low rank, inverted in closed form (Hataya and Yamada, AISTATS 2023).

    A is replaced by Y (W'Y)^-1 Y' with Y = A W for `rank` vectors W, and (A + damping I)^-1 follows by Woodbury's
    identity, here from an orthonormal basis of Y's columns. Exact at full rank; else biased in directions that the
    sketch has missed, where it divides by the damping alone. No step size and no iteration. Cost: rank + 1 products.
    Memory: 3 rank P.

    Args:
        rank: columns of the sketch, at most P.
        damping: added to A's diagonal, above 0.
        sketch: `gaussian` (Frangella, Tropp and Udell, SIAM J. Matrix Anal. 2023: more exact for the same rank) or
            `columns` of A drawn at random (Hataya and Yamada).
        seed: of the sketch.
        tol: what counts as converged.
    """

    rank: int = 20
    damping: float = 0.01
    sketch: Literal["gaussian", "columns"] = "gaussian"
    seed: int = 0
    tol: float = 1e-6

    def __post_init__(self) -> None:
        _check(self, rank=self.rank >= 1, damping=self.damping > 0, tol=self.tol >= 0)
        if self.sketch not in ("gaussian", "columns"):
            raise HypergradientError(f"Nystrom(sketch={self.sketch!r}): must be 'gaussian' or 'columns'")

    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution:
        rank = min(self.rank, len(b))
        w = self._sketch(b, rank)
        y = torch.stack([product(column) for column in w.T], dim=1) - self.damping * w  # without the damping
        if not torch.isfinite(y).all():
            return self._solution(b, math.nan, rank)
        shift = math.sqrt(len(b)) * torch.finfo(b.dtype).eps * torch.linalg.matrix_norm(y).item()
        core = w.T @ y
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values.abs() > shift  # the rest of the sketch is in A's null space, as far as rounding can tell
        basis, triangle = torch.linalg.qr(y @ vectors[:, kept])
        inner = triangle / values[kept] @ triangle.T  # A is basis inner basis' now
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        if len(values) and (lowest := values[0].item()) <= -self.damping:
            raise NonPositiveCurvature(lowest + self.damping, rank, self.damping)
        u = basis @ vectors
        inside = u.T @ b
        outside = b - u @ inside
        outside -= u @ (u.T @ outside)  # twice, since it is divided by the damping
        x = u @ (inside / (values + self.damping)) + outside / self.damping
        residual = (b - product(x)).norm().item() / norm
        return self._solution(x, residual, rank)

    def _sketch(self, b: Tensor, rank: int) -> Tensor:
        """W, (P, rank), with orthonormal columns."""
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU: the same sketch on every device
        if self.sketch == "columns":
            w = torch.zeros(len(b), rank, dtype=b.dtype, device=b.device)
            chosen = torch.randperm(len(b), generator=generator)[:rank].to(b.device)
            w[chosen, torch.arange(rank, device=b.device)] = 1.0
            return w
        w = torch.randn(len(b), rank, generator=generator, dtype=b.dtype).to(b.device)
        basis: Tensor = torch.linalg.qr(w).Q
        return basis


@dataclass(frozen=True)
class Exact(Solver):
    """The Hessian itself, and its Cholesky factor: for small problems and for tests.

    Cost: P products and P^3 / 3. Memory: P^2.

    Args:
        damping: added to A's diagonal.
        tol: what counts as converged.
        max_params: P at most.
    """

    damping: float = 0.0
    tol: float = 1e-6
    max_params: int = 4096

    def __post_init__(self) -> None:
        _check(self, damping=self.damping >= 0, tol=self.tol >= 0, max_params=self.max_params >= 1)

    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution:
        if len(b) > self.max_params:
            raise HypergradientError(
                f"Exact(max_params={self.max_params}): the inner problem has {len(b)} weights, and the Hessian so many "
                f"rows and columns; use ConjugateGradient"
            )
        matrix = torch.stack([product(column) for column in torch.eye(len(b), dtype=b.dtype, device=b.device)], dim=1)
        if not torch.isfinite(matrix).all():
            return self._solution(b, math.nan, len(b))
        matrix = (matrix + matrix.T) / 2
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed.item():
            raise NonPositiveCurvature(torch.linalg.eigvalsh(matrix)[0].item(), int(failed.item()), self.damping)
        pivots = factor.diagonal().square()
        if (pivots.min() <= len(b) * torch.finfo(b.dtype).eps * pivots.max()).item():  # singular but for rounding
            raise NonPositiveCurvature(torch.linalg.eigvalsh(matrix)[0].item(), len(b), self.damping)
        x = torch.cholesky_solve(b[:, None], factor)[:, 0]
        return self._solution(x, (b - matrix @ x).norm().item() / norm, len(b))


@dataclass(frozen=True)
class Identity(Solver):
    """The identity in place of the inverse Hessian, v = scale b: T1-T2 (Luketina et al., ICML 2016).

    The gradient of one step of training with the learning rate `scale`. Biased: its length depends on the scale, its
    direction is right only as far as all curvatures are alike. Cost: no product, one if it is measured. Memory: P.

    Args:
        scale: what b is multiplied by.
        measure: whether the residual is worth a product; if not it is `nan`.
        tol: what counts as converged.
    """

    scale: float = 1.0
    measure: bool = True
    tol: float = 1e-6

    def __post_init__(self) -> None:
        _check(self, scale=self.scale > 0, tol=self.tol >= 0)

    def _solve(self, product: Product, b: Tensor, norm: float, start: Tensor | None) -> Solution:
        x = self.scale * b
        return self._solution(x, (b - product(x)).norm().item() / norm if self.measure else math.nan, 0)


def top_eigenvalue(product: Product, like: Tensor, iterations: int = 20, tol: float = 0.01, seed: int = 0) -> float:
    """The eigenvalue of A of the largest absolute value, by power iteration from a random vector; from below.

    Args:
        product: A v; A is symmetric.
        like: a vector (P,) of its dtype and device.
        iterations: products at most.
        tol: stops when the estimate changes by less, relatively.
        seed: of the first vector.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(like), generator=generator, dtype=like.dtype).to(like.device)
    v /= v.norm()
    estimate = 0.0
    for _ in range(iterations):
        av = product(v)
        rayleigh, length = torch.stack((v.dot(av), av.norm())).tolist()
        before, estimate = estimate, rayleigh
        if length == 0.0 or abs(estimate - before) <= tol * abs(estimate):
            break
        v = av / length
    return estimate


def _richardson(
    solver: Neumann | FixedPoint,
    product: Product,
    b: Tensor,
    start: Tensor | None,
    iterations: int,
    stop: float,
    shorter: float | None = None,
) -> tuple[Tensor, float, int]:
    """(v, |b - A v|, iterations) of v <- v + alpha (b - A v), with `shorter` in place of a step that was too large."""
    name, alpha = type(solver).__name__, solver.step_size if shorter is None else shorter
    if alpha == "auto":
        top = top_eigenvalue(product, b)
        if not math.isfinite(top):
            return b, math.nan, 0
        if top <= 0.0:
            raise NonPositiveCurvature(top, 0, solver.damping)
        alpha = 1.0 / top
    assert not isinstance(alpha, str)
    x, r = _begin(product, b, start)
    size, iteration, tiny = r.norm().item(), 0, 1e2 * torch.finfo(b.dtype).eps * b.norm().item()
    least = -10 * torch.finfo(b.dtype).eps / alpha  # curvature of a direction that has none, by rounding
    grows = 0  # the iteration from which on the terms do
    while iteration < iterations and size > stop:
        iteration += 1
        ar = product(r)
        numbers = [r.dot(ar), ar.dot(ar)]
        x.add_(r, alpha=alpha)
        r.add_(ar, alpha=-alpha)
        del ar  # its memory is the next product's
        curvature, square, after = torch.stack([*numbers, r.dot(r)]).tolist()
        before, size, along = size, math.sqrt(after), size * size
        if before <= tiny or not math.isfinite(size):  # what is left is rounding
            continue
        if curvature < least * along or square == 0.0:
            raise NonPositiveCurvature(curvature / along, iteration, solver.damping)
        # |B^k b| is log-convex in k for a symmetric B: from the first growth on it grows for ever. Whether a large
        # eigenvalue or a negative one is behind it shows as soon as the growing part outweighs the rest.
        if size > before * (1 + 1e-6):
            grows = grows or iteration
            if curvature <= 0.0 or (alpha * curvature <= along and iteration < iterations):
                continue
            shorter = curvature / square  # between 1 over the largest eigenvalue and half of alpha
            if solver.step_size == "auto":  # power iteration came too short
                return _richardson(solver, product, b, start, iterations, stop, shorter)
            raise SolverDiverged(
                f"{name}(step_size={alpha:g}) diverges: the terms grow from iteration {grows} on. A step must be "
                f"below 2 over the largest eigenvalue of the Hessian, here below {2 * shorter:.3g}; or use "
                f"step_size='auto'"
            )
        if size <= stop or (iteration == iterations and size <= solver.tol * b.norm().item()):
            r = b - product(x)  # what the recurrence says is without its own rounding
            size = r.norm().item()
    return x, size, iteration


def _add(x: Tensor, y: Tensor, factor: Tensor) -> None:
    """Adds factor y to x without waiting for a GPU; on a CPU a number is quicker than a tensor that is broadcast."""
    if x.is_cpu:
        x.add_(y, alpha=factor.item())
    else:
        x.addcmul_(y, factor)


def _begin(product: Product, b: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """(first v, its residual vector)."""
    if start is None:
        return torch.zeros_like(b), b.clone()
    return start.clone(), b - product(start)


def _check(solver: Solver, **fine: bool) -> None:
    if wrong := next((key for key, good in fine.items() if not good), None):
        least = {"damping": "at or above 0" if not isinstance(solver, Nystrom) else "above 0", "tol": "at or above 0"}
        raise HypergradientError(
            f"{type(solver).__name__}({wrong}={getattr(solver, wrong)!r}): must be {least.get(wrong, 'above 0')}"
        )


def _check_step(solver: Solver, step_size: object) -> None:
    good = step_size == "auto" or (isinstance(step_size, int | float) and step_size > 0)
    if not good:
        raise HypergradientError(f"{type(solver).__name__}(step_size={step_size!r}): must be above 0, or 'auto'")
