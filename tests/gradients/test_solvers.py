"""Linear solvers on matrices whose spectra are chosen: exactness, what is reported, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import normal, relative, spread, symmetric
from torch import Tensor

from hpo_ray.gradients import (
    ConjugateGradient,
    Exact,
    FixedPoint,
    HypergradientError,
    Identity,
    Neumann,
    NonFiniteLoss,
    NonPositiveCurvature,
    Nystrom,
    Solver,
    SolverDiverged,
    top_eigenvalue,
)

EYE = torch.eye(6, dtype=torch.float64)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


class Matrix:
    """A product that counts itself."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.products = matrix, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ v


ITERATIVE: list[Callable[..., Solver]] = [ConjugateGradient, FixedPoint]


@pytest.mark.parametrize("kappa", [1.5, 100.0, 1e4])
@pytest.mark.parametrize("seed", range(4))
def test_conjugate_gradients_are_exact_after_as_many_iterations_as_weights(seed: int, kappa: float) -> None:
    # Rounding makes the directions lose their orthogonality as they go, by about eps kappa: 1e-16 * 1e4 * some.
    a, b = symmetric(seed, spread(kappa, 6)), normal(seed + 9, 6)
    solution = ConjugateGradient(tol=0.0, max_iter=6).solve(Matrix(a), b)
    assert solution.iterations == 6
    assert relative(solution.vector, torch.linalg.solve(a, b)) < (1e-10 if kappa < 1e3 else 1e-6)
    early = ConjugateGradient(tol=0.0, max_iter=4).solve(Matrix(a), b)
    assert early.iterations == 4 and not early.converged
    assert relative(early.vector, torch.linalg.solve(a, b)) > 1e-8


@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradients_take_as_many_iterations_as_eigenspaces(seed: int) -> None:
    a = symmetric(seed, values(1, 2, 3, 4, 5, 6))
    lowest = torch.linalg.eigh(a).eigenvectors[:, 0]
    cg = ConjugateGradient(tol=1e-12, max_iter=6)
    assert cg.solve(Matrix(a), 3 * lowest).iterations == 1
    assert cg.solve(Matrix(2.5 * EYE), normal(seed, 6)).iterations == 1
    two = symmetric(seed, values(1, 1, 1, 7, 7, 7))
    solution = cg.solve(Matrix(two), normal(seed, 6))
    assert solution.iterations == 2 and solution.converged
    assert relative(solution.vector, torch.linalg.solve(two, normal(seed, 6))) < 1e-10


@pytest.mark.parametrize(("factory", "kappa"), [(ConjugateGradient, 1e3), (FixedPoint, 20.0)])
def test_tolerance_zero_runs_all_iterations(factory: Callable[..., Solver], kappa: float) -> None:
    a, b = symmetric(0, spread(kappa, 6)), normal(1, 6)
    for iterations in (3, 5, 17):
        assert factory(tol=0.0, max_iter=iterations).solve(Matrix(a), b).iterations == iterations


@pytest.mark.parametrize("spectrum", [spread(100.0, 6), values(1, 1, 1, 7, 7, 7), spread(1e4, 6)])
def test_conjugate_gradients_that_go_on_past_rounding_stay_where_they_are(spectrum: Tensor) -> None:
    a, b = symmetric(0, spectrum), normal(1, 6)
    solution = ConjugateGradient(tol=0.0, max_iter=400).solve(Matrix(a), b)
    assert relative(solution.vector, torch.linalg.solve(a, b)) < 1e-10
    assert solution.residual < 1e-11  # eps times kappa


