"""Small tables: a diagnosis to classify (breast cancer) and a disease's progression to predict (diabetes)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import nn

from hpo_ray.tasks.supervised import SupervisedTask, mlp


class BreastCancerMLP(SupervisedTask):
    """A multilayer perceptron on the Wisconsin breast cancer data. One step is one epoch over 341 patients.

    30 features, two classes (`sklearn.datasets.load_breast_cancer`).

    Hyperparameters (defaults): `lr` 0.001, `units` 32, `layers` 1, `dropout` 0.1, `batch_size` 32, `weight_decay` 0,
    `activation` relu | tanh | gelu, `optimizer` adamw | sgd, `momentum` 0.9 (of sgd).

    Metrics: `accuracy` (0 to 1) and `loss` (cross entropy, nats) on the 114 validation patients; `train_loss`;
    `parameters`, the number of weights.
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "units": 32,
        "layers": 1,
        "dropout": 0.1,
        "batch_size": 32,
        "weight_decay": 0.0,
        "activation": "relu",
        "optimizer": "adamw",
        "momentum": 0.9,
    }

    def load(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Inputs (569, 30) and classes (569,)."""
        x, y = load_breast_cancer(return_X_y=True)
        return x, y

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        """See `mlp`."""
        return mlp(30, 2, self.hyperparameters(config))


class DiabetesMLP(SupervisedTask):
    """A multilayer perceptron that predicts the progression of diabetes. One step is one epoch over 266 patients.

    10 features, one number to predict (`sklearn.datasets.load_diabetes`).

    Hyperparameters (defaults): `lr` 0.001, `units` 32, `layers` 1, `dropout` 0.1, `batch_size` 32, `weight_decay` 0,
    `activation` relu | tanh | gelu, `optimizer` adamw | sgd, `momentum` 0.9 (of sgd).

    Metrics on the 88 validation patients: `loss`, the mean squared error in units of the training target's variance;
    `r2`, the share of the validation target's variance that is explained (1 is perfect, 0 is its mean). `train_loss`;
    `parameters`, the number of weights.
    """

    regression: ClassVar[bool] = True
    defaults: ClassVar = {
        "lr": 1e-3,
        "units": 32,
        "layers": 1,
        "dropout": 0.1,
        "batch_size": 32,
        "weight_decay": 0.0,
        "activation": "relu",
        "optimizer": "adamw",
        "momentum": 0.9,
    }

    def load(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Inputs (442, 10) and targets (442,)."""
        x, y = load_diabetes(return_X_y=True)
        return x, y

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        """See `mlp`."""
        return mlp(10, 1, self.hyperparameters(config))

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean squared error of (n, 1) predictions."""
        return nn.functional.mse_loss(output.float(), target)

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """`loss` and `r2`."""
        metrics = super().evaluate(split)
        _, target = self.data[split]
        return {**metrics, "r2": 1.0 - metrics["loss"] / target.var(correction=0).item()}
