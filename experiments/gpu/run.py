"""What does a GPU buy, what does sharing it, and what do two? Needs torch, and no Ray.

python experiments/gpu/run.py                        # some minutes on a GPU; prints and writes results.json
python experiments/gpu/run.py --device cpu --quick   # seconds; tries the script itself, and prints
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from hpo_ray.trainables.context import TrialContext
from hpo_ray.trainables.distributed import Group, meeting_place

RESULTS = Path(__file__).with_name("results.json")
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def digits_cnn() -> nn.Sequential:
    """The network of task=digits_cnn with its defaults; a test compares them."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 4, 10),
    )


def wide() -> nn.Sequential:
    """A perceptron of 13 million weights."""
    layers: list[nn.Module] = [nn.Linear(64, 2048), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, 10))


# Rows of an epoch, of which the speed depends and not on what is in them; and of a batch.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "digits_cnn": (digits_cnn, 1079, 64),
    "wide": (wide, 8192, 256),
}
QUICK = (16, 8)


class Training:
    """A network in training: AdamW on random numbers, in this process or as one of several ranks."""

    def __init__(self, name: str, device: str, precision: str, quick: bool, group: Group | None = None) -> None:
        build, rows, batch = NETWORKS[name]
        self.rows, self.batch = QUICK if quick else (rows, batch)
        self.device = torch.device(device)
        self.group = group or Group(device=self.device)
        self.dtype = DTYPES[precision]
        torch.manual_seed(0)
        self.x = torch.randn(self.rows, 64, device=self.device)
        self.y = torch.randint(10, (self.rows,), device=self.device)
        self.model: nn.Module = self.group.prepare(build().to(self.device))
        fused = self.group.strategy == "ddp"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=fused)

    def epoch(self) -> float:
        """Seconds of one epoch."""
        self._wait()
        started = time.perf_counter()
        with self.group.training(self):
            for batch in torch.randperm(self.rows).to(self.device).split(self.batch):
                rows, own = self.group.share(batch)
                self._step(self.x[rows], self.y[rows], own * self.group.size / len(batch))
        self._wait()
        return time.perf_counter() - started

    def _step(self, x: Tensor, y: Tensor, weight: float) -> None:
        precision = nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)
        with precision:
            loss = nn.functional.cross_entropy(self.model(x).float(), y)
        self.optimizer.zero_grad()
        (loss * weight).backward()
        self.optimizer.step()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# In processes of their own.


