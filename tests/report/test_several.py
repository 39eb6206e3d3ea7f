"""Several studies: who is ranked with whom, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hand_made import Trial, study

from hpo_ray.report.parts import Plot, Section, Table, Words
from hpo_ray.report.several import groups, incumbents, several
from hpo_ray.report.subject import Subject
from hpo_ray.testing import run_study


def ended(folder: Path, name: str, values: Sequence[float], **started: Any) -> Subject:
    """A study whose trials report once, at full resource."""
    return study(folder / name, [Trial({"x": i}, {1: value}) for i, value in enumerate(values)], **started)


def ranking(section: Section) -> Table:
    assert isinstance(section.parts[0], Table)
    return section.parts[0]


def plots(section: Section) -> list[Plot]:
    return [part for part in section.parts if isinstance(part, Plot)]


def test_ranks_of_known_studies_ties_share(tmp_path: Path) -> None:
    subjects = [
        ended(tmp_path, "a", [3.0, 2.0], method="tpe", seed=1),
        ended(tmp_path, "b", [1.0, 2.0, 3.0]),
        ended(tmp_path, "c", [2.0], state="interrupted"),
        ended(tmp_path, "d", [4.0]),
        study(tmp_path / "e", [Trial({"x": 0}, {}, "failed")], state="failed"),
        study(tmp_path / "f", [Trial({"x": 0}, {}, None)], state=None),
    ]
    (section,) = several(subjects)
    assert section.title == "hand_made: loss (min) at step 1"
    table = ranking(section)
    assert table.head == [
        "rank",
        "study",
        "method",
        "seed",
        "state",
        "best loss at step 1",
        "steps to it",
        "time to it",
        "steps in all",
        "time in all",
    ]
    assert [list(row) for row in table.rows] == [
        ["1", "b", "random", "0", "finished", "1", "1", "0:01", "3", "0:03"],
        ["2=", "a", "tpe", "1", "finished", "2", "2", "0:02", "2", "0:02"],
        ["2=", "c", "random", "0", "interrupted: a signal", "2", "1", "0:01", "1", "0:01"],
        ["4", "d", "random", "0", "finished", "4", "1", "0:01", "1", "0:01"],
        ["-", "e", "random", "0", "failed: a signal", "no value", "-", "-", "0", "0:00"],
        ["-", "f", "random", "0", "not finished", "no value", "-", "-", "0", "0:00"],
    ]


def test_of_max_the_largest_is_first_and_is_shown_as_it_is(tmp_path: Path) -> None:
    (section,) = several([ended(tmp_path, "a", [1.0], mode="max"), ended(tmp_path, "b", [0.5, 3.0], mode="max")])
    assert [(row[0], row[1], row[5]) for row in ranking(section).rows] == [("1", "b", "3"), ("2", "a", "1")]
    by_name = {trace.name: list(trace.y) for trace in plots(section)[0].figure.data}
    assert by_name == {"random (a)": [1.0, 1.0], "random (b)": [0.5, 3.0, 3.0]}


def test_a_value_below_full_resource_is_told_and_not_ranked(tmp_path: Path) -> None:
    low = study(tmp_path / "low", [Trial({"x": 0}, {1: 0.1, 3: 0.05})], max_resource=9)
    full = study(tmp_path / "full", [Trial({"x": 0}, {1: 0.9, 9: 0.8})], max_resource=9)
    (section,) = several([low, full])
    assert [(row[0], row[1], row[5]) for row in ranking(section).rows] == [
        ("1", "full", "0.8"),
        ("-", "low", "none; 0.05 at step 3"),
    ]


def test_what_does_not_mean_the_same_is_ranked_apart_and_it_is_said(tmp_path: Path) -> None:
    subjects = [
        ended(tmp_path, "a", [1.0]),
        ended(tmp_path, "metric", [1.0], metric="accuracy"),
        ended(tmp_path, "mode", [1.0], mode="max"),
        ended(tmp_path, "task", [1.0], task="other"),
        ended(tmp_path, "resource", [1.0], max_resource=2),
        ended(tmp_path, "b", [2.0]),
    ]
    first, *rest = several(subjects)
    assert isinstance(first.parts[0], Words)
    assert first.parts[0].text == (
        "These 6 studies can't all be ranked together: values of other tasks, metrics, modes or full resources don't "
        "mean the same. They are ranked within 5 groups: hand_made: loss (min) at step 1: 2 studies; hand_made: "
        "accuracy (min) at step 1: 1 study; hand_made: loss (max) at step 1: 1 study; other: loss (min) at step 1: "
        "1 study; hand_made: loss (min) at step 2: 1 study."
    )
    assert [[row[1] for row in ranking(section).rows] for section in rest] == [
        ["a", "b"],
        ["metric"],
        ["mode"],
        ["task"],
        ["resource"],
    ]
    assert len({section.key for section in (first, *rest)}) == 6


def test_without_any_value_a_sentence_stands_for_the_figures(tmp_path: Path) -> None:
    (section,) = several([study(tmp_path / "a", []), study(tmp_path / "b", [], state=None)])
    assert len(ranking(section).rows) == 2 and not plots(section)
    assert section.parts[1] == Words("No study has a value at step 1: there is nothing to rank.")


def test_an_incumbent_goes_on_to_the_end_of_its_study(tmp_path: Path) -> None:
    (group,) = groups([ended(tmp_path, "a", [3.0, 4.0, 2.0, 5.0, 5.0])])
    over_resource, over_time = incumbents(group), incumbents(group, "time")
    assert over_resource is not None and over_time is not None
    assert list(over_resource.data[0].x) == [1.0, 3.0, 5.0] and list(over_resource.data[0].y) == [3.0, 2.0, 2.0]
    assert over_time.layout.xaxis.title.text == "seconds"


def test_seeds_of_one_method_are_a_median_and_a_band(folder: Path) -> None:
    common = ["task=branin", "executor=simulated", "task.max_resource=3", "budget.trials=4"]
    subjects = [
        Subject.of(run_study([*common, f"method={method}", f"seed={seed}"], folder).path)
        for method in ("random", "sobol")
        for seed in (0, 1, 2)
    ]
    (group,) = groups(subjects)
    assert {label: len(entries) for label, entries in group.methods.items()} == {"random": 3, "sobol": 3}
    (section,) = several(subjects)
    over_resource, over_time = plots(section)
    assert over_time.figure.layout.xaxis.title.text == "virtual seconds"
    lines = {trace.name: trace for trace in over_resource.figure.data if trace.showlegend is not False}
    assert set(lines) == {"random, 3 seeds", "sobol, 3 seeds"}
    finals = sorted(entry.trace.final for entry in group.methods["random"])
    assert lines["random, 3 seeds"].y[-1] == finals[1]
    bands = [trace for trace in over_resource.figure.data if trace.fill == "toself"]
    assert len(bands) == 2 and max(bands[0].y) >= finals[2] and min(bands[0].y) == finals[0]
    words, table = section.parts[-2:]
    assert isinstance(words, Words) and words.text.startswith("Over the 3 seeds that all methods share")
    assert isinstance(table, Table) and [row[0] for row in table.rows] == ["random", "sobol"]
    assert "virtual" in ranking(section).rows[0][7]


def test_studies_of_one_method_with_other_settings_are_lines_of_their_own(folder: Path) -> None:
    common = ["task=branin", "executor=simulated", "task.max_resource=4", "method=asha", "budget.trials=4"]
    subjects = [
        Subject.of(
            run_study([*common, f"scheduler.eta={eta}", f"seed={seed}", f"study.name=e{eta}-{seed}"], folder).path
        )
        for eta, seed in ((2, 0), (2, 1), (3, 0), (2, 1))
        if not (folder / f"e{eta}-{seed}").exists()
    ]
    (group,) = groups(subjects)
    assert {label: [e.subject.name for e in entries] for label, entries in group.methods.items()} == {
        "asha (e2-0, …)": ["e2-0", "e2-1"],
        "asha (e3-0)": ["e3-0"],
    }


@pytest.mark.parametrize("studies", [14, 16])
def test_no_more_lines_than_can_be_told_apart(tmp_path: Path, studies: int) -> None:
    subjects = [ended(tmp_path, f"s{i:02}", [float(i)]) for i in range(studies)]
    (section,) = several(subjects)
    traces = plots(section)[0].figure.data
    assert len({(trace.line.color, trace.line.dash) for trace in traces}) == len(traces) == 14
    assert ("the 14 best of 16" in plots(section)[0].caption) is (studies == 16)
    assert len(ranking(section).rows) == studies
