"""Trials that fail: whatever goes wrong, in whichever rung, the study ends, and the others get what they are due."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import pytest

from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, TrialEnded, TrialRetried, read
from hpo_ray.executors.recorder import _death
from hpo_ray.results import StudyResult, load_study
from hpo_ray.schedulers import hyperband_brackets
from hpo_ray.schedulers.brackets import Bracket, Rung
from hpo_ray.testing import run_study

RUNGS = (1, 3, 9)
METHODS = {
    "successive_halving": [],
    "hyperband": [],
    "bohb": ["searcher.startup=3"],
    "dehb": ["searcher.population=4"],
    "asha": [],
    "asha stopping": ["scheduler.variant=stopping"],
    "median": ["scheduler.min_trials=3", "budget.trials=9"],
    "random": ["budget.trials=9"],
    "pbt": ["scheduler.population=8", "scheduler.interval=1", "scheduler.synchronous=true"],
    "pbt async": ["scheduler.population=8", "scheduler.interval=1", "scheduler.synchronous=false"],
}
TIMEOUT = 0.8  # a checkpoint is synced to a disk that others may keep busy
KINDS = {
    "raise": "ValueError: went wrong",
    "nan": "loss is nan at {step}",
    "hang": f"no report for {TIMEOUT} s (budget.trial_timeout_s)",
}


def own(name: str, *more: str) -> list[str]:
    space = "space={lr: {low: 0.01, high: 1.0}}"
    return ["task=custom", f"task.trainable=mine.{name}", space, "task.max_resource=9", *more]


def study(
    folder: Path, method: str, faults: str = "", workers: int = 1, name: str = "Faulty", *more: str
) -> StudyResult:
    overrides = [f"method={method.split()[0]}", *METHODS[method], *own(name), "executor=inprocess"]
    overrides += [f"executor.workers={workers}", f"budget.trial_timeout_s={TIMEOUT}", "failure.max_failed_fraction=1"]
    return run_study([*overrides, *([f"task.args.faults={faults}"] if faults else []), *more], folder)


def outcome(result: StudyResult) -> dict[int, tuple[str, int]]:
    return {trial.number: (trial.state, trial.resource) for trial in result.records}


# References: what each method is to do, in plain loops. `fails` tells whether a trial fails on its way to a rung, and
# what it had reported by then.

Fails = Callable[[int, int, int], int | None]


def halving(rates: Mapping[int, float], fails: Fails, brackets: tuple[Bracket, ...]) -> dict[int, tuple[str, int]]:
    """Synchronous: a rung is sorted when all have reported; who failed is last."""
    ends: dict[int, tuple[str, int]] = {}
    first = 0
    for bracket in brackets:
        members = list(range(first, first + bracket.rungs[0].n))
        first += len(members)
        below = 0
        for i, rung in enumerate(bracket.rungs):
            alive = []
            for member in members:
                got = fails(member, below, rung.r)
                if got is None:
                    alive.append(member)
                else:
                    ends[member] = ("failed", got)
            last = i == len(bracket.rungs) - 1
            places = 0 if last else bracket.rungs[i + 1].n
            members = sorted(alive, key=lambda member: (rates[member], member))[:places]
            ends |= {m: ("completed" if last else "stopped", rung.r) for m in alive if m not in members}
            below = rung.r
    return ends


def promotion(rates: Mapping[int, float], fails: Fails) -> dict[int, tuple[str, int]]:
    """ASHA with one worker: the topmost trial that may move up does, else a new one starts."""
    recorded: list[dict[int, float]] = [{} for _ in RUNGS]
    moved: list[set[int]] = [set() for _ in RUNGS]
    ends: dict[int, tuple[str, int]] = {}
    started = 0
    while True:
        for k in (1, 0):
            best = sorted(recorded[k], key=lambda trial: (recorded[k][trial], trial))[: len(recorded[k]) // 3]
            up = [trial for trial in best if trial not in moved[k] and recorded[k][trial] < math.inf]
            if up:
                trial, rung = up[0], k + 1
                moved[k].add(trial)
                break
        else:
            if started == len(rates):
                return ends
            trial, rung, started = started, 0, started + 1
        got = fails(trial, (0, *RUNGS)[rung], RUNGS[rung])
        recorded[rung][trial] = rates[trial] if got is None else math.inf
        state = "completed" if RUNGS[rung] == 9 else "stopped"
        ends[trial] = (state, RUNGS[rung]) if got is None else ("failed", got)


def stopping(rates: Mapping[int, float], fails: Fails) -> dict[int, tuple[str, int]]:
    """ASHA that stops, one trial after another."""
    recorded: list[list[tuple[float, int]]] = [[] for _ in RUNGS]
    ends: dict[int, tuple[str, int]] = {}
    for trial in rates:
        for rung, resource in enumerate(RUNGS):
            got = fails(trial, (0, *RUNGS)[rung], resource)
            recorded[rung].append((rates[trial] if got is None else math.inf, trial))
            ends[trial] = ("completed" if resource == 9 else "stopped", resource) if got is None else ("failed", got)
            n, rank = len(recorded[rung]), sorted(recorded[rung]).index(recorded[rung][-1])
            if got is not None or (n >= 3 and rank >= n // 3):
                break
    return ends


def median_rule(rates: Mapping[int, float], fails: Fails) -> dict[int, tuple[str, int]]:
    """Against the running averages of those that have ended and did not fail, one trial after another."""
    curves: list[list[float]] = []
    ends: dict[int, tuple[str, int]] = {}
    for trial, rate in rates.items():
        curve: list[float] = []
        for step in range(1, 10):
            got = fails(trial, step - 1, step)
            if got is not None:
                ends[trial] = ("failed", got)
                break
            curve.append(rate + 1 / step)
            averages = [sum(other[:step]) / step for other in curves if len(other) >= step]
            ends[trial] = ("completed" if step == 9 else "stopped", step)
            if step < 9 and len(averages) >= 3 and min(curve) > median(averages):
                break
        if ends[trial][0] != "failed":
            curves.append(curve)
    return ends


def expected(method: str, result: StudyResult, faults: Mapping[int, int]) -> dict[int, tuple[str, int]]:
    """What the reference of a method says; `faults`: at which step a trial fails, by its number."""

    def fails(trial: int, below: int, to: int) -> int | None:
        return faults[trial] - 1 if trial in faults and below < faults[trial] <= to else None

    rates = {trial.number: trial.config["lr"] for trial in result.records}
    brackets = tuple(hyperband_brackets(9))
    if method in ("successive_halving", "hyperband", "bohb", "dehb"):
        return halving(rates, fails, brackets[:1] if method == "successive_halving" else brackets)
    if method.startswith("pbt"):  # nobody is stopped
        return {n: ("completed", 9) if fails(n, 0, 9) is None else ("failed", fails(n, 0, 9) or 0) for n in rates}
    if method == "random":
        return halving(rates, fails, (Bracket(0, (Rung(len(rates), 9),)),))
    return {"asha": promotion, "asha stopping": stopping, "median": median_rule}[method](rates, fails)


_CLEAN: dict[str, StudyResult] = {}


def clean(method: str, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The study without a fault, run once."""
    if method not in _CLEAN:
        _CLEAN[method] = study(tmp_path_factory.mktemp("clean"), method)
    return _CLEAN[method]


