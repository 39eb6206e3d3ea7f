"""First-order hypergradients against what each of them is by its own formula."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import SHAPES, Tensors, flat, network, normal, quadratic, relative, ridge
from torch import Tensor

from hpo_ray.gradients import (
    SGD,
    Adam,
    HypergradientError,
    Identity,
    NonFiniteLoss,
    NotDifferentiable,
    darts_hypergradient,
    hypergradient,
    learning_rate_gradient,
    sama_hypergradient,
)
from hpo_ray.gradients.first_order import adam_derivative
from hpo_ray.gradients.products import InnerProblem

BETAS, EPS = (0.8, 0.95), 1e-3


def moments(params: Tensors, seed: int = 50) -> dict[str, Tensor]:
    first = {f"first/{n}": 0.3 * torch.randn_like(t) for n, t in params.items()}
    torch.manual_seed(seed)
    return {**first, **{f"second/{n}": torch.rand_like(t) for n, t in params.items()}}


@pytest.mark.parametrize("epsilon", [0.01, 1.0])
@pytest.mark.parametrize("rate", [0.05, 0.7])
def test_darts_on_a_quadratic_is_the_identity_in_place_of_the_hessian(epsilon: float, rate: float) -> None:
    """f = 1/2 w'Aw - w'B l, F = 1/2 |w - goal|^2 + |l|^2 / 2: there the difference is exact."""
    for seed in range(2):
        it, linear, other = quadratic(seed), normal(seed + 30, 5, 3), normal(seed + 31, 3)

        def inner(params: Tensors, hparams: Tensors, it: Any = it, linear: Tensor = linear) -> Tensor:
            return params["w"] @ (0.5 * it.matrix @ params["w"] - linear @ hparams["l"])

        def outer(params: Tensors, hparams: Tensors, it: Any = it) -> Tensor:
            return it.outer(params, hparams) + hparams["l"].square().sum() / 2

        params, hparams = {"w": it.start}, {"l": other}
        ahead = it.start - rate * (it.matrix @ it.start - linear @ other)
        got = darts_hypergradient(inner, outer, params, hparams, rate, epsilon)
        assert relative(got.grads["l"], other + rate * linear.T @ (ahead - it.goal)) < 1e-10
        assert relative(got.outer_loss, outer({"w": ahead}, hparams)) < 1e-14
        same = hypergradient(inner, outer, {"w": ahead}, hparams, Identity(scale=rate))
        assert relative(got.grads, same.grads) < 1e-10
        assert got.residual is None and got.converged is None


def test_darts_on_ridge() -> None:
    """By hand: -rate exp(l) w v at the weights as they are, with v at those one step ahead."""
    for seed in range(3):
        problem = ridge(seed, 10.0, SHAPES)
        w = flat(problem.params) + normal(seed + 20, 7)
        params = {n: p.reshape(SHAPES[n]) for n, p in zip(SHAPES, w.split([4, 1, 2]), strict=True)}
        ahead = w - 0.3 * problem.matrix @ (w - flat(problem.params))
        moved = {n: p.reshape(SHAPES[n]) for n, p in zip(SHAPES, ahead.split([4, 1, 2]), strict=True)}
        v = flat(torch.func.grad(lambda p, problem=problem: problem.outer(p, {}))(moved))
        want = -0.3 * flat(problem.hparams).exp() * w * v
        got = darts_hypergradient(problem.inner, problem.outer, params, problem.hparams, 0.3)
        # A difference of numbers of length 1 over 2 e = 0.02 / |v|
        assert relative(flat(got.grads), want) < 1e-10
        assert {n: tuple(t.shape) for n, t in got.grads.items()} == SHAPES


def test_the_error_of_the_difference_is_of_second_order() -> None:
    inner, outer, params, hparams = network()
    it = InnerProblem(inner, params, hparams)
    ahead = {n: t - 0.2 * g for (n, t), g in zip(params.items(), it.layout.unflatten(it.gradient()), strict=True)}
    v = flat(torch.func.grad(lambda p: outer(p, hparams))(ahead))
    want = {name: -0.2 * g for name, g in it.mixed_product(v).items() if g is not None}
    errors = [
        relative(darts_hypergradient(inner, outer, params, hparams, 0.2, epsilon).grads, want)
        for epsilon in (0.04, 0.02)
    ]
    assert errors[1] < 1e-3 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


def adam_step(w: Tensor, g: Tensor, first: Tensor, second: Tensor, step: int) -> Tensor:
    """u, as torch has it."""
    (b1, b2), t = BETAS, step + 1
    m, v = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
    return (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + EPS)


@pytest.mark.parametrize("step", [0, 1, 30])
@pytest.mark.parametrize("where", ["ridge", "linear"])
def test_sama_is_one_step_of_adam(step: int, where: str) -> None:
    """The derivative of (outer gradient at the weights as they are) . w' by autograd; for a linear F, of F itself."""
    for seed in range(3):
        problem = ridge(seed, 10.0)
        params = {"w": problem.params["w"] + normal(seed + 20, 6)}
        state, goal = moments(params, seed), normal(seed + 21, 6)
        own: Callable[[Any], Tensor] = lambda h: h["w"].cos().sum()  # noqa: E731
        fit: Any = problem.outer if where == "ridge" else lambda p, h, goal=goal: goal @ p["w"]
        outer: Any = lambda p, h, fit=fit, own=own: fit(p, h) + own(h)  # noqa: E731
        pull = torch.func.grad(lambda p, fit=fit: fit(p, {}))(params)["w"]
        decay = problem.hparams["w"].clone().requires_grad_()
        w = params["w"].clone().requires_grad_()
        (g,) = torch.autograd.grad(problem.inner({"w": w}, {"w": decay}), w, create_graph=True)
        after = w - 0.1 * adam_step(w, g, state["first/w"], state["second/w"], step)
        (want,) = torch.autograd.grad(pull @ after + own({"w": decay}), decay)
        got = sama_hypergradient(
            problem.inner, outer, params, problem.hparams, state, step, inner_lr=0.1, betas=BETAS, eps=EPS
        )
        # grad_l f is quadratic in w, so that the difference is exact.
        assert relative(got.grads["w"], want) < 1e-10
        assert relative(got.outer_loss, outer(params, problem.hparams)) < 1e-14


