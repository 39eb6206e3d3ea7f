"""A user's differentiable tasks: `task.trainable=mine_differentiable.NAME`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hpo_ray.trainables import DifferentiableTask, get_context


def regression(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, tuple[Tensor, ...]]:
    """Splits of 24, 12 and 12 rows: five features, one noisy target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(48, 5, generator=generator, dtype=dtype)
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0], dtype=dtype)
    y = y + 0.5 * torch.randn(48, generator=generator, dtype=dtype)
    parts = zip(("train", "validation", "test"), (slice(0, 24), slice(24, 36), slice(36, 48)), strict=True)
    return {name: (x[rows], y[rows]) for name, rows in parts}


class Ridge:
    """Linear regression with a decay for each weight: a class with the protocol, derived from nothing."""

    differentiable = ("decay",)
    inner_steps = 40

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        self.data = regression(0)
        return {"w": 0.1 * torch.randn(5, dtype=torch.float64)}

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        return {"decay": torch.full((5,), float(config["decay"]), dtype=torch.float64)}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self.outer_loss(params, batch) + 0.5 * (hparams["decay"] * params["w"] ** 2).sum()

    def outer_loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return 0.5 * ((x @ params["w"] - y) ** 2).mean()

    def metrics(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> dict[str, float]:
        x, y = batch
        return {"error": float((x @ params["w"] - y).abs().mean())}


class Rates(Ridge):
    """The same, and the learning rate and momentum too have a gradient."""

    differentiable = ("decay", "inner_lr", "inner_momentum")
    per_step = ("inner_lr",)

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        rest = {n: torch.tensor(config[n], dtype=torch.float64) for n in self.differentiable[1:] if n in config}
        return {**super().hyperparameters(config), **rest}


class OneRate(DifferentiableTask):
    """Its learning rate alone."""

    differentiable = ("inner_lr",)
    inner_steps = 10

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        self.data = regression(0)
        return {"w": torch.zeros(5, dtype=torch.float64)}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self.outer_loss(params, batch)

    def outer_loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return 0.5 * ((x @ params["w"] - y) ** 2).mean()


class Net(DifferentiableTask):
    """A network with dropout in single precision, in batches, trained by Adam; its width comes from the searcher."""

    differentiable = ("decay",)
    inner_optimizer = "adam"
    inner_lr = 0.01
    inner_steps = 4
    batch_size = 10
    outer_batch_size = 12

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        self.data = regression(0, torch.float32)
        units = int(config.get("units", 6))
        self.model = nn.Sequential(nn.Linear(5, units), nn.Tanh(), nn.Dropout(0.2), nn.Linear(units, 1))
        return dict(self.model.named_parameters())

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        self.model.train()
        return self.error(params, batch) + hparams["decay"] * sum(p.square().sum() for p in params.values())

    def outer_loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        self.model.eval()
        return self.error(params, batch)

    def error(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return ((functional_call(self.model, params, (x,))[:, 0] - y) ** 2).mean()


class Saddle(OneRate):
    """An inner loss whose curvature is negative at the start and positive where the training ends."""

    differentiable = ("pull",)
    inner_lr = 0.3
    inner_steps = 1

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        self.data = regression(0)
        return {"w": torch.full((5,), 0.1, dtype=torch.float64)}

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        w = params["w"]
        return (w**4 / 4 - w**2 / 2).sum() - hparams["pull"].to(w) * w.sum()


class NaNAtTheThird(Ridge):
    """Its inner loss is not a number from the third training on."""

    calls = 0

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        if get_context().max_resource == 7 and torch.is_grad_enabled():  # not while the study is checked
            self.calls += 1
        loss = super().inner_loss(params, hparams, batch)
        return loss * float("nan") if self.calls > 2 * (self.inner_steps + 1) + 4 else loss


class NoInit(DifferentiableTask):
    """Lacks all but a name."""

    differentiable = ("decay",)


class Ignores(Ridge):
    """Its inner loss does not depend on what it says."""

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self.outer_loss(params, batch)


class ManyLosses(Ridge):
    """Its outer loss is one for each row."""

    def outer_loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return (x @ params["w"] - y) ** 2

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        return self.outer_loss(params, batch).mean() + (hparams["decay"] * params["w"] ** 2).sum()


class Unlike(Ridge):
    """Its splits can't be pooled."""

    poolable = False


class NoData(Ridge):
    """Sets no data."""

    def init(self, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
        return {"w": torch.zeros(5)}


class Forgets(Ridge):
    """Gives no tensor for its hyperparameter."""

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        return {}


class Weighted(Ridge):
    """Its inner loss has no derivative in its hyperparameter that torch knows of."""

    def inner_loss(self, params: dict[str, Tensor], hparams: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        scores, target = batch[0] * params["w"], torch.zeros(len(batch[0]), dtype=torch.long)
        return nn.functional.cross_entropy(scores, target, weight=hparams["decay"])


class Sometimes(Ridge):
    """Its decay is there under a condition only."""

    def hyperparameters(self, config: dict[str, Any]) -> dict[str, Tensor]:
        return super().hyperparameters({"decay": 0.1, **config})
