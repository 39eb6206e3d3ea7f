"""Free numbers for bounded hyperparameters: there and back, gradients, and the bounds."""

from __future__ import annotations

import math

import pytest
import torch
from problems import relative, ridge

from hpo_ray.gradients import Bounded, Exact, Positive, Transform, hypergradient

VALUES = torch.tensor([[1e-4, 0.3], [0.5, 0.997]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("transform", "values"),
    [
        (Positive(1e-6, 1.0), VALUES),
        (Positive(1e-6, 1e3), 100 * VALUES),
        (Bounded(0.0, 1.0, margin=1e-5), VALUES),
        (Bounded(-3.0, 5.0), 8 * VALUES.clamp(0.01) - 3),
    ],
)
def test_there_and_back(transform: Transform, values: torch.Tensor) -> None:
    assert relative(transform.to_value(transform.to_free(values)), values) < 1e-12
    assert relative(transform.to_free(transform.to_value(transform.to_free(values))), transform.to_free(values)) < 1e-10
    assert torch.autograd.gradcheck(transform.to_value, (transform.to_free(values).requires_grad_(),))


def test_by_hand() -> None:
    number = torch.tensor(math.e**2, dtype=torch.float64)
    assert float(Positive(1.0, 100.0).to_free(number)) == pytest.approx(2.0, rel=1e-15)
    assert float(Bounded(2.0, 6.0).to_free(torch.tensor(5.0, dtype=torch.float64))) == pytest.approx(math.log(3.0))
    assert float(Bounded(2.0, 6.0).to_value(torch.tensor(0.0, dtype=torch.float64))) == 4.0


def test_positive_stops_at_the_logarithms_of_its_bounds() -> None:
    transform = Positive(1e-3, 10.0)
    free = torch.tensor([-100.0, math.log(1e-3), 0.0, math.log(10.0), 5.0], dtype=torch.float64)
    projected = transform.project(free)
    assert torch.equal(projected[1:4], free[1:4])
    assert relative(transform.to_value(projected), torch.tensor([1e-3, 1e-3, 1.0, 10.0, 10.0]).double()) < 1e-7
    assert torch.equal(transform.project(projected), projected)


def test_bounded_never_leaves_its_bounds_and_is_not_stopped() -> None:
    transform = Bounded(-1.0, 3.0)
    free = torch.linspace(-50.0, 50.0, 11).double()
    values = transform.to_value(free)
    assert bool((values >= -1.0).all()) and bool((values <= 3.0).all()) and bool((values.diff() >= 0).all())
    assert torch.equal(transform.project(free), free)


@pytest.mark.parametrize("margin", [1e-3, 0.1])
def test_a_start_at_a_bound_is_moved_inside_so_that_there_is_a_gradient(margin: float) -> None:
    transform = Bounded(2.0, 4.0, margin)
    for bound, inside in ((2.0, 2.0 + 2 * margin), (4.0, 4.0 - 2 * margin)):
        free = transform.to_free(torch.tensor(bound, dtype=torch.float64)).requires_grad_()
        value = transform.to_value(free)
        assert float(value.detach()) == pytest.approx(inside, rel=1e-12)
        (slope,) = torch.autograd.grad(value, free)
        assert float(slope) == pytest.approx(2.0 * margin * (1 - margin), rel=1e-9)


@pytest.mark.parametrize("transform", [Positive(1e-4, 10.0), Bounded(0.0, 2.0)])
def test_the_hypergradient_of_a_free_number_is_that_of_its_value_times_its_slope(transform: Transform) -> None:
    problem = ridge(0, 10.0)
    decay = problem.hparams["w"].exp()
    free = transform.to_free(decay)
    got = hypergradient(
        lambda p, h: problem.inner(p, {"w": transform.to_value(h["u"]).log()}),
        problem.outer,
        problem.params,
        {"u": free},
        Exact(),
    )
    slope = torch.autograd.functional.jacobian(transform.to_value, free).diagonal()
    assert relative(got.grads["u"], problem.grads()["w"] / decay * slope) < 1e-10


@pytest.mark.parametrize("transform", [Positive(1e-4, 10.0), Bounded(0.0, 2.0)])
def test_dtypes_are_kept(transform: Transform) -> None:
    for kind in (torch.float32, torch.float64, torch.bfloat16):
        free = transform.to_free(torch.tensor(0.5, dtype=kind))
        assert free.dtype == kind == transform.to_value(free).dtype == transform.project(free).dtype
