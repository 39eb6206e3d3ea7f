"""Differentiable tasks with convex models: linear and logistic regression with a weight decay for each feature.

Every one has a training, a validation and a test split, the same in all trials of a study: the hyperparameters are
chosen by the second, and reported on the third too, since many of them overfit the second. `bilevel_digits` has more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hpo_ray.errors import ConfigError
from hpo_ray.tasks.supervised import split_indices, standardise
from hpo_ray.trainables.context import get_context
from hpo_ray.trainables.differentiable import Batch, DifferentiableTask


class Ridge(DifferentiableTask):
    """Linear regression on the diabetes data with a weight decay exp(l_j) for each of its ten features.

    The inner loss is |Xw - y|^2 / 2n + 1/2 sum_j exp(l_j) w_j^2, the outer |Xw - y|^2 / 2m, both of standardised inputs
    and targets, without an intercept, in double precision.

    Hyperparameters: `decay` (10,), exp(l_j) itself: the configuration's value is where all ten start. A mapping with
    ten values in the order of the features, a nested space of ten names, gives each its own, as black-box methods can
    search them.
    """

    differentiable = ("decay",)
    inner_lr = 0.1  # stable up to a decay of 10
    inner_steps = 100

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """Ten weights of zero."""
        x, y = load_diabetes(return_X_y=True)
        split = split_indices(len(y), get_context().split_seed)
        inputs = torch.from_numpy(standardise(x, split.train))
        targets = torch.from_numpy(standardise(y, split.train))
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        self.data = {name: (inputs[rows], targets[rows]) for name, rows in parts.items()}
        return {"w": torch.zeros(inputs.shape[1], dtype=torch.float64)}

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        """The same decay for each feature, or each one's own."""
        return {"decay": _for_each(config["decay"], 10)}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        return self.outer_loss(params, batch) + 0.5 * (hparams["decay"] * params["w"].square()).sum()

    def outer_loss(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        x, y = batch
        return 0.5 * (x @ params["w"] - y).square().mean()


class LogisticL2(DifferentiableTask):
    """Logistic regression on the breast cancer data with a weight decay for each of its 30 features.

    The inner loss is the mean cross entropy of sigmoid(Xw + b) plus 1/2 sum_j decay_j w_j^2, the outer the mean cross
    entropy, both of standardised inputs, in double precision. The bias has no decay.

    Hyperparameters: `decay` (30,); the configuration's value is where all start, or a mapping of 30 as of `Ridge`.

    Metrics: `accuracy`, 0 to 1.

    Source: Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016, with one decay for all.
    """

    differentiable = ("decay",)
    inner_lr = 0.25  # stable up to a decay of 10
    inner_momentum = 0.9
    inner_steps = 100

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """Weights (30,) and a bias (), of zero."""
        x, y = load_breast_cancer(return_X_y=True)
        split = split_indices(len(y), get_context().split_seed, labels=y)
        inputs = torch.from_numpy(standardise(x, split.train))
        targets = torch.from_numpy(y).double()
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        self.data = {name: (inputs[rows], targets[rows]) for name, rows in parts.items()}
        return {"w": torch.zeros(inputs.shape[1], dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        """The same decay for each feature, or each one's own."""
        return {"decay": _for_each(config["decay"], 30)}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        return self.outer_loss(params, batch) + 0.5 * (hparams["decay"] * params["w"].square()).sum()

    def outer_loss(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        x, y = batch
        return binary_cross_entropy_with_logits(x @ params["w"] + params["b"], y)

    def metrics(self, params: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        """See the class."""
        x, y = batch
        return {"accuracy": ((x @ params["w"] + params["b"] > 0) == (y > 0.5)).double().mean().item()}


def _for_each(value: float | Mapping[str, float], count: int) -> Tensor:
    """(count,) in double precision: the same number for all, or the values of a mapping of so many in their order."""
    if not isinstance(value, Mapping):
        return torch.full((count,), float(value), dtype=torch.float64)
    if len(value) != count:
        raise ConfigError(f"space.decay: has {len(value)} names, and there are {count} features", key="space.decay")
    return torch.tensor([float(each) for each in value.values()], dtype=torch.float64)
