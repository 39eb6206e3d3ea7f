"""Differentiable tasks on the digits of scikit-learn, with up to 106,590 hyperparameters that a gradient can follow.

Each has a training, a validation and a test split of 1079, 359 and 359 images, the same in all trials of a study.
Images come as rows (n, 64) of pixels, standardised all together; labels as (n,) whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpo_ray.gradients import Functional
from hpo_ray.tasks.supervised import split_indices, standardise
from hpo_ray.trainables.context import get_context
from hpo_ray.trainables.differentiable import Batch, DifferentiableTask

CLASSES = 10
PIXELS = 64


class _Digits(DifferentiableTask):
    """What these tasks share: the splits, and a model that is called with weights."""

    model: Functional

    def outer_loss(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """The mean cross entropy, in nats."""
        x, y = batch
        return cross_entropy(self._logits(params, x), y)

    def metrics(self, params: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        """`accuracy`, 0 to 1."""
        x, y = batch
        return {"accuracy": (self._logits(params, x).argmax(1) == y).double().mean().item()}

    def _logits(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = self.model(params, x)
        return logits


class HyperCleaning(_Digits):
    """Which training labels are wrong? A weight for each training image, found by the loss on clean validation images.

    Half of the 1079 training labels, rounded down, are replaced by a wrong one, drawn uniformly from the other nine.
    The model is linear with a softmax; the inner loss, with l2 = 0.01 that makes its Hessian positive definite,

        mean_i weight_i cross_entropy_i + l2/2 |params|^2

    Hyperparameters: `weight` (1079,), each in [0, 1]; the configuration's value is where all start.

    Metrics: `accuracy`, 0 to 1, and `corrupted_f1`: how well {i: weight_i < 0.5} are the images with a wrong label, the
    harmonic mean of precision and recall, 0 to 1.

    Source: Franceschi et al., Forward and reverse gradient-based hyperparameter optimization, ICML 2017, section 5.1,
    who clean MNIST.

    Attributes:
        data: of `train` (images, labels, row numbers), of the others (images, labels).
        corrupted: (1079,) of bool: which training labels are wrong. Nothing but `corrupted_f1` looks at it.
    """

    differentiable = ("weight",)
    inner_lr = 0.2
    inner_momentum = 0.9
    inner_steps = 50
    poolable = False
    l2 = 0.01

    corrupted: Tensor

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """Weights (64, 10) and biases (10,), of zero."""
        split_seed = get_context().split_seed
        data = _digits(split_seed)
        x, y = data["train"]
        labels, self.corrupted = corrupt(y, split_seed)
        self.data = {**data, "train": (x, labels, torch.arange(len(x)))}
        return {"w": torch.zeros(PIXELS, CLASSES), "b": torch.zeros(CLASSES)}

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        """The same weight for each training image."""
        return {"weight": torch.full((len(self.corrupted),), float(config["weight"]))}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        x, y, rows = batch
        losses = cross_entropy(self._logits(params, x), y, reduction="none")
        decay = torch.stack([p.square().sum() for p in params.values()]).sum()
        return (hparams["weight"][rows] * losses).mean() + 0.5 * self.l2 * decay

    def hyperparameter_metrics(self, hparams: dict[str, Tensor]) -> dict[str, float]:
        """See the class."""
        found, wrong = hparams["weight"].cpu() < 0.5, self.corrupted
        return {"corrupted_f1": 2 * (found & wrong).sum().item() / (found.sum() + wrong.sum()).item()}

    def _logits(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return x @ params["w"] + params["b"]


class LRSchedule(_Digits):
    """A learning rate for each step of a short training of a perceptron, 64-32-10 with tanh.

    A training is 60 steps of stochastic gradient descent on batches of 64, from the same weights each time. Unrolled,
    each step has a learning rate of its own; `forward_online` and `hypergradient_descent` move the one rate of a
    training that goes on; black-box methods search one for all steps, and their trials end after one training.

    Hyperparameters: `inner_lr`, () or (60,).

    Metrics: `accuracy`, 0 to 1.

    Source: Maclaurin et al., Gradient-based hyperparameter optimization through reversible learning, ICML 2015,
    section 3.1.
    """

    differentiable = ("inner_lr",)
    per_step = ("inner_lr",)
    restarts = True
    inner_steps = 60
    batch_size = 64

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """PyTorch's initial weights."""
        self.data = _digits(get_context().split_seed)
        self.model = Functional(nn.Sequential(nn.Linear(PIXELS, 32), nn.Tanh(), nn.Linear(32, CLASSES)))
        return self.model.params()

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """The mean cross entropy."""
        return self.outer_loss(params, batch)


