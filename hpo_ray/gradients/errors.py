"""Why a hypergradient can't be had: a number that is no derivative is never returned in its place."""

from __future__ import annotations


class HypergradientError(ValueError):
    """Base of what the estimators raise."""


class NotDifferentiable(HypergradientError):
    """Something that a derivative was asked for does not depend on what it should; the message names it."""


class NonFiniteLoss(HypergradientError):
    """A loss, or a gradient of it, is infinite or not a number."""


class NonPositiveCurvature(HypergradientError):
    """The Hessian of the inner loss is not positive definite: the weights are at no strict minimum.

    Attributes:
        curvature: v'Av / v'v along the direction v in which it was met.
        iteration: of the solver, from 1.
    """

    def __init__(self, curvature: float, iteration: int, damping: float) -> None:
        if curvature > 0.0:
            super().__init__(
                f"the Hessian of the inner loss is singular to rounding: the solver met a curvature of {curvature:.3g} "
                f"at iteration {iteration} (with damping {damping:g}), too little beside its largest. Add "
                f"regularisation, give the solver more damping, or compute in double precision"
            )
            self.curvature, self.iteration = curvature, iteration
            return
        super().__init__(
            f"the inner loss has curvature {curvature:.3g} in a direction that the solver met at iteration "
            f"{iteration} (with damping {damping:g}), so the weights are at no strict minimum of it and there is no "
            f"implicit gradient. Train the inner problem further, add regularisation, or give the solver a damping "
            f"above {damping + max(0.0, -curvature):.3g}"
        )
        self.curvature, self.iteration = curvature, iteration


class SolverDiverged(HypergradientError):
    """An iteration moves away from its solution."""
