"""What a person sees: plain lines, and the table in a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hpo_ray.config import load
from hpo_ray.events import Decided, Reported, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.results import StudyState, fold
from hpo_ray.study import Draft, draft
from hpo_ray.view import LiveView, PlainView, View, clock, config_text, count, headline, make_view, progress, rung_table

START = StudyStarted("s", "hyperband", "parabola", "loss", "min", 0, 9, 0.0)


@pytest.fixture
def hyperband() -> Draft:
    return draft(load(["method=hyperband", "task=parabola", "task.max_resource=9"]))


def added(number: int, bracket: int = 0) -> TrialAdded:
    return TrialAdded(str(number), number, {"x": 1.5 + number}, {"bracket": bracket, "rung": 0}, 0.0)


def reported(number: int, resource: int, loss: float) -> Reported:
    return Reported(str(number), resource, 1, {"loss": loss}, 0.0, 0.0)


def test_plain_lines(hyperband: Draft) -> None:
    out, state, wall = io.StringIO(), StudyState(), [0.0]
    view = PlainView(out, now=lambda: wall[0])
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
        "1:01  3 running; 4 of 69 steps, 16:31 left; best loss 0.2 at step 2 (trial 2)",
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


def test_the_live_view_shows_the_last_failure(hyperband: Draft) -> None:
    state = fold([START, added(0), added(1), failed(0), failed(1, "OSError: disk " + "full " * 100)])
    view = LiveView()
    view._draft, view._folder = hyperband, Path("outputs/s")
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    console.print(view._render(state, 10.0))
    line = next(line for line in console.file.getvalue().splitlines() if "failed (2" in line)  # type: ignore[attr-defined]
    assert line.rstrip() == "trial 1 failed (2 so far): " + ("OSError: disk " + "full " * 100)[:157] + "..."


def test_progress_and_rungs(hyperband: Draft) -> None:
    events = [START, *(added(n) for n in range(9)), added(9, bracket=1)]
    events += [reported(n, 1, n / 10) for n in range(9)]
    events += [Decided("0", "promote", "", {"bracket": 0, "rung": 1}, 0.0), reported(0, 3, 0.1)]
    events += [TrialEnded(str(n), "stopped", "", None, 0.0) for n in range(3, 9)]
    state = fold(events)
    assert progress(state, hyperband, 30.0) == "0:30  4 running, 6 stopped; 10 of 69 steps, 2:57 left"
    assert rung_table(state, hyperband.plan) == [
        ["0 (s=2)", "9/9 at 1", "1/3 at 3", "0/1 at 9"],
        ["1 (s=1)", "0/5 at 3", "0/1 at 9"],
    ]


def test_what_is_only_bounded_is_called_at_most() -> None:
    drafted = draft(load(["method=median", "task=parabola", "task.max_resource=9"]))
    assert headline(drafted) == "median on parabola: 20 trials, at most 180 steps"
    state = fold([START, added(0), reported(0, 1, 0.5)])
    # And no time left: most of that may never be trained.
    assert progress(state, drafted, 30.0) == "0:30  1 running; 1 of at most 180 steps"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_table_fits_and_is_complete(hyperband: Draft, width: int) -> None:
    state = fold([START, added(0), reported(0, 1, 0.5)])
    view = LiveView()
    view._draft, view._folder = hyperband, Path("outputs/s")
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(view._render(state, 10.0))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    for part in (
        "hyperband on parabola: 17 trials, 69 steps",
        "best loss 0.5 at step 1 (trial 0)",
        "x=1.5",
        "1 running",
    ):
        assert part in flat
    assert "1/9 at 1" in flat
    assert any(line.startswith("0:10  1 running; 1 of") for line in text.splitlines()), "on a line of its own"


def test_the_live_view_draws_at_most_four_times_a_second(hyperband: Draft) -> None:
    wall = [0.0]
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=80), now=lambda: wall[0])
    view.start(hyperband, Path("outputs/s"))
    drawn = 0
    render = view._render

    def counted(state: StudyState, elapsed_s: float):  # type: ignore[no-untyped-def]
        nonlocal drawn
        drawn += 1
        return render(state, elapsed_s)

    view._render = counted  # type: ignore[method-assign]
    state = fold([START, added(0), reported(0, 1, 0.5)])
    for step in range(1001):
        wall[0] = step / 1000
        view.update(state, 60.0 * step)  # the study's own clock may run faster
    view.stop()
    assert drawn == 5  # at 0, 0.25, 0.5, 0.75 and 1 s


def test_which_view(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_view("none")) is View and type(make_view("plain")) is PlainView
    assert type(make_view("live")) is LiveView
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert type(make_view("auto")) is PlainView


def test_in_a_terminal_the_table_is_live_and_the_summary_stays(folder: Path) -> None:
    """A pseudo-terminal: the view is chosen by itself, and the last thing on the screen is the summary."""
    master, slave = pty.openpty()
    program = [sys.executable, "-m", "hpo_ray", "task=parabola", "executor=inprocess", "task.max_resource=81"]
    child = subprocess.Popen(
        program,
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
        env={**os.environ, "TERM": "xterm"},
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
    assert child.wait() == 0
    text = seen.decode()
    assert "rung 0" in text and "81/81 at 1" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"
    assert "finished: all trials are done" in text.split("rung 0")[-1]


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


def test_a_plan_that_is_not_exact_says_about_and_promises_no_time_once_it_is_passed() -> None:
    asha = draft(load(["method=asha", "task=parabola", "task.max_resource=9"]))
    total = asha.plan.total_resource
    assert total is not None
    state = fold([START, added(0), reported(0, 1, 0.5)])
    assert f"; 1 of about {total} steps, " in progress(state, asha, 10.0) and "left" in progress(state, asha, 10.0)
    state.trained = total + 1
    assert progress(state, asha, 10.0) == f"0:10  1 running; {total + 1} of about {total} steps"