def victims(result: StudyResult) -> dict[int, int]:
    """Whom it hits where: the best on its way to the top rung, another to the middle one, the last to the lowest."""
    trials = [trial for trial in result.records if trial.tags.get("bracket", 0) == 0]
    best, other, *_ = sorted(trials, key=lambda trial: (-trial.resource, trial.config["lr"]))
    last = next(trial for trial in reversed(trials) if trial not in (best, other))
    assert best.resource == 9 and other.resource >= 3
    return {last.number: 1, other.number: 3, best.number: 9}


@pytest.mark.parametrize(
    ("method", "shift"),
    [
        pytest.param(method, shift, marks=() if shift == number % 3 else pytest.mark.slow)
        for number, method in enumerate(METHODS)
        for shift in range(3)
    ],
)
def test_whatever_fails_in_whichever_rung_the_others_get_what_they_are_due(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, method: str, shift: int
) -> None:
    first = clean(method, tmp_path_factory)
    assert outcome(first) == expected(method, first, {})
    at = victims(first)
    kinds = dict(zip(at, [*KINDS, *KINDS][shift:], strict=False))
    faults = "_".join(f"{number}-{step}-{kinds[number]}" for number, step in at.items())
    in_parallel = method in ("successive_halving", "hyperband", "dehb", "pbt", "pbt async")
    result = study(folder, method, faults, workers=2 if in_parallel else 1)
    check_ended(result)
    assert outcome(result) == expected(method, result, at)
    assert result.state.states["failed"] == 3
    for number, step in at.items():
        text, _, output = str(result.records[number].error).rpartition("\noutput: ")
        says = KINDS[kinds[number]].format(step=step)
        assert text.endswith(says) and f"about to {kinds[number]}\n" in (result.path / output).read_text()


