"""Hypergradients through the training: closed forms, one graph over all steps, and both modes against each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import SHAPES, Tensors, dense, flat, minimum, network, normal, quadratic, relative, ridge
from torch import Tensor
from torch.func import grad, jacrev

from hpo_ray.gradients import (
    SGD,
    Adam,
    HypergradientError,
    Neumann,
    NonFiniteLoss,
    NotDifferentiable,
    Update,
    forward_step,
    hypergradient,
    unrolled_hypergradient,
)

STEPS = [1, 2, 7, 16]
MODES: list[dict[str, Any]] = [
    *({"mode": "reverse", "keep": keep} for keep in ("all", "sqrt", "graphs")),
    {"mode": "forward"},
]
Path = Callable[[Tensors, Tensors, int], dict[str, Tensor]]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def whole_graph(
    loss: Any,
    outer: Any,
    start: Callable[[dict[str, Tensor]], Tensors],
    hparams: Tensors,
    steps: int,
    move: Callable[..., tuple[Tensor, Any]],
    first_step: int = 0,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """(hypergradient, last weights, outer loss) by autograd over one graph of all steps."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in hparams.items()}
    weights = {name: tensor + 0.0 for name, tensor in start(leaves).items()}
    weights = {name: t if t.requires_grad else t.requires_grad_() for name, t in weights.items()}
    kept: dict[str, Any] = dict.fromkeys(weights)
    for step in range(first_step, first_step + steps):
        grads = torch.autograd.grad(loss(weights, leaves, step), list(weights.values()), create_graph=True)
        moved = {}
        for (name, weight), g in zip(weights.items(), grads, strict=True):
            moved[name], kept[name] = move(weight, g, kept[name], leaves, step)
        weights = moved
    value = outer(weights, leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    result = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)}
    return result, {name: tensor.detach() for name, tensor in weights.items()}, value.detach()


def pick(value: Tensor, step: int) -> Tensor:
    return value[step] if value.ndim else value


def descend(w: Tensor, g: Tensor, kept: Any, hparams: Tensors, step: int) -> tuple[Tensor, Any]:
    """Momentum where there is a hyperparameter of that name, else 0.8."""
    mu = pick(hparams["inner_momentum"], step) if "inner_momentum" in hparams else 0.8
    m = g if kept is None else mu * kept + g
    return w - pick(hparams["inner_lr"], step) * m, m


def plain(w: Tensor, g: Tensor, kept: Any, hparams: Tensors, step: int) -> tuple[Tensor, Any]:
    return w - pick(hparams["inner_lr"], step) * g, None


def adam(w: Tensor, g: Tensor, kept: Any, hparams: Tensors, step: int) -> tuple[Tensor, Any]:
    m, v, t = kept or (torch.zeros_like(w), torch.zeros_like(w), 0)
    m, v, t = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2, t + 1
    return w - pick(hparams["inner_lr"], step) * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-6), (m, v, t)


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_a_schedule_of_learning_rates_on_a_quadratic(options: dict[str, Any], steps: int) -> None:
    for seed, kappa in ((0, 2.0), (1, 1e4))[steps == 16 :]:
        it = quadratic(seed, kappa)
        rates = 0.1 + 1.5 * torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        got = unrolled_hypergradient(
            SGD(it.inner), it.outer, {"w": it.start}, {"inner_lr": rates}, steps=steps, **options
        )  # fmt: skip
        # The end of training is known to 1e-16, and what is left there to 1e-6 of the first error, which is in b and e.
        assert relative(got.grads["inner_lr"], it.schedule_grads(rates)) < 1e-10
        assert got.iterations == steps and got.residual is None and got.params is not None
        one = unrolled_hypergradient(
            SGD(it.inner), it.outer, {"w": it.start}, {"inner_lr": number(0.3)}, steps=steps, **options
        )  # fmt: skip
        # One rate for all steps: the sum.
        want = it.schedule_grads(torch.full((steps,), 0.3, dtype=torch.float64)).sum()
        assert relative(one.grads["inner_lr"], want) < 1e-12


