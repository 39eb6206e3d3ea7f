"""The other processes of a trial on Ray: actors in the bundles of its placement group, which do what the first does.

The trial's own actor is the first process. It tells the others what to do, and does the same itself; meanwhile they
talk by torch's process group. Whatever goes wrong in one of them ends them all, and with them the trial: the others
would wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hpo_ray.errors import HpoRayError
from hpo_ray.trainables.context import TrialContext, use_context
from hpo_ray.trainables.devices import wait_for_own_gpus
from hpo_ray.trainables.distributed import meeting_place

_FOUND_S = 30.0
"""How long to look for the process that was the first to fail, when all that is known is that one is gone."""


class ProcessFailed(HpoRayError):
    """One of the processes that train a trial together raised, or died."""


class Peers:
    """Starts the processes of a trial other than this one, and has them do what this one does.

    Args:
        cls: the trainable's class.
        workers: processes of the trial, this one included.

    Attributes:
        closed: whether they have been ended.

    Raises:
        RuntimeError: the trial has no placement group with a bundle for each.
        ProcessFailed: one of them could not start.
    """

    def __init__(self, cls: type, workers: int) -> None:
        group = ray.util.get_current_placement_group()
        bundles = group.bundle_specs if group is not None else []
        if len(bundles) < workers:
            raise RuntimeError(
                f"The trial was given {len(bundles)} bundles of resources for its {workers} processes. Run it by "
                f"hpo_ray with executor=ray, and let its class not ask for resources of its own."
            )
        self.closed = False
        self._size = workers
        self._place: Any = None
        self._actors = {}
        for rank in range(1, workers):
            options = ray.remote(_Peer).options(
                num_cpus=bundles[rank].get("CPU", 0),
                num_gpus=bundles[rank].get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            self._actors[rank] = options.remote(cls, rank)

    def meet(self) -> str:
        """A new place for all of them to meet, `host:port`, once they run."""
        for rank, actor in self._actors.items():
            try:
                ray.get(actor.ready.remote())
            except Exception as error:
                self.close()
                raise self._failure(rank, error) from error
        self._place, address = meeting_place(ray.util.get_node_ip_address())
        return address

    @contextmanager
    def calling(self, method: str, *arguments: Any) -> Iterator[None]:
        """Has the others call a method while the block runs, and waits for them at its end.

        Raises:
            ProcessFailed: one of them failed. They have all been ended.
        """
        shared = [ray.put(argument) for argument in arguments]
        calls = {actor.call.remote(method, *shared): rank for rank, actor in self._actors.items()}
        failed: list[tuple[int, Exception]] = []
        waiting = threading.Thread(target=self._wait, args=(calls, failed), daemon=True)
        waiting.start()
        try:
            yield
            waiting.join()
        except BaseException as error:
            lost = _is_loss(error)
            if lost:
                waiting.join(_FOUND_S)
            self.close()
            if not lost:
                raise
            if not failed:
                raise ProcessFailed(f"the {self._size} processes of the trial lost each other: {error}") from error
        if failed:
            self.close()
            rank, cause = failed[-1]
            raise self._failure(rank, cause) from cause

    def close(self) -> None:
        """Ends the processes, and the group that this one is in."""
        self.closed = True
        self._kill()
        self._place = None
        with suppress(Exception):
            if dist.is_initialized():
                dist.destroy_process_group()

    def _kill(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)

    def _wait(self, calls: dict[Any, int], failed: list[tuple[int, Exception]]) -> None:
        """Waits for the calls in a thread of its own. The last of `failed` is then the first to have failed.

        This process may be waiting for one that raised: it hears of that when the other's process ends.
        """
        timeout = None
        while calls:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
            if not done:
                break
            rank = calls.pop(done[0])
            try:
                ray.get(done[0])
            except Exception as error:
                failed.append((rank, error))
                if not _is_loss(error):
                    break
                timeout = _FOUND_S  # another is gone, and its own error will come
        if failed:
            self._kill()
            self._place = None  # where this process may still be waiting for the one that failed
            with suppress(Exception):
                if dist.group.WORLD is not None and dist.get_backend() == "nccl":
                    dist.group.WORLD.abort()  # Gloo hears that a process is gone, NCCL has to be told

    def _failure(self, rank: int, error: Exception) -> ProcessFailed:
        who = f"rank {rank} of the trial's {self._size} processes"
        if isinstance(error, RayActorError):
            return ProcessFailed(f"{who} died: {error}")
        cause = error.cause if isinstance(error, RayTaskError) else error
        return ProcessFailed(f"{who} failed: {type(cause).__name__}: {cause}")


class _Peer:
    """A process of a trial other than the first. It keeps its trainable for later trials, as the first does."""

    def __init__(self, cls: type, rank: int) -> None:
        self._cls = cls
        self._rank = rank
        self._trainable: Any = None
        self._context = TrialContext()

    def ready(self) -> None:
        """Returns once the process runs."""

    def call(self, method: str, *arguments: Any) -> None:
        """Calls a method of the trainable."""
        if method == "start":
            self._start(*arguments)
            return
        with use_context(self._context):
            getattr(self._trainable, method)(*arguments)

    def _start(self, config: dict[str, Any], context: TrialContext) -> None:
        self._context = replace(context, rank=self._rank)
        if context.gpus:
            wait_for_own_gpus(context.gpus, context.free_gpu_memory)
        with use_context(self._context):
            if self._trainable is None:
                self._trainable = self._cls(config)
            else:
                self._trainable.reset_config(config)


def _is_loss(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    said = str(cause).lower()
    known = ("gloo", "nccl", "connection", "process group", "store")
    return isinstance(cause, dist.DistError) or (
        isinstance(cause, RuntimeError) and any(word in said for word in known)
    )