REPORTED: list[Solver] = [
    ConjugateGradient(tol=1e-12, max_iter=50),
    ConjugateGradient(tol=1e-12, max_iter=1),
    ConjugateGradient(tol=1e-12, max_iter=3),
    ConjugateGradient(tol=1e-2, max_iter=50, damping=0.1),
    Neumann(terms=1),
    Neumann(terms=30, damping=0.2),
    Neumann(terms=4, step_size=0.3),
    FixedPoint(tol=1e-3, max_iter=500),
    FixedPoint(max_iter=3, step_size=0.9),
    Nystrom(rank=6, damping=0.05),
    Nystrom(rank=2, damping=0.05),
    Nystrom(rank=2, damping=0.05, sketch="columns"),
    Exact(),
    Exact(damping=0.3),
    Identity(scale=0.7),
]


@pytest.mark.parametrize("solver", REPORTED, ids=repr)
@pytest.mark.parametrize("kappa", [3.0, 1e3])
@pytest.mark.parametrize("started", [False, True])
def test_the_residual_is_that_of_the_damped_system(solver: Solver, kappa: float, started: bool) -> None:
    a, b = symmetric(0, spread(kappa, 6)), normal(1, 6)
    solution = solver.solve(Matrix(a), b, normal(2, 6) if started else None)
    damped = a + float(getattr(solver, "damping", 0.0)) * EYE
    # Both sides are rounded at eps |A| |v| / |b|, at most eps kappa.
    want = float((damped @ solution.vector - b).norm() / b.norm())
    assert solution.residual == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert solution.converged == (solution.residual <= solver.tol)


def test_a_residual_that_was_not_measured_is_not_a_number() -> None:
    product = Matrix(EYE)
    solution = Identity(scale=2.0, measure=False).solve(product, normal(0, 6))
    assert math.isnan(solution.residual) and not solution.converged and product.products == 0
    assert torch.equal(solution.vector, 2.0 * normal(0, 6))


@pytest.mark.parametrize("solver", REPORTED, ids=repr)
def test_nothing_is_solved_where_b_is_zero(solver: Solver) -> None:
    product = Matrix(-EYE)
    solution = solver.solve(product, torch.zeros(6, dtype=torch.float64), normal(0, 6))
    assert torch.equal(solution.vector, torch.zeros(6, dtype=torch.float64))
    assert (solution.residual, solution.iterations, solution.converged, product.products) == (0.0, 0, True, 0)


@pytest.mark.parametrize("factory", ITERATIVE)
def test_a_start_at_the_solution_takes_no_iteration_and_one_nearby_fewer(factory: Callable[..., Solver]) -> None:
    a, b = symmetric(0, spread(30.0, 6)), normal(1, 6)
    exact, solver = torch.linalg.solve(a, b), factory(tol=1e-4, max_iter=900)
    cold = solver.solve(Matrix(a), b)
    product = Matrix(a)
    warm = solver.solve(product, b, exact)
    assert (warm.iterations, warm.converged, torch.equal(warm.vector, exact)) == (0, True, True)
    near = solver.solve(Matrix(a), b, exact + 1e-3 * normal(2, 6))
    assert 0 < near.iterations < cold.iterations and near.converged
    assert relative(near.vector, exact) < 30 * 1e-4


def test_a_start_is_left_as_it_is() -> None:
    a, b, start = symmetric(0, spread(30.0, 6)), normal(1, 6), normal(2, 6)
    for solver in REPORTED:
        solver.solve(Matrix(a), b, start)
    assert torch.equal(start, normal(2, 6)) and torch.equal(b, normal(1, 6))


@pytest.mark.parametrize("damping", [1e-3, 0.5, 20.0])
@pytest.mark.parametrize(
    "solver",
    [
        lambda damping: ConjugateGradient(tol=1e-13, max_iter=60, damping=damping),
        lambda damping: FixedPoint(tol=1e-13, max_iter=2000, damping=damping),
        lambda damping: Neumann(terms=1000, damping=damping),
        lambda damping: Nystrom(rank=6, damping=damping),
        lambda damping: Nystrom(rank=99, damping=damping, sketch="columns"),
        lambda damping: Exact(damping=damping),
    ],
)
def test_damping_solves_the_damped_system(solver: Callable[[float], Solver], damping: float) -> None:
    for seed in range(3):
        a, b = symmetric(seed, spread(20.0, 6)), normal(seed + 9, 6)
        solution = solver(damping).solve(Matrix(a), b)
        assert relative(solution.vector, torch.linalg.solve(a + damping * EYE, b)) < 1e-10
        assert solution.converged


