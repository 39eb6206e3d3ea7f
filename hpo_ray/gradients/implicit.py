"""Implicit differentiation: the hypergradient at trained weights, from a linear system and not from the training.

Where the inner loss f has its minimum, theta*(lambda), the gradient in the weights is zero for every lambda. With the
Hessian A of f in the weights (Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016;
Lorraine et al., "Optimizing Millions of Hyperparameters by Implicit Differentiation", AISTATS 2020, theorem 1):

    A v = b,  b = d outer_loss / d params
    d F / d lambda = d outer_loss / d lambda - (d^2 f / d lambda d params) v
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo_ray.gradients.errors import HypergradientError, NonFiniteLoss, NotDifferentiable
from hpo_ray.gradients.products import InnerProblem, Loss, leaves, scalar
from hpo_ray.gradients.solvers import ConjugateGradient, Solver

UNROLLED = (
    "learning rates, momentum and initial weights are not in it: unrolled_hypergradient, in reverse or forward mode, "
    "differentiates those, and learning_rate_gradient a learning rate while training goes on"
)


@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient, and how exact it is.

    Attributes:
        grads: like the hyperparameters: the total derivative of the outer loss.
        outer_loss: the outer loss there, a scalar.
        residual: |A v - b| / |b| of the linear system (damping included in A), measured; None without a system.
        iterations: of the solver, or steps unrolled.
        converged: whether the residual is at or below the solver's `tol`; None without a system.
        products: Hessian-vector products taken, those that measured included.
        inner_gradient_norm: |d inner_loss / d params|, which the implicit formula takes for zero; else None.
        adjoint: v, like the params: start the next solve from it (`warm_start`); None without a system.
        params: the weights after the last step; None if none was taken.
    """

    grads: dict[str, Tensor]
    outer_loss: Tensor
    residual: float | None = None
    iterations: int = 0
    converged: bool | None = None
    products: int = 0
    inner_gradient_norm: float | None = None
    adjoint: dict[str, Tensor] | None = None
    params: dict[str, Tensor] | None = None


def hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    solver: Solver | None = None,
    warm_start: Mapping[str, Tensor] | None = None,
) -> Hypergradient:
    """The total derivative of `outer_loss(params*(hparams), hparams)`, at weights that minimise `inner_loss`.

    Applies to hyperparameters in the inner loss: regularisation, weights of examples and terms, augmentation,
    parameters of the data. Biased by how far the weights are from a minimum (`inner_gradient_norm`), by the `residual`,
    and by the solver's damping.

    Cost: one gradient with its graph, a Hessian-vector product (about two gradients) for each iteration, and one
    product with the mixed derivative. Memory: that graph and a few vectors like the weights (`Nystrom`: `rank` of
    them), whatever the number of iterations.

    Args:
        inner_loss: the training loss of `(params, hparams)`, a scalar; a closure over its data. It is called once, so
            that dropout and the like are the same in all products.
        outer_loss: the validation loss of `(params, hparams)`, a scalar, called once.
        params: the weights, floating-point tensors of any shapes, dtypes and devices.
        hparams: the hyperparameters, likewise; any number of them.
        solver: of A v = b. Default: `ConjugateGradient(tol=1e-6, max_iter=20)`.
        warm_start: `adjoint` of an earlier result, for a system that has changed little.

    Returns:
        The gradient, with dtypes and devices of `hparams`.

    Raises:
        NotDifferentiable: a loss is no scalar, or doesn't depend on what it should; says on what.
        NonFiniteLoss: a loss or gradient is infinite or not a number.
        NonPositiveCurvature: the weights are at no minimum.
        SolverDiverged: the iteration of the solver can't converge.
    """
    solver = ConjugateGradient() if solver is None else solver
    value, pull, direct = outer_gradients(outer_loss, params, hparams)
    inner = InnerProblem(inner_loss, params, hparams)
    b = inner.layout.flatten(pull.values())
    del pull  # as large as the weights
    _check_finite(b, "the gradient of outer_loss in params")
    inner_norm = _check_finite(inner.gradient(), "the gradient of inner_loss in params")
    if warm_start is not None:
        check_like(warm_start, params, "warm_start")
    start = None if warm_start is None else inner.layout.flatten_dict(warm_start)
    solution = solver.solve(inner.hessian_product, b, start)
    mixed = inner.mixed_product(solution.vector)
    _check_depends(mixed, direct)
    grads = {}
    for name in hparams:
        own, through = direct[name], mixed[name]
        if through is None:
            assert own is not None
            grads[name] = own.detach()
        else:
            grads[name] = (through.neg() if own is None else own - through).detach()
    return Hypergradient(
        grads=grads,
        outer_loss=value,
        residual=solution.residual,
        iterations=solution.iterations,
        converged=solution.converged,
        products=inner.products,
        inner_gradient_norm=inner_norm,
        adjoint=inner.layout.unflatten_dict(solution.vector),
    )


def outer_gradients(
    outer_loss: Loss, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor | None], dict[str, Tensor | None]]:
    """(value, gradient in the weights, gradient in the hyperparameters) of the outer loss, None where it has none."""
    params, hparams = leaves(params, "params"), leaves(hparams, "hparams")
    with torch.enable_grad():
        value = scalar(outer_loss(params, hparams), "outer_loss")
    found = torch.autograd.grad(value, [*params.values(), *hparams.values()], allow_unused=True)
    pull: dict[str, Tensor | None] = dict(zip(params, found[: len(params)], strict=True))
    return value.detach(), pull, dict(zip(hparams, found[len(params) :], strict=True))


def check_like(given: Mapping[str, Tensor], params: Mapping[str, Tensor], what: str, prefix: str = "") -> None:
    """Refuses tensors that are not there for each weight, in its shape.

    Raises:
        HypergradientError: names the first.
    """
    for name, tensor in params.items():
        if prefix + name not in given or given[prefix + name].shape != tensor.shape:
            got = f"of shape {tuple(given[prefix + name].shape)}" if prefix + name in given else "not there"
            raise HypergradientError(f"{what}[{prefix + name!r}] is {got}: must be of shape {tuple(tensor.shape)}")


def _check_depends(mixed: Mapping[str, Tensor | None], direct: Mapping[str, Tensor | None]) -> None:
    if missing := [name for name in mixed if mixed[name] is None and direct[name] is None]:
        raise NotDifferentiable(
            f"inner_loss does not depend on {', '.join(map(repr, missing))} in a way that moves the weights, and "
            f"outer_loss not at all. Implicit gradients are of what is in the inner loss; {UNROLLED}"
        )


def _check_finite(vector: Tensor, what: str) -> float:
    """The norm of a vector that must be finite."""
    norm: float = vector.norm().item()
    if not math.isfinite(norm) and not torch.isfinite(vector).all():  # the square of a large number may not be
        raise NonFiniteLoss(f"{what} is not finite")
    return norm