CASES: dict[str, tuple[Callable[[Any], Update], Callable[..., Any], Callable[[int], dict[str, Tensor]]]] = {
    "sgd": (SGD, plain, lambda steps: {"inner_lr": number(0.3)}),
    "schedule": (SGD, plain, lambda steps: {"inner_lr": 0.1 + 0.02 * torch.arange(steps, dtype=torch.float64)}),
    "momentum": (
        lambda loss: SGD(loss, keeps_momentum=True),
        descend,
        lambda steps: {"inner_lr": number(0.1), "inner_momentum": number(0.7)},
    ),
    "momenta": (
        lambda loss: SGD(loss, keeps_momentum=True),
        descend,
        lambda steps: {"inner_lr": number(0.1), "inner_momentum": torch.linspace(0.0, 0.9, steps).double()},
    ),
    "constant momentum": (
        lambda loss: SGD(loss, inner_momentum=0.8),
        descend,
        lambda steps: {"inner_lr": number(0.1)},
    ),
    "adam": (
        lambda loss: Adam(loss, betas=(0.9, 0.99), eps=1e-6),
        adam,
        lambda steps: {"inner_lr": number(0.05)},
    ),
    "adam schedule": (
        lambda loss: Adam(loss, betas=(0.9, 0.99), eps=1e-6),
        adam,
        lambda steps: {"inner_lr": torch.linspace(0.1, 0.01, steps).double()},
    ),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("steps", STEPS)
def test_all_modes_are_one_graph_over_all_steps(case: str, steps: int) -> None:
    make, move, own = CASES[case]
    inner, outer, params, hparams = network()

    def loss(params: Tensors, hparams: Tensors, step: int) -> Tensor:
        return inner(params, hparams) * (1.0 + 0.1 * step)

    hparams = {**hparams, **own(steps)}
    both: Any = lambda p, h: outer(p, h) + 0.1 * h["decay"].sin().sum()  # noqa: E731
    want, weights, value = whole_graph(loss, both, lambda _: params, hparams, steps, move)
    for options in MODES:
        if options["mode"] == "forward" and steps > (7 if case in ("momentum", "adam") else 2):
            continue  # it takes a training for each number
        got = unrolled_hypergradient(make(loss), both, params, hparams, steps=steps, **options)
        assert relative(got.grads, want) < 1e-11, options
        assert got.params is not None
        assert relative({name: got.params[name] for name in weights}, weights) < 1e-13
        assert relative(got.outer_loss, value) < 1e-13 and not got.outer_loss.requires_grad


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (lambda loss: SGD(loss, inner_lr=0.2), lambda w: torch.optim.SGD(w, lr=0.2)),
        (lambda loss: SGD(loss, 0.2, inner_momentum=0.9), lambda w: torch.optim.SGD(w, lr=0.2, momentum=0.9)),
        (lambda loss: Adam(loss, inner_lr=0.05), lambda w: torch.optim.Adam(w, lr=0.05)),
        (
            lambda loss: Adam(loss, 0.05, betas=(0.5, 0.9), eps=1e-3),
            lambda w: torch.optim.Adam(w, lr=0.05, betas=(0.5, 0.9), eps=1e-3),
        ),
    ],
)
def test_the_steps_are_those_of_torch(make: Any, optimizer: Any) -> None:
    inner, outer, params, hparams = network()
    got = unrolled_hypergradient(
        make(lambda p, h, step: inner(p, h)), lambda p, h: outer(p, h) + h["share"].sum(), params, hparams, steps=12
    )
    weights = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    optim = optimizer(list(weights.values()))
    for _ in range(12):
        optim.zero_grad()
        inner(weights, hparams).backward()
        optim.step()
    assert got.params is not None
    assert relative({n: got.params[n] for n in weights}, {n: t.detach() for n, t in weights.items()}) < 1e-13


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_hyperparameters_of_the_first_weights(options: dict[str, Any], steps: int) -> None:
    inner, outer, params, hparams = network()
    loss: Any = lambda p, h, step: inner(p, {**h, "share": hparams["share"]})  # noqa: E731

    def start(hparams: Tensors) -> dict[str, Tensor]:
        return {"w1": params["w1"] * hparams["scale"], "b1": params["b1"], "w2": hparams["w2"]}

    mine = {"scale": number(1.3), "w2": params["w2"], "decay": hparams["decay"], "inner_lr": number(0.2)}
    want, _, _ = whole_graph(loss, outer, start, mine, steps, plain)
    got = unrolled_hypergradient(SGD(loss), outer, start, mine, steps=steps, **options)
    assert relative(got.grads, want) < 1e-11
    assert float(want["scale"].abs()) > 1e-4
    if steps > 1:  # the start is not among the last steps
        mine_too = {n: mine[n] for n in ("scale", "decay", "inner_lr", "w2")}
        with pytest.raises(NotDifferentiable, match="'scale', 'w2'"):
            unrolled_hypergradient(SGD(loss), outer, start, mine_too, steps=steps, truncate=1, **options)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_first_weights_of_adam_as_hyperparameters(options: dict[str, Any]) -> None:
    inner, outer, params, hparams = network()
    loss: Any = lambda p, h, step: inner(p, hparams)  # noqa: E731
    mine = {"w2": params["w2"], "inner_lr": number(0.05)}
    start: Any = lambda h: {**params, "w2": h["w2"]}  # noqa: E731
    want, _, _ = whole_graph(loss, outer, start, mine, 5, adam)
    update = Adam(loss, betas=(0.9, 0.99), eps=1e-6)
    assert relative(unrolled_hypergradient(update, outer, start, mine, steps=5, **options).grads, want) < 1e-11


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("truncate", [1, 3, 99])
def test_the_last_steps_from_a_minimum_are_a_neumann_series(options: dict[str, Any], truncate: int) -> None:
    for seed, kappa in ((0, 2.0), (100, 1e3)):
        problem = ridge(seed, kappa, SHAPES)
        update = SGD(lambda p, h, step, problem=problem: problem.inner(p, h), inner_lr=0.4)
        steps = 12
        got = unrolled_hypergradient(
            update, problem.outer, problem.params, problem.hparams, steps=steps, truncate=truncate, **options
        )  # fmt: skip
        series = Neumann(terms=min(truncate, steps), step_size=0.4)
        want = hypergradient(problem.inner, problem.outer, problem.params, problem.hparams, series)
        assert relative(got.grads, want.grads) < 1e-10
        assert got.iterations == min(truncate, steps)