class LossWeights(_Digits):
    """A weight in the loss for each class, and the strength of noise, against an imbalanced training set.

    Of the classes 5 to 9 the training set has a tenth of its images; validation and test have all classes alike. The
    network is a 3x3 convolution to 8 channels of stride 2 with batch normalisation, another to 16, and a linear layer.
    With e standard normal, drawn anew for each loss, the inner loss is

        sum_i class_weight[y_i] cross_entropy(net(x_i + noise e_i), y_i) / sum_i class_weight[y_i] + l2/2 |params|^2

    Training normalises by the batch, evaluation by running statistics, which the steps of training move.

    Hyperparameters: `class_weight` (10,), of which only the ratios count; the configuration's value is where all start.
    `noise` (), a standard deviation, that of all pixels being 1.

    Metrics: `accuracy`, 0 to 1.
    """

    differentiable = ("class_weight", "noise")
    inner_optimizer = "adam"
    inner_lr = 0.003
    inner_steps = 20
    batch_size = 128
    l2 = 1e-3

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """PyTorch's initial weights."""
        data = _digits(get_context().split_seed)
        x, y = data["train"]
        rows = imbalanced(y)
        self.data = {**data, "train": (x[rows], y[rows])}
        self.model = Functional(
            nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)),
                nn.Conv2d(1, 8, 3, stride=2, padding=1),
                nn.BatchNorm2d(8),
                nn.GELU(),
                nn.Conv2d(8, 16, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Flatten(),
                nn.Linear(64, CLASSES),
            ).to(self.device)
        )
        return self.model.params()

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        """The same weight for each class."""
        return {
            "class_weight": torch.full((CLASSES,), float(config["class_weight"])),
            "noise": torch.tensor(float(config["noise"])),
        }

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        x, y = batch
        self.model.module.train()
        noisy = x + hparams["noise"] * torch.randn_like(x)
        weight = hparams["class_weight"][y]  # cross_entropy(weight=) has no gradient in it
        losses = cross_entropy(self._logits(params, noisy), y, reduction="none")
        loss = (weight * losses).sum() / weight.sum()
        return loss + 0.5 * self.l2 * torch.stack([p.square().sum() for p in params.values()]).sum()

    def outer_loss(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """The mean cross entropy, normalised by the running statistics."""
        self.model.module.eval()
        return super().outer_loss(params, batch)

    def metrics(self, params: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        """See the class."""
        self.model.module.eval()
        return super().metrics(params, batch)

    def after_step(self, params: dict[str, Tensor], batch: Batch) -> None:
        """Moves the running statistics, by images without noise."""
        self.model.module.train()
        self.model.update_buffers(params, batch[0])

    def state(self) -> dict[str, Tensor]:
        """The running statistics."""
        return dict(self.model.module.named_buffers())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts them back."""
        for name, buffer in self.model.module.named_buffers():
            buffer.copy_(state[name])


class WeightDecayPerParameter(_Digits):
    """A weight decay for each of the 106,590 weights of a perceptron, 64-300-280-10 with GELU.

    The inner loss is the mean cross entropy plus 1/2 sum_j decay_j w_j^2, over all weights and biases.

    Hyperparameters: `decay` (106590,), in the order of the weights; the configuration's value is where all start.

    Metrics: `accuracy`, 0 to 1.

    Source: Lorraine, Vicol and Duvenaud, Optimizing millions of hyperparameters by implicit differentiation,
    AISTATS 2020.
    """

    differentiable = ("decay",)
    inner_lr = 0.1
    inner_momentum = 0.9
    inner_steps = 40
    batch_size = 128
    outer_batch_size = 360  # of training images; and all validation images, which are fewer

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """PyTorch's initial weights."""
        self.data = _digits(get_context().split_seed)
        layers = [nn.Linear(PIXELS, 300), nn.GELU(), nn.Linear(300, 280), nn.GELU(), nn.Linear(280, CLASSES)]
        self.model = Functional(nn.Sequential(*layers))
        return self.model.params()

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        """The same decay for each weight."""
        count = sum(p.numel() for p in self.model.module.parameters())
        return {"decay": torch.full((count,), float(config["decay"]))}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: Batch) -> Tensor:
        """See the class."""
        flat = torch.cat([p.flatten() for p in params.values()])
        return self.outer_loss(params, batch) + 0.5 * (hparams["decay"] * flat.square()).sum()


def corrupt(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Replaces half of the labels, rounded down, by a uniformly drawn wrong one.

    Args:
        labels: (n,) whole numbers below `CLASSES`.
        seed: the same seed gives the same.

    Returns:
        (n,) labels, and (n,) of bool: which of them are wrong.
    """
    n = len(labels)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n, generator=generator)[: n // 2]
    wrong = torch.zeros(n, dtype=torch.bool)
    wrong[rows] = True
    shift = torch.randint(1, CLASSES, (n,), generator=generator)
    return torch.where(wrong, (labels + shift) % CLASSES, labels), wrong


def imbalanced(labels: Tensor) -> Tensor:
    """The row numbers that remain when classes 5 to 9 keep a tenth of their rows, rounded up: the first ones."""
    kept = []
    for label in range(CLASSES):
        rows = (labels == label).nonzero().flatten()
        kept.append(rows if label < CLASSES // 2 else rows[: -(-len(rows) // 10)])
    return torch.cat(kept).sort().values


def _digits(split_seed: int) -> dict[str, Batch]:
    """Images (n, 64) in single precision and labels (n,) of each split; classes in the same proportion in each."""
    x, y = load_digits(return_X_y=True)
    split = split_indices(len(y), split_seed, labels=y)
    inputs = torch.from_numpy(standardise(x, split.train, axis=None)).float()
    targets = torch.from_numpy(y).long()
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {name: (inputs[rows], targets[rows]) for name, rows in parts.items()}
