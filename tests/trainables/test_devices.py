"""Which GPU a trial takes, and when the memory on it is free: with what Ray, CUDA and nvidia-smi say made up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ray.tune import PlacementGroupFactory

from hpo_ray.executors.binding import bind
from hpo_ray.trainables import TrialContext, devices
from hpo_ray.trainables.devices import (
    CONTEXT_BYTES,
    GIB,
    GPUMemoryTaken,
    assigned_indices,
    parse_holders,
    wait_for_memory,
    wait_for_own_gpus,
)


@pytest.mark.parametrize(
    ("assigned", "visible", "indices"),
    [
        ([], None, [0]),  # without Ray
        ([], "3", [0]),
        ([2], "2", [0]),  # as Ray sets it
        (["2"], "2", [0]),
        ([5, 1], "1,5", [0, 1]),
        ([3], None, [3]),  # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1, and the node has no such variable
        (["6"], "4,5,6,7", [2]),  # the same on a node that was started with one
        (["4", "7"], " 4, 5,6 ,7", [0, 3]),
        (["GPU-8932f937"], "GPU-5ef9aa11,GPU-8932f937", [1]),
        (["MIG-aa/1/0"], "MIG-aa/0/0,MIG-aa/1/0", [1]),
    ],
)
def test_which_gpus(assigned: list[str | int], visible: str | None, indices: list[int]) -> None:
    assert assigned_indices(assigned, visible) == indices


@pytest.mark.parametrize(
    ("assigned", "visible"), [([3], "0,1"), (["GPU-8932f937"], None), ([0], ""), (["GPU-1"], "GPU-2")]
)
def test_a_gpu_that_is_not_seen(assigned: list[str | int], visible: str | None) -> None:
    with pytest.raises(RuntimeError, match=rf"Ray assigned GPU {assigned[0]} .*CUDA_VISIBLE_DEVICES={visible or ''}\."):
        assigned_indices(assigned, visible)


class Memory:
    """A GPU of 80 GiB whose free memory changes as time goes on, and the clock."""

    def __init__(self, *free: float) -> None:
        self.free = list(free)
        self.now = 100.0
        self.pauses: list[float] = []

    def read(self) -> tuple[int, int]:
        free = self.free.pop(0) if len(self.free) > 1 else self.free[0]
        return int(free * GIB), 80 * GIB

    def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 6))
        self.now += seconds

    def wait(self, share: float, part: float) -> None:
        wait_for_memory(
            1, share, part, read=self.read, holders=lambda: {77: 60 * GIB, 12: GIB // 2}, clock=lambda: self.now,
            sleep=self.sleep,
        )  # fmt: skip


CONTEXT = CONTEXT_BYTES / GIB


@pytest.mark.parametrize(
    ("share", "part", "free"),
    [(0.9, 1.0, 72 - CONTEXT), (0.9, 0.25, 18 - CONTEXT), (1.0, 0.5, 40 - CONTEXT), (0.005, 1.0, 0.0)],
)
def test_enough_is_free(share: float, part: float, free: float) -> None:
    memory = Memory(free)
    memory.wait(share, part)
    assert memory.pauses == []
    short = Memory(free - 0.01, free)
    if free:
        short.wait(share, part)
        assert short.pauses == [0.1]


def test_it_looks_again_in_growing_pauses() -> None:
    memory = Memory(*[10.0] * 8, 75.0)
    memory.wait(0.9, 1.0)
    assert memory.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(
    ("part", "needed", "asked"), [(1.0, 71.4, r"0\.9 of the GPU "), (0.5, 35.4, r"0\.9 of its part, 0\.5 of the GPU,")]
)
def test_it_gives_up_after_a_minute(part: float, needed: float, asked: str) -> None:
    memory = Memory(12.34)
    with pytest.raises(GPUMemoryTaken) as error:
        memory.wait(0.9, part)
    said = str(error.value)
    assert sum(memory.pauses) == pytest.approx(60) and memory.now == pytest.approx(160)
    assert f"GPU 1 has 12.3 of its 80.0 GiB free, and the trial needs {needed}" in said
    assert "by id: 12 (0.5 GiB), 77 (60.0 GiB)" in said and "resources.free_gpu_memory=0.9" in said
    error.match(asked)


def test_what_nvidia_smi_says() -> None:
    assert parse_holders("123, 1024\n77, 5\n123, 1\n9, [N/A]\n\nNo running processes found\n") == {
        123: 1025 * 2**20,
        77: 5 * 2**20,
    }
    assert parse_holders("") == {}


def test_without_nvidia_smi_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    memory = Memory(1.0)
    with pytest.raises(GPUMemoryTaken, match=r"other processes hold the memory\. End them"):
        wait_for_memory(0, 0.9, 1.0, read=memory.read, clock=lambda: memory.now, sleep=memory.sleep)


# What a trial does.


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, float]]:
    """A CUDA that torch finds; what is waited for, as (number, share, part)."""
    waited: list[tuple[int, float, float]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        devices, "wait_for_memory", lambda index, share, part, *, read: waited.append((index, share, part))
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return waited


@pytest.mark.parametrize(
    ("gpus", "assigned", "share", "waited"),
    [
        (1.0, [0], 0.9, [(0, 0.9, 1.0)]),
        (0.25, [3], 0.5, [(3, 0.5, 0.25)]),
        (2.0, [1, 0], 0.9, [(0, 0.9, 1.0), (1, 0.9, 1.0)]),
        (0.0, [], 0.9, []),
        (1.0, [0], 0.0, []),
    ],
)
def test_each_gpu_of_the_trial_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    cuda: list[tuple[int, float, float]],
    gpus: float,
    assigned: list[int],
    share: float,
    waited: list[tuple[int, float, float]],
) -> None:
    monkeypatch.setattr(devices, "own_indices", lambda: assigned_indices(assigned, None))
    wait_for_own_gpus(gpus, share)
    assert cuda == waited


def test_logical_gpus_are_not_waited_for(cuda: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wait_for_own_gpus(1.0, 0.9)
    assert cuda == []


def test_a_trial_without_gpu_imports_no_torch() -> None:
    code = (
        "import sys; from hpo_ray.trainables.devices import wait_for_own_gpus; wait_for_own_gpus(0.0, 0.9); "
        "wait_for_own_gpus(1.0, 0.0); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


class _Info:
    trial_id, trial_name, experiment_name = "3", "3", "study"

    def __init__(self, bundles: list[dict[str, float]] | None) -> None:
        self.trial_resources = PlacementGroupFactory(bundles) if bundles else None


@pytest.mark.parametrize(
    ("bundles", "gpus"), [(None, 0.5), ([{"CPU": 1, "GPU": 0.25}], 0.25), ([{"CPU": 1}], 0.0), ([{"GPU": 2}] * 2, 2.0)]
)
def test_before_the_users_code_and_before_each_further_trial(
    monkeypatch: pytest.MonkeyPatch, bundles: list[dict[str, float]] | None, gpus: float
) -> None:
    from ray.tune import Trainable

    seen: list[object] = []

    class Mine(Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, object]) -> None:
            seen.append("setup")

        def reset_config(self, config: dict[str, object]) -> bool:
            seen.append("reset")
            return True

    monkeypatch.setattr("hpo_ray.executors.binding.wait_for_own_gpus", lambda *given: seen.append(given))
    trial = bind(Mine, TrialContext(gpus=0.5, free_gpu_memory=0.7))({"__trial_info__": _Info(bundles)})
    trial.reset({"__trial_info__": _Info(bundles)})
    assert seen == [(gpus, 0.7), "setup", (gpus, 0.7), "reset"]