@pytest.mark.parametrize("sketch", ["gaussian", "columns"])
def test_nystrom_of_a_matrix_of_low_rank_needs_no_more_than_its_rank(sketch: Any) -> None:
    low = symmetric(0, values(3, 2, 1, 0, 0, 0))
    b = normal(1, 6)
    product = Matrix(low)
    solution = Nystrom(rank=3, damping=0.01, sketch=sketch).solve(product, b)
    # The core of three drawn columns may be ill-conditioned itself.
    assert relative(solution.vector, torch.linalg.solve(low + 0.01 * EYE, b)) < 1e-8
    assert solution.converged and product.products == 4
    less = Nystrom(rank=2, damping=0.01, sketch=sketch).solve(Matrix(low), b)
    assert not less.converged and less.residual > 1e-2


def test_nystrom_on_a_zero_matrix_divides_by_the_damping() -> None:
    solution = Nystrom(rank=3, damping=0.5).solve(Matrix(0 * EYE), normal(0, 6))
    assert relative(solution.vector, 2.0 * normal(0, 6)) < 1e-14 and solution.converged


def test_the_sketch_depends_on_the_seed_alone() -> None:
    a, b = symmetric(0, spread(30.0, 6)), normal(1, 6)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = Nystrom(rank=2, seed=3).solve(Matrix(a), b).vector
    assert torch.equal(one, Nystrom(rank=2, seed=3).solve(Matrix(a), b).vector)
    assert not torch.equal(one, Nystrom(rank=2, seed=4).solve(Matrix(a), b).vector)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("step", [0.1, 0.9, 1.9])
@pytest.mark.parametrize("terms", [1, 2, 7, 40])
@pytest.mark.parametrize("started", [False, True])
def test_the_error_of_a_neumann_series(step: float, terms: int, started: bool) -> None:
    """v_K - A^-1 b = (I - alpha A)^K (v_0 - A^-1 b)."""
    for seed, kappa in ((0, 2.0), (1, 50.0), (2, 1e4)):
        a, b = symmetric(seed, spread(kappa, 6)), normal(seed + 9, 6)
        exact = torch.linalg.solve(a, b)
        start = normal(seed + 7, 6) if started else torch.zeros(6, dtype=torch.float64)
        want = exact + torch.linalg.matrix_power(EYE - step * a, terms) @ (start - exact)
        solution = Neumann(terms=terms, step_size=step).solve(Matrix(a), b, start if started else None)
        # A^-1 b is known to eps kappa of its length only, 2e-12, and that is 1e4 times what is compared at times.
        assert relative(solution.vector, want) < (1e-12 if kappa < 1e3 else 1e-7)
        assert solution.iterations == terms


@pytest.mark.parametrize("seed", range(3))
def test_fixed_point_is_the_neumann_series_of_as_many_terms(seed: int) -> None:
    a, b = symmetric(seed, spread(30.0, 6)), normal(seed + 9, 6)
    fixed = FixedPoint(tol=1e-5, max_iter=999, step_size=0.8).solve(Matrix(a), b)
    assert fixed.converged and fixed.iterations > 10
    series = Neumann(terms=fixed.iterations, step_size=0.8).solve(Matrix(a), b)
    assert torch.equal(fixed.vector, series.vector)
    assert not Neumann(terms=fixed.iterations - 1, step_size=0.8, tol=1e-5).solve(Matrix(a), b).converged


