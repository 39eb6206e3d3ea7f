"""One trial in several processes: each takes its share of every batch, and together they take one step.

A step is the one that a single process would take: the gradient of the mean loss over the whole batch. Process r of n
has n_r of the batch's N examples and weights its loss by n n_r / N, since torch averages the gradients of the processes
as if their shares were equal. So the numbers of a trial depend on how many processes it has only by rounding.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch leaves it out of __all__

from hpo_ray.errors import ConfigError
from hpo_ray.trainables.context import TrialContext

JOIN_S, COLLECTIVE_S = 60.0, 600.0
"""How long a process waits until all have come, and later for the others' part of a sum."""


class Group:
    """The processes that train one trial: by default one, for which all of this does nothing.

    The processes talk by torch's default process group, which is made for the trial and destroyed with it.

    Attributes:
        rank: this process's number, from 0. The first evaluates, reports and saves.
        size: how many processes there are.
        strategy: `ddp` (each has the whole model) or `fsdp` (each has a part of it).
        device: where this process trains.
    """

    def __init__(self, rank: int = 0, size: int = 1, strategy: str = "ddp", device: torch.device | str = "cpu") -> None:
        self.rank = rank
        self.size = size
        self.strategy = strategy
        self.device = torch.device(device)
        self._replica: nn.Module | None = None

    @classmethod
    def join(cls, context: TrialContext, device: torch.device) -> Group:
        """Meets the other processes of the trial.

        Args:
            context: the trial's, of this process; `meeting` says where.
            device: a GPU, then they talk by NCCL; otherwise by Gloo.

        Raises:
            RuntimeError: not all have come within a minute.
        """
        if context.workers == 1:
            return cls(device=device)
        if dist.is_initialized():  # of a trial that failed here
            dist.destroy_process_group()
        host, _, port = context.meeting.rpartition(":")
        store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=JOIN_S))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _loopback_only(host):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=context.rank,
                world_size=context.workers,
                timeout=timedelta(seconds=COLLECTIVE_S),
            )
        return cls(context.rank, context.workers, context.strategy, device)

    def leave(self) -> None:
        """Ends the process group. The other processes, if they wait for this one, hear of it."""
        self._replica = None
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def evaluates(self) -> bool:
        """Whether this process takes part in evaluation: with `fsdp` none has the whole model."""
        return self.rank == 0 or self.strategy == "fsdp"

    # The model.

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is shared: with `fsdp` each process keeps a part of the weights from here on.

        Raises:
            ConfigError: it has BatchNorm, and the trial no GPU: torch shares its statistics on GPUs only.
        """
        if self.size == 1:
            return model
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if any(not isinstance(norm, nn.SyncBatchNorm) for norm in norms):
            if self.device.type != "cuda":
                raise ConfigError(
                    f"resources.workers={self.size}: the model has {type(norms[0]).__name__}, whose statistics torch "
                    f"can't take over several processes on CPUs; use resources.workers=1, GPUs, or another "
                    f"normalisation, as nn.GroupNorm",
                    key="resources.workers",
                )
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if self.strategy == "fsdp":
            self._divide(model)
        else:
            self._replica = nn.parallel.DistributedDataParallel(model)
        return model

    @contextmanager
    def training(self, trainable: Any) -> Iterator[None]:
        """Within it, backward passes through `trainable.model` average the gradients of all processes.

        Elsewhere the model is the plain one, which the first process evaluates by itself.
        """
        if self._replica is None:
            yield
            return
        model, trainable.model = trainable.model, self._replica
        try:
            yield
        finally:
            trainable.model = model

    def _divide(self, model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        layers = list(model.children())
        while layers:
            layer = layers.pop()
            if isinstance(layer, nn.ModuleList | nn.ModuleDict):  # they have no forward to hook into
                layers += layer.children()
            elif any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    # Batches and sums.

    def share(self, batch: Tensor) -> tuple[Tensor, int]:
        """This process's rows of a batch, and how many of them count.

        A process for which nothing is left takes the first row, which counts nothing: all have to do a step.
        """
        if self.size == 1:
            return batch, len(batch)
        rows = torch.tensor_split(batch, self.size)[self.rank]
        return (rows, len(rows)) if len(rows) else (batch[:1], 0)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of the processes' values, the same to the bit in all of them."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def align(self, generator: torch.Generator) -> None:
        """Puts a CPU generator into the state that the first process has it in."""
        if self.size > 1:
            state = generator.get_state().to(self.device)
            dist.broadcast(state, src=0)
            generator.set_state(state.cpu())

    def unit_seed(self, seed: int, resource: int) -> int:
        """The seed (32 bits) of what another process than the first draws in a unit, from dropout for example."""
        return int(np.random.SeedSequence([seed, self.rank, resource]).generate_state(1)[0])

    # Checkpoints.

    @property
    def divided(self) -> bool:
        """Whether no process has the whole state, so that all have to give their part for a checkpoint."""
        return self.size > 1 and self.strategy == "fsdp"

    def whole(self, state: Any) -> Any:
        """A state with the parts of all processes put together, on the CPU; all of them have to call it."""
        if not self.divided:
            return state
        from torch.distributed.tensor import DTensor

        return _mapped(state, lambda t: t.full_tensor().cpu() if isinstance(t, DTensor) else t)

    def parts(self, model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
        """The weights of a checkpoint as this process holds its model's."""
        if not self.divided:
            return state
        own, held = model.state_dict(), copy.copy(state)
        held.update((name, self._part(value, own.get(name))) for name, value in state.items())
        return held

    def optimizer_parts(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimizer in a checkpoint, by the numbers of the weights, as this process holds its own."""
        if not self.divided:
            return state
        held = {}
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for number, values in state["state"].items():
            weight = weights[number] if number < len(weights) else None
            held[number] = _mapped(values, partial(self._part, like=weight))
        return {**state, "state": held}

    def _part(self, value: Any, like: Tensor | None) -> Any:
        """The part of a whole tensor that belongs to this process's part of a weight of the same shape."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(self.device), like.device_mesh, like.placements, src_data_rank=None)


def meeting_place(host: str) -> tuple[TCPStore, str]:
    """A place for the processes of one trial to meet, which listens on one address alone.

    Args:
        host: an address of this machine that the others can reach.

    Returns:
        What has to be kept as long as they do, and `host:port`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        handle = os.dup(listening.fileno())  # the store closes its own
    store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=handle)
    return store, f"{host}:{port}"


@contextmanager
def _loopback_only(host: str) -> Iterator[None]:
    """Has Gloo and NCCL listen on the loopback interface only when the trial's processes are on one machine's."""
    with contextlib.ExitStack() as stack:
        if host.startswith("127."):
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                if name not in os.environ:
                    os.environ[name] = socket.if_indextoname(1)
                    stack.callback(os.environ.pop, name)
        yield


def _mapped(state: Any, function: Callable[[Tensor], Any]) -> Any:
    """A structure of dicts and lists with each tensor replaced."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        result = copy.copy(state)  # with what torch hangs on it
        result.update((key, _mapped(value, function)) for key, value in state.items())
        return result
    if isinstance(state, list | tuple):
        return type(state)(_mapped(value, function) for value in state)
    return state
