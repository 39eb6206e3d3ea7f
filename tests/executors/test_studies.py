"""Whole studies, in this process and on Ray."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest
from methods import GRADIENT, METHODS, SCHEDULERS, differentiable, small

from hpo_ray.errors import StudyError
from hpo_ray.events import FILE_NAME, CheckpointSaved, Decided, Reported, TrialAdded, TrialEnded, TrialRetried, read
from hpo_ray.results import StudyResult, load_study
from hpo_ray.schedulers import hyperband_brackets
from hpo_ray.testing import check_same_decisions, check_same_events, run_study, timeless

SPACE = "space={lr: {low: 0.01, high: 1.0}}"
# pbt_replay needs a study to replay: tests/schedulers/test_population.py runs it.
ON_RAY = ("hypergradient",)
EXECUTORS = ["inprocess", pytest.param("ray", marks=pytest.mark.ray)]


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    """Each executor; Ray's uses the cluster of the session."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


def workers(executor: str, number: int) -> list[str]:
    """The overrides that give an executor this many workers."""
    slots = "executor.num_cpus=4" if executor == "ray" else f"executor.workers={number}"
    return [f"executor={executor}", slots, f"budget.concurrency={number}"]


def own(name: str, *more: str) -> list[str]:
    """The overrides that tune a function or class of the user's."""
    return ["task=custom", f"task.trainable=mine.{name}", SPACE, "task.max_resource=9", *more]


def ends(result: StudyResult) -> dict[int, int]:
    """How many trials ended at which resource."""
    return dict(sorted(Counter(trial.resource for trial in result.records).items()))