def test_a_long_training_comes_to_the_implicit_gradient() -> None:
    problem = ridge(0, 5.0)
    update = SGD(lambda p, h, step: problem.inner(p, h), inner_lr=0.9)
    zeros = {"w": torch.zeros(6, dtype=torch.float64)}
    got = unrolled_hypergradient(update, problem.outer, zeros, problem.hparams, steps=250, keep="sqrt")
    # (1 - 0.9 / 4.5)^250 is 1e-24, times 250
    assert relative(got.grads, problem.grads()) < 1e-10
    assert got.params is not None and relative(got.params, problem.params) < 1e-10


@pytest.mark.parametrize("options", MODES, ids=str)
def test_only_the_last_steps_of_a_schedule_are_differentiated(options: dict[str, Any]) -> None:
    it = quadratic()
    rates = torch.linspace(0.2, 0.9, 8).double()
    got = unrolled_hypergradient(
        SGD(it.inner), it.outer, {"w": it.start}, {"inner_lr": rates}, steps=8, truncate=3, **options
    )  # fmt: skip
    want = it.schedule_grads(rates)
    want[:5] = 0.0
    assert relative(got.grads["inner_lr"], want) < 1e-12


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_training_that_goes_on_has_the_numbers_of_its_steps(options: dict[str, Any]) -> None:
    inner, outer, params, hparams = network()
    seen: list[int] = []

    def loss(params: Tensors, hparams: Tensors, step: int) -> Tensor:
        seen.append(step)
        return inner(params, hparams) * (1.0 + 0.2 * step)

    hparams = {**hparams, "inner_lr": torch.linspace(0.3, 0.1, 9).double()}
    want, weights, _ = whole_graph(loss, outer, lambda _: params, hparams, 4, plain, first_step=5)
    seen.clear()
    got = unrolled_hypergradient(SGD(loss), outer, params, hparams, steps=4, first_step=5, **options)
    assert relative(got.grads, want) < 1e-11 and got.params is not None and relative(got.params, weights) < 1e-13
    assert set(seen) == {5, 6, 7, 8} and bool((want["inner_lr"][:5] == 0).all())


