"""Gradient-based hyperparameter optimisation as a Ray Tune trainable: one trial is one descent in the hyperparameters.

    lambda <- lambda - eta d outer_loss(theta*(lambda), lambda) / d lambda

with theta trained along. A trial so is to schedulers and searchers what every trial is: it can be paused, stopped,
continued and copied, and its report belongs to the hyperparameters that its weights were trained with.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hpo_ray import gradients as g
from hpo_ray.domains import Float
from hpo_ray.errors import ConfigError
from hpo_ray.gradients.implicit import outer_gradients
from hpo_ray.gradients.updates import State
from hpo_ray.trainables.bilevel import (
    ITERATIVE,
    check,
    outer_optimizer_of,
    solver_of,
    start_task,
    transforms_of,
    update_of,
)
from hpo_ray.trainables.context import TrialContext, get_context
from hpo_ray.trainables.cursor import Cursor
from hpo_ray.trainables.differentiable import Batch, DifferentiableTask, fold_data
from hpo_ray.trainables.seeded import RandomState, SeededTrainable, plain
from hpo_ray.trainables.settings import FIRST_ORDER, SOLVERS, TRAINING, Hypergradient
from hpo_ray.trials import HYPERPARAMETER

STATE_FILE = "state.pt"
EVALUATION_ROWS = 1024
"""Examples in a forward pass of an evaluation: bounds its memory."""
ONLINE = ("forward", "descent")
"""Estimators whose hyperparameters move while the one training goes on."""
TRIES = 8
"""How often damping is raised within a step before the trial gives up."""


class HypergradientTrainable(SeededTrainable):
    """Trains a `DifferentiableTask` and moves its hyperparameters, by the rules of a `Hypergradient`.

    Made by `Hypergradient(...).bind(Task)`. A `step()` is `inner_steps` steps of training and a step of the
    hyperparameters. It reports, of the weights after the training and the hyperparameters that they were trained with:

    - `loss`: the outer loss on the validation split (on the folds left out, with `outer_folds`), and what the task's
      `metrics` say of it;
    - `test_loss` and `test_…`: the same on the test split, which nothing is chosen by: where it parts from `loss`, the
      hyperparameters overfit the validation split;
    - `train_loss`: the mean of the inner loss over the training steps;
    - `hyperparameter/NAME`, of a tensor of many `hyperparameter/NAME.mean`, `.min`, `.max` and `.std`, and what the
      task's `hyperparameter_metrics` say of them;
    - `hypergradient_norm`; of an implicit one `residual`, `solver_iterations`, `inner_gradient_norm` and `damping`;
    - `gradient_evaluations`: what was spent since the start, in gradients of a loss over one batch; a product with a
      second derivative counts as two. With `scheduler.time_attr=gradient_evaluations` methods are compared by it.

    The step of the hyperparameters comes after the report; the next training starts from it. Names that the space
    gives a range of floats are moved inside its bounds; the first value is the configuration's. All others stay.

    After a population has copied a trial, weights, hyperparameters, optimizer states and generators are the other's,
    and every setting (`outer_lr`) and fixed hyperparameter its own.

    Attributes:
        task: the task.
        params: the weights of the last report, by name; with K folds as `k/NAME`.
        hparams: the hyperparameters that they were trained with, in their own units.
    """

    task_class: ClassVar[type[DifferentiableTask]]
    settings: ClassVar[Hypergradient]
    fidelities: ClassVar[tuple[str, ...]] = ("epochs",)

    task: DifferentiableTask
    hparams: dict[str, Tensor]

    _rules: Hypergradient
    _update: g.Update
    _state: State
    _initial: State
    """The state before the first step."""
    _moved: tuple[str, ...]
    """The names of the hyperparameters that are moved."""
    _free: dict[str, Tensor]
    """The hyperparameters as free numbers, which the outer optimizer moves."""
    _rate: Tensor | None
    """With `descent` the learning rate, which the training itself moves."""
    _outer: torch.optim.Optimizer | None
    _adjoint: dict[str, Tensor] | None
    """The last solution of the solver."""
    _tangents: dict[str, Tensor] | None
    """With `forward` the derivatives of the state in the hyperparameters."""
    _last_direction: State | None
    _damping: float
    _outer_lr: float
    _initial_task: dict[str, Tensor]
    """The task's own state before the first step."""
    _inner_cursors: list[Cursor]
    _outer_cursors: list[Cursor]

    # What Ray calls.

    @classmethod
    def check_study(cls, context: TrialContext) -> None:
        """Refuses a study whose hyperparameters this can't move, on a small batch and on the CPU.

        Raises:
            ConfigError: the estimator can't differentiate a name, or a loss is not as it should be.
        """
        check(cls.task_class, cls.settings, context)

    def step(self) -> dict[str, Any]:
        """One training and one step of the hyperparameters; see the class for what it reports."""
        self._steps += 1
        with self._alone():
            try:
                metrics = self._advance()
            except g.HypergradientError as error:
                error.args = (f"step {self._steps}: {error}",)
                raise
        return {name: value if isinstance(value, bool) else float(value) for name, value in metrics.items()}

    def test(self) -> dict[str, float]:
        """The metrics on the test split: what to report about the trial that was chosen, and never to choose by."""
        before = self._random_state
        with self._alone():
            metrics = self._evaluate("test")
        self._random_state = before
        return metrics

    @property
    def params(self) -> dict[str, Tensor]:
        """The weights of the last report."""
        return self._update.weights(self._state)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes everything that the next step depends on to `state.pt`: tensors and plain values only."""
        state = {
            "config": plain(self.config),
            "steps": self._steps,
            "inner_steps": self._trained,
            "evaluations": self._evaluations,
            "state": self._state,
            "initial": self._initial if self._restarts else {},
            "initial_task": self._initial_task if self._restarts else {},
            "noise": self._noise,
            "hparams": self.hparams,
            "free": {name: tensor.detach() for name, tensor in self._free.items()},
            "rate": self._rate,
            "last_direction": self._last_direction,
            "outer_optimizer": None if self._outer is None else self._outer.state_dict(),
            "adjoint": self._adjoint,
            "tangents": self._tangents,
            "damping": self._damping,
            "task": dict(self.task.state()),
            "inner_cursors": [(c.state, c.generator.get_state()) for c in self._inner_cursors],
            "outer_cursors": [(c.state, c.generator.get_state()) for c in self._outer_cursors],
            "random": self._random_state.to_plain(),
        }
        torch.save(state, Path(checkpoint_dir) / STATE_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continues from a checkpoint: the trial's own to the bit, another's under this trial's settings.

        Raises:
            ConfigError: the checkpoint is of another configuration, and its tensors don't fit.
            pickle.UnpicklingError: the file holds anything but tensors and plain values.
        """
        saved = torch.load(Path(checkpoint_dir) / STATE_FILE, map_location="cpu", weights_only=True)
        state = self._on_device(saved["state"])
        pairs = ((self._state, state), (self._free, saved["free"]))
        misfits = [n for own, theirs in pairs for n in own if n in theirs and theirs[n].shape != own[n].shape]
        if misfits:
            raise ConfigError(
                f"The checkpoint was made with another configuration ({saved['config']}), and does not fit "
                f"this trial's ({', '.join(misfits)}). Hyperparameters that change shapes can't change during a trial: "
                f"have the scheduler leave them as they are."
            )
        # What only one of two configurations keeps, a momentum for example, starts at zero.
        self._state = {name: state.get(name, own) for name, own in self._state.items()}
        initial = self._on_device(saved["initial"])
        self._initial = {name: initial.get(name, own) for name, own in self._initial.items()}
        self._initial_task.update(self._on_device(saved["initial_task"]))
        self._steps, self._trained, self._noise = saved["steps"], saved["inner_steps"], saved["noise"]
        self._evaluations, self._damping = saved["evaluations"], max(self._damping_set, saved["damping"])
        self.hparams = {
            **self.hparams,
            **self._on_device({n: t for n, t in saved["hparams"].items() if n in self._moved}),
        }
        with torch.no_grad():
            for name, tensor in self._free.items():
                if name in saved["free"]:
                    tensor.copy_(saved["free"][name])
        if self._outer is not None and saved["outer_optimizer"] is not None:
            self._outer.load_state_dict(saved["outer_optimizer"])
            for group in self._outer.param_groups:
                group["lr"] = self._outer_lr
        self._rate = None if saved["rate"] is None else saved["rate"].to(self.device)
        for name in ("last_direction", "adjoint", "tangents"):
            setattr(self, f"_{name}", None if saved[name] is None else self._on_device(saved[name]))
        self.task.load_state(self._on_device(saved["task"]))
        for name in ("inner_cursors", "outer_cursors"):
            for cursor, position in zip(getattr(self, f"_{name}"), saved[name], strict=True):
                cursor.restore(*position)
        self._random_state = RandomState.from_plain(saved["random"], own_gpu=self._random_state.gpu)

    def cleanup(self) -> None:
        """Frees weights and data."""
        for name in (
            "task",
            "_state",
            "_free",
            "_outer",
            "_adjoint",
            "_tangents",
            "_splits",
            "_initial_task",
            "hparams",
        ):
            self.__dict__.pop(name, None)

    # Inner workings.

    def _on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self._context.precision == "fp32":
            return contextlib.nullcontext()
        # Weights that were cast within one derivative are not those of another.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def _start(self, config: dict[str, Any]) -> None:
        self.config = config
        self._context = context = get_context()
        self.device = self._choose_device()
        flat = dict(config) if context.space is None else context.space.flatten(config)
        self._rules = rules = type(self).settings.with_config(flat)
        weights, others, inner, outer, noise = np.random.SeedSequence(context.seed).generate_state(5)
        self._noise = int(noise)
        self._random_state = RandomState.seeded(int(others), self.device)
        with self._alone():
            task, params, hparams = start_task(type(self).task_class, config, int(weights), self.device)
        self.task = task
        self._splits: Sequence[Mapping[str, Batch]] = [task.data]
        if rules.outer_folds > 1:
            self._splits = fold_data(task, rules.outer_folds, context.split_seed)
            params = {f"{k}/{name}": p.clone() for k in range(rules.outer_folds) for name, p in params.items()}
        self._inner_steps = rules.inner_steps or task.inner_steps
        self._outer_lr = task.outer_lr if rules.outer_lr is None else rules.outer_lr
        if rules.estimator in ONLINE:
            self._restarts = False
        else:
            self._restarts = task.restarts if rules.estimator != "unrolled" else rules.restart is not False
        self._initial_task = {name: tensor.clone() for name, tensor in task.state().items()}
        self._transforms = transforms_of(task, context, flat, hparams) if rules.moves else {}
        self._moved = tuple(self._transforms)
        if rules.estimator == "unrolled" and self._restarts:
            for name in task.per_step:
                if name in self._moved and hparams[name].ndim == 0:
                    hparams[name] = hparams[name].expand(self._inner_steps).clone()
        self._update = update_of(rules, task, self._inner_loss, hparams)
        self._initial = self._update.start(params)
        self._state = self._initial
        self._fixed = hparams
        self._free = {}
        self._rate = None
        if rules.estimator == "descent":
            self._rate = hparams["inner_lr"].clone() if self._moved else None
        else:
            for name, transform in self._transforms.items():
                self._free[name] = transform.project(transform.to_free(hparams[name])).requires_grad_()
        self._outer = outer_optimizer_of(rules, list(self._free.values()), self._outer_lr) if self._free else None
        self.hparams = self._values()
        self._steps = self._trained = self._evaluations = 0
        self._damping = self._damping_set
        self._adjoint = self._tangents = self._last_direction = None
        self._inner_cursors = _cursors(int(inner), len(self._splits))
        self._outer_cursors = _cursors(int(outer), 2 * len(self._splits))

    def _values(self) -> dict[str, Tensor]:
        """The hyperparameters as they are, in their own units."""
        with torch.no_grad():
            moved = {name: self._transforms[name].to_value(free) for name, free in self._free.items()}
        return {**self._fixed, **moved, **({} if self._rate is None else {"inner_lr": self._rate})}

    def _advance(self) -> dict[str, Any]:
        rules = self._rules
        self.hparams = self._values()
        if self._restarts:
            self._state, self._trained = self._initial, 0
            self.task.load_state(self._initial_task)
        self._draw()
        result: g.Hypergradient | None = None
        estimator = rules.estimator if self._moved else "none"  # conditions may leave nothing to move
        if estimator == "unrolled":
            losses, result = self._unroll()
        else:
            losses = self._train_forward() if estimator == "forward" else self._train()
        metrics: dict[str, Any] = {"train_loss": losses.mean().item(), **self._evaluate("validation")}
        metrics.update({f"test_{name}": value for name, value in self._evaluate("test").items()})
        for name in self._moved:
            metrics.update(_summary(name, self.hparams[name]))
        with torch.no_grad():
            metrics.update(self.task.hyperparameter_metrics(dict(self.hparams)))
        if estimator in SOLVERS:
            result = self._implicit(metrics)
        elif estimator in FIRST_ORDER:
            result = self._first_order()
        elif estimator == "forward":
            result = self._project_tangents()
        if result is not None:
            metrics["hypergradient_norm"] = math.hypot(*(x.norm().item() for x in result.grads.values()))
            if not math.isfinite(metrics["hypergradient_norm"]):
                raise g.NonFiniteLoss("the hypergradient is not finite")
            self._outer_step(result.grads)
        metrics["gradient_evaluations"] = self._evaluations
        if estimator == "none" and self._restarts:
            metrics["done"] = True  # the same training again would give the same again
        return metrics

    # Training.

    def _draw(self) -> None:
        """Draws the batches of the next training."""
        size = self._rules.batch_size or self.task.batch_size
        self._first = self._trained
        pairs = list(zip(self._splits, self._inner_cursors, strict=True))
        self._batches = [
            [_batch(splits["train"], size, cursor) for splits, cursor in pairs] for _ in range(self._inner_steps)
        ]

    def _inner_loss(self, params: State, hparams: dict[str, Tensor], step: int) -> Tensor:
        if self._rules.estimator in TRAINING:  # these take a step more than once, and dropout must be the same again
            torch.manual_seed(self._noise + step)
        return self._inner_on(params, hparams, self._batches[step - self._first])

    def _inner_on(self, params: State, hparams: dict[str, Tensor], batches: Sequence[Batch]) -> Tensor:
        """The sum of the inner losses of all models: each has weights of its own."""
        with self._autocast():
            losses = [self.task.inner_loss(self._of(params, k), hparams, batch) for k, batch in enumerate(batches)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _outer_on(self, params: State, batches: Sequence[Batch]) -> Tensor:
        """The mean of the outer losses of all models."""
        with self._autocast():
            losses = [self.task.outer_loss(self._of(params, k), batch) for k, batch in enumerate(batches)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _of(self, params: State, k: int) -> State:
        """The weights of one model by their own names."""
        if len(self._splits) == 1:
            return params
        prefix = f"{k}/"
        return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}

    def _train(self) -> Tensor:
        """The inner steps; with `descent` the learning rate moves along. Returns their losses."""
        losses, hparams = [], self.hparams
        with torch.no_grad():
            for step in range(self._trained, self._trained + self._inner_steps):
                loss, grads = self._update.gradient(self._state, hparams, step)
                if self._rate is not None:
                    hparams = {**hparams, "inner_lr": self._descend(grads)}
                direction, slots = self._update.direction(self._state, grads, hparams, step)
                self._state = self._update.apply(self._state, direction, slots, hparams, step)
                if self._rate is not None:
                    self._last_direction = direction
                losses.append(loss)
                self._after_step(step)
        self._evaluations += self._inner_steps * len(self._splits)
        if self._rate is not None:
            self.hparams = self._values()
        return self._finished(losses)

    def _descend(self, grads: State) -> Tensor:
        """The learning rate after a step of Baydin et al. (2018), in its bounds."""
        assert self._rate is not None
        if self._last_direction is not None:
            slope = g.learning_rate_gradient(grads, self._last_direction)
            domain = self._domain("inner_lr")
            self._rate = (self._rate - self._outer_lr * slope).clamp(domain.low, domain.high)
        return self._rate

    def _domain(self, name: str) -> Float:
        assert self._context.space is not None
        domain = self._context.space.domains[name]
        assert isinstance(domain, Float)
        return domain

    def _train_forward(self) -> Tensor:
        """The inner steps, with the derivatives of the state in the hyperparameters carried along."""
        losses = []
        hparams, moved = self.hparams, self._moved
        for step in range(self._trained, self._trained + self._inner_steps):
            with torch.no_grad():
                loss = self._inner_loss(self._update.weights(self._state), self.hparams, step)
            self._state, self._tangents = g.forward_step(
                self._update, self._state, hparams, self._tangents, step, moved
            )
            losses.append(loss)
            self._after_step(step)
        count = sum(hparams[name].numel() for name in moved)
        self._evaluations += self._inner_steps * len(self._splits) * (1 + 3 * count)
        return self._finished(losses)

    def _after_step(self, step: int) -> None:
        with torch.no_grad():
            weights = self._update.weights(self._state)
            for k, batch in enumerate(self._batches[step - self._first]):
                self.task.after_step(self._of(weights, k), batch)

    def _finished(self, losses: list[Tensor]) -> Tensor:
        """The losses of a training, finite."""
        stacked = torch.stack([loss.detach().float() for loss in losses]) / len(self._splits)
        finite = torch.isfinite(stacked)
        if not finite.all():
            at = int((~finite).nonzero()[0])
            rate = float(self.hparams["inner_lr"].mean()) if "inner_lr" in self.hparams else self._update.inner_lr
            if at == 0:
                raise g.NonFiniteLoss(
                    f"inner_loss is {stacked[at].item()} at inner step {self._trained + 1}, the first of this "
                    f"training: look at the loss, the data and the hyperparameters ({self._moved_text()})"
                )
            raise g.NonFiniteLoss(
                f"the inner problem diverges: inner_loss is {stacked[at].item()} at inner step "
                f"{self._trained + at + 1} ({stacked[0].item():.3g} at the first of this training). Lower "
                f"trainable.inner_lr ({rate:.3g})"
            )
        self._trained += self._inner_steps
        return stacked

    def _moved_text(self) -> str:
        found: dict[str, float] = {}
        for name in self._moved:
            found.update(_summary(name, self.hparams[name]))
        return ", ".join(f"{name.removeprefix(HYPERPARAMETER)} {value:.3g}" for name, value in found.items()) or "fixed"

    # Hypergradients, in the units of the hyperparameters.

    def _outer_batches(self) -> tuple[list[Batch], list[Batch]]:
        """(of the training split, of the validation split) for one hypergradient."""
        size = self._rules.outer_batch_size or self.task.outer_batch_size
        half = len(self._splits)
        inner = zip(self._splits, self._outer_cursors[:half], strict=True)
        outer = zip(self._splits, self._outer_cursors[half:], strict=True)
        return (
            [_batch(splits["train"], size, cursor) for splits, cursor in inner],
            [_batch(splits["validation"], size, cursor) for splits, cursor in outer],
        )

    def _problem(self) -> tuple[Any, Any, dict[str, Tensor], dict[str, Tensor]]:
        """(inner loss, outer loss, weights, hyperparameters that are moved)."""
        inner, outer = self._outer_batches()
        fixed = self.hparams
        return (
            lambda params, moved: self._inner_on(params, {**fixed, **moved}, inner),
            lambda params, moved: self._outer_on(params, outer),
            self.params,
            {name: fixed[name] for name in self._moved},
        )

    def _implicit(self, metrics: dict[str, Any]) -> g.Hypergradient:
        """An implicit hypergradient, with as much damping as it takes to have one.

        It takes more where the curvature is not positive, or the residual is above 1: then v = 0 would be nearer.
        As in Levenberg and Marquardt's method the damping grows tenfold until it is enough, and falls to a third after
        each step on which it was.
        """
        problem = self._problem()
        warm = self._adjoint if self._rules.warm_start is not False else None
        least = self._damping_set
        for attempt in range(TRIES):
            try:
                solver = solver_of(self._rules, self.task, self._damping)
                result = g.hypergradient(*problem, solver=solver, warm_start=warm)
            except g.NonPositiveCurvature as error:
                self._evaluations += (2 * error.iteration + 4) * len(self._splits)
                if attempt == TRIES - 1:
                    raise
                needed = 2 * (self._damping - error.curvature)
            else:
                assert result.residual is not None
                if result.residual < 1.0 or self._rules.estimator == "identity" or attempt == TRIES - 1:
                    break
                self._evaluations += (2 * result.products + 4) * len(self._splits)
                needed = 0.0
            self._damping = max(10 * self._damping, needed, 1e-4)
            warm = None
        self._evaluations += (2 * result.products + 4) * len(self._splits)
        self._adjoint = result.adjoint if self._rules.estimator in ITERATIVE else None
        assert result.residual is not None and result.inner_gradient_norm is not None
        metrics.update(residual=result.residual, solver_iterations=result.iterations, damping=self._damping)
        metrics["inner_gradient_norm"] = result.inner_gradient_norm
        self._damping = max(least, self._damping / 3) if self._damping / 3 > 1e-6 else least
        return result

    @property
    def _damping_set(self) -> float:
        if self._rules.damping is not None:
            return self._rules.damping
        return 0.01 if self._rules.estimator == "nystrom" else 0.0

    def _first_order(self) -> g.Hypergradient:
        rules, problem = self._rules, self._problem()
        epsilon = rules.epsilon or (0.01 if rules.estimator == "darts" else 1.0)
        rate = rules.inner_lr or self.task.inner_lr
        self._evaluations += 4 * len(self._splits)
        if rules.estimator == "darts":
            return g.darts_hypergradient(*problem, inner_lr=rate, epsilon=epsilon)
        return g.sama_hypergradient(*problem, self._state, self._trained, inner_lr=rate, epsilon=epsilon)

    def _unroll(self) -> tuple[Tensor, g.Hypergradient]:
        """Trains by unrolling, and keeps the state that it ends with. Returns the losses, and the hypergradient."""
        _, outer = self._outer_batches()
        fixed, rules = self.hparams, self._rules
        traced = self._inner_steps if rules.truncate is None else min(rules.truncate, self._inner_steps)
        noted: dict[int, Tensor] = {}
        update = self._update

        def step_noted(state: State, moved: dict[str, Tensor], step: int) -> State:
            values = {**fixed, **moved}
            loss, grads = update.gradient(state, values, step)
            noted.setdefault(step, loss)
            if not torch.isfinite(loss):
                self._finished([noted[before] for before in sorted(noted)])
            return update.move(state, grads, values, step)

        def outer_loss(state: State, moved: dict[str, Tensor]) -> Tensor:
            self._state = {name: tensor.detach() for name, tensor in state.items()}
            for step in range(self._first, self._first + self._inner_steps):
                self._after_step(step)  # with the last weights: those before are gone
            return self._outer_on(update.weights(state), outer)

        result = g.unrolled_hypergradient(
            step_noted,
            outer_loss,
            self._state,
            {name: fixed[name] for name in self._moved},
            steps=self._inner_steps,
            truncate=rules.truncate,
            keep=rules.keep or "all",  # type: ignore[arg-type]
            first_step=self._trained,
        )
        assert result.params is not None
        self._state = result.params
        again = {"graphs": -1, "sqrt": 1}.get(rules.keep or "all", 0)  # how often a step is taken more than that
        self._evaluations += (self._inner_steps + (3 + again) * traced + 1) * len(self._splits)
        losses = self._finished([noted[step] for step in sorted(noted)])
        return losses, result

    def _project_tangents(self) -> g.Hypergradient:
        """The outer gradient along the derivatives that were carried along."""
        _, outer, params, moved = self._problem()
        value, pull, _ = outer_gradients(outer, params, moved)
        self._evaluations += len(self._splits)
        assert self._tangents is not None
        rows = sum(hparam.numel() for hparam in moved.values())
        parts = [self._tangents[name].reshape(rows, -1) @ x.flatten() for name, x in pull.items() if x is not None]
        along = torch.stack(parts).sum(0)
        grads, index = {}, 0
        for name, hparam in moved.items():
            grads[name] = along[index : index + hparam.numel()].view(hparam.shape)
            index += hparam.numel()
        return g.Hypergradient(grads=grads, outer_loss=value, iterations=self._inner_steps)

    def _outer_step(self, grads: Mapping[str, Tensor]) -> None:
        """Moves the free numbers along the gradient, by the chain rule of their transforms."""
        assert self._outer is not None
        for name, free in self._free.items():
            with torch.enable_grad():
                value = self._transforms[name].to_value(free)
            (free.grad,) = torch.autograd.grad(value, free, grads[name].to(value))
        self._outer.step()
        self._outer.zero_grad()
        with torch.no_grad():
            for name, free in self._free.items():
                free.copy_(self._transforms[name].project(free))

    def _evaluate(self, split: str) -> dict[str, float]:
        """The outer loss and the task's metrics on a whole split, the mean over all models."""
        totals: dict[str, float] = {}
        weights = self.params
        with torch.no_grad():
            for k, splits in enumerate(self._splits):
                data = (splits if split in splits else self.task.data)[split]
                rows = len(data[0])
                for part in zip(*(torch.split(tensor, EVALUATION_ROWS) for tensor in data), strict=True):
                    own = self._of(weights, k)
                    with self._autocast():
                        found: dict[str, Any] = {
                            "loss": self.task.outer_loss(own, part),
                            **self.task.metrics(own, part),
                        }
                    for name, value in found.items():
                        share = len(part[0]) / rows / len(self._splits)
                        totals[name] = totals.get(name, 0.0) + float(value) * share
        return totals


def _cursors(seed: int, count: int) -> list[Cursor]:
    return [Cursor(torch.Generator().manual_seed(seed + k)) for k in range(count)]


def _batch(data: Batch, size: int | None, cursor: Cursor) -> Batch:
    """All rows, or the next batch."""
    n = len(data[0])
    if size is None or size >= n:
        return data
    rows = cursor.next(n, size).to(data[0].device)
    return tuple(tensor[rows] for tensor in data)


def _summary(name: str, value: Tensor) -> dict[str, float]:
    """What a report says of a hyperparameter."""
    if value.numel() == 1:
        return {f"{HYPERPARAMETER}{name}": value.item()}
    numbers = value.double()
    found = {"mean": numbers.mean(), "min": numbers.min(), "max": numbers.max(), "std": numbers.std(correction=0)}
    return {f"{HYPERPARAMETER}{name}.{key}": number.item() for key, number in found.items()}