@pytest.mark.parametrize(
    ("solver", "started", "products"),
    [
        (ConjugateGradient(tol=1e-12, max_iter=3), False, 3),  # not converged: nothing to verify
        (ConjugateGradient(tol=1e-12, max_iter=3), True, 4),
        (ConjugateGradient(tol=1e-9, max_iter=30), False, 7),  # six, and one to verify
        (Neumann(terms=5, step_size=0.5), False, 5),
        (Neumann(terms=5, step_size=0.5), True, 6),
        (FixedPoint(max_iter=5, step_size=0.5), False, 5),
        (Nystrom(rank=4), False, 5),
        (Nystrom(rank=99), False, 7),
        (Exact(), False, 6),
        (Identity(), False, 1),
    ],
    ids=repr,
)
def test_products(solver: Solver, started: bool, products: int) -> None:
    product = Matrix(symmetric(0, spread(30.0, 6)))
    solver.solve(product, normal(1, 6), normal(2, 6) if started else None)
    assert product.products == products


SOLVERS: list[Solver] = [
    ConjugateGradient(max_iter=100),
    Neumann(terms=400),
    Neumann(terms=400, step_size=0.1),
    FixedPoint(max_iter=400),
    FixedPoint(max_iter=400, step_size=0.1),
    Exact(),
    Nystrom(rank=6, damping=0.01),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(
    "spectrum",
    [values(3, 2, 1, 1, 0.5, -1), values(3, 2, 1, 1, 0.5, -0.1), -spread(10.0, 6), values(1, 1, 1, -3, -3, -3)],
    ids=["indefinite", "slightly", "negative", "mostly"],
)
def test_curvature_that_is_not_positive_is_refused(solver: Solver, spectrum: Tensor) -> None:
    for seed in range(3):
        with pytest.raises(NonPositiveCurvature, match="no strict minimum") as caught:
            solver.solve(Matrix(symmetric(seed, spectrum)), normal(seed + 9, 6))
        assert caught.value.curvature <= 0.0 and caught.value.curvature >= spectrum.min() - 1e-9


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if not isinstance(solver, Nystrom)], ids=repr)
def test_no_curvature_at_all_is_refused(solver: Solver) -> None:
    with pytest.raises(NonPositiveCurvature):
        solver.solve(Matrix(0 * EYE), normal(0, 6))


@pytest.mark.parametrize("solver", [ConjugateGradient, Exact, Neumann, FixedPoint, Nystrom])
def test_the_damping_that_is_asked_for_is_enough(solver: Callable[..., Solver]) -> None:
    a, b = symmetric(0, values(3, 2, 1, 1, 0.5, -1)), normal(1, 6)
    with pytest.raises(NonPositiveCurvature, match=r"damping 0\.01\).*damping above 1\.\d+$"):
        solver(damping=0.01).solve(Matrix(a - 0.2 * EYE), torch.linalg.eigh(a).eigenvectors[:, 0])
    exact = Exact(damping=1.3).solve(Matrix(a - 0.2 * EYE), b)
    assert exact.converged


@pytest.mark.parametrize("factory", [Neumann, FixedPoint])
@pytest.mark.parametrize("kappa", [1.2, 100.0, 1e4])
@pytest.mark.parametrize("factor", [1.05, 1.5, 10.0])
def test_a_step_that_is_too_large_is_refused(factory: Callable[..., Solver], kappa: float, factor: float) -> None:
    for seed in range(3):
        a, b = symmetric(seed, 4.0 * spread(kappa, 6)), normal(seed + 9, 6)
        step = factor * 2.0 / 4.0
        count = {"terms": 400} if factory is Neumann else {"max_iter": 400}
        with pytest.raises(SolverDiverged, match=re.escape(f"{factory.__name__}(step_size={step:g})")) as caught:
            factory(step_size=step, **count).solve(Matrix(a), b)
        found = re.search(r"here below ([\d.e+-]+);", str(caught.value))
        assert found is not None
        # No smaller than the true limit, and never a step that is too large by its own words.
        assert 0.5 * 0.99 <= float(found[1]) <= step