@pytest.mark.parametrize("number", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_hyperband_ends_trials_where_algorithm_1_says(folder: Path, executor: str, number: int) -> None:
    overrides = ["method=hyperband", "task=parabola", "scheduler.max_resource=81", *workers(executor, number)]
    result = run_study(overrides, folder)
    assert ends(result) == {1: 54, 3: 41, 9: 24, 27: 14, 81: 10}
    assert result.state.trained == 1581
    assert result.state.states["completed"] == 10
    assert result.state.states["stopped"] == 133


def test_who_goes_on_is_right(folder: Path) -> None:
    """Replays the log with a plain sort: in each rung the best floor(n/eta) go on, ties to the lower number."""
    result = run_study(["method=hyperband", "task=parabola", "executor=inprocess", "executor.workers=3"], folder)
    values = {t.trial_id: dict(t.history) for t in result.records}
    reached = {t.trial_id: t.resource for t in result.records}
    for index, bracket in enumerate(hyperband_brackets(27)):
        members = [t.trial_id for t in result.records if t.tags["bracket"] == index]
        for rung, above in zip(bracket.rungs, bracket.rungs[1:], strict=False):
            assert len(members) == rung.n
            best = sorted(members, key=lambda m: (values[m][rung.r], m))[: above.n]
            assert {m for m in members if reached[m] >= above.r} == set(best)
            members = best


@pytest.mark.ray
@pytest.mark.parametrize(
    ("method", "task"),
    [
        *(
            # Where configurations come from is the same on every executor: one for each scheduler.
            pytest.param(method, "branin_currin", marks=() if method in SCHEDULERS.values() else pytest.mark.slow)
            for method in METHODS
        ),
        ("hyperband", "function"),
        pytest.param("pbt", "breast_cancer", marks=pytest.mark.slow),
        *(
            # Also in the simulation and after deaths: here what differs most.
            pytest.param(method, "differentiable", marks=() if method in ON_RAY else pytest.mark.slow)
            for method in GRADIENT
        ),
        *(
            pytest.param(method, task, marks=pytest.mark.slow)
            for method, task in [
                ("hyperband", "breast_cancer"),
                ("asha", "function"),
                ("asha", "breast_cancer"),
                ("pbt", "function"),
            ]
        ),
    ],
)
def test_law_same_events_on_every_executor(folder: Path, ray_cluster: None, method: str, task: str) -> None:
    """With one worker and one seed: same trials, reports to the digit, checkpoints and decisions, in the same order."""
    overrides = own("train") if task == "function" else [f"task={task}", "task.max_resource=4"]
    if task == "differentiable":
        overrides = differentiable(method)
    overrides = [f"method={method}", "scheduler.max_resource=4", *overrides]
    overrides += small(method) if method not in GRADIENT else []
    inprocess = run_study([*overrides, *workers("inprocess", 1)], folder / "a")
    on_ray = run_study([*overrides, *workers("ray", 1)], folder / "b")
    check_same_events(inprocess, on_ray)
    check_same_decisions(on_ray, run_study([*overrides, *workers("simulated", 1)], folder / "c"))
    assert len(timeless(inprocess)) > (20 if method not in GRADIENT else 8)


def test_same_seed_same_trials_and_another_seed_others(folder: Path) -> None:
    overrides = ["method=random", "task=branin", "budget.trials=5", "executor=inprocess"]
    first, again, other = (run_study([*overrides, f"seed={s}"], folder / n) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    check_same_events(first, again)
    assert [t.config for t in first.records] != [t.config for t in other.records]


def test_more_workers_propose_the_same_configurations(folder: Path) -> None:
    runs = [
        run_study(["task=branin", "executor=inprocess", f"executor.workers={n}"], folder / str(n))
        for n in (1, 2, 4, 16)
    ]
    assert all([t.config for t in run.records] == [t.config for t in runs[0].records] for run in runs)
    assert all(run.best is not None and run.best.config == runs[0].best.config for run in runs)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["train", "DictCheckpoint"])
def test_a_users_code_runs_unchanged(folder: Path, executor: str, name: str) -> None:
    result = run_study([*own(name), "method=hyperband", *workers(executor, 2)], folder)
    assert ends(result) == {1: 6, 3: 6, 9: 5}
    assert result.state.trained == 69, "a trial that moves up trains only the difference"
    assert result.best is not None
    assert result.best.value == pytest.approx(min(t.config["lr"] for t in result.records if t.resource == 9) + 1 / 9)


@pytest.mark.parametrize("name", ["RefusesReset", "FailsAtTheEnd", "TensorMetric"])
def test_what_ray_allows_costs_no_trial(folder: Path, name: str) -> None:
    """A class that can't be used again, or fails when it is thrown away, is built anew for the next trial."""
    result = run_study([*own(name), "executor=inprocess", "executor.workers=2"], folder)
    assert ends(result) == {1: 6, 3: 6, 9: 5} and not result.state.states["failed"]


@pytest.mark.ray
def test_what_ray_allows_costs_no_trial_on_ray(folder: Path, ray_cluster: None) -> None:
    result = run_study([*own("RefusesReset"), *workers("ray", 2)], folder)
    assert ends(result) == {1: 6, 3: 6, 9: 5} and not result.state.states["failed"]


@pytest.mark.parametrize(("name", "resource"), [("partial", 9), ("called", 4)])
def test_whatever_can_be_called_with_a_configuration(folder: Path, name: str, resource: int) -> None:
    result = run_study([*own(name), "method=random", "budget.trials=2", "executor=inprocess"], folder)
    assert ends(result) == {resource: 2}


def test_a_trial_that_changes_the_folder_changes_its_own(folder: Path, executor: str) -> None:
    overrides = [*own("changes_folder"), "method=random", "budget.trials=3", *workers(executor, 2)]
    result = run_study(overrides, folder)
    assert Path.cwd() == folder
    assert all(trial.state == "completed" and trial.metrics["in_its_own"] for trial in result.records)


def test_a_keyboard_interrupt_of_the_users_code_fails_its_trial(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"(?s)all 2 trials failed.*KeyboardInterrupt"):
        run_study(
            [*own("stops_by_keyboard_interrupt"), "method=random", "budget.trials=2", "executor=inprocess"], folder
        )


@pytest.mark.parametrize("name", ["no_checkpoint", "generator", "NoCheckpoint"])
def test_without_checkpoints_promoted_trials_start_again_if_asked_to(folder: Path, executor: str, name: str) -> None:
    overrides = [*own(name), "scheduler.on_missing_checkpoint=restart", *workers(executor, 1)]
    result = run_study(overrides, folder)
    assert ends(result) == {1: 6, 3: 6, 9: 5}
    # Bracket s=2: 9 to 1, then 3 from the start to 3, then 1 from the start to 9; s=1: 5 to 3, 1 to 9; s=0: 3 to 9.
    assert result.state.trained == (9 * 1 + 3 * 3 + 1 * 9) + (5 * 3 + 1 * 9) + 3 * 9


def test_without_checkpoints_the_study_fails_with_the_way_out(folder: Path) -> None:
    executor = "inprocess"
    with pytest.raises(StudyError, match=r"no checkpoint.*scheduler\.on_missing_checkpoint=restart"):
        run_study([*own("no_checkpoint"), *workers(executor, 1)], folder)
    assert load_study(folder / "custom-hyperband-1").state.ended.state == "failed"  # type: ignore[union-attr]


def test_trials_that_end_by_themselves_are_completed(folder: Path) -> None:
    executor = "inprocess"
    result = run_study([*own("short"), "method=random", "budget.trials=3", *workers(executor, 1)], folder)
    assert [(t.state, t.resource) for t in result.records] == [("completed", 4)] * 3


def check_whoever_fails_the_study_ends(folder: Path, executor: str, name: str, number: int) -> None:
    overrides = [*own(name), "scheduler.on_missing_checkpoint=restart", "seed=3", *workers(executor, number)]
    result = run_study(overrides, folder)
    assert result.state.ended is not None and result.state.ended.state == "finished"
    failed = [t for t in result.records if t.state == "failed"]
    assert failed and all(t.error for t in failed)
    assert not (result.state.states["running"] or result.state.states["paused"])
    assert sum(result.state.states.values()) == len(result.records) == 17
    assert result.best is not None and result.best.state == "completed"
    survivors = [t for t in result.records if t.state == "completed"]
    assert survivors and all(t.resource == 9 for t in survivors)


@pytest.mark.parametrize("name", ["raises", "not_finite", "FailsToSave", "FailsToReset", "FailsToLoad"])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_whoever_fails_whenever_the_study_ends(folder: Path, name: str, number: int) -> None:
    check_whoever_fails_the_study_ends(folder, "inprocess", name, number)


@pytest.mark.ray
@pytest.mark.parametrize("name", ["FailsToReset", pytest.param("KillsItsProcess", marks=pytest.mark.slow)])
def test_whoever_fails_whenever_the_study_ends_on_ray(folder: Path, ray_cluster: None, name: str) -> None:
    check_whoever_fails_the_study_ends(folder, "ray", name, 2)


def test_an_error_is_the_users_own_and_names_the_output(folder: Path, executor: str) -> None:
    overrides = [*own("raises"), "method=random", "budget.trials=4", *workers(executor, 1)]
    result = run_study(overrides, folder)
    trial = next(t for t in result.records if t.state == "failed")
    assert trial.error is not None
    assert f"ValueError: the rate {trial.config['lr']:.3f} is too low" in trial.error
    assert "mine.py" in trial.error and "hpo_ray" not in trial.error and "site-packages/ray" not in trial.error
    output = result.path / trial.error.rpartition("output: ")[2]
    assert "about to fail" in output.read_text() and "ValueError" in output.read_text()


def test_a_trial_that_exits_fails_alone_in_process(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"(?s)all 2 trials failed.*SystemExit"):
        run_study([*own("exits"), "method=random", "budget.trials=2", "executor=inprocess"], folder)


def test_a_value_that_is_not_finite_ends_the_trial_without_retry(folder: Path) -> None:
    executor = "inprocess"
    overrides = [*own("not_finite"), "method=random", "budget.trials=6", "failure.max_retries=3", *workers(executor, 1)]
    result = run_study(overrides, folder)
    low = [t for t in result.records if t.config["lr"] < 0.5]
    assert low and all(t.state == "failed" and len(t.history) == 2 for t in low)
    assert all(t.error == "loss is nan at 2" or str(t.error).startswith("loss is nan at 2\n") for t in low)
    assert all(t.resource == 1 for t in low), "its value is the last finite one"
    assert not [e for e in read(result.path / FILE_NAME) if isinstance(e, TrialRetried)]
    lines = [json.loads(line) for line in (result.path / "trials.jsonl").read_text().splitlines()]
    assert lines[low[0].number]["history"][1] == [2, None]


@pytest.mark.ray
def test_retries_on_ray(folder: Path, ray_cluster: None) -> None:
    overrides = [*own("FailsOnce"), f"task.args.path={folder}", "failure.max_retries=1", "method=random"]
    result = run_study([*overrides, "budget.trials=2", *workers("ray", 2)], folder)
    assert [[r for r, _ in trial.history] for trial in result.records] == [[1, *range(1, 10)]] * 2
    assert [(trial.state, trial.trained, trial.error) for trial in result.records] == [("completed", 10, None)] * 2


def test_retries_go_on_from_the_last_checkpoint(folder: Path) -> None:
    overrides = [*own("FailsOnce"), f"task.args.path={folder}", "failure.max_retries=1", *workers("inprocess", 1)]
    result = run_study(overrides, folder)
    assert ends(result) == {1: 6, 3: 6, 9: 5}
    assert not result.state.states["failed"]
    # A trial in bracket 0 is paused at 1 and fails at its second step after that: it goes on from 1, nothing is lost.
    first = next(t for t in result.records if t.tags["bracket"] == 0 and t.resource == 9)
    assert [r for r, _ in first.history] == [1, *range(2, 10)]
    # In bracket 2 a trial fails at step 2 before it was ever saved: step 1 is trained twice, and counted.
    last = result.records[-1]
    assert [r for r, _ in last.history] == [1, 1, *range(2, 10)] and last.trained == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other_metric", r"task\.metric=loss: trial 0 .*it reported accuracy, perplexity"),
        ("text_metric", r"task\.metric=loss: trial 0 did not report it as a number"),
        ("never_reports", "without reporting loss"),
        ("always_raises", "all .* trials failed; the first, trial 0, with.*RuntimeError: never works"),
    ],
)
def test_a_study_without_the_metric_fails(folder: Path, name: str, message: str) -> None:
    executor = "inprocess"
    with pytest.raises(StudyError, match=f"(?s){message}"):
        run_study([*own(name), "method=random", "budget.trials=2", *workers(executor, 1)], folder)