class Processes:
    """Some processes that wait for work, so that nobody's start is timed."""

    def __init__(self, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.ends: list[Any] = []
        self.processes = []
        for _ in range(number):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            self.ends.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Has as many processes as there are arguments prepare, and then go at the same moment."""
        ends = self.ends[: len(arguments)]
        for end, given in zip(ends, arguments, strict=True):
            end.send((function, given))
        for end in ends:
            end.recv()
        for end in ends:
            end.send("go")
        return [end.recv() for end in ends]

    def close(self) -> None:
        """Ends them."""
        for process in self.processes:
            process.kill()
            process.join()


def _serve(end: Any) -> None:
    torch.set_num_threads(1)
    while True:
        function, arguments = end.recv()
        prepared = function(*arguments)
        end.send("ready")
        end.recv()
        end.send(prepared())


def shares_a_gpu(name: str, device: str, epochs: int, quick: bool) -> Callable[[], float]:
    """Trains by itself beside others; the seconds of so many epochs."""
    training = Training(name, device, "fp32", quick)
    training.epoch()
    return lambda: sum(training.epoch() for _ in range(epochs))


def is_a_rank(name: str, device: str, context: TrialContext, epochs: int, quick: bool) -> Callable[[], float]:
    """Trains together with others; the median of the seconds of an epoch."""
    if device == "cuda":
        device = f"cuda:{context.rank}"
    group = Group.join(context, torch.device(device))
    training = Training(name, device, "fp32", quick, group)
    training.epoch()

    def go() -> float:
        seconds = statistics.median(training.epoch() for _ in range(epochs))
        group.leave()
        return seconds

    return go


def holds_memory(size: int) -> Callable[[], int]:
    """Takes so many bytes of the GPU's memory."""
    taken = torch.empty(size, dtype=torch.uint8, device="cuda")
    return lambda: os.getpid() if taken.numel() else 0


# The four questions.


def precisions(device: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Seconds of an epoch: on the processor, on the GPU, and there with bf16, in turns."""
    result = []
    for name in NETWORKS:
        cases = [("cpu", "fp32"), (device, "fp32"), (device, "bf16")] if device == "cuda" else [("cpu", "fp32")]
        trainings = [Training(name, where, precision, quick) for where, precision in cases]
        for training in trainings:
            training.epoch()
        seconds = [[training.epoch() for training in trainings] for _ in range(rounds)]
        for i, (where, precision) in enumerate(cases):
            median = statistics.median(row[i] for row in seconds)
            ratio = statistics.median(row[0] / row[i] for row in seconds)
            result.append(
                {"network": name, "device": where, "precision": precision, "s": median, "times_as_fast_as_cpu": ratio}
            )
    return result


def sharing(processes: Processes, device: str, quick: bool, rounds: int, most: int) -> list[dict[str, Any]]:
    """Examples a second of 1, 2 and 4 processes that share the device, in turns."""
    result, epochs = [], 1 if quick else 10
    for name, (_, rows, _) in NETWORKS.items():
        numbers = [n for n in (1, 2, 4) if n <= most]
        trained = epochs * (QUICK[0] if quick else rows)
        speeds = []
        for _ in range(rounds):
            taken = {n: max(processes.run(shares_a_gpu, [(name, device, epochs, quick)] * n)) for n in numbers}
            speeds.append({n: n * trained / s for n, s in taken.items()})
        for n in numbers:
            result.append(
                {
                    "network": name,
                    "processes": n,
                    "examples_per_s": statistics.median(speed[n] for speed in speeds),
                    "times_one": statistics.median(speed[n] / speed[1] for speed in speeds),
                }
            )
    return result


def freeing(rounds: int) -> dict[str, Any]:
    """Seconds until the memory of a process that was killed is free again: half of the GPU's."""
    size = torch.cuda.mem_get_info()[0] // 2
    seconds = []
    for _ in range(rounds):
        before = torch.cuda.mem_get_info()[0]
        processes = Processes(1)
        processes.run(holds_memory, [(size,)])
        processes.processes[0].kill()
        killed = time.perf_counter()
        while torch.cuda.mem_get_info()[0] < before - 2**28:
            time.sleep(0.001)
        seconds.append(time.perf_counter() - killed)
        processes.close()
    return {"gib": size / 2**30, "s": statistics.median(seconds), "s_all": seconds}


def together(processes: Processes, device: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Seconds of an epoch of one training in 1 and 2 ranks, in turns. A batch is the same in both."""
    cases = [(strategy, ranks) for strategy in ("ddp", "fsdp") for ranks in (1, 2)]
    seconds: list[dict[tuple[str, int], float]] = []
    for _ in range(rounds):
        taken = {}
        for strategy, ranks in cases:
            store, address = meeting_place("127.0.0.1")
            contexts = [
                TrialContext(workers=ranks, strategy=strategy, rank=rank, meeting=address) for rank in range(ranks)
            ]
            arguments = [("wide", device, context, 1 if quick else 5, quick) for context in contexts]
            taken[strategy, ranks] = max(processes.run(is_a_rank, arguments))
            del store
        seconds.append(taken)
    return [
        {
            "strategy": strategy,
            "ranks": ranks,
            "s": statistics.median(row[strategy, ranks] for row in seconds),
            "times_as_fast_as_one": statistics.median(row[strategy, 1] / row[strategy, ranks] for row in seconds),
        }
        for strategy, ranks in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="two batches an epoch, one round; writes nothing")
    parser.add_argument("--rounds", type=int, default=7)
    typed = parser.parse_args()
    quick, on_gpu = typed.quick, typed.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; use --device cpu --quick to try the script")
    rounds = 1 if quick else typed.rounds
    most = 2 if quick else 4
    found = SimpleNamespace(
        date=date.today().isoformat(),
        device=torch.cuda.get_device_name() if on_gpu else platform.machine(),
        gpus=torch.cuda.device_count() if on_gpu else 0,
        cpus=os.cpu_count(),
        torch=torch.__version__,
        python=platform.python_version(),
        rounds=rounds,
    )
    found.precisions = precisions(typed.device, quick, rounds)
    processes = Processes(most)
    try:
        found.sharing = sharing(processes, typed.device, quick, rounds, most)
        several = not on_gpu or found.gpus > 1
        found.together = together(processes, typed.device, quick, rounds) if several else None
    finally:
        processes.close()
    found.freeing = freeing(rounds) if on_gpu else None
    print(json.dumps(vars(found), indent=2))
    if not quick:
        RESULTS.write_text(json.dumps(vars(found), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