@pytest.mark.parametrize(
    "kinds", [("raise", "hang", "raise"), pytest.param(("hang", "raise", "hang"), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method in ("hyperband", "asha", "median", "pbt async") else pytest.mark.slow)
        for method in METHODS
    ],
)
def test_with_a_retry_nothing_is_lost(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, method: str, kinds: tuple[str, ...]
) -> None:
    first = clean(method, tmp_path_factory)
    at = victims(first)
    faults = "_".join(f"{number}-{step}-{kind}" for (number, step), kind in zip(at.items(), kinds, strict=True))
    result = study(folder, method, faults, 1, "Faulty", f"task.args.path={folder}", "failure.max_retries=1")
    check_ended(result)
    assert outcome(result) == outcome(first) and result.state.states["failed"] == 0
    assert [trial.config for trial in result.records] == [trial.config for trial in first.records]
    retried = [int(event.trial_id) for event in read(result.path / FILE_NAME) if isinstance(event, TrialRetried)]
    assert sorted(retried) == sorted(at)


def check_ended(result: StudyResult) -> None:
    """The study is over, and so is each of its trials, once."""
    state = result.state
    assert state.ended is not None and (state.ended.state, state.ended.reason) == ("finished", "all trials are done")
    assert not state.states["running"] and not state.states["paused"]
    ended = sorted(int(event.trial_id) for event in read(result.path / FILE_NAME) if isinstance(event, TrialEnded))
    assert ended == list(range(len(result.records)))


# Hangs.


@pytest.mark.parametrize("name", ["Faulty", "faulty"])
@pytest.mark.parametrize("kind", ["hang", "loop", "stubborn"])
def test_what_hangs_is_interrupted_and_the_error_says_where(folder: Path, name: str, kind: str) -> None:
    before = threading.active_count()
    timeout = 0.5  # Ray looks after a function's thread five times a second
    more = [f"budget.trial_timeout_s={timeout}", "budget.trials=3"]
    result = study(folder, "random", f"1-2-{kind}", 1, name, *more)
    check_ended(result)
    assert outcome(result) == {0: ("completed", 9), 1: ("failed", 1), 2: ("completed", 9)}
    error = str(result.records[1].error)
    assert "goes_wrong" in error and "hpo_ray" not in error and "threading.py" not in error
    assert error.endswith("TrialTimeout: no report for 0.5 s (budget.trial_timeout_s)\noutput: trials/1/output.log")
    assert next(e for e in read(result.path / FILE_NAME) if isinstance(e, TrialEnded) and e.error).reason == (
        "took too long"
    )
    if kind == "loop":  # one that only waits is left behind: it ends when it wakes up
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before


def test_a_setup_that_hangs_fails_its_trial(folder: Path) -> None:
    result = study(folder, "random", "0-0-hang_2-0-hang", 1, "Faulty", "budget.trials=4")
    assert outcome(result) == {0: ("failed", 0), 1: ("completed", 9), 2: ("failed", 0), 3: ("completed", 9)}
    for number, what in ((0, "setup"), (2, "reset_config")):
        assert f"{what} took more than {TIMEOUT} s (budget.trial_timeout_s)" in str(result.records[number].error)


def test_the_deadline_is_taken_away_after_each_call(folder: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)
    study(folder, "random", "0-1-hang", 1, "Faulty", "budget.trials=2")
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_in_another_thread_nothing_could_be_interrupted(folder: Path) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            study(folder / "studies", "random")
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "executor=inprocess can't interrupt a trial outside of the main thread; use executor=ray" in str(errors[0])
    assert not (folder / "studies").exists()