def test_sama_takes_the_state_of_adam() -> None:
    problem = ridge()
    update = Adam(lambda p, h, step: problem.inner(p, h), inner_lr=0.05, betas=BETAS, eps=EPS)
    with torch.no_grad():
        state = update.start({"w": normal(1, 6)})
        for step in range(4):
            state = update(state, problem.hparams, step)
    goal: Any = lambda p, h: p["w"].sum()  # noqa: E731
    got = sama_hypergradient(
        problem.inner, goal, update.weights(state), problem.hparams, state, 4, inner_lr=0.05, betas=BETAS, eps=EPS
    )
    decay = {"w": problem.hparams["w"].clone().requires_grad_()}
    (want,) = torch.autograd.grad(goal(update(state, decay, 4), {}), decay["w"])
    assert relative(got.grads["w"], want) < 1e-10


@pytest.mark.parametrize("step", [0, 1, 100])
@pytest.mark.parametrize("zero", ["none", "first", "second", "both"])
@pytest.mark.parametrize("eps", [1e-3, 1e-8])
def test_the_derivative_of_adams_step(step: int, zero: str, eps: float) -> None:
    g, first, second = normal(0, 9), normal(1, 9), torch.rand(9, dtype=torch.float64)
    first = first * 0 if zero in ("first", "both") else first
    second = second * 0 if zero in ("second", "both") else second
    leaf = g.clone().requires_grad_()
    (b1, b2), t = BETAS, step + 1
    m, v = b1 * first + (1 - b1) * leaf, b2 * second + (1 - b2) * leaf**2
    u = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    (want,) = torch.autograd.grad(u.sum(), leaf)
    got = adam_derivative(g, first, second, step, BETAS, eps)
    # Without moments autograd takes 1 / root - 1 / root, where eps / root^2 is left: at eps = 1e-8 with 8 digits less.
    assert relative(got, want) < (1e-6 if zero == "both" and eps < 1e-6 else 1e-10)


