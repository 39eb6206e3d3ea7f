"""What a person sees: plain lines, and the table in a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from hpo_ray.config import load
from hpo_ray.events import Decided, Reported, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.live import LiveView
from hpo_ray.results import StudyState, fold
from hpo_ray.study import Draft, draft
from hpo_ray.view import (
    PlainView,
    View,
    clean,
    clock,
    config_text,
    count,
    headline,
    make_view,
    resource_text,
    rung_table,
    trials_text,
    until,
)

START = StudyStarted("s", "hyperband", "parabola", "loss", "min", 0, 9, 0.0)
NOON = datetime(2026, 3, 4, 12, 0).timestamp()


@pytest.fixture(scope="module")
def hyperband() -> Draft:
    return draft(load(["method=hyperband", "task=parabola", "task.max_resource=9"]))


def added(number: int, bracket: int = 0) -> TrialAdded:
    return TrialAdded(str(number), number, {"x": 1.5 + number}, {"bracket": bracket, "rung": 0}, 0.0)


def reported(number: int, resource: int, loss: float) -> Reported:
    return Reported(str(number), resource, 1, {"loss": loss}, 0.0, 0.0)


def test_plain_lines(hyperband: Draft) -> None:
    out, state, wall = io.StringIO(), StudyState(), [0.0]
    view = PlainView(out, now=lambda: wall[0], date=lambda: NOON + wall[0])
    view.start(hyperband, Path("outputs/s"))
    steps = [
        ([START, added(0), reported(0, 1, 0.5)], 1.0),
        ([added(1), reported(1, 1, 0.7)], 2.0),  # no better: no line
        ([added(2), reported(2, 1, 0.25)], 3.0),
        ([reported(2, 2, 0.2)], 4.0),  # the same trial: no line
        ([], 61.0),
        ([], 62.0),
    ]
    for events, elapsed_s in steps:
        for event in events:
            state.apply(event)
        wall[0] = elapsed_s
        view.update(state, elapsed_s)
    assert out.getvalue().splitlines() == [
        "hyperband on parabola: 17 trials, 69 steps -> outputs/s",
        "0:01  best loss 0.5 at step 1 (trial 0): x=1.5",
        "0:03  best loss 0.25 at step 1 (trial 2): x=3.5",
        # 3 units since 2 s, the next late by all but a gap of 2/3 s: 65 * (61 - 2/3 - 2) / 3 - 2/3 = 1263 s.
        "1:01  3 running; 4 of 69 steps, 65 to go; about 21:00 left, until 12:22; best loss 0.2 at step 2 (trial 2)",
    ]


def failed(number: int, error: str = "ValueError: no") -> TrialEnded:
    return TrialEnded(str(number), "failed", "failed", f"Traceback\n{error}\noutput: trials/{number}/output.log", 0.0)


def test_failures_have_a_line_each_at_most_one_a_second_and_ten_in_all(hyperband: Draft) -> None:
    out, state, wall = io.StringIO(), StudyState(), [0.0]
    view = PlainView(out, now=lambda: wall[0])
    view.start(hyperband, Path("outputs/s"))
    state.apply(START)
    for number in range(40):  # one each 0.4 s
        state.apply(added(number))
        state.apply(failed(number))
        wall[0] = 0.4 * number
        view.update(state, wall[0])
    assert out.getvalue().splitlines()[1:] == [
        "0:00  trial 0 failed: ValueError: no",
        *(f"0:0{int(1.2 * i)}  trial {3 * i} failed ({3 * i + 1} so far): ValueError: no" for i in range(1, 9)),
        "0:10  trial 27 failed (28 so far): ValueError: no; further ones are only counted",
    ]


def lines_of(
    study: Draft, state: StudyState, width: int = 80, height: int = 24, left_s: float | None = None
) -> list[str]:
    """What the live view draws in a terminal of a size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    view = LiveView(console, date=lambda: NOON)
    view._draft, view._folder = study, Path("outputs/s")
    console.print(view._render(state, 10.0, left_s))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in lines) and len(lines) < height
    return [line.rstrip() for line in lines]


def some_way() -> StudyState:
    events = [START, *(added(n) for n in range(9)), added(9, bracket=1)]
    events += [reported(n, 1, n / 10) for n in range(9)]
    events += [Decided("0", "promote", "", {"bracket": 0, "rung": 1}, 0.0), reported(0, 3, 0.1)]
    events += [TrialEnded(str(n), "stopped", "", None, 0.0) for n in range(3, 9)]
    return fold(events)


