"""What a differentiable task and its settings come to: weights, transforms, update, solver, and whether they fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_ray import gradients as g
from hpo_ray.domains import Domain, Float
from hpo_ray.errors import ConfigError
from hpo_ray.gradients.implicit import UNROLLED
from hpo_ray.gradients.updates import State
from hpo_ray.space import Space
from hpo_ray.trainables.context import TrialContext, use_context
from hpo_ray.trainables.differentiable import DifferentiableTask, fold_data
from hpo_ray.trainables.seeded import RandomState
from hpo_ray.trainables.settings import FIRST_ORDER, SEARCHABLE, SOLVERS, TRAINING, Hypergradient

_TO_USE = "method=unrolled and method=forward_online take learning rates and momentum"
OF_TRAINING = ("inner_lr", "inner_momentum")
"""Hyperparameters that are not in the inner loss, but in what the training makes of its gradient."""
MOST_BYTES = 4 * 2**30
"""Of the derivatives that forward mode carries along."""
ITERATIVE = ("conjugate_gradient", "neumann", "fixed_point")
"""Solvers that can start from an earlier solution."""
_SOLVERS: Mapping[str, Callable[..., g.Solver]] = {
    "conjugate_gradient": g.ConjugateGradient,
    "neumann": g.Neumann,
    "fixed_point": g.FixedPoint,
    "nystrom": g.Nystrom,
    "exact": g.Exact,
    "identity": g.Identity,
}


def check(task: type[DifferentiableTask], rules: Hypergradient, context: TrialContext) -> None:
    """Refuses a study whose hyperparameters can't be moved; tries one hypergradient on the CPU.

    Raises:
        ConfigError: the estimator can't differentiate a name, or a loss is not as it should be.
    """
    space = context.space
    if space is None or not rules.moves:
        return
    moved = moved_names(task, space.domains)
    names = ", ".join(task.differentiable)
    if not moved:
        raise ConfigError(
            f"space: none of what {task.__name__} differentiates ({names or 'nothing'}) has a range of floats in "
            f"the space, so there is no gradient to follow; give one, for example "
            f"'+space.{next(iter(task.differentiable), 'NAME')}={{low: 1e-6, high: 1.0, log: true}}', or train it "
            f"with trainable=task",
            key="space",
        )
    for name in moved:
        if why := why_not(rules.estimator, name):
            raise ConfigError(f"space.{name}: estimator={rules.estimator} {why}", key=f"space.{name}")
    with use_context(context):
        for key in [name for name in SEARCHABLE if name in space.domains]:
            domain = space.domains[key]
            for end in (0.0, 1.0):
                rules.with_config({key: domain.from_unit(end)})
        config = _with_active(space, moved)
        try_once(task, rules, config, [name for name in moved if name in space.flatten(config)])


def moved_names(task: type[DifferentiableTask] | DifferentiableTask, domains: Mapping[str, Domain]) -> list[str]:
    """The names that a task differentiates and a space gives a range of floats."""
    return [name for name in task.differentiable if _is_continuous(domains.get(name))]


def start_task(
    cls: type[DifferentiableTask], config: Mapping[str, Any], seed: int, device: torch.device
) -> tuple[DifferentiableTask, dict[str, Tensor], dict[str, Tensor]]:
    """(task, weights, hyperparameters) of a configuration, on the device.

    Raises:
        ConfigError: what the task gives is not what it should.
    """
    task = cls()
    task.device = device
    torch.manual_seed(seed)
    params = task.init(copy.deepcopy(dict(config)), seed)
    key = "task.trainable"
    if not isinstance(params, Mapping) or not params:
        raise ConfigError(f"{cls.__name__}.init: must return the weights by name, a dict of tensors", key=key)
    data = getattr(task, "data", None)
    if not isinstance(data, Mapping) or any(split not in data for split in ("train", "validation", "test")):
        raise ConfigError(f"{cls.__name__}.init: must set self.data to train, validation and test tensors", key=key)
    task.data = {split: tuple(tensor.to(device) for tensor in tensors) for split, tensors in data.items()}
    # Frozen layers of a module are not trained: functional_call takes them from the module itself.
    frozen = [name for name, p in params.items() if isinstance(p, torch.nn.Parameter) and not p.requires_grad]
    params = {name: p.detach().clone().to(device) for name, p in params.items() if name not in frozen}
    if not params:
        raise ConfigError(f"{cls.__name__}.init: all weights have requires_grad=False, and none is trained", key=key)
    dtype = next(iter(params.values())).dtype
    found = task.hyperparameters(copy.deepcopy(dict(config)))
    hparams = {name: torch.as_tensor(value).detach().clone().to(device, dtype) for name, value in found.items()}
    return task, params, hparams


def _is_continuous(domain: Domain | None) -> bool:
    return isinstance(domain, Float) and domain.step is None


def transforms_of(
    task: DifferentiableTask, context: TrialContext, config: Mapping[str, Any], hparams: Mapping[str, Tensor]
) -> dict[str, g.Transform]:
    """How each hyperparameter that is moved is kept within its bounds."""
    found: dict[str, g.Transform] = {}
    domains = {} if context.space is None else context.space.domains
    for name in moved_names(task, domains):
        domain = domains[name]
        assert isinstance(domain, Float)
        if name in config and name in hparams:  # a condition may leave it out
            found[name] = g.Positive(domain.low, domain.high) if domain.log else g.Bounded(domain.low, domain.high)
    return found


def why_not(estimator: str, name: str) -> str:
    """Why an estimator can't move a hyperparameter, and what can; empty if it can."""
    if estimator == "descent" and name != "inner_lr":
        return f"moves inner_lr alone; fix {name} (space.{name}=VALUE), or use method=hypergradient"
    if estimator in (*SOLVERS, *FIRST_ORDER) and name in OF_TRAINING:
        return (
            f"differentiates what is in the inner loss, and {name} is not; use method=unrolled or method=forward_online"
            + (", or method=hypergradient_descent" if name == "inner_lr" else "")
        )
    return ""