def test_adam_counts_its_bias_corrections_from_the_first_step() -> None:
    problem = ridge()
    update = Adam(lambda p, h, step: problem.inner(p, h), inner_lr=0.1)
    far = {"w": problem.params["w"] + 1.0}
    with torch.no_grad():
        early = update(update.start(far), problem.hparams, 0)
        late = update(update.start(far), problem.hparams, 10**6)
    assert relative(early["w"], far["w"] - 0.1 * (problem.matrix @ torch.ones(6).double()).sign()) < 1e-6
    assert relative(late["w"], early["w"]) > 1e-3


def test_an_update_of_the_users_own() -> None:
    """Newton's step, damped by a hyperparameter, with a state of its own: an average of the weights."""
    problem = ridge(0, 5.0)

    def update(state: dict[str, Tensor], hparams: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        with torch.enable_grad():
            w = state["w"] if state["w"].requires_grad else state["w"].detach().requires_grad_()
            (g,) = torch.autograd.grad(
                problem.inner({"w": w}, {"w": hparams["w"]}), w, create_graph=torch.is_grad_enabled()
            )  # fmt: skip
        w = state["w"] - hparams["rate"] * torch.linalg.solve(problem.matrix, g)
        return {"w": w, "mean": state["mean"] + (w - state["mean"]) / (step + 2)}

    start = {"w": normal(3, 6), "mean": normal(3, 6)}
    hparams = {**problem.hparams, "rate": number(0.6)}
    outer: Any = lambda state, h: problem.outer({"w": state["mean"]}, h)  # noqa: E731
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in hparams.items()}
    w, mean = start["w"], start["mean"]
    for step in range(6):  # the gradient by hand
        g = (problem.matrix + (leaves["w"].exp() - hparams["w"].exp()).diag()) @ w - problem.matrix @ problem.params[
            "w"
        ]
        w = w - leaves["rate"] * torch.linalg.solve(problem.matrix, g)
        mean = mean + (w - mean) / (step + 2)
    found = torch.autograd.grad(problem.outer({"w": mean}, {}), list(leaves.values()))
    for options in MODES:
        got = unrolled_hypergradient(update, outer, start, hparams, steps=6, **options)
        assert relative(got.grads, dict(zip(leaves, found, strict=True))) < 1e-11
        assert got.params is not None and relative(got.params, {"w": w.detach(), "mean": mean.detach()}) < 1e-12


def test_forward_mode_one_step_at_a_time() -> None:
    """Z_t is the derivative of the state in all hyperparameters, a row for each number of them."""
    inner, _, params, hparams = network()
    hparams = {**hparams, "inner_lr": number(0.2), "inner_momentum": number(0.5)}
    update = SGD(lambda p, h, step: inner(p, h), keeps_momentum=True)
    state, tangents = update.start(params), None
    for step in range(3):
        state, tangents = forward_step(update, state, hparams, tangents, step)
    assert tangents is not None and tangents["w1"].shape == (6, 2, 3) and tangents["momentum/w2"].shape == (6, 3)
    assert not any(tensor.requires_grad for tensor in [*state.values(), *tangents.values()])

    def after(vector: Tensor) -> Tensor:
        decay, share, rate, mu = vector.split([2, 2, 1, 1])
        now = update.start(params)
        mine = {"decay": decay, "share": share, "inner_lr": rate[0], "inner_momentum": mu[0]}
        for step in range(3):
            now = update(now, mine, step)
        return flat(now)

    vector = flat(hparams)
    want = torch.autograd.functional.jacobian(after, vector)
    got = torch.cat([tangents[name].flatten(1) for name in update.start(params)], dim=1)
    assert relative(got, want.T) < 1e-11
    assert relative(flat({name: state[name] for name in update.start(params)}), after(vector).detach()) < 1e-13