@pytest.mark.parametrize(("width", "bar"), [(80, 75), (200, 195)])
def test_the_live_view(hyperband: Draft, width: int, bar: int) -> None:
    full = bar * 10 // 69
    drawn = lines_of(hyperband, some_way(), width, left_s=170.0)
    assert drawn[2].startswith("━" * full) and not drawn[2].startswith("━" * (full + 1)) and drawn[2].endswith(" 14%")
    assert len(drawn[2]) == width
    assert drawn[:2] + drawn[3:] == [
        "hyperband on parabola: 17 trials, 69 steps",
        "outputs/s",
        "0:10  4 running, 6 stopped",
        "10 of 69 steps, 59 to go; about 2:50 left, until 12:02",
        "best loss 0.1 at step 3 (trial 0)",
        "  x=1.5",
        "",
        "bracket  step 1    3    9",
        "0 (s=2)     9/9  1/3  0/1",
        "1 (s=1)          0/5  0/1",
        "2 (s=0)               0/3",
    ]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_what_is_too_long_ends_in_an_ellipsis(hyperband: Draft, width: int) -> None:
    config = {f"a_rather_long_name_{i}": i / 7 for i in range(12)}
    state = fold([START, TrialAdded("0", 0, config, {"bracket": 0}, 0.0), reported(0, 1, 0.5), added(1)])
    state.apply(failed(1, "OSError: disk " + "full " * 100))
    drawn = lines_of(hyperband, state, width)
    at = next(i for i, line in enumerate(drawn) if line.startswith("best loss"))
    text = "  " + config_text(config)
    assert drawn[at + 1] == text[: width - 1] + "…"
    error = "trial 1 failed: " + ("OSError: disk " + "full " * 100)[:157] + "..."
    assert drawn[at + 2] == (error if len(error) <= width else error[: width - 1].rstrip() + "…")


def test_many_brackets_are_cut_to_the_height() -> None:
    study = draft(load(["method=hyperband", "task=parabola", "task.max_resource=9", "budget.rounds=10"]))
    state = fold([START, *(added(n, n) for n in range(17)), *(reported(n, 9, 0.5) for n in range(17))])
    drawn = lines_of(study, state, height=16)
    # 17 of 30 have begun: the last that have are shown.
    assert drawn[7:] == [
        "",
        "bracket   step 1    3    9",
        "12 (s=2)     1/9  1/3  1/1",
        "13 (s=1)          1/5  1/1",
        "14 (s=0)               1/3",
        "15 (s=2)     1/9  1/3  1/1",
        "16 (s=1)          1/5  1/1",
        "… and 25 more brackets",
    ]
    assert "bracket" not in "".join(lines_of(study, state, height=11)), "no room for a table at all"
    assert lines_of(study, fold([START]), height=40)[-1].startswith("29 (s=0)"), "nothing is cut without need"


def test_many_rungs_are_cut_to_the_width() -> None:
    study = draft(load(["method=hyperband", "task=parabola", "task.max_resource=1024", "scheduler.eta=2"]))
    drawn = lines_of(study, fold([START]), 60, 30)
    assert drawn[6] == "bracket   … step 16    32    64   128   256   512  1024"
    assert lines_of(study, fold([START]), 200, 30)[6].split()[:4] == ["bracket", "step", "1", "2"]


def test_a_plan_that_is_only_expected_is_marked_in_the_table() -> None:
    asha = draft(load(["method=asha", "task=parabola", "task.max_resource=9"]))
    first, row = rung_table(fold([START, added(0), reported(0, 3, 0.5)]), asha.plan)
    assert first == ["bracket", "1", "3", "9"]
    assert [cell.partition("/~")[0] for cell in row] == ["0 (s=2)", "1", "1", "0"]


def test_time_alone_fills_the_bar() -> None:
    study = draft(load(["method=random", "task=parabola", "budget.time_s=40"]))
    drawn = lines_of(study, fold([START]), left_s=30.0)
    assert drawn[2].endswith(" 25%") and drawn[4] == "0 steps; about 0:30 left, until 12:00"


def test_no_control_character_reaches_the_terminal(hyperband: Draft) -> None:
    evil = "\x1b[31mred\x1b]0;title\x07\x08\x9b2J\x00[bold]\u202etxt\x1b"
    state = fold([START, TrialAdded("0", 0, {"x": evil, evil: 1}, {"bracket": 0}, 0.0), reported(0, 1, 0.5), added(1)])
    state.apply(failed(1, f"ValueError: {evil}"))
    shown = "red  [bold] txt"
    drawn = lines_of(hyperband, state)
    assert drawn[6] == f"  x={shown} {shown}=1" and drawn[7] == f"trial 1 failed: ValueError: {shown}"
    out = io.StringIO()
    plain = PlainView(out, now=lambda: 0.0)
    plain.start(hyperband, Path("outputs/\x1b[2Js"))
    plain.update(state, 0.0)
    assert out.getvalue().splitlines() == [
        "hyperband on parabola: 17 trials, 69 steps -> outputs/s",
        f"0:00  best loss 0.5 at step 1 (trial 0): x={shown} {shown}=1",
        f"0:00  trial 1 failed: ValueError: {shown}",
    ]
    assert clean("Grüße, 漢字 🙂 [link=x]") == "Grüße, 漢字 🙂 [link=x]"


def test_no_color_is_honoured(hyperband: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> str:
        console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="256")
        view = LiveView(console)
        view._draft, view._folder = hyperband, Path("outputs/s")
        console.print(view._render(some_way(), 10.0, None))
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in drawn()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3\d", drawn())


