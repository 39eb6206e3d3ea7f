"""A PyTorch model as a Ray Tune trainable: resumable to the bit, safe to reuse, ready for PBT.

Population-based training sets a new configuration on a trial and *then* loads another trial's checkpoint, whose
optimizer state would silently undo the new learning rate. So a checkpoint holds the configuration that it was made
with, and where that differs from the trial's own, the trial's own optimizer settings win.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hpo_ray.errors import ConfigError
from hpo_ray.trainables.context import FIDELITIES, get_context
from hpo_ray.trainables.cursor import Cursor
from hpo_ray.trainables.distributed import Group
from hpo_ray.trainables.seeded import RandomState, SeededTrainable, plain, without_numpy

if TYPE_CHECKING:
    from hpo_ray.trainables.peers import Peers

STATE_FILE = "state.pt"
"""The file that a checkpoint consists of."""


class TorchTrainable(SeededTrainable):
    """Trains a PyTorch model, one unit of resource a `step()`: an epoch, by default. Subclass it and say what to train.

    Three hooks have to be written: `build_model`, `build_optimizer` and `build_data`. The others have defaults:
    `build_lr_scheduler`, `loss`, `train_epoch`, `evaluate`.

    Example:
        A classifier, tuned by `python -m hpo_ray task=custom task.trainable=my_pkg.Classifier task.metric=accuracy
        task.mode=max 'space={lr: {low: 1e-4, high: 0.1, log: true}, batch_size: [32, 64]}'`::

            class Classifier(TorchTrainable):
                def build_model(self, config):
                    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

                def build_optimizer(self, model, config):
                    return torch.optim.AdamW(model.parameters(), lr=config["lr"])

                def build_data(self, config):
                    parts = torch.load(get_context().args["path"])  # x: (n, 20) floats, y: (n,) class numbers
                    return {"train": parts[0], "validation": parts[1], "test": parts[2]}

    Fidelity: what a unit is (`fidelity=` on the command line, `get_context().fidelity`), for the default `train_epoch`:

    - `epochs`: one pass over the training data.
    - `steps`: `steps_per_unit` steps of the optimizer, through epochs that are shuffled anew one after another. The
      place in the epoch is in the checkpoint.
    - `data_fraction`: step r is one pass over r/max_resource of the training data. The shares are nested, the same for
      all trials of a study, and stratified where `y` is class numbers (n,); of other targets they are drawn at random.
      A trial that moves up so trains on a larger share. Its cost is counted in units, though the first are cheaper
      than the last: the metric `examples` tells what each step trained on.

    A class with a `train_epoch` of its own follows `epochs` only, unless it says by `fidelities` that it knows others.

    Randomness: the weights, dropout and whatever else draws from the global generators of torch, numpy and `random`
    get states of the trial's own, seeded by `get_context().seed`; shuffling draws from `generator`. All of them are in
    the checkpoint: save, load and step give the same bits as an uninterrupted step (on a CPU; on a GPU as far as
    its kernels are deterministic).

    Population-based training: when a checkpoint of another configuration is loaded, weights and optimizer state
    (momentum, moments) are taken from it, and all settings of the parameter groups (learning rate, weight decay,
    momentum, …) from a freshly built optimizer. A learning-rate schedule is the trial's own too, moved forward to
    the epoch of the checkpoint: the new learning rate at the old position. `ReduceLROnPlateau`, which follows the loss
    and not the epoch, starts anew. An optimizer of another class starts with an empty state. What `train_epoch` itself
    wrote into the parameter groups is not carried over. When the configurations are equal, the state is loaded as is.

    Several processes (`resources.workers`, on Ray): each builds all of this, and takes its share of every batch, whose
    size stays that of the whole batch, so that a step is the one that a single process would take. That asks for a
    `loss` that is a mean over examples. `ddp` gives each process the whole model, `fsdp` a part of it, for optimizers
    that treat each weight by itself, as SGD and AdamW do. The first process evaluates, alone with `ddp`, and all
    together with `fsdp`. It reports, and saves what a single process would: a checkpoint goes on in any number of
    them. Dropout differs: all but the first process draw from states of their own, seeded by the trial, `rank` and the
    unit. BatchNorm takes its statistics over all processes on GPUs (in a batch with fewer examples than processes the
    first one counts more than once), and is refused on CPUs. A class with a `train_epoch` of its own is refused unless
    it says `distributed = True`: there `model` is wrapped, so that the gradients of the processes' losses are averaged,
    and it has to train on its own share of the data, by `rank` and `world_size`.

    Attributes:
        model: the network, on `device`.
        optimizer: what `build_optimizer` returned.
        lr_scheduler: what `build_lr_scheduler` returned, or None.
        data: what `build_data` returned.
        device: the GPU that the trial was given, or a share of, the first of several; otherwise `cpu`.
        generator: a CPU generator of the trial's own, for shuffling.
        scaler: scales the loss of fp16; does nothing in the other precisions.
        config: the trial's hyperparameters. Hooks get copies of it.

    Raises:
        RuntimeError: at the start, when the trial was given a GPU and torch can't use one.
        ConfigError: at the start, for an unknown `trainable.precision`, or fp16 without a GPU.
    """

    distributed: ClassVar[bool] = True
    """Whether `train_epoch` shares batches out between processes. If not, `resources.workers` must be 1."""

    data_depends_on_config: bool = False
    """Whether `build_data` reads its `config`. If not, data is built once and kept when the object gets a new trial."""

    fidelities: ClassVar[tuple[str, ...]] = FIDELITIES
    """Those that `train_epoch` follows. A study with another one is refused before it starts."""

    evaluation_batch_size: int = 1024
    """Examples in a forward pass of `evaluate`: bounds its memory."""

    model: nn.Module
    optimizer: Optimizer
    lr_scheduler: LRScheduler | None
    data: Mapping[str, Any]
    generator: torch.Generator
    scaler: torch.amp.GradScaler

    _group: Group
    _peers: Peers | None = None
    """The trial's other processes, which are kept for later trials: those of the first process on Ray."""
    _data_key: tuple[object, ...] | None = None
    _nested: Tensor | None = None
    """The training rows in the order in which shares take them; None until a share of this data is asked for."""
    _resource: int
    """Units trained, the one under way included."""
    _cursor: Cursor
    """With `steps`, the place in the epoch under way."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "train_epoch" in cls.__dict__:
            if "fidelities" not in cls.__dict__:
                cls.fidelities = ("epochs",)
            if "distributed" not in cls.__dict__:
                cls.distributed = False

    @property
    def rank(self) -> int:
        """The number of this process among those that train the trial, from 0."""
        return self._group.rank

    @property
    def world_size(self) -> int:
        """How many processes train the trial."""
        return self._group.size

    # Hooks to write.

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        """The network, with its initial weights. It is moved to `device` afterwards."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model(self, config) -> nn.Module")

    def build_optimizer(self, model: nn.Module, config: dict[str, Any]) -> Optimizer:
        """The optimizer of the parameters of `model`."""
        raise NotImplementedError(f"{type(self).__name__} must define build_optimizer(self, model, config)")

    def build_data(self, config: dict[str, Any]) -> Mapping[str, Any]:
        """The data, by split.

        The global generators are seeded by the study's seed here, so that all trials draw the same data. The result
        is kept for later trials of the same study, unless the class sets `data_depends_on_config = True`.

        Returns:
            For the default `train_epoch` and `evaluate`: `{"train": (x, y), "validation": (x, y), "test": (x, y)}`,
            tensors whose first dimension counts examples. Small data is best put on `self.device` here; otherwise
            each batch is moved there. Anything else is fine when both methods are overridden.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build_data(self, config) -> {{split: (x, y)}}")

    # Hooks with defaults.

    def build_lr_scheduler(self, optimizer: Optimizer, config: dict[str, Any]) -> LRScheduler | None:
        """The learning-rate schedule, stepped after each unit (with the training loss if it asks for a metric).

        Returns:
            None, unless overridden: a constant learning rate.
        """
        return None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar.

        Args:
            output: what the model returned; for the default (n, classes) scores, before any softmax.
            target: the batch of `y`; for the default (n,) class numbers.

        Returns:
            The cross entropy in nats, unless overridden.
        """
        return nn.functional.cross_entropy(output.float(), target)

    def train_epoch(self) -> dict[str, float]:
        """One unit: a pass over `data["train"]`, or what the fidelity says, in shuffled batches.

        A batch has `config["batch_size"]` (default 64) examples, the last of a pass what is left.

        Returns:
            `train_loss`: the mean over the unit's examples of the loss as they were met. `examples`: how many.
        """
        x, y = self._split("train")
        self.model.train()
        total, examples = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in self._batches(x, y):
            examples += len(batch)
            rows, own = self._group.share(batch)
            with self._autocast():
                loss = self.loss(self.model(x[rows].to(self.device)), y[rows].to(self.device))
            if self.world_size > 1:
                loss = loss * (own * self.world_size / len(batch))  # gradients are averaged as if shares were equal
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach().double() * len(batch)
        train_loss = self._group.sum(total).item() / (examples * self.world_size)
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.step(train_loss)
        elif self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return {"train_loss": train_loss, "examples": examples}

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """The metrics of the model on one split, without gradients and in evaluation mode.

        Args:
            split: a key of `data`.

        Returns:
            `loss`: the mean over the split's examples; and `accuracy` (0 to 1), when the output is class scores
            (n, classes) and the target class numbers (n,).
        """
        x, y = self._split(split)
        self.model.eval()
        totals: dict[str, Tensor] = {}
        with torch.no_grad(), self._autocast():
            batches = (torch.split(part, self.evaluation_batch_size) for part in (x, y))
            for inputs, target in zip(*batches, strict=True):
                target = target.to(self.device)
                output = self.model(inputs.to(self.device))
                means = {"loss": self.loss(output, target)}
                if output.ndim == target.ndim + 1 and not target.is_floating_point():
                    means["accuracy"] = (output.argmax(dim=1) == target).double().mean()
                for name, mean in means.items():
                    totals[name] = totals.get(name, 0.0) + mean.double() * len(inputs)
        return {name: total.item() / len(x) for name, total in totals.items()}

    def test(self) -> dict[str, float]:
        """`evaluate("test")`: what to report about the trial that was chosen, and never to choose by.

        It leaves the trial's random states as they were.
        """
        random_state, shuffling = self._random_state, self.generator.get_state()
        with self._all("test", when=self._group.divided), self._alone():
            metrics = self.evaluate("test")
        self._random_state = random_state
        self.generator.set_state(shuffling)
        return {name: float(value) for name, value in metrics.items()}

    # What Ray calls.

    def train(self) -> dict[str, Any]:
        """One step, in all processes of the trial."""
        with self._all("step"):
            result: dict[str, Any] = super().train()
        return result

    def step(self) -> dict[str, Any]:
        """One unit of training and its evaluation.

        Returns:
            The metrics of `train_epoch` and `evaluate`, as floats. Flags and strings pass as they are.
        """
        self._resource += 1
        self._group.align(self.generator)  # the first process may have drawn from it in its evaluation
        if self.rank > 0:
            seed = self._group.unit_seed(self._context.seed, self._resource)
            self._random_state = RandomState.seeded(seed, self.device)
        with self._alone():
            with self._group.training(self):
                metrics: dict[str, Any] = dict(self.train_epoch())
            if self._group.evaluates:
                metrics |= self.evaluate()
        return {name: value if isinstance(value, (bool, str)) else float(value) for name, value in metrics.items()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes everything that the next step depends on to `state.pt` in `checkpoint_dir`.

        The file holds tensors and plain values only, so that it can be read without running code from it.
        """
        with self._all("_whole_state", when=self._group.divided):
            model, optimizer = self._whole_state()
        if self.rank > 0:
            return
        state = {
            "config": plain(self.config),
            "model": model,
            "optimizer": without_numpy(optimizer),
            "optimizer_class": _class_name(self.optimizer),
            "lr_scheduler": without_numpy(self.lr_scheduler.state_dict()) if self.lr_scheduler is not None else None,
            "scaler": self.scaler.state_dict(),
            "shuffle": self.generator.get_state(),
            "random": self._random_state.to_plain(),
            "resource": self._resource,
            "epoch": self._cursor.state,
        }
        torch.save(state, Path(checkpoint_dir) / STATE_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continues from a checkpoint: the trial's own to the bit, another's under this trial's hyperparameters.

        Args:
            checkpoint_dir: a folder that `save_checkpoint` wrote to, here or on another machine, with or without GPU.

        Raises:
            ConfigError: the checkpoint is of another configuration, and its weights don't fit this one's model.
            pickle.UnpicklingError: the file holds anything but tensors and plain values.
        """
        # To the CPU first: load_state_dict copies to where each tensor belongs, and generator states belong there.
        state = torch.load(Path(checkpoint_dir) / STATE_FILE, map_location="cpu", weights_only=True)
        with self._all("_load_state", state):  # the others may be on machines without the file
            self._load_state(state)

    def _load_state(self, state: dict[str, Any]) -> None:
        own, donor = plain(self.config), state["config"]
        with self._alone():
            self._build_optimizer()
            state = {**state, "optimizer": self._group.optimizer_parts(self.optimizer, state["optimizer"])}
            try:
                self.model.load_state_dict(self._group.parts(self.model, state["model"]))
                if own == donor:
                    self.optimizer.load_state_dict(state["optimizer"])
                else:
                    self._adopt_optimizer_state(state)
            except (RuntimeError, ValueError) as error:
                if own == donor:
                    raise
                differing = {
                    key: (donor.get(key), own.get(key))
                    for key in sorted({*own, *donor})
                    if own.get(key) != donor.get(key)
                }
                raise ConfigError(
                    f"The checkpoint was made with another configuration (theirs, ours: {differing}), and its weights "
                    "don't fit this trial's model or optimizer. Hyperparameters that change shapes can't change during "
                    f"a trial: have the scheduler leave them as they are. torch says: {error}"
                ) from error
            if self.lr_scheduler is not None:
                if own == donor:
                    self.lr_scheduler.load_state_dict(state["lr_scheduler"])
                else:
                    self._advance_lr_scheduler(state["lr_scheduler"] or {})
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["shuffle"])
        self._resource = state.get("resource", 0)  # not there in checkpoints that are older than fidelities
        self._cursor = Cursor(self.generator, state.get("epoch"))
        self._random_state = RandomState.from_plain(state["random"], own_gpu=self._random_state.gpu)

    def cleanup(self) -> None:
        """Frees the model, the optimizer and the data, and ends the other processes of the trial."""
        self._release()
        if self._peers is not None:
            self._peers.close()
        self.__dict__.pop("data", None)
        self._data_key = self._nested = None

    # Inner workings.

    def _start(self, config: dict[str, Any]) -> None:
        self._release()
        self.config = config
        self._context = context = get_context()
        self.device = self._choose_device()
        if context.workers > 1 and not context.meeting:
            from hpo_ray.trainables.peers import Peers

            if self._peers is None or self._peers.closed:
                self._peers = Peers(getattr(type(self), "own_class", type(self)), context.workers)
            self._context = context = replace(context, meeting=self._peers.meet())
        with self._all("start", config, context):
            self._build()

    def _build(self) -> None:
        """Everything of a new trial."""
        config, context = self.config, self._context
        self._group = Group.join(context, self.device)
        data_key = (self.device, context.study_seed, dict(context.args))
        if self.data_depends_on_config or self._data_key != data_key:
            # Under a state of its own: whether data is built or kept must not show in the trial's weights.
            self._random_state = RandomState.seeded(context.split_seed, self.device)
            with self._alone():
                self.data = self.build_data(copy.deepcopy(config))
            self._data_key, self._nested = data_key, None
        shuffling, others = np.random.SeedSequence(context.seed).generate_state(2)
        self.generator = torch.Generator().manual_seed(int(shuffling))
        self._resource, self._cursor = 0, Cursor(self.generator)
        self._random_state = RandomState.seeded(int(others), self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=context.precision == "fp16")
        with self._alone():
            self.model = self._group.prepare(self.build_model(copy.deepcopy(config)).to(self.device))
            self._build_optimizer()

    def _all(self, method: str, *arguments: Any, when: bool = True) -> contextlib.AbstractContextManager[None]:
        """Has the other processes of the trial, if this one started them, call a method while the block runs."""
        if self._peers is None or self._peers.closed or not when:
            return contextlib.nullcontext()
        return self._peers.calling(method, *arguments)

    def _whole_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The states of model and optimizer, as a single process has them."""
        whole = self._group.whole
        return whole(self.model.state_dict()), whole(self.optimizer.state_dict())

    def _release(self) -> None:
        """Drops what belongs to one trial, so that the next one's model does not share the memory with it."""
        for name in ("model", "optimizer", "lr_scheduler", "scaler", "generator"):
            self.__dict__.pop(name, None)
        if "_group" in self.__dict__:
            self._group.leave()

    def _build_optimizer(self) -> None:
        self.optimizer = self.build_optimizer(self.model, copy.deepcopy(self.config))
        self.lr_scheduler = self.build_lr_scheduler(self.optimizer, copy.deepcopy(self.config))

    def _adopt_optimizer_state(self, state: dict[str, Any]) -> None:
        """Takes another configuration's optimizer state, and keeps the settings of the fresh optimizer."""
        if state["optimizer_class"] != _class_name(self.optimizer):
            return
        settings = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            params = group["params"]
            group.clear()  # also what only the donor's groups had
            group.update(own, params=params)

    def _advance_lr_scheduler(self, donor: dict[str, Any]) -> None:
        """Moves the fresh schedule to the epoch of another configuration's."""
        if self.lr_scheduler is None or isinstance(self.lr_scheduler, ReduceLROnPlateau):
            return
        with warnings.catch_warnings():
            # The optimizer steps of these epochs were the donor's.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            for _ in range(_schedule_position(donor)):
                self.lr_scheduler.step()

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in self.data:
            raise ValueError(f"build_data gave no {split!r} split, only {', '.join(map(repr, self.data))}.")
        x, y = self.data[split]
        return x, y

    def _batches(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """The row numbers of each batch of a unit."""
        size = self._batch_size()
        if self._context.fidelity == "steps":
            for _ in range(self._context.steps_per_unit):
                yield self._cursor.next(len(x), size).to(x.device)
            return
        order = torch.randperm(self._rows(len(x)), generator=self.generator)
        if self._context.fidelity == "data_fraction":
            if self._nested is None:
                self._nested = nested_order(y, self._context.split_seed)
            order = self._nested[order]
        yield from torch.split(order.to(x.device), size)

    def _batch_size(self) -> int:
        return int(self.config.get("batch_size", 64))

    def _rows(self, n: int) -> int:
        """How many of n training rows a pass takes: all, or the share that belongs to the resource, rounded up."""
        if self._context.fidelity != "data_fraction":
            return n
        return min(n, -(-n * self._resource // self._context.max_resource))


def nested_order(target: Tensor, seed: int) -> Tensor:
    """An order of the rows whose beginnings are shares of the data: nested, and of class numbers stratified.

    The j-th of the n_c rows of a class, in random order, comes at (j - 1/2) / n_c. So a beginning that goes up to t has
    round(n_c t) rows of each class. Rows that come at the same place are in random order.

    Args:
        target: (n,) class numbers; of any other target the order is a random one.
        seed: the same seed gives the same order.

    Returns:
        (n,) row numbers, on the CPU.
    """
    random_order = np.random.default_rng(seed).permutation(len(target))
    if target.ndim != 1 or target.is_floating_point() or target.is_complex():
        return torch.from_numpy(random_order)
    classes = target.cpu().numpy()[random_order]
    place = np.empty(len(classes))
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return torch.from_numpy(random_order[np.argsort(place, kind="stable")])


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _schedule_position(state: dict[str, Any]) -> int:
    """How often a schedule was stepped. `ChainedScheduler` leaves the count to its parts."""
    if "last_epoch" in state:
        return int(state["last_epoch"])
    return max(map(_schedule_position, state.get("_schedulers", ())), default=0)
