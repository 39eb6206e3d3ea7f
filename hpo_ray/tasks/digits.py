"""Handwritten digits: 1797 images of 8x8 pixels in ten classes, as `sklearn.datasets.load_digits` has them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from hpo_ray.tasks.supervised import SupervisedTask, activation, mlp


class _Digits(SupervisedTask):
    # Pixels at the border are 0 in nearly all images: scaled by themselves they would get values of hundreds.
    scale_axis: ClassVar[int | None] = None

    def load(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        x, y = load_digits(return_X_y=True)
        return x, y


class DigitsMLP(_Digits):
    """A multilayer perceptron on the digits. One step is one epoch over 1079 images.

    Hyperparameters (defaults): `lr` 0.001, `units` 64, `layers` 2, `dropout` 0.1, `batch_size` 64, `weight_decay` 0,
    `activation` relu | tanh | gelu, `optimizer` adamw | sgd, `momentum` 0.9 (of sgd).

    Metrics: `accuracy` (0 to 1) and `loss` (cross entropy, nats) on the 359 validation images; `train_loss`;
    `parameters`, the number of weights.
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "units": 64,
        "layers": 2,
        "dropout": 0.1,
        "batch_size": 64,
        "weight_decay": 0.0,
        "activation": "relu",
        "optimizer": "adamw",
        "momentum": 0.9,
    }

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        """See `mlp`."""
        return mlp(64, 10, self.hyperparameters(config))


class DigitsCNN(_Digits):
    """A small convolutional network on the digits. One step is one epoch over 1079 images.

    Two 3x3 convolutions of stride 2, with `channels` and twice as many output channels, each followed by the
    activation; then dropout and a linear layer.

    Hyperparameters (defaults): `lr` 0.003, `channels` 8, `dropout` 0.1, `batch_size` 64, `weight_decay` 0,
    `activation` relu | tanh | gelu, `optimizer` adamw | sgd, `momentum` 0.9 (of sgd).

    Metrics: as `DigitsMLP`.
    """

    defaults: ClassVar = {
        "lr": 3e-3,
        "channels": 8,
        "dropout": 0.1,
        "batch_size": 64,
        "weight_decay": 0.0,
        "activation": "relu",
        "optimizer": "adamw",
        "momentum": 0.9,
    }

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        """The network of the class's description, for inputs (n, 64)."""
        values = self.hyperparameters(config)
        channels = values["channels"]
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            activation(values["activation"]),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            activation(values["activation"]),
            nn.Flatten(),
            nn.Dropout(values["dropout"]),
            nn.Linear(2 * channels * 4, 10),
        )