def try_once(
    task_class: type[DifferentiableTask], rules: Hypergradient, config: dict[str, Any], moved: list[str]
) -> None:
    """Takes one hypergradient of a task on its first batch, so that what it lacks is found before a study starts."""
    cpu = torch.device("cpu")
    before = RandomState.capture(cpu)
    try:
        task, params, hparams = start_task(task_class, config, 0, cpu)
        sizes = {"train": rules.batch_size or task.batch_size}
        sizes["validation"] = rules.outer_batch_size or task.outer_batch_size
        few = {split: tuple(tensor[:size] for tensor in task.data[split]) for split, size in sizes.items()}
        if missing := [name for name in moved if name not in hparams]:
            raise ConfigError(
                f"{task_class.__name__}.hyperparameters: gives no {', '.join(missing)}, which is said to be "
                f"differentiable",
                key="task.trainable",
            )
        if rules.outer_folds > 1:
            fold_data(task, rules.outer_folds, 0)
        own = {name: hparams.pop(name) for name in moved}

        def inner(params: State, moved: dict[str, Tensor], step: int = 0) -> Tensor:
            return task.inner_loss(params, {**hparams, **moved}, few["train"])

        def outer(params: State, moved: dict[str, Tensor]) -> Tensor:
            return task.outer_loss(params, few["validation"])

        update = update_of(rules, task, inner, {**hparams, **own})
        if rules.estimator in TRAINING or rules.estimator == "descent":
            mode: Any = "forward" if rules.estimator == "forward" else "reverse"
            if mode == "forward":
                _check_size(params, own)
            g.unrolled_hypergradient(update, outer, params, own, steps=1, mode=mode)
        else:
            g.hypergradient(inner, outer, params, own, g.Identity(measure=False))
    except ConfigError:
        raise
    except g.NonFiniteLoss:
        return  # at these weights: a trial will say where
    except g.HypergradientError as error:
        raise _refusal(task_class, str(error).replace(UNROLLED, _TO_USE)) from None
    except Exception as error:
        said = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and "not differentiable" in said:
            raise _refusal(task_class, f"{said} Use operations there that torch differentiates") from None
        return  # the user's code needs something that is not here; a trial will show its traceback
    finally:
        before.apply(cpu)


def _with_active(space: Space, moved: list[str]) -> dict[str, Any]:
    """A configuration in which a name that is moved is active: the middle of the space, if it is there."""
    config = space.from_units([0.5] * len(space))
    draws = np.random.default_rng(0)
    for _ in range(1000):
        if any(name in space.flatten(config) for name in moved):
            break
        config = space.sample(draws)
    return config


def _check_size(params: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> None:
    """Refuses derivatives that would take more memory than there is anywhere."""
    rows, weights = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (moved, params))
    size = rows * (rows + weights) * next(iter(params.values())).element_size()
    if size > MOST_BYTES:
        raise ConfigError(
            f"trainable.estimator=forward: carries {rows} x {weights} derivatives, {size / 2**30:.0f} GiB; for so many "
            f"hyperparameters use method=hypergradient, or method=unrolled",
            key="trainable.estimator",
        )


def _refusal(task_class: type[DifferentiableTask], why: str) -> ConfigError:
    return ConfigError(f"task.trainable: {task_class.__name__}: {why}", key="task.trainable")


def update_of(
    rules: Hypergradient, task: DifferentiableTask, loss: Callable[..., Tensor], hparams: Mapping[str, Tensor]
) -> g.Update:
    """The steps of the training.

    Raises:
        ConfigError: a setting is for another optimizer.
    """
    rate = task.inner_lr if rules.inner_lr is None else rules.inner_lr
    if (rules.inner_optimizer or task.inner_optimizer) == "adam":
        if "inner_momentum" in hparams or rules.inner_momentum is not None:
            raise ConfigError(
                "inner_momentum: adam has none; use trainable.inner_optimizer=sgd", key="trainable.inner_momentum"
            )
        return g.Adam(loss, rate)
    if rules.estimator == "sama":
        raise ConfigError(
            "trainable.estimator=sama: is for adam; use trainable.inner_optimizer=adam, or estimator=darts",
            key="trainable.estimator",
        )
    momentum = task.inner_momentum if rules.inner_momentum is None else rules.inner_momentum
    return g.SGD(loss, rate, momentum, keeps_momentum="inner_momentum" in hparams)


def outer_optimizer_of(rules: Hypergradient, free: list[Tensor], rate: float) -> torch.optim.Optimizer:
    """What moves the free numbers."""
    kind = torch.optim.SGD if rules.outer_optimizer == "sgd" else torch.optim.Adam
    return kind(free, lr=rate)


def solver_of(rules: Hypergradient, task: DifferentiableTask, damping: float) -> g.Solver:
    """The solver of an implicit estimator, with as much damping."""
    given: dict[str, Any] = {"tol": rules.tol, "damping": damping, "step_size": rules.step_size}
    if rules.estimator in ("conjugate_gradient", "fixed_point"):
        given["max_iter"] = rules.iterations
    elif rules.estimator in ("neumann", "nystrom"):
        given["terms" if rules.estimator == "neumann" else "rank"] = rules.iterations
    elif rules.estimator == "identity":
        given = {"tol": rules.tol, "scale": rules.inner_lr or task.inner_lr}
    return _SOLVERS[rules.estimator](**{key: value for key, value in given.items() if value is not None})