@pytest.mark.parametrize("factory", [Neumann, FixedPoint])
def test_a_step_below_the_limit_does_not_diverge(factory: Callable[..., Solver]) -> None:
    for seed in range(5):
        a, b = symmetric(seed, 4.0 * spread(100.0, 6)), normal(seed + 9, 6)
        count = {"terms": 300} if factory is Neumann else {"max_iter": 300}
        assert factory(step_size=0.99 * 0.5, **count).solve(Matrix(a), b).residual < 1.0


def test_a_step_of_its_own_never_diverges() -> None:
    """Of a spectrum whose largest eigenvalues are close, power iteration finds too little."""
    for seed in range(60):
        size = 2 + seed % 30
        eigenvalues = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if seed % 3 == 0:
            eigenvalues = spread(1e4, size)
        elif seed % 3 == 1:
            eigenvalues[0] = 50.0
        a, b = symmetric(seed, 1e-3 + eigenvalues), normal(seed, size)
        if seed % 4 == 0:  # all of b where power iteration may not look
            b = torch.linalg.eigh(a).eigenvectors[:, -1]
        solution = Neumann(terms=60).solve(Matrix(a), b)
        assert solution.residual < 1.0 and solution.iterations == 60
        assert FixedPoint(max_iter=60).solve(Matrix(a), b).residual < 1.0


def test_a_step_of_its_own_is_halved_where_power_iteration_came_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo_ray.gradients.solvers.top_eigenvalue", lambda product, like: 0.1)
    a, b = symmetric(0, spread(10.0, 6)), normal(1, 6)
    solution = FixedPoint(tol=1e-8, max_iter=900).solve(Matrix(a), b)
    assert solution.converged and relative(solution.vector, torch.linalg.solve(a, b)) < 1e-7


@pytest.mark.parametrize("top", [1.0, -7.0])
def test_the_top_eigenvalue_is_the_largest_in_absolute_value_from_below(top: float) -> None:
    for seed in range(5):
        a = symmetric(seed, values(top, 0.4, 0.3, 0.1, 0.0, -0.2))
        found = top_eigenvalue(Matrix(a), normal(seed, 6), iterations=50, tol=1e-12)
        assert found == pytest.approx(top, rel=1e-9)
        product = Matrix(a)
        rough = top_eigenvalue(product, normal(seed, 6))
        assert rough == pytest.approx(top, rel=0.03) and abs(rough) <= abs(top) * (1 + 1e-12) and product.products <= 20
    assert top_eigenvalue(Matrix(0 * EYE), normal(0, 6)) == 0.0