def test_the_derivative_of_adams_first_step_in_single_precision() -> None:
    g, zero = normal(0, 9).float(), torch.zeros(9)
    got = adam_derivative(g, zero, zero, 0, (0.9, 0.999), 1e-8)
    assert relative(got.double(), 1e-8 / (g.double().abs() + 1e-8) ** 2) < 1e-5


def test_the_derivative_of_adams_step_where_all_is_zero() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    for step, share in ((0, 1.0), (3, 0.2 / (1 - 0.8**4))):
        got = adam_derivative(zero, zero, zero, step, BETAS, 1e-3)
        assert relative(got, torch.full_like(zero, share / 1e-3)) < 1e-12
        near = adam_derivative(zero + 1e-12, zero, zero, step, BETAS, 1e-3)
        assert relative(near, got) < 1e-6


@pytest.mark.parametrize(
    "make",
    [SGD, lambda loss: SGD(loss, inner_momentum=0.9), lambda loss: Adam(loss, betas=BETAS)],
    ids=["sgd", "momentum", "adam"],
)
def test_the_gradient_of_a_learning_rate_is_that_of_the_loss_after_its_step(make: Any) -> None:
    inner, _, params, hparams = network()
    update = make(lambda p, h, step: inner(p, hparams))
    with torch.no_grad():
        state = update.start(params)
        for step in range(3):
            state = update(state, {"inner_lr": torch.tensor(0.1)}, step)
        _, before = update.gradient(state, {}, 3)
        direction, _ = update.direction(state, before, {}, 3)
    rate = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    ahead = {name: state[name] - rate * direction[name] for name in params}
    (want,) = torch.autograd.grad(inner(ahead, hparams), rate)
    with torch.no_grad():
        state = update(state, {"inner_lr": rate.detach()}, 3)
        _, after = update.gradient(state, {}, 4)
    got = learning_rate_gradient(after, direction)
    assert got.shape == () and relative(got, want) < 1e-11


class Noise:
    """A problem with dropout, which writes down its masks."""

    def __init__(self) -> None:
        self.problem, self.masks, self.others = ridge(), list[Tensor](), 0

    def inner(self, params: Tensors, hparams: Tensors) -> Tensor:
        self.masks.append(torch.nn.functional.dropout(torch.ones(6, dtype=torch.float64), 0.5))
        return self.problem.inner({"w": params["w"] * self.masks[-1]}, hparams)

    def outer(self, params: Tensors, hparams: Tensors) -> Tensor:
        self.others += 1
        torch.rand(7)
        return self.problem.outer(params, hparams)


@pytest.mark.parametrize("estimator", ["darts", "sama"])
def test_dropout_is_the_same_in_all_calls(estimator: str) -> None:
    seen = []
    for seed in (0, 0, 1):
        it = Noise()
        params = {"w": normal(9, 6)}
        state = moments(params)
        torch.manual_seed(seed)
        if estimator == "darts":
            got = darts_hypergradient(it.inner, it.outer, params, it.problem.hparams, 0.1)
        else:
            got = sama_hypergradient(it.inner, it.outer, params, it.problem.hparams, state, 3, 0.1)
        assert len(it.masks) == 3 and it.others == 1
        assert torch.equal(it.masks[0], it.masks[1]) and torch.equal(it.masks[0], it.masks[2])
        assert not torch.equal(it.masks[0], torch.full_like(it.masks[0], 2.0))
        # Where a weight is dropped its decay does nothing.
        assert torch.equal(got.grads["w"] == 0, it.masks[0] == 0)
        seen.append(it.masks[0])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def call(estimator: str, inner: Any, outer: Any, params: Any, hparams: Any, **options: Any) -> Any:
    if estimator == "darts":
        return darts_hypergradient(inner, outer, params, hparams, **{"inner_lr": 0.1, **options})
    state = {f"{slot}/{n}": torch.ones_like(t) for slot in ("first", "second") for n, t in params.items()}
    return sama_hypergradient(inner, outer, params, hparams, state, 3, **{"inner_lr": 0.1, **options})