def test_a_trial_knows_its_number_seed_and_arguments_and_its_config_holds_nothing_else(
    folder: Path, executor: str
) -> None:
    overrides = [
        *own("asks_context"),
        "method=random",
        "budget.trials=3",
        "task.args.path=/data",
        *workers(executor, 2),
    ]
    result = run_study(overrides, folder)
    assert [t.metrics["number"] for t in result.records] == [0, 1, 2]
    assert len({t.metrics["seed"] for t in result.records}) == 3
    assert {t.metrics["arg"] for t in result.records} == {"/data"}
    assert all(set(t.config) == {"lr"} for t in result.records)


def test_known_configurations_come_first(folder: Path) -> None:
    result = run_study(["task=parabola", "searcher.initial=[{x: 1.5},{x: 2}]", "executor=inprocess"], folder)
    assert [t.config for t in result.records[:2]] == [{"x": 1.5}, {"x": 2.0}]
    assert result.best is not None and result.best.value == 0.0


@pytest.mark.parametrize(
    ("overrides", "trials"),
    [
        (["method=random", "budget.trials=7"], 7),
        (["method=random"], 20),
        (["method=successive_halving"], 27),
        (["method=successive_halving", "budget.trials=9"], 9),
        (["method=successive_halving", "budget.rounds=2"], 54),
        (["method=hyperband", "budget.rounds=2"], 98),
        (["method=hyperband", "scheduler.eta=2", "scheduler.min_resource=2"], None),
    ],
)
def test_the_run_does_what_the_plan_says(folder: Path, overrides: list[str], trials: int | None) -> None:
    from hpo_ray.config import load
    from hpo_ray.study import draft

    overrides = [*overrides, "task=parabola", "executor=inprocess"]
    plan = draft(load(overrides)).plan
    result = run_study(overrides, folder)
    assert len(result.records) == plan.trials and (trials is None or plan.trials == trials)
    assert result.state.trained == plan.total_resource


