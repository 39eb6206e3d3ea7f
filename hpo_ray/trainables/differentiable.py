"""A training problem whose hyperparameters have a gradient: what a user writes, as functions of weights.

Any class with `differentiable`, `init`, `inner_loss` and `outer_loss` is one; what it leaves out it gets from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hpo_ray.errors import ConfigError

Batch = tuple[Tensor, ...]
"""Rows of a split's tensors, in their order."""
REQUIRED = ("differentiable", "init", "inner_loss", "outer_loss")


class DifferentiableTask:
    """The inner problem (training) and the outer loss (validation) of gradient-based hyperparameter optimisation.

    Example:
        One weight decay for each weight of a network::

            class Decays(DifferentiableTask):
                differentiable = ("decay",)

                def init(self, config, seed):
                    self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
                    self.data = {"train": (x, y), "validation": (x_val, y_val), "test": (x_test, y_test)}
                    return dict(self.model.named_parameters())

                def hyperparameters(self, config):
                    weights = sum(p.numel() for p in self.model.parameters())
                    return {"decay": torch.full((weights,), config["decay"])}

                def inner_loss(self, params, hparams, batch):
                    flat = torch.cat([p.flatten() for p in params.values()])
                    return self.outer_loss(params, batch) + 0.5 * (hparams["decay"] * flat**2).sum()

                def outer_loss(self, params, batch):
                    x, y = batch
                    return nn.functional.cross_entropy(functional_call(self.model, params, (x,)), y)

    Attributes:
        differentiable: the names in the space whose values have a gradient. Those that have a range of floats there are
            moved by it, from the trial's configuration on; all others, and those that are fixed, stay as they are.
            `inner_lr` and `inner_momentum` are the training's own: estimators `unrolled` and `forward` take them,
            `descent` the first.
        per_step: those of these two that have a value for each inner step when a training is unrolled from its start.
        data: the splits `train`, `validation` and `test`: tuples of tensors whose first dimension counts examples. Set
            it in `init`. The trial moves them to its device.
        device: where the trial trains; there before `init` is called.
        inner_optimizer: `sgd` or `adam`, unless the configuration says something else, as of all that follows.
        inner_lr: its learning rate.
        inner_momentum: of `sgd`.
        inner_steps: steps of training for one step of the hyperparameters.
        batch_size: examples in a step of training; None for all.
        outer_batch_size: examples of each split in a hypergradient; None for all.
        outer_lr: learning rate of the hyperparameters.
        restarts: whether a training is `inner_steps` long and starts anew for each step of the hyperparameters, as a
            schedule needs it. Otherwise it goes on with the hyperparameters as they are by then, as it always does with
            the estimators `forward` and `descent`.
        poolable: whether training and validation data may be pooled for a K-fold outer loss.
    """

    differentiable: ClassVar[Sequence[str]] = ()
    per_step: ClassVar[Sequence[str]] = ()
    inner_optimizer: str = "sgd"
    inner_lr: float = 0.1
    inner_momentum: float = 0.0
    inner_steps: int = 20
    batch_size: int | None = None
    outer_batch_size: int | None = None
    outer_lr: float = 0.1
    restarts: bool = False
    poolable: bool = True

    data: Mapping[str, Batch]
    device: torch.device = torch.device("cpu")

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """The weights at the start, and `data`.

        Parameters of a module that have `requires_grad=False` are not trained, nor handed to the losses:
        `torch.func.functional_call` takes them from the module.

        Args:
            config: the trial's configuration.
            seed: a seed of the trial's own; torch's global generator is seeded by it, too. `get_context().split_seed`
                is the same in all trials.
        """
        raise NotImplementedError(f"{type(self).__name__} must define init(self, config, seed) -> weights by name")

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        """The differentiable hyperparameters at the start, in their own units and of any shape.

        A tensor of many may start from the one value of its name in the configuration: `torch.full((n,),
        config["weight"])`. Its bounds are those of the space.

        Returns:
            A scalar for each name that the configuration has, unless overridden.
        """
        return {name: torch.tensor(float(config[name])) for name in self.differentiable if name in config}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """The training loss of a batch of `train`, a scalar; twice differentiable in both."""
        raise NotImplementedError(f"{type(self).__name__} must define inner_loss(self, params, hparams, batch)")

    def outer_loss(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch of another split, a scalar: a mean over its examples."""
        raise NotImplementedError(f"{type(self).__name__} must define outer_loss(self, params, batch)")

    def metrics(self, params: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        """What else to report of a split, an accuracy for example; called without gradients."""
        return {}

    def hyperparameter_metrics(self, hparams: dict[str, Tensor]) -> dict[str, float]:
        """What else to report of the hyperparameters that the weights were trained with; called once a report.

        `init` has been called. Names that `metrics` or the trainable report too, these replace.
        """
        return {}

    def after_step(self, params: dict[str, Tensor], batch: Batch) -> None:
        """Called after each inner step, without gradients: to move the running statistics of a BatchNorm.

        Hypergradients take what it changes for constant. Unrolled, it is called after the last step, with its weights
        and the batch of each step.
        """

    def state(self) -> dict[str, Tensor]:
        """What belongs into a checkpoint beside the weights: the tensors that `after_step` changes."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave."""


def as_task(cls: type) -> type[DifferentiableTask] | None:
    """The class as a `DifferentiableTask`, with its defaults where it has none of its own; None if it is none."""
    if issubclass(cls, DifferentiableTask):
        return cls
    if all(hasattr(cls, name) for name in REQUIRED):
        return type(cls.__name__, (cls, DifferentiableTask), {"__module__": cls.__module__})
    return None


def missing(cls: type) -> list[str]:
    """What a class lacks to be a differentiable task."""
    plain = vars(DifferentiableTask)
    return [name for name in REQUIRED if getattr(cls, name, plain[name]) is plain[name]]


def fold_data(task: DifferentiableTask, folds: int, seed: int) -> list[dict[str, Batch]]:
    """The `train` and `validation` data of K models, each of which leaves another fold of the pooled data out.

    Args:
        task: whose `init` has been called.
        folds: K, at least 2.
        seed: of the folds.

    Raises:
        ConfigError: the task's data can't be pooled, or are too few.
    """
    key = "trainable.outer_folds"
    name = type(task).__name__
    if not task.poolable:
        raise ConfigError(
            f"{key}={folds}: {name}'s training and validation data are not alike and can't be pooled; use 1", key=key
        )
    if task.state():
        raise ConfigError(
            f"{key}={folds}: {name} keeps running statistics (its state()), of which {folds} models would need one "
            f"each; use 1",
            key=key,
        )
    pooled = tuple(torch.cat(pair) for pair in zip(task.data["train"], task.data["validation"], strict=True))
    n = len(pooled[0])
    if folds > n:
        raise ConfigError(f"{key}={folds}: there are {n} examples; use at most so many", key=key)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(pooled[0].device)
    parts = torch.tensor_split(order, folds)
    result = []
    for k, held_out in enumerate(parts):
        rest = torch.cat([part for j, part in enumerate(parts) if j != k])
        result.append({"train": tuple(t[rest] for t in pooled), "validation": tuple(t[held_out] for t in pooled)})
    return result
