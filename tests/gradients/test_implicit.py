"""Implicit hypergradients: closed forms, finite differences through the training itself, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    SHAPES,
    Problem,
    Tensors,
    data_weights,
    dense,
    flat,
    logistic,
    minimum,
    network,
    normal,
    relative,
    ridge,
    slope_of,
)
from torch import Tensor
from torch.func import grad, jacrev

from hpo_ray.gradients import (
    ConjugateGradient,
    Exact,
    FixedPoint,
    HypergradientError,
    Identity,
    Neumann,
    NonFiniteLoss,
    NonPositiveCurvature,
    NotDifferentiable,
    Nystrom,
    Solver,
    hypergradient,
)
from hpo_ray.gradients.flat import Layout
from hpo_ray.gradients.products import InnerProblem

PROBLEMS: list[Callable[..., Problem]] = [
    ridge,
    lambda *where: ridge(*where, shapes=SHAPES),
    data_weights,
    logistic,
]
NAMES = ["ridge", "shapes", "data_weights", "logistic"]


def solve(problem: Problem, solver: Solver | None = None, **options: Any) -> Any:
    return hypergradient(problem.inner, problem.outer, problem.params, problem.hparams, solver, **options)


@pytest.mark.parametrize("factory", PROBLEMS, ids=NAMES)
@pytest.mark.parametrize("kappa", [1.5, 100.0, 1e4])
@pytest.mark.parametrize("seed", [0, 100])
def test_closed_forms(factory: Callable[..., Problem], kappa: float, seed: int) -> None:
    problem = factory(seed, kappa)
    for solver, damping in (
        (ConjugateGradient(tol=0.0, max_iter=40), 0.0),
        (Exact(), 0.0),
        (Nystrom(rank=99, damping=1e-3), 1e-3),
        (Nystrom(rank=99, damping=1e-3, sketch="columns"), 1e-3),
        (ConjugateGradient(tol=0.0, max_iter=40, damping=0.1), 0.1),
        (Exact(damping=0.1), 0.1),
    ):
        got = solve(problem, solver)
        # The error is eps kappa, 1e-12, and as much of the closed form itself.
        assert relative(got.grads, problem.grads(damping)) < 1e-10, solver
        assert relative(flat(got.adjoint), problem.adjoint(damping)) < 1e-10
        assert got.residual < 1e-11
        # The minimum is known to as many digits.
        assert got.inner_gradient_norm < 1e-12
    # A damping is a bias, and not a small one where it is as large as the curvature.
    if kappa > 1e3:
        assert relative(problem.grads(0.1), problem.grads()) > 1e-3


@pytest.mark.parametrize("factory", PROBLEMS, ids=NAMES)
@pytest.mark.parametrize("seed", [0, 100])
def test_closed_forms_by_series(factory: Callable[..., Problem], seed: int) -> None:
    problem = factory(seed, 3.0)
    for solver in (FixedPoint(tol=1e-12, max_iter=2000), Neumann(terms=250)):
        # An error of kappa tol.
        got = solve(problem, solver)
        assert relative(got.grads, problem.grads()) < 1e-10 and got.converged
    damped = FixedPoint(tol=1e-12, max_iter=2000, damping=0.3, step_size=0.2)
    assert relative(solve(problem, damped).grads, problem.grads(0.3)) < 1e-10


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 8),
    exponent=st.floats(0.1, 4.0),
    lines=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_random_ridge_problems(seed: int, exponent: float, lines: list[int]) -> None:
    shapes = {f"part{i}": (length,) for i, length in enumerate(lines)}
    problem = ridge(seed, 10.0**exponent, shapes)
    got = solve(problem, ConjugateGradient(tol=0.0, max_iter=60))
    # eps kappa, twice, and a little for vectors of nearly zero length
    assert relative(got.grads, problem.grads()) < 1e-9


def test_the_default_solver_is_conjugate_gradients_with_twenty_iterations() -> None:
    problem = ridge(0, 1e4)
    got, want = solve(problem), solve(problem, ConjugateGradient(tol=1e-6, max_iter=20))
    assert torch.equal(got.grads["w"], want.grads["w"]) and got.iterations == want.iterations
    assert got.converged and got.residual <= 1e-6


def test_the_outer_loss_may_depend_on_the_hyperparameters_itself() -> None:
    for seed in range(3):
        problem = ridge(seed, 10.0)

        def outer(params: Tensors, hparams: Tensors, problem: Problem = problem) -> Tensor:
            return problem.outer(params, hparams) + hparams["w"].sin().sum()

        got = hypergradient(problem.inner, outer, problem.params, problem.hparams, Exact())
        assert relative(got.grads["w"], problem.grads()["w"] + problem.hparams["w"].cos()) < 1e-10
        assert float(got.outer_loss) == float(outer(problem.params, problem.hparams))
        assert not got.outer_loss.requires_grad and not got.grads["w"].requires_grad


def test_an_outer_loss_of_the_hyperparameters_alone_needs_no_solution() -> None:
    problem = ridge()
    got = hypergradient(problem.inner, lambda _, h: h["w"].square().sum(), problem.params, problem.hparams)
    assert torch.equal(got.grads["w"], 2 * problem.hparams["w"])
    assert (got.residual, got.iterations, got.products) == (0.0, 0, 0)


def test_a_hyperparameter_of_the_outer_loss_alone() -> None:
    problem = ridge()

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return hparams["scale"] * problem.outer(params, hparams)

    hparams = {"w": problem.hparams["w"], "scale": torch.tensor(3.0, dtype=torch.float64)}
    got = hypergradient(lambda p, h: problem.inner(p, {"w": h["w"]}), outer, problem.params, hparams, Exact())
    value = problem.outer(problem.params, problem.hparams)
    assert relative(got.grads, {"w": 3 * problem.grads()["w"], "scale": value}) < 1e-10


def test_hyperparameters_without_dimensions() -> None:
    for seed in range(3):
        problem = ridge(seed, 10.0)
        one = torch.tensor(-2.0, dtype=torch.float64)

        def inner(params: Tensors, hparams: Tensors, problem: Problem = problem) -> Tensor:
            return problem.inner(params, {"w": hparams["decay"].expand(6) + problem.hparams["w"]})

        shifted = {"w": problem.hparams["w"] - 2.0}
        w = minimum(problem.inner, problem.params, shifted)
        matrix = problem.matrix + (shifted["w"].exp() - problem.hparams["w"].exp()).diag()
        b = grad(dense(problem.outer, w, shifted))(w["w"])
        want = -(shifted["w"].exp() * w["w"] * torch.linalg.solve(matrix, b)).sum()
        got = hypergradient(inner, problem.outer, w, {"decay": one}, ConjugateGradient(tol=0.0, max_iter=30))
        assert got.grads["decay"].shape == () and relative(got.grads["decay"], want) < 1e-10


@pytest.mark.parametrize("solver", [ConjugateGradient(tol=1e-12, max_iter=20), Neumann(terms=400)], ids=repr)
def test_weights_that_no_loss_uses_are_left_out(solver: Solver) -> None:
    problem = ridge(0, 3.0)
    params = {"idle": torch.ones(2, 2, dtype=torch.float64), **problem.params}
    used: Callable[[Any], Any] = lambda loss: lambda p, h: loss({"w": p["w"]}, h)  # noqa: E731
    got = hypergradient(used(problem.inner), used(problem.outer), params, problem.hparams, solver)
    assert relative(got.grads, problem.grads()) < 1e-10
    assert torch.equal(got.adjoint["idle"], torch.zeros(2, 2, dtype=torch.float64))


def test_a_weight_that_only_the_inner_loss_uses_and_one_that_only_the_outer_loss_uses() -> None:
    problem = ridge()

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        return problem.inner({"w": params["w"]}, hparams) + params["own"].square().sum()

    own = {"own": torch.zeros(3, dtype=torch.float64)}
    got = hypergradient(
        inner, lambda p, h: problem.outer({"w": p["w"]}, h), {**problem.params, **own}, problem.hparams, Exact()
    )
    assert relative(got.grads, problem.grads()) < 1e-10

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return problem.outer({"w": params["w"]}, hparams) + params["own"].sum()

    # No inner loss says where that weight lies: the system has no solution.
    with pytest.raises(NonPositiveCurvature):
        hypergradient(lambda p, h: problem.inner({"w": p["w"]}, h), outer, {**problem.params, **own}, problem.hparams)


def test_a_warm_start_is_the_adjoint_of_an_earlier_result() -> None:
    problem = ridge(0, 100.0, SHAPES)
    solver = ConjugateGradient(tol=1e-8, max_iter=50)
    first = solve(problem, solver)
    assert {n: t.shape for n, t in first.adjoint.items()} == {n: t.shape for n, t in problem.params.items()}
    again = solve(problem, solver, warm_start=first.adjoint)
    assert again.iterations == 0 and again.converged and again.products == 1
    assert relative(again.grads, first.grads) < 1e-15
    backwards = dict(reversed(list(first.adjoint.items())))
    assert solve(problem, solver, warm_start=backwards).iterations == 0
    near = {name: tensor * (1 + 1e-6) for name, tensor in first.adjoint.items()}
    assert 0 < solve(problem, solver, warm_start=near).iterations <= first.iterations


def test_memory_is_flat_since_one_graph_serves_all_products() -> None:
    """The graph of the gradient is built once, and a product neither adds to it nor changes it."""
    problem = ridge(0, 1e3)
    calls = 0

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.inner(params, hparams)

    counts, where = [], (problem.params, problem.hparams)
    for terms in (2, 8, 64):
        counts.append(hypergradient(inner, problem.outer, *where, Neumann(terms=terms, step_size=0.5)).products)
    assert counts == [2, 8, 64] and calls == 3
    it = InnerProblem(problem.inner, problem.params, problem.hparams)
    v = normal(1, 6)
    first = it.hessian_product(v)
    state = {name: value for name, value in vars(it).items() if name != "products"}
    for _ in range(50):
        assert torch.equal(it.hessian_product(v), first) and not first.requires_grad
    assert it.products == 51
    assert {name: id(value) for name, value in vars(it).items() if name != "products"} == {
        name: id(value) for name, value in state.items()
    }
    assert all(t.grad is None for t in [*it.params.values(), *it.hparams.values()])
    assert relative(first, problem.matrix @ v) < 1e-12


def test_dropout_is_the_same_in_all_products_as_the_inner_loss_is_called_once() -> None:
    torch.manual_seed(3)
    problem = ridge()
    calls, masks = [0, 0], []

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        calls[0] += 1
        masks.append(torch.nn.functional.dropout(torch.ones(6, dtype=torch.float64), 0.5))
        return problem.inner({"w": params["w"] * masks[-1]}, hparams) + 0.05 * params["w"].square().sum()

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        calls[1] += 1
        return problem.outer(params, hparams)

    solver = ConjugateGradient(tol=1e-12, max_iter=40)
    got = hypergradient(inner, outer, problem.params, problem.hparams, solver)
    assert calls == [1, 1] and got.converged and got.iterations >= 3
    (mask,) = masks
    assert 0 < int((mask == 0).sum()) < 6
    # With its mask it is a problem of its own, whose adjoint is known.
    matrix = mask.diag() @ problem.matrix @ mask.diag() + 0.1 * torch.eye(6, dtype=torch.float64)
    v = torch.linalg.solve(matrix, problem.b)
    want = -problem.hparams["w"].exp() * problem.params["w"] * mask.square() * v
    assert relative(got.grads["w"], want) < 1e-10


@pytest.mark.parametrize("seed", [0, 7])
def test_finite_differences_through_the_training_of_a_network(seed: int) -> None:
    """dF/dlambda by training anew at lambda +- h and +- 2h, from the same minimum.

    The gradient at a minimum is below 3e-13 and curvatures above 1e-2, so weights are known to 3e-11 and F, with slopes
    of 0.1 at most, to 3e-12 in the worst case: 1.5 * 3e-12 / 1e-3 = 4.5e-9 in dF/dlambda, of about 0.05. The error of
    fourth order is h^4 f^(5) / 30, 3e-14 f^(5), and less than that for a fifth derivative below 1e4. Together 1e-7.
    """
    inner, outer, start, hparams = network(seed)
    params = minimum(inner, start, hparams)
    curvatures = torch.linalg.eigvalsh(jacrev(grad(dense(inner, params, hparams)))(flat(params)))
    assert curvatures[0] > 1e-2 and curvatures[-1] / curvatures[0] < 1e3
    indefinite = torch.linalg.eigvalsh(jacrev(grad(dense(inner, start, hparams)))(flat(start)))
    assert indefinite[0] < 0  # of no convex function

    wanted = {}
    for name, hparam in hparams.items():
        slopes = torch.zeros_like(hparam)
        for place in range(len(hparam)):

            def moved(h: float, name: str = name, place: int = place) -> float:
                other = {n: t.clone() for n, t in hparams.items()}
                other[name][place] += h
                return float(outer(minimum(inner, params, other), other))

            slopes[place] = slope_of(moved, 1e-3)
        wanted[name] = slopes
    got = hypergradient(inner, outer, params, hparams, ConjugateGradient(tol=1e-13, max_iter=200))
    assert relative(got.grads, wanted) < 1e-7
    assert relative(hypergradient(inner, outer, params, hparams, Exact()).grads, wanted) < 1e-7
    assert relative(hypergradient(inner, outer, params, hparams, Identity()).grads, wanted) > 1e-2
    with pytest.raises(NonPositiveCurvature):
        hypergradient(inner, outer, start, hparams, ConjugateGradient(max_iter=50))


def test_the_norm_of_the_inner_gradient_says_how_far_the_weights_are_from_a_minimum() -> None:
    problem = ridge()
    offset = normal(5, 6)
    params = {"w": problem.params["w"] + offset}
    got = hypergradient(problem.inner, problem.outer, params, problem.hparams, Exact())
    assert got.inner_gradient_norm == pytest.approx(float((problem.matrix @ offset).norm()), rel=1e-12)


LOOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}


@pytest.mark.parametrize("weights", list(LOOSE))
@pytest.mark.parametrize("numbers", list(LOOSE))
def test_results_have_the_dtypes_of_what_they_belong_to(weights: torch.dtype, numbers: torch.dtype) -> None:
    problem = ridge(0, 3.0)

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        return problem.inner({"w": params["w"].double()}, {"w": hparams["w"].double()})

    params, hparams = {"w": problem.params["w"].to(weights)}, {"w": problem.hparams["w"].to(numbers)}
    got = hypergradient(
        inner,
        lambda p, h: problem.outer({"w": p["w"].double()}, h),
        params,
        hparams,
        ConjugateGradient(tol=1e-12 if weights == torch.float64 else 1e-3, max_iter=15),
    )
    assert got.adjoint["w"].dtype == weights and got.grads["w"].dtype == numbers
    # Digits of the dtype times kappa; weights that are rounded are at no minimum, which b feels.
    limit = max(LOOSE[weights], LOOSE[numbers])
    assert relative(got.grads["w"].double(), problem.grads()["w"]) < limit


def test_dtypes_may_be_mixed_in_one_dict() -> None:
    problem = ridge(0, 3.0, SHAPES)
    kinds = {"matrix": torch.float32, "number": torch.float64, "line": torch.bfloat16}
    cast: Callable[[Tensors], dict[str, Tensor]] = lambda d: {n: t.to(kinds[n]) for n, t in d.items()}  # noqa: E731
    wide: Callable[[Tensors], dict[str, Tensor]] = lambda d: {n: t.double() for n, t in d.items()}  # noqa: E731
    got = hypergradient(
        lambda p, h: problem.inner(wide(p), wide(h)),
        lambda p, h: problem.outer(wide(p), wide(h)),
        cast(problem.params),
        cast(problem.hparams),
        ConjugateGradient(tol=1e-3),
    )
    assert {n: t.dtype for n, t in got.grads.items()} == {n: t.dtype for n, t in got.adjoint.items()} == kinds
    assert relative(wide(got.grads), problem.grads()) < 0.05  # bfloat16 has 3 digits, and kappa is 3
    assert Layout(cast(problem.params)).dtype == torch.float64
    assert Layout({"line": torch.zeros(2, dtype=torch.bfloat16)}).dtype == torch.float32


def test_autocast_is_near_single_precision() -> None:
    inner, _, start, hparams = network()
    params = {n: t.float() for n, t in minimum(inner, start, hparams).items()}
    x, y = normal(0, 12, 2).float(), normal(1, 12).float()

    def fit(params: Tensors, hparams: Tensors) -> Tensor:
        out = torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]
        return (out.float() - y).square().mean() + (hparams["decay"].exp() * params["w1"].square()).sum()

    decay = {"decay": torch.zeros(2, 1)}
    solver = ConjugateGradient(tol=1e-2, max_iter=30, damping=1.0)
    plain = hypergradient(fit, fit, params, decay, solver)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ params["w1"]).dtype == torch.bfloat16
        mixed = hypergradient(fit, fit, params, decay, solver)
    assert mixed.grads["decay"].dtype == torch.float32 and bool(mixed.grads["decay"].isfinite().all())
    # bfloat16 has 3 digits; with the damping kappa is below 10.
    assert 0.0 < relative(mixed.grads, plain.grads) < 0.05


def test_gradients_that_the_caller_has_turned_off_are_turned_on() -> None:
    problem = ridge()
    with torch.no_grad():
        assert relative(solve(problem, Exact()).grads, problem.grads()) < 1e-10


def test_tensors_of_the_caller_are_left_alone() -> None:
    problem = ridge()
    w, decay = problem.params["w"].clone().requires_grad_(), problem.hparams["w"].clone().requires_grad_()
    got = hypergradient(problem.inner, problem.outer, {"w": w * 1.0}, {"w": decay}, Exact())
    assert relative(got.grads, problem.grads()) < 1e-10
    assert w.grad is None and decay.grad is None
    assert torch.equal(w.detach(), problem.params["w"]) and torch.equal(decay.detach(), problem.hparams["w"])


# What is refused


SOLVERS: list[Solver] = [
    ConjugateGradient(),
    Neumann(),
    Neumann(terms=400, step_size=0.1),
    FixedPoint(),
    FixedPoint(max_iter=400, step_size=0.1),
    Exact(),
    Nystrom(),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("signs", [(2.0, 1.0, -1.0), (-2.0, -1.0, -1.0)])
def test_weights_at_a_saddle_or_a_maximum_are_refused(solver: Solver, signs: tuple[float, ...]) -> None:
    curvature = torch.tensor(signs, dtype=torch.float64)
    ones = {"w": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(NonPositiveCurvature):
        hypergradient(
            lambda p, h: (curvature * (p["w"] - h["w"]).square()).sum() / 2,
            lambda p, h: p["w"].sum(),
            ones,
            ones,
            solver,
        )


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, Nystrom)], ids=repr)
def test_a_linear_inner_loss_is_refused(solver: Solver) -> None:
    ones = {"w": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(NonPositiveCurvature, match="curvature 0"):
        hypergradient(lambda p, h: (p["w"] * h["w"]).sum(), lambda p, h: p["w"].sum(), ones, ones, solver)


def test_a_learning_rate_is_sent_to_the_unrolled_estimator() -> None:
    problem = ridge()
    hparams = {**problem.hparams, "inner_lr": torch.tensor(0.1, dtype=torch.float64)}
    with pytest.raises(NotDifferentiable, match=r"does not depend on 'inner_lr' .*unrolled_hypergradient"):
        hypergradient(lambda p, h: problem.inner(p, {"w": h["w"]}), problem.outer, problem.params, hparams)


def test_a_hyperparameter_that_moves_no_weight_is_refused() -> None:
    problem = ridge()
    hparams = {**problem.hparams, "shift": torch.tensor(0.1, dtype=torch.float64)}
    with pytest.raises(NotDifferentiable, match="'shift' in a way that moves the weights"):
        hypergradient(
            lambda p, h: problem.inner(p, {"w": h["w"]}) + h["shift"].exp(), problem.outer, problem.params, hparams
        )


W = {"w": torch.ones(3, dtype=torch.float64)}
Fine = lambda p, h: ((p["w"] - h["w"]).square() * h["w"].exp()).sum()  # noqa: E731


def outside(params: Tensors, hparams: Tensors) -> Tensor:
    with torch.no_grad():
        return Fine(params, hparams)


@pytest.mark.parametrize(
    ("inner", "outer", "params", "hparams", "message"),
    [
        (Fine, lambda p, h: p["w"] * 2, W, W, r"^outer_loss must return a scalar tensor.*of shape \(3,\)"),
        (lambda p, h: p["w"] * h["w"], Fine, W, W, r"^inner_loss must return a scalar tensor.*of shape \(3,\)"),
        (Fine, lambda p, h: 3.0, W, W, "^outer_loss must return a scalar tensor, and it is a float"),
        (lambda p, h: Fine(p, h).item(), Fine, W, W, "^inner_loss must return .* a float"),
        (lambda p, h: None, Fine, W, W, "a NoneType"),
        (outside, Fine, W, W, "^inner_loss depends on neither params nor hparams: .*no_grad.*functional_call"),
        (Fine, outside, W, W, "^outer_loss depends on neither params nor hparams"),
        (lambda p, h: Fine(p, h).detach(), Fine, W, W, "^inner_loss depends on neither"),
        (lambda p, h: Fine({"w": p["w"].detach()}, h), Fine, W, W, "^inner_loss does not depend on params: .*copies"),
        (lambda p, h: Fine(p, {"w": h["w"].detach()}), lambda p, h: p["w"].sum(), W, W, "does not depend on 'w'"),
        (Fine, Fine, {}, W, "^params is empty"),
        (Fine, Fine, W, {}, "^hparams is empty"),
        (Fine, Fine, {"w": torch.ones(3, dtype=torch.int64)}, W, r"^params\['w'\] is of torch.int64"),
        (Fine, Fine, W, {"w": torch.ones(3, dtype=torch.bool)}, r"^hparams\['w'\] is of torch.bool"),
        (Fine, Fine, W, {"w": torch.ones(3, dtype=torch.complex64)}, "of torch.complex64: must be a floating-point"),
        (Fine, Fine, W, {"w": 0.1}, r"^hparams\['w'\] is of float"),
    ],
)
def test_what_cannot_be_differentiated(inner: Any, outer: Any, params: Any, hparams: Any, message: str) -> None:
    with pytest.raises(NotDifferentiable, match=message):
        hypergradient(inner, outer, params, hparams)


ROOT = lambda p, h: (p["w"] - 1.0).abs().sqrt().sum()  # noqa: E731


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (lambda p, h: Fine(p, h) * math.nan, Fine, "^inner_loss is nan"),
        (lambda p, h: Fine(p, h) / 0.0 + math.inf, Fine, "^inner_loss is (inf|nan)"),
        (Fine, lambda p, h: (p["w"] * h["w"] - 2.0).log().sum(), "^outer_loss is nan"),
        (Fine, lambda p, h: p["w"].sum() + math.inf, "^outer_loss is inf"),
        (Fine, ROOT, "^the gradient of outer_loss in params is not finite"),
        (lambda p, h: Fine(p, h) + ROOT(p, h), Fine, "^the gradient of inner_loss in params is not finite"),
        (
            lambda p, h: (p["w"] * h["w"]).sum() + (p["w"] - 1.0).abs().pow(1.5).sum(),
            lambda p, h: p["w"].sum(),
            "^ConjugateGradient: a Hessian-vector product is not finite",
        ),
    ],
)
def test_what_is_not_finite(inner: Any, outer: Any, message: str) -> None:
    with pytest.raises(NonFiniteLoss, match=message):
        hypergradient(inner, outer, W, W)


def test_all_that_is_refused_is_a_value_error() -> None:
    assert issubclass(HypergradientError, ValueError)
    for kind in (NotDifferentiable, NonFiniteLoss, NonPositiveCurvature):
        assert issubclass(kind, HypergradientError)


def test_a_result_without_a_damping_is_not_that_of_one_with_it() -> None:
    problem = ridge(0, 100.0)
    cg = ConjugateGradient(tol=1e-12, max_iter=40)
    far = relative(solve(problem, replace(cg, damping=0.01)).grads, solve(problem, cg).grads)
    assert far == pytest.approx(relative(problem.grads(0.01), problem.grads()), rel=1e-6) and far > 1e-3


@pytest.mark.parametrize(
    ("start", "says"), [({}, "warm_start\\['w'\\] is not there"), ({"w": torch.zeros(9)}, "is of shape \\(9,\\)")]
)
def test_a_warm_start_must_be_like_the_weights(start: dict[str, Tensor], says: str) -> None:
    loss = lambda p, h: (h["a"] * p["w"]).square().sum()  # noqa: E731
    with pytest.raises(HypergradientError, match=says):
        hypergradient(loss, loss, {"w": torch.ones(3)}, {"a": torch.ones(3)}, warm_start=start)
