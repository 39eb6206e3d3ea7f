"""The log: what is appended is read back, a torn line is cut, damage is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_ray.events import (
    SCHEMA_VERSION,
    CheckpointSaved,
    Decided,
    Event,
    EventLog,
    LogError,
    Reported,
    StudyEnded,
    StudyStarted,
    TrialAdded,
    TrialEnded,
    TrialRetried,
    from_line,
    read,
    repair,
    to_line,
)

START = StudyStarted("s", "hyperband", "parabola", "loss", "min", 0, 27, 1.5, {"ray": "2.60.0"})
EVENTS: list[Event] = [
    START,
    TrialAdded("00000", 0, {"lr": 0.1, "nested": {"a": [1, None]}}, {"bracket": 0}, 0.1),
    Reported("00000", 1, 1, {"loss": 0.5, "note": "é\n<b>"}, 0.01, 0.2),
    CheckpointSaved("00000", 1, "trials/0/checkpoint_000000", 0.3),
    Decided("00000", "pause", "waits", {"bracket": 0, "rung": 0}, 0.4),
    TrialRetried("00000", "ValueError: no", 0.5),
    TrialEnded("00000", "failed", "raised an error", "ValueError: no", 0.6),
    StudyEnded("finished", "all trials are done", 0.7),
]


def write(path: Path, events: list[Event]) -> Path:
    log = EventLog(path)
    for event in events:
        log.append(event)
    log.close()
    return path


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    assert read(write(tmp_path / "events.jsonl", EVENTS)) == EVENTS


def test_appending_goes_on_where_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", EVENTS[:3])
    write(path, EVENTS[3:])
    assert read(path) == EVENTS


def test_each_line_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for number, event in enumerate(EVENTS, 1):
        log.append(event)
        assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == number
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.append(START)


def test_lines_are_strict_json_and_keep_what_is_not_finite() -> None:
    event = Reported("00000", 1, 1, {"loss": math.nan, "a": math.inf, "b": -math.inf, "c": 1.0}, 0.0, 0.0)
    line = to_line(event)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = from_line(line)
    assert isinstance(back, Reported)
    assert math.isnan(back.metrics["loss"]) and back.metrics["a"] == math.inf and back.metrics["b"] == -math.inf


numbers = st.floats(allow_nan=False) | st.integers(-(10**9), 10**9)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    metrics=st.dictionaries(
        st.text(), numbers | st.booleans() | st.text().filter(lambda t: "nfinity" not in t and t != "NaN")
    ),
    resource=st.integers(1, 10**6),
    seconds=st.floats(0, 1e6),
)
def test_any_report_survives(metrics: dict[str, object], resource: int, seconds: float) -> None:
    event = Reported("00000", resource, resource, metrics, seconds, seconds)
    line = to_line(event)
    assert line.count("\n") == 1 and from_line(line) == event


def test_a_log_cut_at_any_byte_is_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", EVENTS)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        if whole == 0:
            with pytest.raises(LogError, match="no complete event"):
                read(path)
        else:
            assert read(path) == EVENTS[:whole]
        assert repair(path) == cut - max((end for end in ends if end <= cut), default=0)
        assert path.read_bytes() == data[: cut - (cut - max((e for e in ends if e <= cut), default=0))]
        assert repair(path) == 0
        if whole:
            write(path, EVENTS[whole:])
            assert path.read_bytes() == data, "after a repair the log goes on as if nothing had happened"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["not json"], "line 1"),
        ([to_line(START).strip(), "[1]"], "line 2.*not a JSON object"),
        ([to_line(START).strip(), '{"event": "dance"}'], "line 2.*kind"),
        ([to_line(START).strip(), '{"event": "study_ended", "state": "x"}'], "line 2.*lacks reason, time"),
        ([to_line(EVENTS[1]).strip()], "line 1.*only the first line starts a study"),
        ([to_line(START).strip()] * 2, "line 2.*only the first line starts a study"),
        ([to_line(START).strip(), ""], "line 2"),
    ],
)
def test_damage_names_file_line_and_reason(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LogError, match=rf"events\.jsonl, {message}"):
        read(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(to_line(START).encode() + b"\xff\xfe\n")
    with pytest.raises(LogError, match="line 2"):
        read(path)


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    newer = json.loads(to_line(START)) | {"schema_version": SCHEMA_VERSION + 1, "event": "study_begun"}
    path.write_text(json.dumps(newer) + "\n")
    with pytest.raises(LogError, match=f"newer hpo_ray .schema {SCHEMA_VERSION + 1}"):
        read(path)


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="No such file"):
        read(tmp_path / "events.jsonl")
