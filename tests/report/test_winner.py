"""Why the winner won: places, margins, lineage, doubts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from written import added, copied, curve, ended, finished, plots, reported, started, study, tables, words

from hpo_ray.report.subject import Subject
from hpo_ray.report.winner import Rival, jitter, places, ranking, rival, section


def test_places_margin_and_table(tmp_path: Path) -> None:
    subject = study(
        tmp_path,
        started(max_resource=3),
        *(added(i, {"lr": 0.1 * i, "net": {"act": "relu"}}) for i in range(5)),
        *curve(0, [0.9, 0.8, 0.5]),
        *curve(1, [0.7, 0.6, 0.4], accuracy=0.25),
        *curve(2, [0.1]),
        *curve(3, [0.3]),
        *curve(4, [0.2]),
        ended(4, "failed", "ValueError: no"),
        finished(),
    )
    best = subject.result.best
    assert best is not None and best.number == 1
    assert places(subject, best) == [(1, 3, 4), (3, 1, 2)], "the failed one doesn't count"
    assert [trial.number for trial in ranking(subject)] == [1, 0, 2, 3]
    assert words(section(subject)) == [
        "Trial 1 won: loss 0.4 at step 3, the best of the 2 trials that got there, 0.1 ahead of trial 0 (0.5).",
        "On the way, among all trials that reported at the same step, it was 3rd of 4 at step 1, 1st of 2 at 3.",
        "The best value of all was another trial's: 0.1 at step 1 (trial 2). It did not win because the winner is "
        "chosen at the highest step that any trial reached.",
        "The margin is smaller than what neighbouring reports of the winner differ by (median 0.15 over its last "
        "steps): which of the two is better may be noise. Only 4 trials can be compared, each trained once: the order "
        "may be chance.",
    ]
    (table,) = tables(section(subject))
    assert list(table.head) == ["", "trial 1", "trial 0", "trial 2"]
    assert list(map(list, table.rows)) == [
        ["loss", "0.4", "0.5", "0.1"],
        ["step", "3", "3", "1"],
        ["lr", "0.1", "0", "0.2"],
        ["net.act", "relu", "relu", "relu"],
        ["accuracy", "0.25", "", ""],
    ]
    assert not plots(section(subject))


def test_rungs_of_a_real_study(hyperband: Subject) -> None:
    best = hyperband.result.best
    assert best is not None and (best.number, best.resource) == (4, 9)
    assert [(resource, of) for resource, _, of in places(hyperband, best)] == [(1, 17), (3, 11), (9, 5)]


def test_more_is_better(tmp_path: Path) -> None:
    values = enumerate([0.1, 0.9, 0.5, 0.2, 0.3])
    reports = [event for i, value in values for event in (added(i), reported(i, 1, value))]
    subject = study(tmp_path, started("max"), *reports, finished())
    assert words(section(subject)) == [
        "Trial 1 won: loss 0.9 at step 1, the best of the 5 trials that got there, 0.4 ahead of trial 2 (0.5).",
        "On the way, among all trials that reported at the same step, it was 1st of 5 at step 1.",
    ]


def test_same_value_and_not_finished(tmp_path: Path) -> None:
    subject = study(tmp_path, started(), *(e for i in range(5) for e in (added(i), reported(i, 1, 0.5))))
    assert words(section(subject))[0] == (
        "Trial 0 leads so far: loss 0.5 at step 1, the best of the 5 trials that got there. Trial 1 has the same "
        "value: the lower number goes first."
    )


def test_alone_at_the_top(tmp_path: Path) -> None:
    events = [started(), added(0), added(1), *curve(0, [0.4, 0.6]), *curve(1, [0.3]), finished()]
    subject = study(tmp_path, *events)
    best = subject.result.best
    assert best is not None and rival(subject, best) == Rival(1, 1, 0.4, 0.3, 2)
    assert words(section(subject)) == [
        "Trial 0 won: loss 0.6 at step 2. No other trial got to step 2, so it is first whatever its value. At step 1, "
        "the last at which there were others, it had 0.4, 0.1 behind trial 1 (0.3).",
        "On the way, among all trials that reported at the same step, it was 2nd of 2 at step 1.",
        "The best value of all was another trial's: 0.3 at step 1 (trial 1). It did not win because the winner is "
        "chosen at the highest step that any trial reached.",
        "Only 2 trials can be compared, each trained once: the order may be chance.",
    ]


def test_one_trial_that_was_better_before(tmp_path: Path) -> None:
    subject = study(tmp_path, started(), added(0), *curve(0, [0.4, 0.6]), finished())
    assert words(section(subject)) == [
        "Trial 0 won: loss 0.6 at step 2. No other trial has a value to compare it with.",
        "It has been better itself, 0.4 at step 1, and got worse from there; what counts is the last value.",
    ]


def test_how_much_neighbouring_reports_differ(tmp_path: Path) -> None:
    subject = study(tmp_path, started(), added(0), *curve(0, [9.0, 1.0, 2.0, 4.0, 4.0, 4.5, 5.0]))
    assert jitter(subject.trials[0]) == 0.5  # of 1, 2, 0, 0.5, 0.5
    assert jitter(replace(subject.trials[0], history=[(1, 1.0), (2, 2.0)])) is None


def test_lineage_of_weights(tmp_path: Path) -> None:
    subject = study(
        tmp_path,
        started(max_resource=6),
        *(added(i, {"lr": 0.1 * (i + 1)}, exploits=0) for i in range(2)),
        *curve(0, [0.9, 0.9]),
        *curve(1, [0.5, 0.4]),
        copied(0, 1, 2, {"lr": 0.3}),
        reported(0, 3, 0.2),
        reported(1, 3, 0.3),
        finished(),
    )
    assert words(section(subject))[2] == (
        "Its weights were trained under 2 configurations, the last of which the table shows. They come from trial 1 up "
        "to step 2, and are trial 0's own from there."
    )


def test_where_it_moved_its_hyperparameters(tmp_path: Path) -> None:
    moved = {"hyperparameter__decay": 0.25}
    moved |= {
        f"hyperparameter__weights.{key}": value
        for key, value in (("mean", 2.0), ("min", 1.0), ("max", 3.0), ("std", 0.5))
    }
    subject = study(
        tmp_path, started(), added(0, {"decay": 0.1, "weights": 1}), reported(0, 1, 0.5, **moved), finished()
    )
    assert "By gradient it moved decay from 0.1 to 0.25 and weights from 1 to values from 1 to 3 (mean 2)." in words(
        section(subject)
    )
    (table,) = tables(section(subject))
    assert list(map(list, table.rows))[2:] == [["decay", "0.25 (from 0.1)"], ["weights", "mean 2 (from 1)"]]


def test_test_metrics_stand_in_the_table_once(tmp_path: Path) -> None:
    subject = study(tmp_path, started(), added(0), reported(0, 1, 0.5, test_loss=0.6), finished())
    with_test = Subject(replace(subject.result, test_metrics={"loss": 0.6, "accuracy": 0.75}))
    assert words(section(with_test))[-1] == "On the test split, by which nothing was chosen: loss 0.6, accuracy 0.75."
    assert [list(row) for row in tables(section(with_test))[0].rows][2:] == [
        ["x", "0"],
        ["test_loss", "0.6"],
        ["test accuracy", "0.75"],
    ]
    without = Subject(replace(subject.result, test_error="no data"))
    assert words(section(without))[-1] == "Its test metrics could not be computed: no data"


def test_nothing_without_a_value(tmp_path: Path) -> None:
    assert section(study(tmp_path, started(), added(0))) is None


def test_of_several_metrics_none_is_the_winner(tmp_path: Path) -> None:
    first = replace(started(max_resource=1), metrics={"loss": "min", "size": "min"})
    values = [(0.1, 9.0), (0.2, 5.0), (0.3, 6.0)]
    reports = [event for i, (loss, size) in enumerate(values) for event in curve(i, [loss], size=size)]
    made = section(study(tmp_path, first, *map(added, range(3)), *reports, finished()))
    assert made is not None and made.title == "The best in one metric"
    assert words(made)[:2] == [
        "The study trades off loss and size: the Pareto front has 2 trials that no other beats in all. What follows is "
        "about loss alone.",
        "Trial 0 has the best loss 0.1 at step 1, the best of the 3 trials that got there, 0.1 ahead of trial 1 (0.2).",
    ]