@pytest.mark.parametrize(("retries", "state", "end"), [(0, "failed", 6.0), (1, "failed", 10.0), (2, "completed", 16.0)])
def test_simulated_hangs_are_those_of_virtual_time(folder: Path, retries: int, state: str, end: float) -> None:
    # Of two workers the second is four times slower: a step of 2 s takes 8 s there. The first is free at 6 s.
    overrides = ["executor=simulated", "executor.workers=2", "executor.speeds=[1,0.25]", "executor.step_s=2"]
    overrides += ["budget.trial_timeout_s=5", "method=random", "budget.trials=2", f"failure.max_retries={retries}"]
    result = run_study([*own("Faulty"), "task.max_resource=3", *overrides], folder)
    assert [trial.state for trial in result.records] == ["completed", state]
    failed = next(e for e in read(result.path / FILE_NAME) if isinstance(e, TrialRetried if retries else TrialEnded))
    assert failed.time == 5.0 and "no report for 5 s (budget.trial_timeout_s)" in str(failed.error)
    assert result.state.ended is not None and result.state.ended.time == end


# Studies in which everything fails.


@pytest.mark.parametrize(
    ("faults", "fraction", "failed", "heard"),
    [
        ({n: "raise" for n in range(20)}, 0.9, 8, 8),
        ({n: "nan" for n in range(20)}, 0.9, 8, 8),
        ({n: "raise" for n in range(20) if n != 7}, 0.9, 10, 11),  # 9 of 10 is not more
        ({n: "raise" for n in range(7)}, 0.9, None, None),  # 7 of 8
        ({n: "raise" for n in range(20) if n % 2}, 0.4, 4, 8),
        ({n: "raise" for n in range(20) if n % 2}, 0.5, None, None),
        ({n: "raise" for n in range(20) if n >= 10}, 0.49, 10, 20),
        ({0: "raise"}, 0.0, 1, 8),
        ({19: "raise"}, 0.0, 1, 20),
        ({n: "raise" for n in range(20)}, 1.0, 20, 20),
    ],
)
def test_a_study_in_which_too_many_fail_ends(
    folder: Path, faults: dict[int, str], fraction: float, failed: int | None, heard: int | None
) -> None:
    overrides = [*own("Faulty"), "method=random", "budget.trials=20", "executor=inprocess", "task.max_resource=2"]
    overrides.append("task.args.faults=" + "_".join(f"{number}-1-{kind}" for number, kind in faults.items()))
    overrides.append(f"failure.max_failed_fraction={fraction}")
    if failed is None:
        check_ended(run_study(overrides, folder))
        return
    with pytest.raises(StudyError) as raised:
        run_study(overrides, folder)
    result = load_study(next(path for path in folder.iterdir() if (path / FILE_NAME).exists()))
    assert result.state.ended is not None and result.state.ended.state == "failed"
    assert (result.state.states["failed"], result.state.heard) == (failed, heard)
    message = str(raised.value)
    number, kind = min(faults), faults[min(faults)]
    if fraction == 1:
        assert message.startswith("all 20 trials failed")
        return
    assert message.startswith(
        f"{failed} of the {heard} trials that have reported or failed so far have failed, more than "
        f"failure.max_failed_fraction={fraction:g} of them; with failure.max_failed_fraction=1 the study goes on"
    )
    assert f"The first, trial {number}, failed with:\n" in message
    assert ("ValueError: went wrong" if kind == "raise" else "loss is nan at 1") in message
    assert message.endswith(f"\noutput: {result.path}/trials/{number}/output.log")


