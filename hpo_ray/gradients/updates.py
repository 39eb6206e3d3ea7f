"""Training steps that can be differentiated: what `unrolled_hypergradient` goes through.

A state is a flat dict of tensors: the weights by their names, and what the optimizer keeps of each as `slot/name`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hpo_ray.gradients.errors import HypergradientError, NotDifferentiable

State: TypeAlias = dict[str, Tensor]
StepLoss = Callable[[State, dict[str, Tensor], int], Tensor]
"""The inner loss of `(params, hparams, step)`, steps counted from 0: which batch it takes may depend on the step."""


class Update(ABC):
    """One step of gradient descent of some kind, `update(state, hparams, step) -> state`, as a function of all three.

    Hyperparameters named `inner_lr` and `inner_momentum` are its learning rate and momentum: a scalar, or a vector with
    a value for each step. All others go to the loss. Where there is none of that name, the constant counts.

    Attributes:
        loss: see `StepLoss`.
        inner_lr: the learning rate.
    """

    loss: StepLoss
    inner_lr: float
    slots: tuple[str, ...] = ()
    """What is kept of each weight."""

    def start(self, params: Mapping[str, Tensor]) -> State:
        """The state before the first step: the weights, and zeros for all else."""
        return {
            **params,
            **{f"{slot}/{name}": torch.zeros_like(p) for slot in self.slots for name, p in params.items()},
        }

    def weights(self, state: Mapping[str, Tensor]) -> State:
        """The weights of a state."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(self._prefixes)}

    def __call__(self, state: Mapping[str, Tensor], hparams: Mapping[str, Tensor], step: int) -> State:
        """The state after one more step.

        Under `torch.no_grad()` without a graph; else differentiable in state and hparams, twice and more.

        Raises:
            NotDifferentiable: the loss is no scalar, or doesn't depend on the weights.
        """
        return self.move(state, self.gradient(state, hparams, step)[1], hparams, step)

    def gradient(
        self, state: Mapping[str, Tensor], hparams: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the inner loss at a state, its gradient in the weights)."""
        keep = torch.is_grad_enabled()
        weights = self.weights(state)
        with torch.enable_grad():
            if not keep:
                weights = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
                hparams = {name: tensor.detach() for name, tensor in hparams.items()}
            elif any(not tensor.requires_grad for tensor in weights.values()):
                weights = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in weights.items()}
            loss = self.loss(weights, dict(hparams), step)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise NotDifferentiable("inner_loss must return a scalar tensor that depends on params")
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=keep, allow_unused=True)
        grads = {
            name: torch.zeros_like(weight) if g is None else g
            for (name, weight), g in zip(weights.items(), found, strict=True)
        }
        return loss.detach(), grads

    def move(
        self, state: Mapping[str, Tensor], grads: Mapping[str, Tensor], hparams: Mapping[str, Tensor], step: int
    ) -> State:
        """The state after a step along these gradients."""
        return self.apply(state, *self.direction(state, grads, hparams, step), hparams, step)

    def apply(
        self,
        state: Mapping[str, Tensor],
        direction: Mapping[str, Tensor],
        slots: Mapping[str, Tensor],
        hparams: Mapping[str, Tensor],
        step: int,
    ) -> State:
        """The state after a step of -inner_lr along a direction, with these slots."""
        rate = self._own(hparams, "inner_lr", step)
        return {**{name: state[name] - rate * direction[name] for name in direction}, **slots}

    @abstractmethod
    def direction(
        self, state: Mapping[str, Tensor], grads: Mapping[str, Tensor], hparams: Mapping[str, Tensor], step: int
    ) -> tuple[State, State]:
        """(u, the slots after the step), where the weights move by -inner_lr u."""

    def _own(self, hparams: Mapping[str, Tensor], name: str, step: int) -> Tensor | float:
        value = hparams.get(name)
        if value is None:
            return float(getattr(self, name))
        if value.ndim == 0:
            return value
        if value.ndim != 1 or step >= len(value):
            raise HypergradientError(
                f"{name} is of shape {tuple(value.shape)}, and step {step + 1} needs a value: give a scalar, or a "
                f"vector with one for each step"
            )
        return value[step]

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{slot}/" for slot in self.slots)


@dataclass(frozen=True)
class SGD(Update):
    """Gradient descent with heavy-ball momentum as `torch.optim.SGD` has it: m <- mu m + g, theta <- theta - lr m.

    Args:
        loss: see `StepLoss`.
        inner_lr: the learning rate.
        inner_momentum: mu; at 0, and no hyperparameter, nothing is kept.
        keeps_momentum: whether m is kept although mu is 0, since `inner_momentum` is a hyperparameter.
    """

    loss: StepLoss
    inner_lr: float = 0.1
    inner_momentum: float = 0.0
    keeps_momentum: bool = False

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        """The momentum, if there is any."""
        return ("momentum",) if self.inner_momentum or self.keeps_momentum else ()

    def direction(
        self, state: Mapping[str, Tensor], grads: Mapping[str, Tensor], hparams: Mapping[str, Tensor], step: int
    ) -> tuple[State, State]:
        """See `Update`."""
        if not self.slots:
            if "inner_momentum" in hparams:
                raise HypergradientError("inner_momentum is a hyperparameter: say SGD(keeps_momentum=True)")
            return dict(grads), {}
        mu = self._own(hparams, "inner_momentum", step)
        moved = {name: mu * state[f"momentum/{name}"] + g for name, g in grads.items()}
        return moved, {f"momentum/{name}": m for name, m in moved.items()}


@dataclass(frozen=True)
class Adam(Update):
    """Adam (Kingma and Ba 2015, algorithm 1), differentiable also where a second moment is zero.

    There the derivative of sqrt(v) is infinite; it is taken as 0, as the step is 0 whatever v is.

    Args:
        loss: see `StepLoss`.
        inner_lr: the learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
    """

    loss: StepLoss
    inner_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    slots = ("first", "second")

    def direction(
        self, state: Mapping[str, Tensor], grads: Mapping[str, Tensor], hparams: Mapping[str, Tensor], step: int
    ) -> tuple[State, State]:
        """See `Update`."""
        (b1, b2), t = self.betas, step + 1
        first = {name: b1 * state[f"first/{name}"] + (1 - b1) * g for name, g in grads.items()}
        second = {name: b2 * state[f"second/{name}"] + (1 - b2) * g * g for name, g in grads.items()}
        moves = {n: first[n] / (1 - b1**t) / (_root(second[n] / (1 - b2**t)) + self.eps) for n in grads}
        slots = {f"first/{n}": m for n, m in first.items()} | {f"second/{n}": v for n, v in second.items()}
        return moves, slots


def _root(value: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)