@pytest.mark.parametrize("keep", ["all", "sqrt"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 17])
def test_steps_that_are_computed(keep: Any, steps: int) -> None:
    """All states kept: each step once ahead and once on the way back. Each fourth of sixteen: once more."""
    it, calls = quadratic(), [0, 0]

    def loss(params: Tensors, hparams: Tensors, step: int) -> Tensor:
        calls[0] += 1
        return it.inner(params, hparams)

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        calls[1] += 1
        return it.outer(params, hparams)

    unrolled_hypergradient(SGD(loss), outer, {"w": it.start}, {"inner_lr": number(0.1)}, steps=steps, keep=keep)
    assert calls[1] == 1
    assert calls[0] == 2 * steps if keep == "all" else 2 * steps <= calls[0] <= 3 * steps
    if (keep, steps) == ("sqrt", 16):
        assert calls[0] == 3 * 16 - 4  # the first of each four was kept


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_derivative_of_zero_is_one(options: dict[str, Any]) -> None:
    """Momentum has done nothing in the first step, and a learning rate nothing at a minimum."""
    it = quadratic()
    hparams = {"inner_lr": number(0.1), "inner_momentum": number(0.5)}
    update = SGD(it.inner, keeps_momentum=True)
    got = unrolled_hypergradient(update, it.outer, {"w": it.start}, hparams, steps=1, **options)
    assert float(got.grads["inner_momentum"]) == 0.0 != float(got.grads["inner_lr"])
    still = unrolled_hypergradient(update, it.outer, {"w": it.center}, hparams, steps=3, **options)
    assert float(still.grads["inner_momentum"]) == 0.0 == float(still.grads["inner_lr"])


def test_adam_where_a_gradient_has_always_been_zero() -> None:
    """The second moment is zero there, and the derivative of its root is not."""
    it = quadratic()

    def loss(params: Tensors, hparams: Tensors, step: int) -> Tensor:
        return it.inner({"w": params["w"]}, hparams) + 0.0 * params["idle"].sum() + (params["still"] ** 3).sum()

    params = {"w": it.start, "idle": torch.ones(2).double(), "still": torch.zeros(2).double()}
    outer: Any = lambda p, h: it.outer(p, h) + p["idle"].sum() + p["still"].sum()  # noqa: E731
    for options in MODES:
        got = unrolled_hypergradient(Adam(loss), outer, params, {"inner_lr": number(0.01)}, steps=3, **options)
        alone = unrolled_hypergradient(
            Adam(it.inner), it.outer, {"w": it.start}, {"inner_lr": number(0.01)}, steps=3, **options
        )  # fmt: skip
        assert relative(got.grads, alone.grads) < 1e-14


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_weight_that_the_loss_does_not_use_stays(options: dict[str, Any]) -> None:
    it = quadratic()
    params = {"w": it.start, "idle": torch.ones(2).double()}
    got = unrolled_hypergradient(SGD(it.inner), it.outer, params, {"inner_lr": number(0.2)}, steps=3, **options)
    assert got.params is not None and torch.equal(got.params["idle"], params["idle"])
    want = it.schedule_grads(torch.full((3,), 0.2, dtype=torch.float64)).sum()
    assert relative(got.grads["inner_lr"], want) < 1e-12


@pytest.mark.parametrize("options", MODES, ids=str)
def test_dtypes_follow_the_inputs(options: dict[str, Any]) -> None:
    it = quadratic()
    for kind, limit in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        got = unrolled_hypergradient(
            SGD(lambda p, h, step: it.inner({"w": p["w"].double()}, h)),
            lambda p, h: it.outer({"w": p["w"].double()}, h),
            {"w": it.start.to(kind)},
            {"inner_lr": number(0.2).to(kind)},
            steps=3,
            **options,
        )
        assert got.grads["inner_lr"].dtype == kind and got.params is not None and got.params["w"].dtype == kind
        want = it.schedule_grads(torch.full((3,), 0.2, dtype=torch.float64)).sum()
        assert relative(got.grads["inner_lr"].double(), want) < limit


