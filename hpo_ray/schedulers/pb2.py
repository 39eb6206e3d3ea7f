"""PB2: population-based training whose new numbers come from a bandit instead of from random factors. Without Ray.

Source: Parker-Holder, Nguyen and Roberts, "Provably Efficient Online Hyperparameter Optimization with Population-Based
Bandits", NeurIPS 2020: the time-varying kernel of section 4 (after Bogunovic, Scarlett and Cevher, AISTATS 2016), the
batch in Algorithm 2. The trade-off beta is that of the authors' code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.core import Moves
from hpo_ray.schedulers.explore import explorable, explore, replaced
from hpo_ray.schedulers.population import Member, PBTCore
from hpo_ray.space import Float, Int, Space

Array = np.ndarray[Any, np.dtype[np.float64]]

_REMEMBERED = 100
"""Observations that the model is fitted to, the last ones: the cost grows with their cube, and old ones fade."""
_CANDIDATES = 1000


@dataclass(frozen=True)
class Observation:
    """What one interval of one member told.

    Attributes:
        time: when it began, in intervals since the start of training.
        point: the member's hyperparameters in the unit cube.
        gain: how much the loss fell, per interval.
    """

    time: float
    point: tuple[float, ...]
    gain: float


class PB2Core(PBTCore):
    """Population-based bandits. See `hpo_ray.schedulers.PB2`."""

    def __init__(
        self,
        space: Space,
        max_resource: int,
        population: int = 8,
        interval: int = 3,
        quantile: float = 0.25,
        resample_probability: float = 0.25,
        synchronous: bool = False,
        frozen: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(
            space,
            max_resource,
            population,
            interval,
            quantile,
            resample_probability=resample_probability,
            synchronous=synchronous,
            frozen=frozen,
            seed=seed,
        )
        self.observations: list[Observation] = []
        self._proposed: dict[str, tuple[float, ...]] = {}
        """Points of those that copy by the decisions that are being taken, by id."""

    def advance(self, source_finished: bool, room: int) -> Moves:
        """See `PBTCore`. Of those that are decided together, each knows what the ones before it will try."""
        try:
            return super().advance(source_finished, room)
        finally:
            self._proposed.clear()  # what was proposed counts once it is carried out

    def _check_space(self) -> None:
        self._numbers = {
            name: domain
            for name in explorable(self.space, self.frozen)
            if isinstance(domain := self.space.domains[name], Float | Int)
        }
        if not self._numbers:
            raise ConfigError(
                f"space ({', '.join(self.space.names)}): PB2 models numbers, and besides "
                f"scheduler.frozen=[{', '.join(self.frozen)}] there is none; use method=pbt, or add a range to space",
                key="space",
            )

    def _scored(self, member: Member, resource: int, loss: float) -> None:
        before = member.score_below(resource)
        again = any(score[0] == resource for score in member.scores)  # it was retried
        super()._scored(member, resource, loss)
        if before is None:
            return
        gain = (before[1] - loss) * self.interval / (resource - before[0])
        if math.isfinite(gain) and not again:
            self.observations.append(Observation(before[0] / self.interval, self._point(member.config), gain))
            del self.observations[:-_REMEMBERED]

    def _explore(self, trial_id: str, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Choices as PBT changes them, numbers where the bandit expects the most."""
        kept = (*self.frozen, *self._numbers)
        config = explore(self.space, config, rng, frozen=kept, resample_probability=self.resample_probability)
        time = self._members[trial_id].resource / self.interval
        others = [
            (other.resource / self.interval, self._proposed.get(i) or self._point(other.config))
            for i, other in self._members.items()
            if i != trial_id
        ]
        point = choose(self.observations, others, time, len(self._numbers), rng)
        self._proposed[trial_id] = point
        active = self.space.flatten(config)
        values = {
            name: domain.from_unit(unit)
            for (name, domain), unit in zip(self._numbers.items(), point, strict=True)
            if name in active
        }
        return replaced(self.space, config, values, rng)

    def _point(self, config: Mapping[str, Any]) -> tuple[float, ...]:
        """The numbers of a configuration in the unit cube; of those that are not active the middle."""
        flat = self.space.flatten(config)
        return tuple(
            domain.to_unit(flat[name]) if name in flat and domain.contains(flat[name]) else 0.5
            for name, domain in self._numbers.items()
        )


def time_varying_kernel(
    a: Array, b: Array, variance: float = 1.0, length_scale: float = 1.0, epsilon: float = 0.1
) -> Array:
    """k_TV((t, x), (t', x')) = variance exp(-|x - x'|^2 / (2 length_scale^2)) (1 - epsilon)^(|t - t'| / 2).

    Args:
        a: (n, 1 + d); the first column is time, in intervals.
        b: (m, 1 + d).
        variance: of the function.
        length_scale: in the unit cube.
        epsilon: how fast what was observed gets out of date, in [0, 1).

    Returns:
        (n, m).
    """
    squared, apart = _distances(a, b)
    return np.asarray(variance * np.exp(-squared / (2 * length_scale**2)) * (1 - epsilon) ** (apart / 2))


