"""Hypergradients from gradients alone: cheap, and biased in ways that each docstring says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hpo_ray.gradients.errors import HypergradientError, NonFiniteLoss, NotDifferentiable
from hpo_ray.gradients.generators import Generators
from hpo_ray.gradients.implicit import UNROLLED, Hypergradient, check_like, outer_gradients
from hpo_ray.gradients.products import NO_PARAMS, Loss, leaves, scalar


def darts_hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    inner_lr: float,
    epsilon: float = 0.01,
) -> Hypergradient:
    """The gradient after one step of training, by a finite difference (Liu, Simonyan and Yang, ICLR 2019, eq. 7 and 8).

        theta' = theta - xi grad_theta f(theta, lambda),  v = grad_theta outer_loss(theta', lambda)
        g = grad_lambda outer_loss(theta', lambda)
            - xi (grad_lambda f(theta + e v, lambda) - grad_lambda f(theta - e v, lambda)) / (2 e),  e = epsilon / |v|

    Applies to what is in the inner loss. Biased: one step and not the training, and an error of order e^2. Cost: two
    gradients of the inner loss in lambda, one in theta, one of the outer loss. Memory: 2 P.

    Args:
        inner_loss: of `(params, hparams)`, a scalar. It is called three times under the same states of torch's
            generators, so that dropout is the same in all.
        outer_loss: of `(params, hparams)`, a scalar.
        params: the weights.
        hparams: the hyperparameters.
        inner_lr: xi, the learning rate of the training.
        epsilon: the length of the step in weights, 0.01 in the paper.

    Raises:
        NotDifferentiable, NonFiniteLoss: as `hypergradient`.
    """
    _check(inner_lr=inner_lr, epsilon=epsilon)
    hparams = leaves(hparams, "hparams")
    random = Generators(params)
    weights = leaves(params, "params")
    random.rewind()
    with torch.enable_grad():
        value = scalar(inner_loss(weights, hparams), "inner_loss")
    found = _gradient(value, weights)
    ahead = {
        name: weight.detach() if g is None else weight.detach() - inner_lr * g
        for (name, weight), g in zip(weights.items(), found, strict=True)
    }
    outer, pull, direct = outer_gradients(outer_loss, ahead, hparams)
    v = {name: torch.zeros_like(weights[name]) if g is None else g for name, g in pull.items()}
    through = _difference(inner_loss, params, hparams, v, epsilon, random)
    return _result(outer, direct, through, inner_lr)


def sama_hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    step: int,
    inner_lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    epsilon: float = 1.0,
) -> Hypergradient:
    """The gradient after one step of Adam, by a finite difference (SAMA, Choe et al., NeurIPS 2023).

    As `darts_hypergradient`, with the identity for the inverse Hessian, and v = (du/dg) (outer gradient) in place of
    the outer gradient, where u(g) is the step that Adam makes of the gradient g: diagonal, and here with the bias
    corrections that the paper's appendix leaves out.

    Args:
        inner_loss: of `(params, hparams)`, a scalar; called three times under the same generator states.
        outer_loss: of `(params, hparams)`, a scalar.
        params: the weights.
        hparams: the hyperparameters.
        state: Adam's moments before the step, `first/NAME` and `second/NAME` for each weight, as `Adam` keeps them.
        step: how many steps were taken before.
        inner_lr: Adam's learning rate.
        betas: Adam's.
        eps: Adam's.
        epsilon: the length of the step in weights, 1 in the paper. For small models less is better.

    Raises:
        NotDifferentiable, NonFiniteLoss: as `hypergradient`.
    """
    _check(inner_lr=inner_lr, epsilon=epsilon)
    hparams = leaves(hparams, "hparams")
    random = Generators(params)
    for slot in ("first/", "second/"):
        check_like(state, params, "state", slot)
    outer, pull, direct = outer_gradients(outer_loss, params, hparams)
    weights = leaves(params, "params")
    random.rewind()
    with torch.enable_grad():
        value = scalar(inner_loss(weights, hparams), "inner_loss")
    found = _gradient(value, weights)
    v = {}
    for (name, weight), g in zip(weights.items(), found, strict=True):
        outside = pull[name]
        if g is None or outside is None:
            v[name] = torch.zeros_like(weight)
        else:
            slots = state[f"first/{name}"], state[f"second/{name}"]
            v[name] = adam_derivative(g, *slots, step, betas, eps) * outside
    through = _difference(inner_loss, params, hparams, v, epsilon, random)
    return _result(outer, direct, through, inner_lr)


def learning_rate_gradient(gradient: Mapping[str, Tensor], last_direction: Mapping[str, Tensor]) -> Tensor:
    """The derivative of the training loss in the learning rate of the last step (Baydin et al., ICLR 2018).

    The last step was theta_t = theta_{t-1} - alpha u_{t-1}, so d f(theta_t) / d alpha = -grad f(theta_t) . u_{t-1}.
    For plain gradient descent u is the gradient, with momentum or Adam what these make of it.

    Applies to the learning rate while training goes on. Exact for one step, blind for what comes after it: it favours
    rates that pay at once. It follows the training loss, and no validation loss. Cost: a dot product. Memory: P.

    Args:
        gradient: of the training loss at theta_t, by the names of the weights.
        last_direction: u_{t-1}, by the same names.

    Returns:
        A scalar.
    """
    total = sum((gradient[name] * last_direction[name]).sum() for name in gradient)
    assert isinstance(total, Tensor)
    return -total


def adam_derivative(
    gradient: Tensor, first: Tensor, second: Tensor, step: int, betas: tuple[float, float], eps: float
) -> Tensor:
    """du/dg of Adam's step u = m / (sqrt(v) + eps), element by element, with its bias corrections.

    Args:
        gradient: g.
        first: the first moment before the step.
        second: the second moment before the step.
        step: how many steps were taken before.
        betas: Adam's.
        eps: Adam's.
    """
    (b1, b2), t = betas, step + 1
    c1, c2 = (1 - b1) / (1 - b1**t), (1 - b2) / (1 - b2**t)
    before, square = b1 * first / (1 - b1**t), b2 * second / (1 - b2**t)
    root = (square + c2 * gradient * gradient).sqrt()
    # c1 / (root + eps) - m (d root / dg) / (root + eps)^2, without the difference of two numbers that are nearly alike
    rest = torch.where(root > 0, (c1 * square - c2 * gradient * before) / torch.where(root > 0, root, 1.0), 0.0)
    return (c1 * eps + rest) / (root + eps).square()


def _gradient(value: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    if all(g is None for g in found):
        raise NotDifferentiable(NO_PARAMS)
    return found


def _difference(
    inner_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    v: Mapping[str, Tensor],
    epsilon: float,
    random: Generators,
) -> dict[str, Tensor | None]:
    """(grad_lambda f(theta + e v) - grad_lambda f(theta - e v)) / (2 e) with e = epsilon / |v|."""
    norm = torch.stack([tensor.norm().double() for tensor in v.values()]).norm().item()
    if norm == 0.0:
        return {name: torch.zeros_like(hparam) for name, hparam in hparams.items()}
    e = epsilon / norm
    sides = []
    for sign in (1.0, -1.0):
        moved = leaves({name: params[name].detach() + sign * e * v[name] for name in v}, "params")
        random.rewind()
        with torch.enable_grad():
            value = scalar(inner_loss(moved, dict(hparams)), "inner_loss")
        sides.append(torch.autograd.grad(value, list(hparams.values()), allow_unused=True))
    return {
        name: None if plus is None or minus is None else (plus - minus) / (2 * e)
        for name, plus, minus in zip(hparams, *sides, strict=True)
    }


def _result(
    outer: Tensor, direct: Mapping[str, Tensor | None], through: Mapping[str, Tensor | None], inner_lr: float
) -> Hypergradient:
    grads = {}
    for name, own in direct.items():
        other = through[name]
        if own is None and other is None:
            raise NotDifferentiable(
                f"neither inner_loss nor outer_loss depends on {name!r}. First-order estimators are of what is in the "
                f"inner loss; {UNROLLED}"
            )
        total = torch.zeros_like(other) if own is None and other is not None else own
        assert total is not None
        grads[name] = (total if other is None else total - inner_lr * other).detach()
        if not torch.isfinite(grads[name]).all():
            raise NonFiniteLoss(f"the hypergradient of {name!r} is not finite")
    return Hypergradient(grads=grads, outer_loss=outer)


def _check(**positive: float) -> None:
    for name, value in positive.items():
        if not value > 0:
            raise HypergradientError(f"{name}={value!r}: must be above 0")