def test_finite_differences_of_a_learning_rate_of_a_network() -> None:
    inner, outer, params, hparams = network()

    def loss_at(rate: float) -> float:
        weights = {name: tensor.clone() for name, tensor in params.items()}
        for _ in range(20):
            g = grad(lambda w: inner(w, hparams))(weights)
            weights = {name: weights[name] - rate * g[name] for name in weights}
        return float(outer(weights, hparams))

    # Central differences: h^2 f''' / 6, about 1e-10, and rounding 1e-16 / h.
    want = (loss_at(0.5 + 1e-5) - loss_at(0.5 - 1e-5)) / 2e-5
    for options in MODES:
        got = unrolled_hypergradient(
            SGD(lambda p, h, step: inner(p, hparams)), outer, params, {"inner_lr": number(0.5)}, steps=20, **options
        )
        assert float(got.grads["inner_lr"]) == pytest.approx(want, rel=1e-6)


def test_the_second_derivative_is_in_each_step() -> None:
    """One step from a minimum: d/d decay of outer(w - rate grad f) with the Hessian of a network in it."""
    inner, outer, start, hparams = network()
    params = minimum(inner, start, hparams)
    update = SGD(lambda p, h, step: inner(p, h), inner_lr=0.3)
    got = unrolled_hypergradient(update, outer, params, hparams, steps=2)
    b = grad(dense(outer, params, hparams))(flat(params))
    a = jacrev(grad(dense(inner, params, hparams)))(flat(params))
    v = 0.3 * (2 * b - 0.3 * a @ b)
    mixed = {
        name: jacrev(lambda t, name=name: grad(dense(inner, params, {**hparams, name: t}))(flat(params)))(hparams[name])
        for name in hparams
    }
    # The gradient at the minimum is 1e-14.
    assert relative(got.grads, {name: -v @ mixed[name] for name in hparams}) < 1e-10


# What is refused


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_hyperparameter_that_nothing_depends_on_is_named(options: dict[str, Any]) -> None:
    it = quadratic()
    hparams = {"inner_lr": number(0.1), "idle": number(0.5)}
    with pytest.raises(NotDifferentiable, match="neither the training nor outer_loss depends on 'idle':"):
        unrolled_hypergradient(SGD(it.inner), it.outer, {"w": it.start}, hparams, steps=3, **options)


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("make", [SGD, lambda loss: SGD(loss, inner_momentum=0.9)])
def test_a_training_that_diverges_is_refused(options: dict[str, Any], make: Any) -> None:
    it = quadratic()
    update, hparams = make(it.inner), {"inner_lr": number(1e5)}
    state, steps = update.start({"w": it.start}), 0
    while state["w"].isfinite().all():
        with torch.no_grad():
            state = update(state, hparams, steps)
        steps += 1
    assert steps < 70
    with pytest.raises(NonFiniteLoss, match=f"the training diverges: 'w' is not finite after step {steps} of 70; low"):
        unrolled_hypergradient(make(it.inner), it.outer, {"w": it.start}, hparams, steps=70, **options)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_an_outer_loss_that_is_no_scalar_or_not_finite(options: dict[str, Any]) -> None:
    it = quadratic()
    for outer, kind, message in (
        (lambda p, h: p["w"], NotDifferentiable, r"^outer_loss must return a scalar tensor.*\(5,\)"),
        (lambda p, h: p["w"].sum().detach(), NotDifferentiable, "^outer_loss depends on neither"),
        (lambda p, h: p["w"].sum() * torch.nan, NonFiniteLoss, "^outer_loss is nan"),
    ):
        with pytest.raises(kind, match=message):
            unrolled_hypergradient(SGD(it.inner), outer, {"w": it.start}, {"inner_lr": number(0.1)}, steps=2, **options)


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize(
    "loss",
    [
        lambda p, h, step: p["w"],
        lambda p, h, step: 1.0,
        lambda p, h, step: p["w"].sum().detach(),
        lambda p, h, step: p["w"].sum().item(),
    ],
)
def test_an_inner_loss_that_is_no_scalar_of_the_weights(make: Any, loss: Any) -> None:
    it = quadratic()
    for options in MODES:
        with pytest.raises(NotDifferentiable, match="inner_loss must return a scalar tensor that depends on params"):
            unrolled_hypergradient(make(loss), it.outer, {"w": it.start}, {"inner_lr": number(0.1)}, steps=2, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0: must be a whole number of at least 1"),
        ({"steps": 2.0}, "steps=2.0: must be a whole number"),
        ({"truncate": 0}, "truncate=0: must be a whole number of at least 1"),
        ({"mode": "backward"}, "mode='backward': must be 'reverse' or 'forward'"),
        ({"keep": "none"}, "keep='none': must be 'all', 'sqrt' or 'graphs'"),
        ({"keep": "sqrt", "mode": "forward"}, "keep='sqrt': forward mode keeps no states"),
    ],
)
def test_arguments_that_make_no_training(wrong: dict[str, Any], message: str) -> None:
    it = quadratic()
    with pytest.raises(HypergradientError, match=re.escape(message)):
        unrolled_hypergradient(
            SGD(it.inner), it.outer, {"w": it.start}, {"inner_lr": number(0.1)}, **{"steps": 3, **wrong}
        )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "hparams", "message"),
    [
        (SGD, {"inner_lr": torch.ones(2).double()}, "inner_lr is of shape (2,), and step 3 needs a value"),
        (SGD, {"inner_lr": torch.ones(9, 1).double()}, "inner_lr is of shape (9, 1), and step 1 needs a value"),
        (SGD, {"inner_momentum": number(0.5)}, "say SGD(keeps_momentum=True)"),
    ],
)
def test_hyperparameters_of_an_update_that_do_not_fit_it(make: Any, hparams: Any, message: str) -> None:
    it = quadratic()
    with pytest.raises(HypergradientError, match=re.escape(message)):
        unrolled_hypergradient(make(it.inner), it.outer, {"w": it.start}, hparams, steps=3)