def upper_confidence(mean: Array, std: Array, n: int) -> Array:
    """The bound mean + sqrt(beta) std, where beta = 0.2 + max(0, log(0.4 n)) after n observations."""
    return np.asarray(mean + math.sqrt(0.2 + max(0.0, math.log(0.4 * max(n, 1)))) * std)


def choose(
    observations: Sequence[Observation],
    pending: Sequence[tuple[float, tuple[float, ...]]],
    time: float,
    dimensions: int,
    rng: np.random.Generator,
) -> tuple[float, ...]:
    """The point of the unit cube to try next; a random one while there are fewer than two observations.

    The upper confidence bound is maximised over random points, and again close to the best of them. Points that others
    try at the moment count as observed with the value that the model expects of them, which leaves the mean as it is
    and takes the uncertainty from around them.

    Args:
        observations: what is known.
        pending: (time, point) that are being tried.
        time: when the point will be tried, in intervals.
        dimensions: of the cube.
        rng: draws the candidates.
    """
    candidates = rng.random((_CANDIDATES, dimensions))
    if len(observations) < 2:
        return tuple(candidates[0].tolist())
    at = np.array([[o.time, *o.point] for o in observations])
    gains = np.array([o.gain for o in observations])
    spread = float(gains.std())
    gains = (gains - gains.mean()) / spread if spread > 0 else np.zeros_like(gains)
    model = _fit(at, gains)
    certain = model
    if pending:
        tried = np.array([[t, *point] for t, point in pending])
        certain = _regressor(model.kernel_, optimizer=None)
        certain.fit(np.vstack([at, tried]), np.concatenate([gains, model.predict(tried)]))

    def bound(points: Array) -> Array:
        queries = np.column_stack([np.full(len(points), time), points])
        _, std = certain.predict(queries, return_std=True)
        return upper_confidence(model.predict(queries), std, len(observations))

    best = candidates[np.argsort(-bound(candidates), kind="stable")[:5]]
    for width in (0.05, 0.01):
        near = np.clip(np.repeat(best, 50, axis=0) + width * rng.standard_normal((50 * len(best), dimensions)), 0, 1)
        candidates = np.vstack([best, near])
        best = candidates[np.argsort(-bound(candidates), kind="stable")[:5]]
    return tuple(best[0].tolist())


def _fit(at: Array, gains: Array) -> Any:
    """The Gaussian process whose kernel makes these observations most likely."""
    from sklearn.gaussian_process.kernels import WhiteKernel

    model = _regressor(kernel_class()() + WhiteKernel(0.1, (1e-4, 1.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parameter at its bound, as with few observations there often is
        return model.fit(at, gains)


def _regressor(kernel: Any, **settings: Any) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(kernel, alpha=1e-8, **settings)


def _distances(a: Array, b: Array) -> tuple[Array, Array]:
    """Squared distances of the points, and distances in time, each (n, m)."""
    squared = ((a[:, None, 1:] - b[None, :, 1:]) ** 2).sum(axis=2)
    return squared, np.abs(a[:, None, 0] - b[None, :, 0])


def kernel_class() -> Any:
    """`time_varying_kernel` as scikit-learn wants it, which is imported for this: planning a study does without."""
    from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

    class TimeVarying(Kernel):  # type: ignore[misc]  # sklearn ships no types
        """`time_varying_kernel`; its gradient is with respect to the logarithms, as in all of scikit-learn's."""

        def __init__(self, variance: float = 1.0, length_scale: float = 0.5, epsilon: float = 0.1) -> None:
            self.variance, self.length_scale, self.epsilon = variance, length_scale, epsilon

        # In the alphabet's order, in which scikit-learn keeps them in `theta`.
        @property
        def hyperparameter_epsilon(self) -> Any:
            return Hyperparameter("epsilon", "numeric", (1e-3, 0.9))

        @property
        def hyperparameter_length_scale(self) -> Any:
            return Hyperparameter("length_scale", "numeric", (0.05, 10.0))

        @property
        def hyperparameter_variance(self) -> Any:
            return Hyperparameter("variance", "numeric", (1e-2, 1e2))

        def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
            a = np.atleast_2d(X)
            b = a if Y is None else np.atleast_2d(Y)
            k = time_varying_kernel(a, b, self.variance, self.length_scale, self.epsilon)
            if not eval_gradient:
                return k
            squared, apart = _distances(a, b)
            faded = -self.epsilon / (1 - self.epsilon) * apart / 2
            return k, np.dstack([k * faded, k * squared / self.length_scale**2, k])

        def diag(self, X: Any) -> Any:
            return np.full(len(X), float(self.variance))

        def is_stationary(self) -> bool:
            return True

    return TimeVarying