def test_budget_target_ends_the_study(folder: Path) -> None:
    result = run_study(["task=parabola", "budget.target=0.1", "executor=inprocess"], folder)
    assert result.state.ended is not None and "budget.target=0.1 reached" in result.state.ended.reason
    assert result.state.best_seen is not None and result.state.best_seen[2] <= 0.1
    assert len(result.records) < 49


def test_budget_time_ends_the_study(folder: Path) -> None:
    result = run_study(["task=parabola", "method=random", "budget.time_s=0.3", "executor=inprocess"], folder)
    assert result.state.ended is not None and "budget.time_s=0.3 used up" in result.state.ended.reason
    assert result.state.ended.time >= 0.3 and len(result.records) > 1


def test_concurrency_is_kept_and_paused_trials_don_t_count(folder: Path) -> None:
    result = run_study(["task=parabola", "executor=inprocess", "executor.workers=8", "budget.concurrency=3"], folder)
    active: set[str] = set()
    most, paused = 0, 0
    for event in read(result.path / FILE_NAME):
        if isinstance(event, TrialAdded) or (isinstance(event, Decided) and event.action == "promote"):
            active.add(event.trial_id)
        elif isinstance(event, TrialEnded | Decided):
            paused += isinstance(event, Decided)
            active.discard(event.trial_id)
        most = max(most, len(active))
    assert most == 3 and paused > 3