BOTH = pytest.mark.parametrize("estimator", ["darts", "sama"])
W = {"w": torch.ones(3, dtype=torch.float64)}
Fine = lambda p, h: ((p["w"] - 2 * h["w"]).square() * h["w"].exp()).sum()  # noqa: E731


@BOTH
def test_dtypes_follow_the_hyperparameters_and_no_graph_is_left(estimator: str) -> None:
    inner: Any = lambda p, h: Fine({"w": p["w"].double()}, {"w": h["w"].double()})  # noqa: E731
    for kind in (torch.float32, torch.bfloat16):
        got = call(estimator, inner, inner, {"w": W["w"].float()}, {"w": W["w"].to(kind)})
        assert got.grads["w"].dtype == kind and not got.grads["w"].requires_grad and not got.outer_loss.requires_grad
        assert bool(got.grads["w"].isfinite().all())


@BOTH
def test_an_outer_loss_of_the_hyperparameters_alone(estimator: str) -> None:
    got = call(estimator, Fine, lambda p, h: h["w"].square().sum(), W, W)
    assert torch.equal(got.grads["w"], 2 * W["w"])


@BOTH
def test_weights_that_a_loss_does_not_use(estimator: str) -> None:
    idle = {"w": W["w"], "idle": torch.ones(2, dtype=torch.float64)}
    got, want = call(estimator, Fine, Fine, idle, W), call(estimator, Fine, Fine, W, W)
    assert relative(got.grads, want.grads) < 1e-14
    pulled: Any = lambda p, h: Fine(p, h) + p["idle"].sum()  # noqa: E731
    if estimator == "sama":  # no step of training moves it
        assert relative(call(estimator, Fine, pulled, idle, W).grads, want.grads) < 1e-14


@BOTH
@pytest.mark.parametrize(
    ("inner", "outer", "params", "hparams", "message"),
    [
        (Fine, lambda p, h: p["w"], W, W, "^outer_loss must return a scalar"),
        (lambda p, h: p["w"] * h["w"], Fine, W, W, "^inner_loss must return a scalar"),
        (lambda p, h: Fine(p, h).detach(), Fine, W, W, "^inner_loss depends on neither"),
        (lambda p, h: Fine({"w": p["w"].detach()}, h), Fine, W, W, "^inner_loss does not depend on params"),
        (
            lambda p, h: Fine(p, W),
            lambda p, h: Fine(p, W),
            W,
            {"inner_lr": torch.tensor(0.1)},
            "depends on 'inner_lr'.*unrolled_hypergradient",
        ),
        (Fine, Fine, {}, W, "^params is empty"),
        (Fine, Fine, W, {}, "^hparams is empty"),
        (Fine, Fine, W, {"w": torch.ones(3, dtype=torch.int32)}, "of torch.int32"),
    ],
)
def test_what_cannot_be_differentiated(
    estimator: str, inner: Any, outer: Any, params: Any, hparams: Any, message: str
) -> None:
    if message.startswith("depends"):
        used: Any = lambda p, h: Fine(p, W) + 0.0 * sum(t.sum() for t in h.values()).detach()  # noqa: E731
        inner, outer = used, used
    with pytest.raises(NotDifferentiable, match=message):
        call(estimator, inner, outer, params, hparams)


@BOTH
@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (lambda p, h: Fine(p, h) * torch.nan, Fine),
        (Fine, lambda p, h: Fine(p, h) * torch.inf),
        (lambda p, h: Fine(p, h) + (p["w"] - 1.0).abs().sqrt().sum(), Fine),
    ],
)
def test_what_is_not_finite(estimator: str, inner: Any, outer: Any) -> None:
    with pytest.raises(NonFiniteLoss):
        call(estimator, inner, outer, W, W)


@BOTH
@pytest.mark.parametrize("wrong", [{"inner_lr": 0.0}, {"inner_lr": -1.0}, {"epsilon": 0.0}, {"epsilon": torch.nan}])
def test_arguments_that_make_no_step(estimator: str, wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(HypergradientError, match=re.escape(f"{name}={value!r}: must be above 0")):
        call(estimator, Fine, Fine, W, W, **wrong)
