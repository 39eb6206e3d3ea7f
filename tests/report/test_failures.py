"""Failures: by kind, one by one, in full; and what was tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import added, ended, finished, listings, reported, started, study, tables, words

from hpo_ray.events import Event, TrialRetried
from hpo_ray.report.failures import error_type, section

OOM = "Traceback (most recent call last):\n  ...\ntorch.cuda.OutOfMemoryError: 3 GiB\noutput: trials/1/output.txt"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("Traceback\nValueError: x is 3", "ValueError"),
        (OOM, "torch.cuda.OutOfMemoryError"),
        ("AssertionError", "AssertionError"),
        ("loss is nan at 7", "loss is nan at …"),
        ("no report for 1.5e3 s", "no report for … s"),
        ("", "unknown error"),
    ],
)
def test_kinds(error: str, kind: str) -> None:
    assert error_type(error) == kind


def test_failed_trials(tmp_path: Path) -> None:
    subject = study(
        tmp_path,
        started(),
        *(added(i, {"lr": 0.1 * i, "net": {"units": 8}}) for i in range(4)),
        reported(0, 1, 0.5),
        reported(1, 3, 0.5),
        ended(0, "failed", "Traceback\nValueError: x is 3"),
        ended(1, "failed", OOM),
        ended(2, "failed", "Traceback\nValueError: x is 4"),
        finished(),
    )
    made = section(subject)
    assert words(made) == ["3 of 4 trials failed. They count nothing for the best one."]
    kinds, trials = tables(made)
    assert list(map(list, kinds.rows)) == [["ValueError", "2"], ["torch.cuda.OutOfMemoryError", "1"]]
    assert list(trials.head) == ["trial", "last step", "error", "configuration", "output"]
    assert list(map(list, trials.rows)) == [
        ["0", "1", "ValueError: x is 3", "lr=0 net.units=8", ""],
        ["1", "3", "torch.cuda.OutOfMemoryError: 3 GiB", "lr=0.1 net.units=8", "trials/1/output.txt"],
        ["2", "before the first", "ValueError: x is 4", "lr=0.2 net.units=8", ""],
    ]
    assert [(one.title, one.text) for one in listings(made)] == [
        ("trial 0, after step 1", "Traceback\nValueError: x is 3"),
        ("trial 1, after step 3", OOM.rpartition("\noutput")[0]),
        ("trial 2, before its first step", "Traceback\nValueError: x is 4"),
    ]


def test_many_are_counted(tmp_path: Path) -> None:
    events: list[Event] = [e for i in range(60) for e in (added(i), ended(i, "failed", f"{'x' * 30_000}\nE{i}: no"))]
    made = section(study(tmp_path, started(), *events))
    kinds, trials = tables(made)
    assert (len(kinds.rows), kinds.more) == (20, "and 40 further kinds of error")
    assert (len(trials.rows), trials.more) == (50, "and 10 more in trials.jsonl")
    assert len(listings(made)) == 10 and len(listings(made)[0].text) == 20_002
    assert words(made)[-1] == "The errors of all 60 are in trials.jsonl."


def test_tried_again(tmp_path: Path) -> None:
    again = [TrialRetried("0", "E: 1", 0.0), TrialRetried("0", "E: 2", 0.0), TrialRetried("1", "E: 3", 0.0)]
    events = [added(0), added(1), *again, reported(0, 1, 0.5), ended(0), ended(1, "failed", "E: 4"), finished()]
    made = section(study(tmp_path, started(), *events))
    assert words(made)[1] == (
        "2 trials failed and were tried again, 3 times in all; 1 of them went on to an end that is no failure."
    )
    assert list(map(list, tables(made)[2].rows)) == [["0", "2", "E: 2", "completed"], ["1", "1", "E: 3", "failed"]]


def test_nothing_to_show(tmp_path: Path) -> None:
    assert section(study(tmp_path, started(), added(0), reported(0, 1, 0.5), ended(0))) is None