def test_what_is_told_of_trials_and_resource(hyperband: Draft) -> None:
    state = some_way()
    assert trials_text(state) == "4 running, 6 stopped" and trials_text(StudyState()) == "starting"
    assert resource_text(state, hyperband) == "10 of 69 steps, 59 to go"
    state.apply(Reported("0", 3, 2, {"loss": 0.1}, 0.0, 0.0, again=True))
    assert resource_text(state, hyperband) == "10 of 69 steps (and 2 again), 59 to go"
    assert rung_table(some_way(), hyperband.plan) == [
        ["bracket", "1", "3", "9"],
        ["0 (s=2)", "9/9", "1/3", "0/1"],
        ["1 (s=1)", "", "0/5", "0/1"],
        ["2 (s=0)", "", "", "0/3"],
    ]


def test_what_is_only_bounded_is_called_at_most() -> None:
    drafted = draft(load(["method=median", "task=parabola", "task.max_resource=9"]))
    assert headline(drafted) == "median on parabola: 20 trials, at most 180 steps"
    state = fold([START, added(0), reported(0, 1, 0.5)])
    assert resource_text(state, drafted) == "1 of at most 180 steps, at most 179 to go"


def test_a_plan_that_is_not_exact_says_about_until_it_is_passed() -> None:
    asha = draft(load(["method=asha", "task=parabola", "task.max_resource=9"]))
    total = asha.plan.total_resource
    assert total is not None
    state = fold([START, added(0), reported(0, 1, 0.5)])
    assert resource_text(state, asha) == f"1 of about {total} steps, about {total - 1} to go"
    state.trained = total + 1
    assert resource_text(state, asha) == f"{total + 1} of about {total} steps"


@pytest.mark.parametrize(
    ("left_s", "said"),
    [
        (None, ""),
        (7.4, "about 0:07 left, until 12:00"),
        (59.6, "about 1:00 left, until 12:00"),
        (64.0, "about 1:00 left, until 12:01"),
        (177.0, "about 3:00 left, until 12:02"),
        (3725.0, "about 1:02:00 left, until 13:02"),
        (43_200.0, "about 12:00:00 left, until Thu 00:00"),
        (700_000.0, "about 194:27:00 left, until 2026-03-12 14:26"),
    ],
)
def test_the_time_that_is_left(left_s: float | None, said: str) -> None:
    assert until(left_s, NOON) == said


def test_the_live_view_draws_at_most_four_times_a_second(hyperband: Draft) -> None:
    wall = [0.0]
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=80), now=lambda: wall[0])
    view.start(hyperband, Path("outputs/s"))
    drawn = 0
    render = view._render

    def counted(state: StudyState, elapsed_s: float, left_s: float | None):  # type: ignore[no-untyped-def]
        nonlocal drawn
        drawn += 1
        wall[0] += took_s
        return render(state, elapsed_s, left_s)

    view._render = counted  # type: ignore[method-assign]
    state, took_s = fold([START, added(0), reported(0, 1, 0.5)]), 0.0
    for step in range(1001):  # a result each
        wall[0] = step / 1000
        state.trained += 1
        view.update(state, 60.0 * step)  # the study's own clock may run faster
    assert drawn == 5  # at 0, 0.25, 0.5, 0.75 and 1 s
    took_s = 0.0625  # and one that takes longer comes the more seldom: twenty times that later
    for step in range(1024, 6144):
        wall[0] = step / 1024
        view.update(state, 0.0)
    view.stop()
    assert drawn == 5 + 4  # from 1.25 s on each 1.25 s


def test_which_view(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_view("none")) is View and type(make_view("plain")) is PlainView
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_view("auto")) is type(make_view("live")) is LiveView
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_view("auto")) is PlainView
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert type(make_view("auto")) is type(make_view("live")) is PlainView


def in_terminal(command: Sequence[str], folder: Path, width: int, height: int = 24) -> tuple[int, str]:
    """Runs a command in a pseudo-terminal; its exit code, and all that the terminal got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-m", "hpo_ray", *command],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
        env={**environment, "TERM": "xterm"},
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # Linux: the other side has closed
            break
        if not data:
            break
        seen += data
    os.close(master)
    return child.wait(), seen.decode()


def test_in_a_terminal_the_table_is_live_and_the_summary_stays(folder: Path) -> None:
    """A pseudo-terminal: the view is chosen by itself, and the last thing on the screen is the summary."""
    code, text = in_terminal(["task=parabola", "executor=inprocess", "task.max_resource=81"], folder, width=80)
    assert code == 0
    assert "81/81" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"
    live, _, summary = text.rpartition("81/81")
    assert "finished: all trials are done" in summary and "finished" not in live
    lines = re.split(r"\r?\n|\r", re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", live))
    assert max(map(len, lines)) <= 80


def test_words() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3599, 3600, 100_000)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:00:00",
        "27:46:40",
    ]
    assert count(1, "epoch") == "1 epoch" and count(2, "epoch") == "2 epochs"
    assert (
        config_text({"lr": 0.000123456, "net": {"units": 3, "act": "relu"}}) == "lr=0.0001235 net.units=3 net.act=relu"
    )