def test_a_study_that_ends_so_leaves_the_running_trials_unfinished(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = "_".join(f"{number}-2-raise" for number in range(20))
    typed = [*own("Faulty"), "method=random", "budget.trials=20", "executor=inprocess", "executor.workers=12"]
    assert main([*typed, f"task.args.faults={faults}", "study.name=s", "view=none"]) == 1
    assert "failure.max_failed_fraction=0.9" in capsys.readouterr().err
    result = load_study(folder / "outputs/s")
    states = result.state.states  # all twelve have reported before the first fails: 11 of 12 is more than 0.9
    assert (states["failed"], states["running"], result.state.heard) == (11, 9, 12)
    assert json.loads((result.path / "result.json").read_text())["totals"]["unfinished"] == 9


# What a person sees.


def test_the_summary_says_who_failed_and_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*own("Faulty"), "method=random", "budget.trials=6", "executor=inprocess", "view=plain", "study.name=s"]
    assert main([*typed, "task.args.faults=1-2-raise_2-3-nan_3-1-raise_5-1-raise", "task.max_resource=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("failed     4 of 6 trials")
    assert [line.split() for line in lines[at + 1 : at + 5]] == [
        ["trial", "1", "ValueError:", "went", "wrong", "outputs/s/trials/1/output.log"],
        ["trial", "2", "loss", "is", "nan", "at", "3", "outputs/s/trials/2/output.log"],
        ["trial", "3", "ValueError:", "went", "wrong", "outputs/s/trials/3/output.log"],
        ["and", "1", "more", "in", "trials.jsonl"],
    ]
    assert sum("trial 1 failed: ValueError: went wrong" in line for line in lines) == 1


def test_a_setup_that_raises_a_keyboard_interrupt_fails_its_trial(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"(?s)all 2 trials failed.*KeyboardInterrupt"):
        study(folder, "random", "0-0-interrupt_1-0-interrupt", 1, "Faulty", "budget.trials=2")


# On Ray: what ends a process.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ValueError: no", "ValueError: no"),
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: train\n\tpid: 7\n\tip: 10.0.0.1\n"
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "Worker unexpectedly exits. If the process was killed by the kernel OOM killer (see dmesg), do this.",
            "the worker died (pid 7 on 10.0.0.1): Worker unexpectedly exits.",
        ),
        (
            "The actor died unexpectedly before finishing this task.",
            "the worker died: The actor died unexpectedly before finishing this task.",
        ),
        (
            "The actor 4bd3 is unavailable: reset by peer.",
            "the worker died, or its node can't be reached: reset by peer.",
        ),
        (
            "the worker died: OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory. Memory "
            "on the node (IP: 10.0.0.1, ID: b) was 1.79GB used / 23.54GB limit (0.075)\nObject store memory usage: [",
            "the worker died: Ray killed it because its node ran low on memory (1.79GB used / 23.54GB limit)",
        ),
    ],
)
def test_what_ray_says_of_a_dead_worker_in_one_line(text: str, says: str) -> None:
    assert _death(text) == says


@pytest.mark.ray
@pytest.mark.parametrize(
    "method",
    ["successive_halving", pytest.param("asha", marks=pytest.mark.slow), pytest.param("pbt", marks=pytest.mark.slow)],
)
def test_a_process_that_ends_costs_its_trial(folder: Path, ray_cluster: None, method: str) -> None:
    """Killed as the kernel does it when memory runs out; out of memory by its own limit; stuck in C with the lock."""
    at = {2: ("kill", 1), 4: ("memory", 1), 5: ("stuck", 1)}
    faults = "_".join(f"{number}-{step}-{kind}" for number, (kind, step) in at.items())
    result = on_ray(folder, method, faults)
    check_ended(result)
    assert result.state.states["failed"] == 3
    says = {
        "kill": "the worker died (pid ",
        "memory": "MemoryError\n",
        "stuck": "no report for 3 s (budget.trial_timeout_s)\n",
    }
    for number, (kind, _) in at.items():
        trial = result.records[number]
        assert trial.state == "failed" and says[kind] in str(trial.error), trial.error
        assert str(trial.error).endswith(f"\noutput: trials/{number}/output.log")
        assert f"about to {kind}\n" in (result.path / f"trials/{number}/output.log").read_text()
    faulty = dict.fromkeys(at, 1)
    if method != "asha":  # whose order depends on who is quicker
        assert outcome(result) == expected(method, result, faulty)


@pytest.mark.ray
def test_a_process_that_ends_is_retried_from_the_checkpoint(folder: Path, ray_cluster: None) -> None:
    more = [f"task.args.path={folder}", "failure.max_retries=1"]
    result = on_ray(folder, "successive_halving", "2-1-kill_4-1-hang", *more)
    check_ended(result)
    assert outcome(result) == expected("successive_halving", result, {})
    retried = [int(event.trial_id) for event in read(result.path / FILE_NAME) if isinstance(event, TrialRetried)]
    assert sorted(retried) == [2, 4]


def on_ray(folder: Path, method: str, faults: str, *more: str) -> StudyResult:
    overrides = [
        f"method={method.split()[0]}",
        *METHODS[method],
        *own("Faulty"),
        "executor=ray",
        "budget.concurrency=3",
    ]
    return run_study([*overrides, f"task.args.faults={faults}", "budget.trial_timeout_s=3", *more], folder)
