"""How much time a study that is stopped takes; what it does with it: tests/resume/test_faults_of_a_study.py."""

from __future__ import annotations

import pytest

from hpo_ray.executors import InProcessExecutor
from hpo_ray.executors.signals import Signals
from hpo_ray.view import View


@pytest.mark.parametrize(
    ("grace", "times"),
    [
        (None, (1.0, 1.8, 2.6)),
        ("3", (1.0, 1.8, 2.6)),  # what Ray gives a job
        ("1", (1.0, 1.8, 2.6)),  # never less: a terminal waits
        ("30", (10.0, 18.0, 26.0)),
        ("60", (20.0, 36.0, 52.0)),
        ("soon", (1.0, 1.8, 2.6)),
        ("", (1.0, 1.8, 2.6)),
        ("nan", (1.0, 1.8, 2.6)),
    ],
)
def test_a_job_that_is_stopped_uses_the_time_that_it_has(
    monkeypatch: pytest.MonkeyPatch, grace: str | None, times: tuple[float, ...]
) -> None:
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    if grace is not None:
        monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", grace)
    signals = Signals(InProcessExecutor(), View())
    assert (signals.STEP_S, signals.SAVE_S, signals.EXIT_S) == pytest.approx(times)
    assert signals.EXIT_S + Signals.FAREWELL_S < max(3.0, times[2] / 2.6 * 3), "before it is killed"
