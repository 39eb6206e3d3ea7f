"""Processes that do a test's work as ranks of one trial. They are started once, from one that has imported torch."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hpo_ray.trainables import TrialContext
from hpo_ray.trainables.context import use_context
from hpo_ray.trainables.distributed import meeting_place


class Ranks:
    """Up to `most` processes; a call runs in as many of them as the trial has workers."""

    def __init__(self, most: int) -> None:
        spawn = multiprocessing.get_context("forkserver")
        spawn.set_forkserver_preload(["hpo_ray.trainables.torch", "torch.distributed.fsdp", "ranks"])
        self._ends = []
        self._processes = []
        for _ in range(most):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def call(self, function: Callable[..., Any], context: TrialContext, *arguments: Any) -> list[Any]:
        """What the function returns in each process of the trial; what it raises there is raised as a RuntimeError."""
        store, address = meeting_place("127.0.0.1")
        ends = self._ends[: context.workers]
        for rank, end in enumerate(ends):
            end.send_bytes(pickle.dumps((function, replace(context, rank=rank, meeting=address), arguments)))
        answers = [self._answer(rank, end) for rank, end in enumerate(ends)]
        del store
        for _, error in answers:
            if error is not None:
                raise RuntimeError(error)
        return [answer for answer, _ in answers]

    def _answer(self, rank: int, end: Any) -> tuple[Any, str | None]:
        try:
            answer: tuple[Any, str | None] = end.recv()
        except EOFError:
            self._processes[rank].join()
            return None, f"rank {rank} died with exit code {self._processes[rank].exitcode}"
        return answer

    def close(self) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.close()
            process.terminate()
            process.join()


def _serve(end: Any) -> None:
    while True:
        try:
            data = end.recv_bytes()
        except EOFError:
            return
        try:
            function, context, arguments = pickle.loads(data)  # which imports the test's module
            with use_context(context):
                end.send((function(*arguments), None))
        except Exception:
            end.send((None, traceback.format_exc()))
