"""Functions with a known minimum: to test methods, and to measure what they cost when training costs nothing."""

from __future__ import annotations

import math
from typing import Any

from ray.tune import Trainable

from hpo_ray.trainables.context import get_context


class AnalyticFunction(Trainable):  # type: ignore[misc]  # Ray ships no types
    """A function of the configuration; each step reports `loss`, its value at the resource reached.

    A subclass gives `prepare`, once a trial, and `value`, once a step, which may depend on the fidelity. Most
    functions here don't: their value is the same at each step. One that has more to report gives `metrics`, too.
    """

    resource: int
    max_resource: int

    def prepare(self, config: dict[str, Any]) -> None:
        """Computes what does not depend on the fidelity."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare(self, config)")

    def value(self, fidelity: float) -> float:
        """The value at a fidelity in (0, 1], 1 being the function itself."""
        raise NotImplementedError(f"{type(self).__name__} must define value(self, fidelity)")

    def metrics(self, fidelity: float) -> dict[str, float]:
        """What a step reports at a fidelity: `loss`, unless overridden."""
        return {"loss": self.value(fidelity)}

    def setup(self, config: dict[str, Any]) -> None:
        """Starts a trial at resource 0."""
        self.resource = 0
        self.max_resource = get_context().max_resource
        self.prepare(config)

    def step(self) -> dict[str, float]:
        """One unit of resource. Fidelity is `resource / max_resource`, and stays 1 beyond."""
        self.resource += 1
        return self.metrics(min(1.0, self.resource / self.max_resource))

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
        self._value = branin(config["x1"], config["x2"])

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


class BraninCurrin(AnalyticFunction):
    """Two functions of `x1` and `x2` in [0, 1] that pull apart: to trade off. Both are to be minimised.

    `branin` is `Branin` at (15 x1 - 5, 15 x2). `currin` is
    (1 - exp(-1 / (2 x2))) (2300 x1^3 + 1900 x1^2 + 2092 x1 + 60) / (100 x1^3 + 500 x1^2 + 4 x1 + 20), whose first
    factor is 1 at x2 = 0, its limit. `loss` is `branin`, for methods that know one metric. No fidelity.

    Belakaria, Deshwal and Doppa, Max-value Entropy Search for Multi-Objective Bayesian Optimization, NeurIPS 2019. The
    reference point (18, 6), and the largest hypervolume over it, 59.36011874867746, are those of BoTorch.
    """

    def prepare(self, config: dict[str, Any]) -> None:
        """Both values, at every fidelity."""
        x1, x2 = config["x1"], config["x2"]
        self._branin = branin(15 * x1 - 5, 15 * x2)
        slope = 1.0 - math.exp(-1 / (2 * x2)) if x2 > 0 else 1.0
        polynomials = (2300 * x1**3 + 1900 * x1**2 + 2092 * x1 + 60) / (100 * x1**3 + 500 * x1**2 + 4 * x1 + 20)
        self._currin = float(slope * polynomials)

    def value(self, fidelity: float) -> float:
        """Branin's, the same at every fidelity."""
        return self._branin

    def metrics(self, fidelity: float) -> dict[str, float]:
        """`loss`, `branin` and `currin`."""
        return {"loss": self._branin, "branin": self._branin, "currin": self._currin}


class Mixed10(AnalyticFunction):
    """A function of ten hyperparameters of every kind, two of them conditional, with a fidelity. Minimum 0.

    With u = log2 `units`, r = log10 `rate` and q = 0, 1, 2, 3 for `quality` low, medium, high, best, the loss at full
    fidelity is the sum of

        (x1 - 1)^2 / 10 + (x2 - x1^2 / 2)^2 / 4     a curved valley
        (u - 6)^2 / 20 + (r + 2 + (u - 6) / 4)^2 / 4     the more units, the lower the best rate
        (depth - 7)^2 / 40 + 4 (share - depth / 20)^2     the deeper, the larger the best share
        (q - 2)^2 / 10
        of `kind`:  plain  0.5
                    wave   (period - 3 - x1)^2 / 20
                    tree   0.1 + (leaves - 2 depth - 1)^2 / 100

    and 0 at x1 = 1, x2 = 0.5, rate = 0.01, units = 64, depth = 7, share = 0.35, quality high, kind wave, period = 4.
    The kinds with a hyperparameter of their own are better than `plain` only if that is well chosen.

    At the fidelity z = resource / max_resource it is larger by (1 - z)^2 (u + depth / 2 - r) / 10: what is large, or
    has a low rate, takes longer to get good. So what is cheap to see ranks configurations much as the function does,
    but puts small ones with a high rate too far to the front.

    `size` is log2(units depth leaves), `leaves` being 1 where there are none: what a good `loss` can be traded off for.
    """

    QUALITIES = ("low", "medium", "high", "best")

    def prepare(self, config: dict[str, Any]) -> None:
        """The value at full fidelity, what the lowest adds, and the size."""
        x1, x2, depth = config["x1"], config["x2"], config["depth"]
        u, r = math.log2(config["units"]), math.log10(config["rate"])
        valley = (x1 - 1) ** 2 / 10 + (x2 - x1**2 / 2) ** 2 / 4
        rate = (u - 6) ** 2 / 20 + (r + 2 + (u - 6) / 4) ** 2 / 4
        share = (depth - 7) ** 2 / 40 + 4 * (config["share"] - depth / 20) ** 2
        quality = (self.QUALITIES.index(config["quality"]) - 2) ** 2 / 10
        self._full = float(valley + rate + share + quality + self._of_kind(config))
        self._bias = float(u + depth / 2 - r) / 10
        self._size = math.log2(config["units"] * depth * config.get("leaves", 1))

    def value(self, fidelity: float) -> float:
        """The function at a fidelity."""
        return self._full + (1.0 - fidelity) ** 2 * self._bias

    def metrics(self, fidelity: float) -> dict[str, float]:
        """`loss` and `size`."""
        return {"loss": self.value(fidelity), "size": self._size}

    @staticmethod
    def _of_kind(config: dict[str, Any]) -> float:
        if config["kind"] == "wave":
            return float((config["period"] - 3 - config["x1"]) ** 2 / 20)
        if config["kind"] == "tree":
            return float(0.1 + (config["leaves"] - 2 * config["depth"] - 1) ** 2 / 100)
        return 0.5


def branin(x1: float, x2: float) -> float:
    """The Branin function; see `Branin`."""
    valley = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return float(valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10)
