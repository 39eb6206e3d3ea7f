"""No study that can be read makes a section raise, and none of its texts is more than text."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand_made import Trial, at_once, study
from methods import small

from hpo_ray.report import front, importance, parallel, slices
from hpo_ray.report.parts import Plot, Section
from hpo_ray.report.several import several
from hpo_ray.report.subject import Subject
from hpo_ray.testing import run_study

MAKERS: list[Callable[[Subject], Section | None]] = [
    front.section,
    importance.section,
    parallel.section,
    slices.section,
]
SCRIPT = "<script>alert(1)</script>"


def values(count: int) -> list[float]:
    return [float((i * 7) % 11) for i in range(count)]


def mixed(i: int) -> dict[str, Any]:
    """A configuration with one of everything."""
    return {
        "value": i / 3,
        "nested": {"low": 10.0**-i, SCRIPT: [SCRIPT, "<b>", "&amp;", None][i % 4]},
        "any": [1, "1", True, None, 2.5, [1, 2]][i % 6],
        "huge": 10**20 * i,
        "tiny": 1e-300 * (i + 1),
        "bad": math.inf if i % 3 else 1.0,
        "fixed": 3,
        **({"only": i} if i % 2 else {}),
    }


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far importances spread is of no matter here."""
    monkeypatch.setattr("hpo_ray.report.importance.REPEATS", 1)


ODD: dict[str, tuple[list[Trial], dict[str, Any]]] = {
    "empty": ([], {}),
    "running": ([Trial({"x": 1}, {}, None), Trial({"x": 2}, {1: 0.5}, None)], {"state": None}),
    "failed": ([Trial({"x": i}, {1: 0.5}, "failed") for i in range(12)], {"state": "failed"}),
    "nan": (at_once([{"x": i} for i in range(12)], [math.nan, math.inf, -math.inf] * 4), {}),
    "text": (at_once([{"x": i} for i in range(12)], ["good"] * 12), {}),
    "one": (at_once([{"x": 1, "y": 2}], [0.5]), {}),
    "two": (at_once([{"x": 1, "y": 2}, {"x": 2, "y": 3}], [0.5, 0.6]), {}),
    "single": (at_once([{"x": i} for i in range(12)], values(12)), {}),
    "fixed": (at_once([{"x": 1, "y": "a"}] * 12, values(12)), {}),
    "bare": (at_once([{}] * 12, values(12)), {}),
    "constant": (at_once([{"x": i, "y": -i} for i in range(12)], [1.0] * 12), {}),
    "nearly": (at_once([{"x": i, "y": -i} for i in range(12)], [0.0] + [1.0] * 11), {}),
    "choices": (at_once([{"a": "pq"[i % 2], "b": "rst"[i % 3]} for i in range(24)], values(24)), {}),
    "extremes": (at_once([{"x": i, "y": -i} for i in range(12)], [10.0 ** (50 * i - 300) for i in range(12)]), {}),
    "mixed": (at_once([mixed(i) for i in range(30)], values(30)), {"metric": SCRIPT}),
    "negative": (at_once([{"x": -1.0 - i, "y": i} for i in range(12)], [-v for v in values(12)]), {"mode": "max"}),
    "metrics": (
        at_once([mixed(i) for i in range(12)], [{"loss": v, SCRIPT: -v} if v else {"loss": v} for v in values(12)]),
        {"metrics": {"loss": "min", SCRIPT: "max"}, "reference": {"loss": 9.0, SCRIPT: -9.0}},
    ),
    "bounds": (
        at_once([{"x": i, "y": -i} for i in range(12)], values(12)),
        {"constraints": {"never reported": {"low": 1.0}}},
    ),
    "rungs": ([Trial({"x": i, "y": -i}, {r: 1.0 / r for r in range(1, 1 + i % 4)}) for i in range(24)], {}),
}


def check(section: Section | None) -> None:
    """A section is of figures that JSON can tell, and no markup of a user's is in them."""
    if section is None:
        return
    assert section.parts and section.key and section.title
    for part in section.parts:
        if isinstance(part, Plot):
            text = json.dumps(json.loads(part.figure.to_json()))
            assert "<script" not in text and "<b>" not in text
            assert part.figure.data and part.caption


@pytest.mark.parametrize("name", ODD)
def test_no_study_makes_a_section_raise(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials, started = ODD[name]
    subject = study(tmp_path / name, trials, **started)
    with caplog.at_level(logging.INFO):
        for make in MAKERS:
            check(make(subject))
        for section in several([subject, subject]):
            check(section)
    assert not caplog.records


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = "{'plotly', 'optuna', 'sklearn', 'scipy', 'pandas', 'ray', 'torch'}"
    modules = "hpo_ray.report.sections, hpo_ray.report.several, hpo_ray.report.plots"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout == "[]\n"


def test_all_odd_studies_together(tmp_path: Path) -> None:
    subjects = [study(tmp_path / name, trials, **started) for name, (trials, started) in ODD.items()]
    sections = several(subjects)
    for section in sections:
        check(section)
    rows = [row for section in sections[1:] for row in section.parts[0].rows]  # type: ignore[union-attr]
    assert sorted(row[1] for row in rows) == sorted(ODD)


@pytest.mark.parametrize(
    "method", ["pbt", *(pytest.param(method, marks=pytest.mark.slow) for method in ("hyperband", "nsga2"))]
)
def test_studies_of_some_methods_have_their_sections(method: str, folder: Path) -> None:
    overrides = [f"method={method}", "task=branin_currin", "task.max_resource=4", "scheduler.max_resource=4"]
    result = run_study([*overrides, *small(method), "executor=inprocess"], folder)
    subject = Subject.of(result.path)
    made = [make(subject) for make in MAKERS]
    for section in made:
        check(section)
    assert [section is not None for section in made] == [True] * 4
    with pytest.MonkeyPatch.context() as patch:
        (result.path / "config.yaml").unlink()
        patch.chdir(folder)
        bare = Subject.of(result.path)
        assert bare.draft is None
        for make in MAKERS:
            check(make(bare))
