"""Hypergradients through the training itself: of learning rates, momentum, schedules, initial weights, and all else.

The training theta_t = update(theta_{t-1}, lambda, t - 1) is a composition of T maps, and the derivative of the outer
loss at its end follows by the chain rule, with A_t = d theta_t / d theta_{t-1} and B_t = d theta_t / d lambda
(Franceschi et al., "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017):

    reverse (their algorithm 1):  alpha_T = grad outer_loss,  alpha_{t-1} = alpha_t A_t,  g = sum_t alpha_t B_t
    forward (their algorithm 2):  Z_0 = 0,  Z_t = A_t Z_{t-1} + B_t,  g = (grad outer_loss) Z_T
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hpo_ray.gradients.errors import HypergradientError, NonFiniteLoss, NotDifferentiable
from hpo_ray.gradients.generators import Generators
from hpo_ray.gradients.implicit import Hypergradient, outer_gradients
from hpo_ray.gradients.products import Loss, leaves
from hpo_ray.gradients.updates import State, Update

Step = Callable[[State, dict[str, Tensor], int], State]
"""`update(state, hparams, step) -> state`, a pure function of its arguments, steps counted from 0."""
Start = Mapping[str, Tensor] | Callable[[dict[str, Tensor]], State]
"""The weights at the start, or a function of the hyperparameters that gives them."""


def unrolled_hypergradient(
    update: Step | Update,
    outer_loss: Loss,
    params: Start,
    hparams: Mapping[str, Tensor],
    steps: int,
    mode: Literal["reverse", "forward"] = "reverse",
    truncate: int | None = None,
    keep: Literal["all", "sqrt", "graphs"] = "all",
    first_step: int = 0,
) -> Hypergradient:
    """The total derivative of the outer loss after `steps` steps of training, in everything that the steps depend on.

    Exact for the training as it is run, whether or not it has converged. With `truncate` biased: what happened before
    the last so many steps counts as constant (Shaban et al., AISTATS 2019); at a minimum, K steps of gradient descent
    then give just the K-term Neumann series.

    Reverse keeps the states and not their graphs, and takes each step again with its graph on the way back: time of
    2 to 4 trainings, memory of T states and one step's graph; with `keep="sqrt"` one more training and 2 sqrt(T)
    states; with `keep="graphs"` one training less and T graphs, which is the quickest where they fit. Forward carries Z
    along: time of (number of hyperparameters) trainings and more, memory of as many states, whatever T is. Take it for
    few hyperparameters and long trainings.

    Args:
        update: one step: `SGD(loss)`, `Adam(loss)`, or a function of your own `update(state, hparams, step) -> state`.
            The same arguments must give the same result, so draw batches by the step; torch's generators are put back
            where a step is taken again. A function of your own that takes a gradient with `torch.autograd.grad` must
            pass `create_graph=torch.is_grad_enabled()`, or the derivative lacks what goes through it.
        outer_loss: of `(params, hparams)`, a scalar.
        params: the weights before the first step, or a function of `hparams` that gives them, for hyperparameters of
            the initial weights. For an update of your own the whole state.
        hparams: the hyperparameters, floating-point tensors.
        steps: T.
        mode: `reverse` or `forward`.
        truncate: how many of the last steps are differentiated; None for all.
        keep: `all` states, or only each sqrt(T)-th, the others computed anew; or the `graphs` of all steps (reverse
            only).
        first_step: the number of the first step, where training goes on from an earlier one.

    Returns:
        The gradient, and in `params` the state after the last step.

    Raises:
        NotDifferentiable: the outer loss is no scalar, or nothing depends on some hyperparameter, which is named.
        NonFiniteLoss: the training or the outer loss is not finite; names the step.
    """
    _check(steps, mode, truncate, keep)
    hparams = {name: tensor.detach() for name, tensor in leaves(hparams, "hparams").items()}
    begin = params if callable(params) else (lambda _: dict(params))
    start: Callable[[dict[str, Tensor]], State] = begin
    if isinstance(update, Update):
        first = update.start
        start = lambda hparams: first(begin(hparams))  # noqa: E731
    weights = update.weights if isinstance(update, Update) else dict
    traced = steps if truncate is None else min(truncate, steps)
    run = _Run(update, hparams, first_step, first_step + steps - traced, first_step + steps)
    loss: Loss = lambda state, hparams: outer_loss(weights(state), hparams)  # noqa: E731
    return _reverse(run, loss, start, keep) if mode == "reverse" else _forward(run, loss, start)


def forward_step(
    update: Step | Update,
    state: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor] | None,
    step: int,
    moved: Sequence[str] | None = None,
) -> tuple[State, dict[str, Tensor]]:
    """One step of training, and of Z_t = A_t Z_{t-1} + B_t with it: forward mode, one step at a time.

    For hyperparameters that are changed while training goes on (RTHO, Franceschi et al. 2017). Of `SGD`
    and `Adam` all rows of Z are computed at once (`torch.func.vmap`), of an update of your own one after another.

    Args:
        update: as of `unrolled_hypergradient`.
        state: before the step.
        hparams: the hyperparameters.
        tangents: Z_{t-1}: of each tensor of the state its derivatives, (H, *shape), a row for each single
            hyperparameter in the order of `moved`; None for zeros.
        step: its number.
        moved: the names of those whose derivatives are carried; None for all.

    Returns:
        The state after the step, and Z_t.
    """
    _load_forward_mode()
    state = {name: tensor.detach() for name, tensor in state.items()}
    hparams = {name: tensor.detach() for name, tensor in hparams.items()}
    basis = _basis({name: hparams[name] for name in (hparams if moved is None else moved)})
    rows = len(next(iter(basis.values())))
    if tangents is None:
        tangents = {name: tensor.new_zeros(rows, *tensor.shape) for name, tensor in state.items()}
    together = _all_rows if isinstance(update, Update) else _row_by_row
    return together(update, state, hparams, tangents, basis, step)  # type: ignore[arg-type]


def _all_rows(
    update: Update,
    state: State,
    hparams: dict[str, Tensor],
    tangents: Mapping[str, Tensor],
    basis: dict[str, Tensor],
    step: int,
) -> tuple[State, dict[str, Tensor]]:
    random = Generators(state)
    with torch.no_grad():
        after = update(state, hparams, step)

    def run(state: State, moved: dict[str, Tensor]) -> State:
        values = {**hparams, **moved}
        grads = torch.func.grad(lambda weights: update.loss(weights, values, step).reshape(()))(update.weights(state))
        return update.move(state, grads, values, step)

    def push(along_state: State, along_moved: dict[str, Tensor]) -> State:
        at = (state, {name: hparams[name] for name in basis})
        pushed: State = torch.func.jvp(run, at, (along_state, along_moved))[1]
        return pushed

    random.rewind()
    pushed: dict[str, Tensor] = torch.func.vmap(push, randomness="same")(dict(tangents), basis)
    # A Python number times a tensor without dimensions has a tangent in double precision under vmap.
    return after, {name: tensor.detach().to(after[name].dtype) for name, tensor in pushed.items()}


def _row_by_row(
    update: Step,
    state: State,
    hparams: dict[str, Tensor],
    tangents: Mapping[str, Tensor],
    basis: dict[str, Tensor],
    step: int,
) -> tuple[State, dict[str, Tensor]]:
    pushed: dict[str, list[Tensor]] = {}
    after: State = {}
    random = Generators(state)
    for row in range(len(next(iter(basis.values())))):
        random.rewind()
        with torch.enable_grad(), forward_ad.dual_level():
            along = {**hparams, **{name: _dual(hparams[name], rows[row]) for name, rows in basis.items()}}
            begin = {name: _dual(tensor, tangents[name][row]).requires_grad_() for name, tensor in state.items()}
            for name, tensor in update(begin, along, step).items():
                primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
                after[name] = primal.detach()
                rows_of = pushed.setdefault(name, [])
                rows_of.append(torch.zeros_like(primal) if tangent is None else tangent.detach())
    return after, {name: torch.stack(parts) for name, parts in pushed.items()}


def _basis(hparams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A row for each single hyperparameter, (H, *shape) by name, with a one in its place."""
    total = sum(tensor.numel() for tensor in hparams.values())
    found, index = {}, 0
    for name, tensor in hparams.items():
        rows = tensor.new_zeros(total, tensor.numel())
        rows[index : index + tensor.numel()] = torch.eye(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        found[name] = rows.view(total, *tensor.shape)
        index += tensor.numel()
    return found


@cache
def _load_forward_mode() -> None:
    """Torch's forward mode compiles a few functions at its first use, by means that torch itself has deprecated."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        _dual(torch.zeros(1), torch.zeros(1))


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]  # torch ships it untyped
    return dual


class _Run:
    """A training: its update, hyperparameters, and the numbers of its first step, first traced step, and end."""

    def __init__(self, update: Step, hparams: dict[str, Tensor], begin: int, traced: int, end: int) -> None:
        self.update, self.hparams = update, hparams
        self.begin, self.traced, self.end = begin, traced, end
        self._random: dict[int, Generators] = {}

    def forward(self, state: Mapping[str, Tensor], begin: int, end: int) -> State:
        """The state after steps begin, …, end - 1, without a graph."""
        state = {name: tensor.detach() for name, tensor in state.items()}
        with torch.no_grad():
            for step in range(begin, end):
                state = {n: t.detach() for n, t in self.update(state, self.hparams, step).items()}
        return state

    def first(self, state: Mapping[str, Tensor], step: int) -> State:
        """The state after a step that will be taken again, so that it draws the same then: dropout."""
        self._random[step] = Generators(state)
        return self.forward(state, step, step + 1)

    def again(self, state: Mapping[str, Tensor], step: int) -> State:
        """As `first`, again."""
        self._random[step].rewind()
        return self.forward(state, step, step + 1)

    def check(self, last: Mapping[str, Tensor], start: Callable[[dict[str, Tensor]], State]) -> None:
        """Refuses a last state that is not finite, and finds out at which step that began.

        Raises:
            NonFiniteLoss: names the step.
        """
        if all(torch.isfinite(tensor).all() for tensor in last.values()):
            return
        state, steps = start(self.hparams), self.end - self.begin
        for taken in range(1, steps + 1):
            state = self.forward(state, self.begin + taken - 1, self.begin + taken)
            if wrong := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
                raise NonFiniteLoss(
                    f"the training diverges: {wrong[0]!r} is not finite after step {taken} of {steps}; lower the "
                    f"learning rate"
                )
        raise NonFiniteLoss(f"the training diverges: its weights are not finite after {steps} steps")

    def back(self, state: Mapping[str, Tensor], step: int, alpha: State) -> tuple[State, dict[str, Tensor | None]]:
        """(alpha A, alpha B) of one step from a state."""
        before = {name: tensor.detach().requires_grad_() for name, tensor in state.items()}
        hparams = {name: tensor.detach().requires_grad_() for name, tensor in self.hparams.items()}
        if step in self._random:
            self._random[step].rewind()
        with torch.enable_grad():
            after = self.update(before, hparams, step)
        found = _pull(after, alpha, [*before.values(), *hparams.values()])
        pulled = {
            n: torch.zeros_like(t) if g is None else g
            for (n, t), g in zip(before.items(), found[: len(before)], strict=True)
        }
        return pulled, dict(zip(hparams, found[len(before) :], strict=True))


def _reverse(run: _Run, outer_loss: Loss, start: Callable[[dict[str, Tensor]], State], keep: str) -> Hypergradient:
    if keep == "graphs":
        return _through_graphs(run, outer_loss, start)
    state = run.forward(start(run.hparams), run.begin, run.traced)
    traced = run.end - run.traced
    every = 1 if keep == "all" else max(1, math.isqrt(traced))
    kept = {run.traced: state}
    for step in range(run.traced, run.end):
        state = run.first(state, step)
        if (step + 1 - run.traced) % every == 0 and step + 1 < run.end:
            kept[step + 1] = state
    last = state
    run.check(last, start)
    value, pull, grads = outer_gradients(outer_loss, last, run.hparams)
    after = Generators(last)
    alpha = {name: torch.zeros_like(last[name]) if g is None else g for name, g in pull.items()}
    grads = dict(grads)
    for begin in sorted(kept, reverse=True):
        end = min(begin + every, run.end)
        states = [kept.pop(begin)]
        for step in range(begin, end - 1):
            states.append(run.again(states[-1], step))
        for step in range(end - 1, begin - 1, -1):
            alpha, through = run.back(states.pop(), step, alpha)
            grads = {name: _sum(grads[name], through[name]) for name in grads}
    if run.traced == run.begin:
        hparams = leaves(run.hparams, "hparams")
        with torch.enable_grad():
            first = start(hparams)
        found = _pull(first, alpha, list(hparams.values()))
        grads = {name: _sum(grads[name], g) for name, g in zip(hparams, found, strict=True)}
    after.rewind()
    return _result(run, value, grads, last)


def _through_graphs(run: _Run, outer_loss: Loss, start: Callable[[dict[str, Tensor]], State]) -> Hypergradient:
    hparams = leaves(run.hparams, "hparams")
    with torch.enable_grad():
        state = start(hparams)
        if run.traced > run.begin:
            state = run.forward(state, run.begin, run.traced)
        state = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in state.items()}
        for step in range(run.traced, run.end):
            state = run.update(state, hparams, step)
    last = {name: tensor.detach() for name, tensor in state.items()}
    run.check(last, start)
    value, pull, direct = outer_gradients(outer_loss, last, run.hparams)
    alpha = {name: torch.zeros_like(last[name]) if g is None else g for name, g in pull.items()}
    found = _pull(state, alpha, list(hparams.values()))
    grads = {name: _sum(direct[name], g) for name, g in zip(hparams, found, strict=True)}
    return _result(run, value, grads, last)


def _forward(run: _Run, outer_loss: Loss, start: Callable[[dict[str, Tensor]], State]) -> Hypergradient:
    state = {name: tensor.detach() for name, tensor in start(run.hparams).items()}
    tangents: dict[str, Tensor] | None = None
    if run.traced == run.begin:  # a start that depends on the hyperparameters has a derivative of its own
        state, tangents = forward_step(lambda _, hparams, step: start(hparams), state, run.hparams, None, 0)
    state = run.forward(state, run.begin, run.traced)
    for step in range(run.traced, run.end):
        before = state
        state, tangents = forward_step(run.update, state, run.hparams, tangents, step)
    run.check(state, start)
    value, pull, direct = outer_gradients(outer_loss, state, run.hparams)
    assert tangents is not None
    grads = dict(direct)
    along: Tensor | None = None
    for name, g in pull.items():
        if g is not None:
            part = tangents[name].reshape(len(tangents[name]), g.numel()) @ g.flatten()
            along = part if along is None else along + part
    moved = sum(
        tangent.abs().reshape(len(tangent), math.prod(tangent.shape[1:])).sum(1) for tangent in tangents.values()
    )
    assert isinstance(moved, Tensor)
    index = 0
    for name, hparam in run.hparams.items():
        rows = slice(index, index + hparam.numel())
        index += hparam.numel()
        if along is not None and bool((moved[rows] > 0).any()):
            grads[name] = _sum(grads[name], along[rows].view(hparam.shape).to(hparam.dtype))
    if any(g is None for g in grads.values()):  # nothing has moved: a derivative of 0, or none at all, as a graph tells
        _, through = run.back(before, run.end - 1, {name: torch.ones_like(tensor) for name, tensor in state.items()})
        for name, g in through.items():
            grads[name] = _sum(grads[name], None if g is None else torch.zeros_like(g))
    return _result(run, value, grads, state)


def _pull(
    outputs: Mapping[str, Tensor], alpha: Mapping[str, Tensor], inputs: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """The derivative of the outputs in the inputs, times alpha; None where there is none."""
    live = [(tensor, alpha[name]) for name, tensor in outputs.items() if tensor.requires_grad]
    if not live:
        return (None,) * len(inputs)
    tensors, weights = zip(*live, strict=True)
    return torch.autograd.grad(tensors, inputs, weights, allow_unused=True)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _result(run: _Run, value: Tensor, grads: Mapping[str, Tensor | None], state: State) -> Hypergradient:
    if missing := [name for name, g in grads.items() if g is None]:
        raise NotDifferentiable(
            f"neither the training nor outer_loss depends on {', '.join(map(repr, missing))}: is it read from hparams, "
            f"and not from a copy of it?"
        )
    found = {name: g.detach() for name, g in grads.items() if g is not None}
    return Hypergradient(grads=found, outer_loss=value, iterations=run.end - run.traced, params=state)


def _check(steps: int, mode: str, truncate: int | None, keep: str) -> None:
    if mode not in ("reverse", "forward"):
        raise HypergradientError(f"mode={mode!r}: must be 'reverse' or 'forward'")
    if keep not in ("all", "sqrt", "graphs"):
        raise HypergradientError(f"keep={keep!r}: must be 'all', 'sqrt' or 'graphs'")
    if keep != "all" and mode == "forward":
        raise HypergradientError(f"keep={keep!r}: forward mode keeps no states; leave it out")
    for name, value in (("steps", steps), ("truncate", truncate)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise HypergradientError(f"{name}={value!r}: must be a whole number of at least 1")
