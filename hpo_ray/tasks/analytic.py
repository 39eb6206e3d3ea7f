"""Functions with a known minimum: to test methods, and to measure what they cost when training costs nothing."""

from __future__ import annotations

import math
from typing import Any

from ray.tune import Trainable

from hpo_ray.trainables.context import get_context


class AnalyticFunction(Trainable):  # type: ignore[misc]  # Ray ships no types
    """A function of the configuration; each step reports `loss`, its value at the resource reached.

    A subclass gives `prepare`, once a trial, and `value`, once a step, which may depend on the fidelity. Most
    functions here don't: their value is the same at each step.
    """

    resource: int
    max_resource: int

    def prepare(self, config: dict[str, Any]) -> None:
        """Computes what does not depend on the fidelity."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare(self, config)")

    def value(self, fidelity: float) -> float:
        """The value at a fidelity in (0, 1], 1 being the function itself."""
        raise NotImplementedError(f"{type(self).__name__} must define value(self, fidelity)")

    def setup(self, config: dict[str, Any]) -> None:
        """Starts a trial at resource 0."""
        self.resource = 0
        self.max_resource = get_context().max_resource
        self.prepare(config)

    def step(self) -> dict[str, float]:
        """One unit of resource. Fidelity is `resource / max_resource`, and stays 1 beyond."""
        self.resource += 1
        return {"loss": self.value(min(1.0, self.resource / self.max_resource))}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """The resource, which Ray writes to a file."""
        return {"resource": self.resource}

    def load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        """Continues at the resource of a checkpoint."""
        self.resource = checkpoint["resource"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial. Returns True: Ray may reuse the actor."""
        self.setup(new_config)
        return True


class Parabola(AnalyticFunction):
    """(x - 2)^2 for `x` in [0, 4]: minimum 0 at 2."""

    def prepare(self, config: dict[str, Any]) -> None:
        """The value, at every fidelity."""
        self._value = float((config["x"] - 2.0) ** 2)

    def value(self, fidelity: float) -> float:
        """The same at every fidelity."""
        return self._value


class Branin(AnalyticFunction):
    """The Branin-Hoo function for `x1` in [-5, 10] and `x2` in [0, 15].

    (x2 - 5.1 x1^2 / 4π² + 5 x1 / π - 6)^2 + 10 (1 - 1 / 8π) cos x1 + 10. Minimum 10 / 8π = 0.397887 at (-π, 12.275),
    (π, 2.275) and (3π, 2.475). Dixon and Szegö, Towards Global Optimisation 2, 1978.
    """

    def prepare(self, config: dict[str, Any]) -> None:
        """The value, at every fidelity."""
        x1, x2 = config["x1"], config["x2"]
        valley = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
        self._value = float(valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10)

    def value(self, fidelity: float) -> float:
        """The same at every fidelity."""
        return self._value


class Hartmann6(AnalyticFunction):
    """The six-dimensional Hartmann function for `x1` to `x6` in [0, 1], in its multi-fidelity form.

    -Σ_i (alpha_i - 0.1 (1 - z)) exp(-Σ_j A_ij (x_j - P_ij)^2), with the fidelity z = resource / max_resource. At z = 1
    it is the usual function: minimum -3.32237 at (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573).

    Kandasamy, Dasarathy, Schneider and Póczos, Multi-fidelity Bayesian Optimisation with Continuous Approximations,
    ICML 2017, synthetic experiments of the supplement: alpha_i - 0.1 (1 - z_i), i = 1 to 4. It has a fidelity for each
    of the four terms and is maximised; a study has one resource and this is minimised, so the z_i are one z here,
    and the sign is turned.
    """

    ALPHA = (1.0, 1.2, 3.0, 3.2)
    A = (
        (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
        (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
        (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
        (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
    )
    P = (
        (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
        (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
        (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
        (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
    )

    def prepare(self, config: dict[str, Any]) -> None:
        """Σ_i alpha_i e_i and Σ_i e_i, e_i being the exponentials: the function is linear in the fidelity."""
        x = [config[f"x{j}"] for j in range(1, 7)]
        bumps = [
            math.exp(-sum(a * (xj - p) ** 2 for a, p, xj in zip(row_a, row_p, x, strict=True)))
            for row_a, row_p in zip(self.A, self.P, strict=True)
        ]
        self._weighted = sum(alpha * bump for alpha, bump in zip(self.ALPHA, bumps, strict=True))
        self._unweighted = sum(bumps)

    def value(self, fidelity: float) -> float:
        """The function at a fidelity."""
        return 0.1 * (1.0 - fidelity) * self._unweighted - self._weighted
