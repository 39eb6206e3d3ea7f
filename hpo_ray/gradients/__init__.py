"""Hypergradients: the derivative of a validation loss in the hyperparameters that the weights were trained with.

Pure functions over dicts of tensors, for PyTorch code of any kind; nothing here knows of Ray or of a study.

| estimator | in | cost | memory | exact |
|---|---|---|---|---|
| `hypergradient` | `implicit.py`, `solvers.py` | K Hessian-vector products | O(P), flat in K | at trained weights |
| `unrolled_hypergradient`, reverse | `unrolled.py` | 2 to 4 times the T steps | O(TP), or O(sqrt(T) P) | yes |
| `unrolled_hypergradient`, forward | `unrolled.py` | T H steps | O(HP), flat in T | yes |
| `darts_hypergradient`, `sama_hypergradient` | `first_order.py` | a few gradients | O(P) | no |
| `learning_rate_gradient` | `first_order.py` | a dot product | O(P) | of one step |

P weights, H hyperparameters, T training steps, K iterations of a solver. The first row and the fourth take what is in
the inner loss; learning rates, momentum and initial weights need the second or third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy

if TYPE_CHECKING:
    from hpo_ray.gradients.errors import (
        HypergradientError,
        NonFiniteLoss,
        NonPositiveCurvature,
        NotDifferentiable,
        SolverDiverged,
    )
    from hpo_ray.gradients.first_order import darts_hypergradient, learning_rate_gradient, sama_hypergradient
    from hpo_ray.gradients.functional import Functional
    from hpo_ray.gradients.implicit import Hypergradient, hypergradient
    from hpo_ray.gradients.solvers import (
        ConjugateGradient,
        Exact,
        FixedPoint,
        Identity,
        Neumann,
        Nystrom,
        Solution,
        Solver,
        top_eigenvalue,
    )
    from hpo_ray.gradients.transforms import Bounded, Positive, Transform
    from hpo_ray.gradients.unrolled import forward_step, unrolled_hypergradient
    from hpo_ray.gradients.updates import SGD, Adam, Update

_MODULES = {
    "errors": ("HypergradientError", "NonFiniteLoss", "NonPositiveCurvature", "NotDifferentiable", "SolverDiverged"),
    "first_order": ("darts_hypergradient", "learning_rate_gradient", "sama_hypergradient"),
    "functional": ("Functional",),
    "implicit": ("Hypergradient", "hypergradient"),
    "solvers": (
        "ConjugateGradient",
        "Exact",
        "FixedPoint",
        "Identity",
        "Neumann",
        "Nystrom",
        "Solution",
        "Solver",
        "top_eigenvalue",
    ),
    "transforms": ("Bounded", "Positive", "Transform"),
    "unrolled": ("forward_step", "unrolled_hypergradient"),
    "updates": ("SGD", "Adam", "Update"),
}

__all__ = [
    "SGD",
    "Adam",
    "Bounded",
    "ConjugateGradient",
    "Exact",
    "FixedPoint",
    "Functional",
    "Hypergradient",
    "HypergradientError",
    "Identity",
    "Neumann",
    "NonFiniteLoss",
    "NonPositiveCurvature",
    "NotDifferentiable",
    "Nystrom",
    "Positive",
    "Solution",
    "Solver",
    "SolverDiverged",
    "Transform",
    "Update",
    "darts_hypergradient",
    "forward_step",
    "hypergradient",
    "learning_rate_gradient",
    "sama_hypergradient",
    "top_eigenvalue",
    "unrolled_hypergradient",
]

__getattr__ = lazy(__name__, {name: module for module, names in _MODULES.items() for name in names})
