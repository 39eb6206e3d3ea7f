"""On Ray: trials of several processes, and several trials on a GPU, which is a logical one here."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hpo_ray.events import CheckpointSaved, read
from hpo_ray.results import load_study
from hpo_ray.testing import run_study

TESTS = Path(__file__).parents[1]
SPACE = "space={lr: {low: 0.02, high: 0.2}, batch_size: 8}"
TWO = ["executor=ray", "resources=multi_gpu", "resources.gpu=0", "resources.workers=2", "budget.concurrency=1"]


def typed(folder: Path, *more: str) -> list[str]:
    return ["task=custom", "task.trainable=mine_distributed.Points", SPACE, f"task.args={{path: {folder}}}", *more]


def processes(folder: Path) -> list[tuple[int, int, int]]:
    """(trial, rank, process id) of each trial's start in each process."""
    return sorted(tuple(map(int, path.name.split("-"))) for path in folder.iterdir())  # type: ignore[misc]


def all_end(pids: set[int]) -> bool:
    """Waits until processes have ended; False if one has not after a minute."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], 60)
        os.close(handle)
        if not ended:
            return False
    return True


@pytest.mark.ray
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_law_a_study_in_two_processes_a_trial(folder: Path, ray_cluster: None, strategy: str) -> None:
    """Hyperband pauses and promotes, so that actors are reused; all numbers are those of single processes."""
    seen = folder / "seen"
    seen.mkdir()
    common = ["method=hyperband", "task.max_resource=3", *typed(seen)]
    result = run_study([*common, *TWO, f"resources.strategy={strategy}"], folder / "two")
    ran = [process for process in processes(seen) if process[2] != os.getpid()]  # which tests the best one
    shutil.rmtree(seen)
    seen.mkdir()
    alone = run_study([*common, "executor=inprocess", "executor.workers=2"], folder / "one")
    assert len(alone.records) == 5 and alone.state.trained == 11
    for two, one in zip(result.records, alone.records, strict=True):
        assert (two.config, two.resource, two.state) == (one.config, one.resource, one.state)
        assert [value for _, value in two.history] == pytest.approx([value for _, value in one.history], rel=1e-9)
    assert result.test_metrics == pytest.approx(alone.test_metrics, rel=1e-9)
    assert any(isinstance(event, CheckpointSaved) for event in read(result.path / "events.jsonl"))
    assert {trial for trial, _, _ in ran} == set(range(5))
    by_rank = {rank: Counter(pid for _, r, pid in ran if r == rank) for rank in (0, 1)}
    assert by_rank[0].total() == by_rank[1].total() and by_rank[0].keys().isdisjoint(by_rank[1])
    assert len(by_rank[1]) < by_rank[1].total(), "the others are reused as the first is"
    assert all_end(set(by_rank[1]))


FAULTS = {
    "setup1": "rank 1 of the trial's 2 processes failed: ValueError: went wrong in setup",
    "die1": "rank 1 of the trial's 2 processes died",
    "loss1": "rank 1 of the trial's 2 processes failed: ValueError: went wrong in loss",
    "build1": "rank 1 of the trial's 2 processes failed: ValueError: went wrong in build",
    "loss0": "ValueError: went wrong in loss",
    "die0": "died",
}


@pytest.mark.ray
@pytest.mark.parametrize("faults", [["loss1"], pytest.param([*FAULTS], marks=pytest.mark.slow)])
def test_whichever_process_fails_the_trial_does_and_the_study_goes_on(
    folder: Path, ray_cluster: None, faults: list[str]
) -> None:
    seen = folder / "seen"
    seen.mkdir()
    faulty = "_".join(f"{number}-{fault}" for number, fault in enumerate(faults))
    more = [f"+task.args.faults={faulty}", "method=random", f"budget.trials={len(faults) + 1}"]
    more += ["failure.max_retries=0", "failure.max_failed_fraction=1"]
    result = run_study([*typed(seen, "task.max_resource=2"), *TWO, *more], folder)
    assert [trial.state for trial in result.records] == ["failed"] * len(faults) + ["completed"]
    for trial, fault in zip(result.records, faults, strict=False):
        last = (trial.error or "").strip()
        assert FAULTS[fault] in last and ("rank" in last) == (fault[-1] == "1")
    assert all_end({pid for _, rank, pid in processes(seen) if rank == 1})


@pytest.mark.ray
def test_two_trials_share_a_gpu_and_never_more(folder: Path) -> None:
    """Logical GPUs: Ray counts them as it does real ones, and says which."""
    seen = folder / "seen"
    seen.mkdir()
    temp = f"/tmp/rt{os.getpid()}"
    command = [sys.executable, "-m", "hpo_ray", "method=random", "budget.trials=8", "task=custom", "study.name=shared"]
    command += ["task.trainable=mine_gpus.shares", "space={lr: {low: 0.1, high: 1.0}}", "task.max_resource=1"]
    command += [f"task.args={{path: {seen}}}", "resources=gpu_fraction", "executor.num_cpus=8", "executor.num_gpus=2"]
    command += ["resources.free_gpu_memory=0"]  # which else asks torch for each: seconds to import it
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    try:
        done = subprocess.run(
            [*command, f"executor.temp_dir={temp}"],
            env={**os.environ, "PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = load_study(folder / "outputs" / "shared")
    assert [trial.state for trial in result.records] == ["completed"] * 8
    held: Counter[str] = Counter()
    for line in (seen / "log").read_text().split():
        held[line[1:]] += 1 if line[0] == "+" else -1
        assert held[line[1:]] <= 2
    first = [trial.metrics["gpu"] for trial in result.records[:4]]
    assert Counter(first) == {0: 2, 1: 2} and len({trial.metrics["process"] for trial in result.records[:4]}) == 4
    assert json.loads((result.path / "result.json").read_text())["totals"]["failed"] == 0
