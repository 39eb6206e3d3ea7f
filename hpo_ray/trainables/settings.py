"""How a differentiable task is trained and its hyperparameters are moved: the settings, checked without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from hpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from hpo_ray.trainables.differentiable import DifferentiableTask

SOLVERS = ("conjugate_gradient", "neumann", "fixed_point", "nystrom", "exact", "identity")
"""Implicit estimators: what is in the inner loss."""
FIRST_ORDER = ("darts", "sama")
"""Estimators of one step from gradients alone: what is in the inner loss."""
TRAINING = ("unrolled", "forward")
"""Estimators through the steps of training: everything that these depend on."""
ESTIMATORS = (*SOLVERS, *FIRST_ORDER, *TRAINING, "descent", "none")

_ONLY: Mapping[str, tuple[str, ...]] = {
    "iterations": ("conjugate_gradient", "neumann", "fixed_point", "nystrom"),
    "tol": SOLVERS,
    "damping": ("conjugate_gradient", "neumann", "fixed_point", "nystrom", "exact"),
    "step_size": ("neumann", "fixed_point"),
    "warm_start": ("conjugate_gradient", "neumann", "fixed_point"),
    "truncate": ("unrolled",),
    "keep": ("unrolled",),
    "restart": ("unrolled",),
    "epsilon": FIRST_ORDER,
    "outer_lr": tuple(name for name in ESTIMATORS if name != "none"),
    "outer_optimizer": (*SOLVERS, *FIRST_ORDER, *TRAINING),
    "outer_batch_size": (*SOLVERS, *FIRST_ORDER, *TRAINING),
}
"""Which estimators have which of the settings that not all have."""
_COUNTS = ("iterations", "truncate", "inner_steps", "batch_size", "outer_batch_size", "outer_folds")
_POSITIVE = ("inner_lr", "outer_lr", "step_size", "epsilon")
_FROM_ZERO = ("tol", "damping", "inner_momentum")
OF_SPACE = ("inner_lr", "inner_momentum", "inner_steps", "batch_size")
"""Settings of the training, which a name of the space sets, too."""
SEARCHABLE = (*OF_SPACE, "outer_lr", "iterations", "damping", "truncate", "epsilon")
"""Settings that may be domains of the search."""


@dataclass(frozen=True)
class Hypergradient:
    """Trains a differentiable task, and moves its hyperparameters along the gradient of its validation loss.

    One step is `inner_steps` steps of training and one step of the hyperparameters. Whatever is null is the task's own,
    or the estimator's own default. A setting of `SEARCHABLE` may be a domain, `trainable.outer_lr={low: 0.01, high:
    1.0, log: true}`, and is then searched; a name of the space that is one of `OF_SPACE` sets that, too.

    Args:
        name: of the choice.
        precision: `fp32` or `bf16`: of the losses' forward passes.
        estimator: of the hypergradient: one of `ESTIMATORS`. `none` leaves the hyperparameters as they are: what
            black-box methods train.
        iterations: of the solver: at most (`conjugate_gradient` 20, `fixed_point` 100), terms (`neumann` 20), or rank
            (`nystrom` 20).
        tol: the residual at which a solver stops, or counts as converged: 1e-6.
        damping: added to the Hessian's diagonal: 0, of `nystrom` 0.01. Where the curvature is not positive a trial
            raises it by itself, lets it fall again, and reports it.
        step_size: of `neumann` and `fixed_point`: null finds one.
        warm_start: whether a solver starts from its last solution: true.
        truncate: of `unrolled`: the last so many steps are differentiated; null: all.
        keep: of `unrolled`: `all` states; each `sqrt`-th, which takes less memory and one more training; or the
            `graphs` of all steps, which takes the most memory and the least time.
        restart: of `unrolled`: whether each training starts anew from the same initial weights, or goes on: true.
        epsilon: of `darts` (0.01) and `sama` (1): length of the finite difference.
        inner_optimizer: of the training: `sgd` or `adam`.
        inner_lr: its learning rate.
        inner_momentum: of `sgd`.
        inner_steps: steps of training for one step of the hyperparameters.
        batch_size: examples in a step of training; null is the task's own number, by default all.
        outer_batch_size: examples of each split in a hypergradient; null is the task's own number, by default all.
        outer_optimizer: of the hyperparameters: `adam` (null) or `sgd`.
        outer_lr: its learning rate, in the logarithm of a hyperparameter with a log domain, in the logit of its place
            between its bounds otherwise; of `descent` beta, in the learning rate itself.
        outer_folds: K of a K-fold outer loss: training and validation data are pooled, K models trained without one
            fold each, and the outer loss is the mean over each one's own fold. 1: the validation data.

    Raises:
        ConfigError: a value is out of its range, or the estimator has no such setting.
    """

    name: str = "hypergradient"
    precision: str = "fp32"
    estimator: str = "conjugate_gradient"
    iterations: int | None = None
    tol: float | None = None
    damping: float | None = None
    step_size: float | None = None
    warm_start: bool | None = None
    truncate: int | None = None
    keep: str | None = None
    restart: bool | None = None
    epsilon: float | None = None
    inner_optimizer: str | None = None
    inner_lr: float | None = None
    inner_momentum: float | None = None
    inner_steps: int | None = None
    batch_size: int | None = None
    outer_batch_size: int | None = None
    outer_optimizer: str | None = None
    outer_lr: float | None = None
    outer_folds: int = 1
    searched: tuple[str, ...] = field(default=(), init=False)
    """The settings that are domains of the search."""

    def __post_init__(self) -> None:
        _one_of("estimator", self.estimator, ESTIMATORS)
        _one_of("inner_optimizer", self.inner_optimizer, ("sgd", "adam", None))
        _one_of("outer_optimizer", self.outer_optimizer, ("adam", "sgd", None))
        _one_of("precision", self.precision, ("fp32", "bf16"))
        _one_of("keep", self.keep, ("graphs", "all", "sqrt", None))
        for key, estimators in _ONLY.items():
            if getattr(self, key) is not None and self.estimator not in estimators:
                _refuse(key, getattr(self, key), f"estimator={self.estimator} has none; {', '.join(estimators)} do")
        for key in _COUNTS:
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                _refuse(key, value, "must be a whole number >= 1")
        for key in (*_POSITIVE, *_FROM_ZERO):
            value = getattr(self, key)
            least = 0.0 if key in _FROM_ZERO else math.ulp(0.0)
            if value is not None and (not _is_number(value) or not least <= value < math.inf):
                _refuse(key, value, f"must be a number {'>=' if key in _FROM_ZERO else '>'} 0")
        if self.inner_momentum is not None and self.inner_momentum >= 1:
            _refuse("inner_momentum", self.inner_momentum, "must be below 1")
        if self.estimator == "nystrom" and self.damping == 0:
            _refuse("damping", self.damping, "nystrom divides by it; give a number > 0")
        for key in ("warm_start", "restart"):
            if not isinstance(getattr(self, key), bool | None):
                _refuse(key, getattr(self, key), "must be true, false or null")

    def with_config(self, config: Mapping[str, Any]) -> Hypergradient:
        """The settings of a trial, whose configuration may have some of them.

        Raises:
            ConfigError: a value is out of its range, or the estimator has no such setting.
        """
        own = {key: config[key] for key in (*OF_SPACE, *self.searched) if config.get(key) is not None}
        return replace(self, **own) if own else self

    def searching(self, names: Iterable[str]) -> Hypergradient:
        """The same settings, some of which each trial's configuration has."""
        copy = replace(self)
        object.__setattr__(copy, "searched", tuple(names))
        return copy

    @property
    def moves(self) -> bool:
        """Whether hyperparameters are moved at all."""
        return self.estimator != "none"

    def bind(self, task: type[DifferentiableTask]) -> type:
        """The Ray Tune class that trains a task by these settings."""
        from hpo_ray.trainables.hypergradient import HypergradientTrainable

        return type(task.__name__, (HypergradientTrainable,), {"task_class": task, "settings": self})


def searched(section: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration section that are domains.

    Raises:
        ConfigError: a setting that can't be searched is one.
    """
    domains = {key: value for key, value in section.items() if isinstance(value, Mapping | list)}
    known = {f.name for f in fields(Hypergradient)}
    for key, value in domains.items():
        if key in known and key not in SEARCHABLE:
            _refuse(key, value, f"can't be searched; {', '.join(SEARCHABLE)} can")
    return domains


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(key: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        _refuse(key, value, f"must be one of {', '.join('null' if name is None else name for name in allowed)}")


def _refuse(key: str, value: Any, why: str) -> None:
    raise ConfigError(f"trainable.{key}={value}: {why}", key=f"trainable.{key}")