@pytest.mark.parametrize("hparams", [{}, {"inner_lr": torch.tensor(1)}])
def test_hyperparameters_that_are_none(hparams: Any) -> None:
    it = quadratic()
    with pytest.raises(NotDifferentiable, match=r"^hparams"):
        unrolled_hypergradient(SGD(it.inner), it.outer, {"w": it.start}, hparams, steps=3)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_dropout_is_the_same_where_a_step_is_taken_again(options: dict[str, Any]) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = lambda p, h, step: (torch.nn.functional.dropout(x, 0.3) @ p["w"] - 1.0).square().mean()  # noqa: E731
    outer = lambda p, h: (x @ p["w"]).square().mean()  # noqa: E731
    start, hparams = {"w": torch.ones(3, dtype=torch.float64)}, {"inner_lr": torch.tensor(0.05, dtype=torch.float64)}

    def end(rate: float) -> float:
        torch.manual_seed(1)
        weights = dict(start)
        update = SGD(loss, rate)
        for step in range(7):
            with torch.no_grad():
                weights = update(weights, {}, step)
        return outer(weights, {}).item()

    torch.manual_seed(1)
    found = unrolled_hypergradient(SGD(loss), outer, start, hparams, steps=7, **options)
    then = torch.rand(1)
    # The third derivative is of order 1e2: an error of 1e-8 and, by rounding, of 1e-11.
    assert found.grads["inner_lr"].item() == pytest.approx((end(0.05 + 1e-5) - end(0.05 - 1e-5)) / 2e-5, rel=1e-6)
    end(0.05)
    assert torch.equal(torch.rand(1), then), "the generators end where one training leaves them"


def test_forward_mode_keeps_single_precision_whatever_python_numbers_are_in_the_loss() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    loss = lambda p, h, step: (x @ p["w"]).square().mean() + 0.5 * h["decay"] * p["w"].square().sum()  # noqa: E731
    outer = lambda p, h: (p["w"] - 1).square().sum()  # noqa: E731
    hparams, start = {"decay": torch.tensor(0.1)}, {"w": torch.full((3,), 2.0)}
    forward, reverse = (
        unrolled_hypergradient(SGD(loss), outer, start, hparams, 5, mode=mode).grads["decay"]
        for mode in ("forward", "reverse")
    )
    assert forward.dtype == torch.float32 and torch.allclose(forward, reverse, rtol=1e-5)
