"""Methods against each other: the same budget, exact tables, and going on after an interruption."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest

from hpo_ray import __main__, compare
from hpo_ray.compare import parse, run_all
from hpo_ray.errors import ConfigError
from hpo_ray.events import Reported, StudyStarted, TrialAdded
from hpo_ray.executors import InProcessExecutor, loop
from hpo_ray.report.comparison import Scale, Trace, bootstrap, draw, markdown, rows_of, table, target_of, trace
from hpo_ray.results import StudyResult, fold

MIN = Scale("loss", 1, None, "step", True)
MAX = Scale("accuracy", -1, None, "epoch", False)
REGRET = Scale("loss", 1, -3.0, "step", True)


def made(*losses: float, end: tuple[float, int] = (10.0, 100)) -> Trace:
    """A trace that gets better at 1, 2, 3 ... seconds and 10, 20, 30 ... units."""
    steps = range(1, len(losses) + 1)
    return Trace(tuple(float(s) for s in steps), tuple(10 * s for s in steps), losses, end)


# What is computed.


def test_only_full_resource_counts_and_it_only_gets_better() -> None:
    state = fold([StudyStarted("s", "m", "t", "loss", "min", 0, 9, 0.0)] + [
        TrialAdded(str(number), number, {}, {}, 0.0) for number in range(4)
    ] + [
        Reported(str(number), resource, 10, {"loss": loss}, 0.0, time)
        for number, resource, loss, time in [
            (0, 1, -9.0, 1.0), (0, 9, -1.0, 5.0), (1, 8, -2.5, 6.0), (3, 9, -2.0, 8.0),
            (2, 12, -0.5, 9.0),  # further, which makes it the study's best, but no better
            (1, 9, -2.5, 10.0),
        ]
    ])  # fmt: skip
    result = StudyResult(Path("."), state).to_json()
    result["totals"]["seconds"] = 11.0
    assert trace(result, REGRET) == Trace((5.0, 8.0, 10.0), (20, 40, 60), (2.0, 1.0, 0.5), (11.0, 60))
    assert state.best is not None and state.best.number == 2


def test_the_table_by_hand() -> None:
    traces = {
        "asha": [made(5.0, 1.0), made(4.0), made(3.0, 2.0), made()],
        "random": [made(4.0), made(4.0), made(6.0, 5.0), made(2.0)],
    }
    assert target_of(traces) == ("random", 4.0)  # the mean of the middle two of 2, 4, 4, 5
    asha, other = rows_of(traces, MIN)
    assert (asha.median, asha.quartiles) == (3.0, (2.0, 4.0))  # 1, 2, 4 and none
    assert (asha.reached, asha.time, asha.trained) == (3, 1.0, 10)  # at 2 s, 1 s, 1 s and never: half by 1 s
    assert (other.reached, other.time) == (3, 1.0)
    # By seed: 1 < 4; 4 = 4; 2 < 5; none > 2.
    assert (asha.rank, other.rank) == ((1 + 1.5 + 1 + 2) / 4, (2 + 1.5 + 2 + 1) / 4)
    lines = table([asha, other], MIN)
    assert lines[0][-3:] == ["virtual seconds to target", "steps to target", "steps spent"]
    assert lines[1] == ["asha", "3", "2 to 4", "1.38", "3 of 4", "1", "10", "100"]
    assert markdown(lines).splitlines()[1] == "|---|---:|---:|---:|---:|---:|---:|---:|"


def test_more_is_better_and_regret() -> None:
    accuracy = {"random": [made(loss) for loss in (-0.8, -0.9, -0.7, -0.95, -0.5)]}
    assert rows_of(accuracy, MAX)[0].median == 0.8 and rows_of(accuracy, MAX)[0].quartiles == (0.7, 0.9)
    assert REGRET.loss(-2.5) == 0.5 and REGRET.loss(-3.0000001) == 0.0 and REGRET.name == "regret"


def test_without_random_the_first_method_sets_the_target_and_what_was_never_reached_says_so() -> None:
    traces = {"asha": [made(1.0)], "hyperband": [made()]}
    assert target_of(traces) == ("asha", 1.0)
    rows = rows_of(traces, MIN)
    assert rows[1].median is None and rows[1].time is None and rows[1].rank == 2.0
    assert table(rows, MIN)[2][1:3] == ["not reached", "not reached to not reached"]


def test_bootstrap_of_the_median() -> None:
    losses = np.arange(20.0)[:, None] * np.ones((1, 3))
    low, high = bootstrap(losses)
    # The binomial interval of the median of 20 is from the 6th to the 15th order statistic, 5 to 14.
    assert all(4.0 <= value <= 6.5 for value in low) and all(12.5 <= value <= 15.0 for value in high)
    constant = bootstrap(np.full((5, 2), 3.0))
    assert constant[0].tolist() == constant[1].tolist() == [3.0, 3.0]
    low, high = bootstrap(np.array([[1.0], [2.0], [math.inf]]))
    assert low[0] == 1.0 and high[0] == math.inf
    assert np.array_equal(bootstrap(losses), bootstrap(losses))


@pytest.mark.parametrize("scale", [MIN, MAX, REGRET])
def test_the_figure_is_drawn_for_whatever_there_is(tmp_path: Path, scale: Scale) -> None:
    sign = 1.0 if scale.sign > 0 else -1.0
    traces = {
        "a": [made(sign * 5.0, sign * 4.0), made(sign * 3.0)],
        "none": [made(), made()],
        "one": [made(sign), made()],
    }
    draw(tmp_path / "none.png", {"none": traces["none"]}, scale, "title")
    draw(tmp_path / "figure.png", traces, scale, "title")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "figure.png"
    ).stat().st_size > 5e3


# What is run.


def compared(folder: Path, *overrides: str) -> compare.Outcome:
    lines: list[str] = []
    outcome = compare.run_all(compare.parse([*overrides, f"study.root={folder}"]), lines.append)
    outcome.folder.joinpath("said.txt").write_text("\n".join(lines))
    return outcome


COMMAND = ["methods=[random,asha,hyperband]", "seeds=3", "executor=simulated", "executor.workers=4", "task=branin",
           "task.max_resource=9"]  # fmt: skip


def test_every_method_gets_the_same_resource_and_everything_is_saved(folder: Path) -> None:
    outcome = compared(folder / "out", *COMMAND)
    assert outcome.folder.name == "branin-compare-1" and (outcome.done, outcome.total) == (9, 9)
    assert [row.method for row in outcome.rows] == ["random", "asha", "hyperband"]
    assert all(row.spent == 180 and row.seeds == 3 for row in outcome.rows)  # 20 full trainings
    content = json.loads((outcome.folder / "comparison.json").read_text())
    assert content["finished"] and content["seeds"] == [0, 1, 2] and content["metric"]["optimum"] == 0.39788735772973816
    assert content["rows"][1]["median"] == outcome.rows[1].median and content["target"]["of"] == "random"
    assert "| asha | " in (outcome.folder / "table.md").read_text()
    assert (outcome.folder / "incumbent.png").exists()
    # Same seed, same source: in each seed all methods see the same configurations.
    for seed in range(3):
        first = [
            json.loads((outcome.folder / f"{method}-seed{seed}" / "trials.jsonl").read_text().splitlines()[0])["config"]
            for method in ("random", "asha", "hyperband")
        ]
        assert first[0] == first[1] == first[2]


def test_the_budget_grows_with_the_workers_so_that_trials_get_to_the_end() -> None:
    more = compare.parse([*COMMAND, "executor.workers=64"])
    assert more.first.budget.resource == 2 * 64 * 9


def test_when_nothing_reaches_full_resource_it_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["compare", *COMMAND, "budget.resource=8"]) == 0
    out = capsys.readouterr().out
    assert (
        "target     none: too few of random's studies reached full resource (9); give a larger budget.resource=" in out
    )
    assert (folder / "outputs/branin-compare-1/incumbent.png").exists()


def test_a_budget_of_a_configuration_is_kept(folder: Path) -> None:
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "small.yaml").write_text("# @package _global_\nbudget: {resource: 81}\n")
    comparison = compare.parse([*COMMAND, "experiment=small"], str(folder / "mine"))
    assert comparison.first.budget.resource == 81
    # Parts of a budget: no limit is added to them.
    for typed in ("budget.trials=5", "budget={trials: 5}", "budget.time_s=9"):
        budget = compare.parse(["methods=[random]", *COMMAND[1:], typed]).first.budget
        assert budget.resource is None and (budget.trials, budget.time_s) != (None, None)


def test_labels_that_look_alike_have_folders_of_their_own() -> None:
    labels = ["random task.args.a=/x", "random task.args.a=_x", "random", "random " + "seed=0 " * 60]
    folders = {compare.Entry(label, None, None).folder(0) for label in labels}  # type: ignore[arg-type]
    assert len(folders) == 4 and "random-seed0" in folders and all(len(name) < 120 for name in folders)


def test_a_value_with_a_space_is_quoted_inside_its_label() -> None:
    comparison = compare.parse(["""methods=["random 'searcher.initial=[{x1: 1.5, x2: 3.0}]'"]""", *COMMAND[1:]])
    assert comparison.first.config["searcher"]["initial"] == [{"x1": 1.5, "x2": 3.0}]


def test_a_budget_that_is_typed_is_kept(folder: Path) -> None:
    outcome = compared(folder, *COMMAND, "budget.time_s=30")
    assert all(108 <= row.spent <= 120 for row in outcome.rows)  # four workers
    trials = compared(folder, "methods=[random,asha]", "seeds=[4,7]", *COMMAND[2:], "budget.trials=5")
    assert [row.seeds for row in trials.rows] == [2, 2] and trials.rows[0].spent == 45
    assert (trials.folder / "asha-seed7").is_dir()


def test_settings_of_one_method(folder: Path) -> None:
    typed = ["methods=[asha, asha scheduler.variant=stopping]", "seeds=2", *COMMAND[2:]]
    outcome = compared(folder, *typed)
    assert [row.method for row in outcome.rows] == ["asha", "asha scheduler.variant=stopping"]
    variants = [
        [json.loads(line)["history"] for line in (outcome.folder / name / "trials.jsonl").read_text().splitlines()]
        for name in (entry.folder(0) for entry in compare.parse(typed).entries)
    ]
    assert variants[0] != variants[1]


def test_an_interrupted_comparison_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, runs = loop.run, []

    def until_the_fifth(study, view, *taken_up):  # type: ignore[no-untyped-def]
        runs.append(study.draft.name)
        if len(runs) == 5:
            timer = study.executor.clock

            def interrupted(since: float):  # type: ignore[no-untyped-def]
                signal.raise_signal(signal.SIGINT)
                return timer()

            study.executor.clock = interrupted
        return original(study, view, *taken_up)

    monkeypatch.setattr(loop, "run", until_the_fifth)
    first = compared(folder / "out", *COMMAND)
    assert first.interrupted == "SIGINT received" and first.done == 4
    assert [row.seeds for row in first.rows] == [1, 1, 1], "the table is of the seeds that all methods have"
    assert not json.loads((first.folder / "comparison.json").read_text())["finished"]
    # A process that died in the middle of a study leaves one without a result.
    (first.folder / "asha-seed1").mkdir(exist_ok=True)
    (first.folder / "asha-seed1" / "events.jsonl").write_text("{")
    monkeypatch.setattr(loop, "run", lambda study, *rest: (runs.append(study.draft.name), original(study, *rest))[1])
    second = compared(folder / "out", *COMMAND)
    assert second.folder == first.folder and second.done == 9 and second.interrupted is None
    assert runs[:5] == ["random-seed0", "asha-seed0", "hyperband-seed0", "random-seed1", "asha-seed1"]
    assert runs[5:] == ["asha-seed1", "hyperband-seed1", "random-seed2", "asha-seed2", "hyperband-seed2"]
    whole = compared(folder / "other", *COMMAND)
    assert second.rows == whole.rows
    # Finished, the same command is a new comparison; by its name it is shown again, and may get more seeds.
    again = compared(folder / "out", *COMMAND)
    assert again.folder.name == "branin-compare-2"
    ran = len(runs)
    named = compared(folder / "out", *COMMAND, "study.name=branin-compare-1")
    assert named.rows == second.rows and len(runs) == ran
    more = compared(folder / "out", *COMMAND, "study.name=branin-compare-1", "seeds=4")
    assert more.done == 12 and len(runs) == ran + 3
    # Fewer seeds leave it as it is; more seeds go on where it was, without its name, too.
    fewer = compared(folder / "out", *COMMAND, "study.name=branin-compare-1", "seeds=1")
    assert fewer.total == 3 and len(runs) == ran + 3
    assert json.loads((fewer.folder / "comparison.json").read_text())["asked"] == [0, 1, 2, 3]
    five = compared(folder / "out", *COMMAND, "seeds=5")
    assert five.folder == first.folder and len(runs) == ran + 6


def test_a_study_that_fails_is_told_and_does_not_end_the_others(folder: Path) -> None:
    overrides = ["seeds=2", "executor=simulated", "task=custom", "task.trainable=mine.Costs",
                 "space={lr: {low: 0.01, high: 1.0}}", "task.max_resource=3", "budget.trials=3"]  # fmt: skip
    outcome = compared(folder, "methods=[random, random task.trainable=mine.CostsNothingSane]", *overrides)
    assert outcome.done == 4 and len(outcome.failed) == 2
    assert outcome.failed[0][1].startswith("cost: -1.0 for the step to resource 3")
    assert outcome.rows[1].median is None and outcome.rows[0].median is not None


@pytest.mark.parametrize("executor", ["inprocess", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_real_executors(folder: Path, executor: str, request: pytest.FixtureRequest) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    outcome = compared(folder, "methods=[random,asha]", "seeds=2", f"executor={executor}", "task=parabola",
                       "task.max_resource=3")  # fmt: skip
    assert outcome.done == 4 and all(row.spent >= 60 and row.median is not None for row in outcome.rows)


def test_two_processes_do_not_share_a_comparison(folder: Path) -> None:
    comparison = compare.parse([*COMMAND, f"study.root={folder / 'out'}"])
    with compare._folder(comparison) as mine, compare._folder(comparison) as other:
        assert mine != other
        named = compare.parse([*COMMAND, f"study.root={folder / 'out'}", f"study.name={mine.name}"])
        with pytest.raises(ConfigError, match="is running in another process"), compare._folder(named):
            pass


def test_what_a_person_sees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["compare", "methods=[random,asha]", "seeds=2", *COMMAND[2:]]
    assert __main__.main(typed) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "compare on branin: 2 methods x 2 seeds, 180 steps, 4 virtual workers -> outputs/branin-compare-1"
    assert out[1].startswith("[1/4] random, seed 0: loss ") and out[1].endswith("at step 9, 180 steps, 0:45 virtual")
    assert out[6].split()[:3] == ["method", "regret,", "median"] and out[7].startswith("random")
    assert out[-3].startswith("target     regret ") and out[-3].endswith("the median of random, at full resource (9)")
    assert out[-2] == "all of it  outputs/branin-compare-1 (table.md, incumbent.png)"
    assert out[-1] == "report     outputs/branin-compare-1/report.html"
    assert __main__.main([*typed, "view=none"]) == 0
    assert capsys.readouterr().out == ""
    assert __main__.main(["list"]) == 0
    assert "branin-compare-1  finished: random, asha compared" in capsys.readouterr().out


# What is refused, before anything is run.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "compare needs methods, methods=[random,hyperband,asha]"),
        (["methods=[]"], "methods=[]: must be a list of at least one name"),
        (["methods=random,asha"], "methods=random,asha: write methods=[random,asha]"),
        (
            ["methods=[random, asha scheduler.max_resource=9]"],
            "methods=asha scheduler.max_resource=9: its scheduler.max",
        ),
        (["methods=[random, random executor=inprocess]"], "methods=random executor=inprocess: its executor is in real"),
        (["methods=[random]", "budget.target=1"], "budget.target=1: compare lets every method use its whole budget"),
        (["methods=[random,random]"], "methods=[random,random]: random is there twice"),
        (["methods=[1,2]"], "methods=[1,2]: must be a list"),
        (["methods=[random"], "methods=[random: can't be parsed"),
        (["methods=[random,asah]"], "methods=asah: method=asah: "),
        (["methods=[asha scheduler.etta=4]"], "methods=asha scheduler.etta=4: scheduler.etta=4: unknown key"),
        (
            ["methods=[random, random fidelity=data_fraction]"],
            "methods=random fidelity=data_fraction: its fidelity.name is data_fraction, that of random is epochs",
        ),
        (
            ["methods=[random, random fidelity.steps_per_unit=5]", "fidelity=steps"],
            "methods=random fidelity.steps_per_unit=5: its fidelity.steps_per_unit is 5, that of random is 10",
        ),
        (["methods=[asha scheduler.eta=1]"], "methods=asha scheduler.eta=1: scheduler.eta=1: must be"),
        (["methods=[hyperband]", "budget.trials=5"], "methods=hyperband: budget.trials=5: Hyperband decides"),
        (["methods=[random]", "seeds=0"], "seeds=0: must be how many"),
        (["methods=[random]", "seeds=many"], "seeds=many: must be how many"),
        (["methods=[random]", "seeds=[1,1]"], "seeds=[1,1]: must be how many, seeds=20, or a list of different"),
        (["methods=[random]", "seed=3"], "seed=3: compare takes seeds=20"),
        (["methods=[random]", "method=asha"], "method=asha: compare takes methods=[random,asha]"),
        (["methods=[random, random task=parabola]"], "methods=random task=parabola: its task.name is parabola"),
        (["methods=[random, random task.mode=max]"], "methods=random task.mode=max: its task.mode is max"),
        (["methods=[random]", "executor.workers=0"], "executor.workers=0: must be a whole number >= 1"),
        (["methods=[random]", "task.cost=mine.nothing"], "task.cost=mine.nothing: mine has no"),
    ],
)
def test_what_can_not_be_compared(folder: Path, capsys, overrides: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    assert __main__.main(["compare", "task=branin", "executor=simulated", *overrides]) == 2
    assert capsys.readouterr().err.startswith(f"hpo_ray: {message}")
    assert not (folder / "outputs").exists()


def test_names_that_are_taken(folder: Path) -> None:
    (folder / "out" / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"study\.name=mine: .* is there already"):
        compared(folder / "out", *COMMAND, "study.name=mine")
    compared(folder / "out", "methods=[random]", "seeds=1", *COMMAND[2:], "study.name=other")
    with pytest.raises(ConfigError, match=r"study\.name=other: .* is another comparison, of random"):
        compared(folder / "out", *COMMAND, "study.name=other")


def test_the_nodes_of_a_cluster_are_looked_at_before_the_first_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each study would find its cluster connected already, and not look."""

    def refuse(self: InProcessExecutor, trainable: object, root: Path) -> None:
        assert root == folder / "outputs"
        raise ConfigError("node b: has torch 1.0")

    monkeypatch.setattr(InProcessExecutor, "check", refuse)
    with pytest.raises(ConfigError, match="node b"):
        run_all(parse(["methods=[random]", "seeds=1", "task=parabola", "executor=inprocess"], None, None), print)
    assert not (folder / "outputs").exists()
