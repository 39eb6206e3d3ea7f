"""What the tasks on scikit-learn's bundled data share: the split, the standardisation, networks and optimizers.

The data sets come with scikit-learn, so that nothing is downloaded. Every task has a default for each of its
hyperparameters: a space may tune any part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import nn

from hpo_ray.errors import ConfigError
from hpo_ray.trainables.context import get_context
from hpo_ray.trainables.torch import TorchTrainable

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@dataclass(frozen=True)
class Split:
    """Disjoint row numbers: 60% to train on, 20% to choose by, 20% to report."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_indices(n: int, seed: int, labels: NDArray[np.int64] | None = None) -> Split:
    """Splits `n` rows 60/20/20 at random.

    Args:
        n: the number of rows.
        seed: the same seed gives the same split.
        labels: (n,) class numbers; each part then has each class in the same proportion. None: no stratification.

    Returns:
        The split; validation and test have `round(n / 5)` rows each, train has the rest.
    """
    held_out = round(n / 5)
    rows = np.arange(n)

    def part(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        stratify = None if labels is None else labels[rows]
        parts: list[NDArray[np.int64]] = train_test_split(
            rows, test_size=held_out, stratify=stratify, random_state=seed
        )
        return parts

    rest, test = part(rows)
    train, validation = part(rest)
    return Split(train, validation, test)


def standardise(values: NDArray[np.float64], train: NDArray[np.int64], axis: int | None = 0) -> NDArray[np.float64]:
    """Shifts and scales to mean 0 and standard deviation 1 over the training rows.

    Args:
        values: (n, …), all rows.
        train: the row numbers that the statistics are taken from.
        axis: 0 for each column by itself, None for all columns together. A constant column becomes 0.

    Returns:
        An array of the same shape.
    """
    known = values[train]
    scale = known.std(axis=axis)
    result: NDArray[np.float64] = (values - known.mean(axis=axis)) / np.where(scale > 0, scale, 1.0)
    return result


class SupervisedTask(TorchTrainable):
    """A network on one of scikit-learn's data sets, trained by SGD or AdamW.

    A subclass gives `load`, `build_model` and `defaults`. Each step also reports `parameters`, the number of weights
    that are trained, so that quality can be traded off against size. The split is the same for all trials of a study,
    and standardisation knows the training part only.

    Attributes:
        defaults: the task's hyperparameters, and their values where a configuration has none.
        regression: whether the target is a number, and is standardised; otherwise it is a class, and stratified.
        scale_axis: see `standardise`.
    """

    defaults: ClassVar[Mapping[str, Any]]
    regression: ClassVar[bool] = False
    scale_axis: ClassVar[int | None] = 0

    def load(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """All inputs (n, features) and targets (n,), as scikit-learn has them."""
        raise NotImplementedError(f"{type(self).__name__} must define load(self)")

    def hyperparameters(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration on top of `defaults`.

        Raises:
            ConfigError: the configuration names a hyperparameter that the task does not have.
        """
        for name in config:
            if name not in self.defaults:
                raise ConfigError(
                    f"space.{name}: {type(self).__name__} has no such hyperparameter; it has "
                    f"{', '.join(sorted(self.defaults))}.",
                    key=f"space.{name}",
                )
        return {**self.defaults, **config}

    def build_data(self, config: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The three splits, on `device`: inputs (n, features) in float32; classes (n,) or a number each (n, 1)."""
        x, y = self.load()
        split = split_indices(len(y), get_context().split_seed, labels=None if self.regression else y)
        inputs = torch.from_numpy(standardise(x, split.train, self.scale_axis)).float().to(self.device)
        if self.regression:
            target = torch.from_numpy(standardise(y, split.train)).float()[:, None].to(self.device)
        else:
            target = torch.from_numpy(y).long().to(self.device)
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        return {name: (inputs[rows], target[rows]) for name, rows in parts.items()}

    def build_optimizer(self, model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
        """SGD (with `momentum`) or AdamW, by `optimizer`; `lr` and `weight_decay` for both."""
        values = self.hyperparameters(config)
        common: dict[str, Any] = {"lr": values["lr"], "weight_decay": values["weight_decay"]}
        if values["optimizer"] == "sgd":
            return torch.optim.SGD(model.parameters(), momentum=values["momentum"], **common)
        if values["optimizer"] == "adamw":
            return torch.optim.AdamW(model.parameters(), fused=True, **common)
        raise ConfigError(f"optimizer={values['optimizer']} is unknown: use sgd or adamw.", key="space.optimizer")

    def step(self) -> dict[str, Any]:
        """As `TorchTrainable`, and `parameters`: how many weights of the model are trained, the same at each step."""
        trained = sum(weights.numel() for weights in self.model.parameters() if weights.requires_grad)
        return {**super().step(), "parameters": float(trained)}


def activation(name: str) -> nn.Module:
    """The activation function of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation={name} is unknown: use {', '.join(ACTIVATIONS)}.", key="space.activation")
    return ACTIVATIONS[name]()


def mlp(inputs: int, outputs: int, values: Mapping[str, Any]) -> nn.Sequential:
    """`layers` hidden layers of `units` each, followed by `activation` and `dropout`, and a linear output layer."""
    layers: list[nn.Module] = []
    for _ in range(values["layers"]):
        layers += [nn.Linear(inputs, values["units"]), activation(values["activation"]), nn.Dropout(values["dropout"])]
        inputs = values["units"]
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