def test_promoted_trials_come_before_new_ones(folder: Path) -> None:
    """Else every bracket would fill before the first is halved, and a searcher would learn nothing on the way."""
    result = run_study(["task=parabola", "executor=inprocess"], folder)
    events = read(result.path / FILE_NAME)
    promoted = [i for i, e in enumerate(events) if isinstance(e, Decided) and e.action == "promote"]
    added = {e.number: i for i, e in enumerate(events) if isinstance(e, TrialAdded)}
    in_first_bracket = 9 + 3 + 1  # of 27 trials; the 28th opens the second bracket
    assert sum(i < added[27] for i in promoted) == in_first_bracket


def test_function_trainables_leave_no_thread_and_no_folder_change(folder: Path) -> None:
    before = threading.active_count()
    run_study([*own("train"), "executor=inprocess", "executor.workers=4"], folder)
    assert threading.active_count() == before
    assert Path.cwd() == folder


def test_what_a_run_leaves_behind(folder: Path, executor: str) -> None:
    result = run_study(["task=parabola", "task.max_resource=9", *workers(executor, 1)], folder)
    assert result.path == folder / "parabola-hyperband-1"
    names = {path.name for path in result.path.iterdir()}
    files = {"config.yaml", "events.jsonl", "report.html", "result.json", "trials.jsonl"}
    assert names == {*files, "best", "trials"}
    content = json.loads((result.path / "result.json").read_text())
    assert content["schema_version"] == 1 and content["state"] == "finished" and content["seed"] == 0
    assert content["metric"] == {"name": "loss", "mode": "min"}
    assert content["best"]["resource"] == 9 and content["best"]["checkpoint"] == "best"
    counted = {"trials": 17, "completed": 5, "stopped": 12, "failed": 0, "unfinished": 0, "resource": 69}
    assert {name: content["totals"][name] for name in counted} == counted
    lines = [json.loads(line) for line in (result.path / "trials.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(17))
    assert lines[0].keys() >= {
        "trial_id",
        "state",
        "config",
        "value",
        "resource",
        "history",
        "seconds",
        "error",
        "bracket",
    }
    best = json.loads((result.path / "best" / "best.json").read_text())
    assert best["checkpoint_resource"] == best["resource"] == 9
    again = load_study(result.path)
    assert again.to_json() == content


def test_a_checkpoint_is_complete_when_it_is_recorded(folder: Path) -> None:
    result = run_study(["task=parabola", "executor=inprocess", "store.keep_checkpoints=all"], folder)
    events = read(result.path / FILE_NAME)
    saved = {e.trial_id: e for e in events if isinstance(e, CheckpointSaved)}
    assert all(any((result.path / str(event.path)).iterdir()) for event in saved.values())
    reported = {e.trial_id: e.resource for e in events if isinstance(e, Reported)}
    assert {i: e.resource for i, e in saved.items()} == reported, "the last checkpoint is that of the last report"
    assert not list(result.path.glob("trials/*/.saving*"))


def test_ray_loggers_on_request(folder: Path) -> None:
    quiet = run_study(["task=parabola", "method=random", "budget.trials=1", "executor=inprocess"], folder)
    assert not list(quiet.path.glob("trials/0/progress.csv"))
    asked = run_study(
        ["task=parabola", "method=random", "budget.trials=1", "executor=inprocess", "tracker=ray_loggers"], folder
    )
    assert len((asked.path / "trials/0/progress.csv").read_text().splitlines()) == 28
