"""Differentiable tasks on scikit-learn's data: hyperparameters that a gradient can follow, from ten to 100,000 of them.

Every one has a training, a validation and a test split, the same in all trials of a study: the hyperparameters are
chosen by the second, and reported on the third too, since many of them overfit the second.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from hpo_ray.tasks.supervised import split_indices, standardise
from hpo_ray.trainables.context import get_context
from hpo_ray.trainables.differentiable import Batch, DifferentiableTask


class Ridge(DifferentiableTask):
    """Linear regression on the diabetes data with a weight decay exp(l_j) for each of its ten features.

    The inner loss is |Xw - y|^2 / 2n + 1/2 sum_j exp(l_j) w_j^2, the outer |Xw - y|^2 / 2m, both of standardised inputs
    and targets, without an intercept, in double precision.

    Hyperparameters: `decay`, exp(l_j) itself: the configuration's value is where all ten start.
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
        """The same decay for each feature."""
        return {"decay": torch.full((10,), float(config["decay"]), dtype=torch.float64)}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        return self.outer_loss(params, batch) + 0.5 * (hparams["decay"] * params["w"].square()).sum()

    def outer_loss(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        x, y = batch
        return 0.5 * (x @ params["w"] - y).square().mean()