@pytest.mark.parametrize("solver", [*SOLVERS, Identity()], ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite_are_refused(solver: Solver, bad: float) -> None:
    with pytest.raises(NonFiniteLoss, match=f"{type(solver).__name__}: a Hessian-vector product is not finite"):
        solver.solve(lambda v: torch.full_like(v, bad), normal(0, 6))


@pytest.mark.parametrize(
    ("factory", "wrong", "message"),
    [
        (ConjugateGradient, {"tol": -1e-9}, "ConjugateGradient(tol=-1e-09): must be at or above 0"),
        (ConjugateGradient, {"max_iter": 0}, "ConjugateGradient(max_iter=0): must be above 0"),
        (ConjugateGradient, {"damping": -1.0}, "ConjugateGradient(damping=-1.0): must be at or above 0"),
        (Neumann, {"terms": 0}, "Neumann(terms=0): must be above 0"),
        (Neumann, {"step_size": 0.0}, "Neumann(step_size=0.0): must be above 0, or 'auto'"),
        (Neumann, {"step_size": "automatic"}, "Neumann(step_size='automatic'): must be above 0, or 'auto'"),
        (Neumann, {"damping": -0.1}, "Neumann(damping=-0.1)"),
        (Neumann, {"tol": -0.1}, "Neumann(tol=-0.1)"),
        (FixedPoint, {"step_size": -1}, "FixedPoint(step_size=-1): must be above 0, or 'auto'"),
        (FixedPoint, {"max_iter": -1}, "FixedPoint(max_iter=-1)"),
        (FixedPoint, {"tol": math.nan}, "FixedPoint(tol=nan)"),
        (Nystrom, {"rank": 0}, "Nystrom(rank=0): must be above 0"),
        (Nystrom, {"damping": 0.0}, "Nystrom(damping=0.0): must be above 0"),
        (Nystrom, {"sketch": "rows"}, "Nystrom(sketch='rows'): must be 'gaussian' or 'columns'"),
        (Exact, {"damping": -1.0}, "Exact(damping=-1.0)"),
        (Exact, {"max_params": 0}, "Exact(max_params=0): must be above 0"),
        (Identity, {"scale": 0.0}, "Identity(scale=0.0): must be above 0"),
        (Identity, {"tol": -1.0}, "Identity(tol=-1.0)"),
    ],
)
def test_arguments_that_make_no_solver(factory: Callable[..., Solver], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(HypergradientError, match=re.escape(message)):
        factory(**wrong)


def test_exact_refuses_what_is_too_large_before_it_starts() -> None:
    product = Matrix(EYE)
    with pytest.raises(HypergradientError, match=r"Exact\(max_params=5\).* 6 weights.*ConjugateGradient"):
        Exact(max_params=5).solve(product, normal(0, 6))
    assert product.products == 0


@pytest.mark.parametrize("iterations", [4, 5, 20])
def test_conjugate_gradients_refuse_a_singular_matrix_that_b_is_not_in_the_range_of(iterations: int) -> None:
    """There p'Ap is rounding in the end, of either sign, and a step by its inverse goes as far as 1e16."""
    for seed in range(40):
        a, b = symmetric(seed, values(3, 2, 2, 1, 0, 0)), normal(seed + 9, 6)
        with pytest.raises(NonPositiveCurvature):
            ConjugateGradient(max_iter=iterations).solve(Matrix(a), b)
        inside = a @ b
        solution = ConjugateGradient(tol=1e-10, max_iter=iterations).solve(Matrix(a), inside)
        assert solution.converged and relative(a @ solution.vector, inside) < 1e-10


def test_a_series_in_a_singular_matrix_is_what_it_is() -> None:
    """Where there is no curvature v grows by the same in each term, and the residual says so."""
    for seed in range(20):
        a, b = symmetric(seed, values(3, 2, 2, 1, 0, 0)), normal(seed + 9, 6)
        null = torch.linalg.eigh(a).eigenvectors[:, :2]
        solution = Neumann(terms=300, step_size=0.3).solve(Matrix(a), b)
        assert relative(null.T @ solution.vector, 90.0 * null.T @ b) < 1e-10
        assert solution.residual == pytest.approx(float((null.T @ b).norm() / b.norm()), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_dense_solve_refuses_a_singular_matrix_whatever_rounding_makes_of_its_factor(seed: int) -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = rows @ rows.T
    with pytest.raises(NonPositiveCurvature):
        Exact().solve(lambda v: matrix @ v, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("sketch", ["gaussian", "columns"])
def test_nystrom_at_full_rank_of_an_indefinite_matrix_is_exact_or_refuses(sketch: Any) -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor([-0.3, 0.1, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)) @ basis.T
    b = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = Nystrom(rank=6, damping=0.5, sketch=sketch).solve(lambda v: matrix @ v, b)
    exact = torch.linalg.solve(matrix + 0.5 * torch.eye(6, dtype=torch.float64), b)
    assert torch.allclose(found.vector, exact, rtol=1e-10) and found.residual < 1e-12
    with pytest.raises(NonPositiveCurvature):
        Nystrom(rank=6, damping=0.2, sketch=sketch).solve(lambda v: matrix @ v, b)
