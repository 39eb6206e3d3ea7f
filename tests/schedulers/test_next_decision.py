"""At which resource a scheduler decides next: by the rungs of the papers, and against what whole studies decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from methods import SCHEDULERS, small
from omegaconf import OmegaConf

from hpo_ray.best import load_config
from hpo_ray.events import FILE_NAME, Reported, read
from hpo_ray.schedulers import (
    ASHACore,
    FIFOCore,
    HyperbandCore,
    MedianStoppingCore,
    PB2Core,
    PBTCore,
    PBTReplayCore,
    SuccessiveHalvingCore,
    hyperband_brackets,
)
from hpo_ray.schedulers.core import CONTINUE, Action, Clone
from hpo_ray.schedulers.fold import SchedulerFold
from hpo_ray.space import Float, Space
from hpo_ray.study import build, draft
from hpo_ray.testing import run_study

SPACE = Space({"lr": Float(0.01, 1.0)})


def climbs(core: Any, max_resource: int) -> list[int]:
    """Where a trial is asked about that always goes on."""
    fold = SchedulerFold(core)
    fold.add("0", {"lr": 0.1})
    asked: list[int] = []
    while not asked or asked[-1] < max_resource:
        asked.append(fold.next_decision("0"))
        before = fold.standing["0"].seen
        for resource in range(before + 1, asked[-1]):
            assert fold.report("0", resource, 1.0) is CONTINUE
        assert fold.report("0", asked[-1], 1.0).action is not Action.CONTINUE
        moves = fold.advance(True, 1)
        assert moves.promote == (("0",) if asked[-1] < max_resource else ())
        if moves.promote:
            clone = fold.start("0")
            if clone is not None:
                fold.cloned("0", clone, clone.config, asked[-1], None)
    return asked


def replay(folder: Path) -> PBTReplayCore:
    schedule = [[0, {"lr": 0.1}], [4, {"lr": 0.2}], [7, {"lr": 0.3}]]
    (folder / "result.json").write_text(json.dumps({"best": {"schedule": schedule}}))
    return PBTReplayCore(SPACE, 9, str(folder))


@pytest.mark.parametrize(
    ("core", "max_resource", "asked"),
    [
        (lambda: FIFOCore(9), 9, [9]),
        (lambda: SuccessiveHalvingCore(81), 81, [1, 3, 9, 27, 81]),
        (lambda: SuccessiveHalvingCore(100, min_resource=3), 100, [3, 11, 33, 100]),
        (lambda: HyperbandCore(81), 81, [1, 3, 9, 27, 81]),
        (lambda: HyperbandCore(1000), 1000, [1, 4, 12, 37, 111, 333, 1000]),
        (lambda: ASHACore(27), 27, [1, 3, 9, 27]),
        (lambda: ASHACore(16, eta=2, min_resource=2), 16, [2, 4, 8, 16]),
        (lambda: PBTCore(SPACE, 9, population=4, interval=3), 9, [3, 6, 9]),
        (lambda: PBTCore(SPACE, 10, population=4, interval=4), 10, [4, 8, 10]),
        (lambda: PBTCore(SPACE, 9, population=4, interval=2, synchronous=True), 9, [2, 4, 6, 8, 9]),
        (lambda: PB2Core(SPACE, 9, population=4, interval=4), 9, [4, 8, 9]),
    ],
)
def test_a_trial_that_goes_on_is_asked_about_at_each_rung(
    core: Callable[[], Any], max_resource: int, asked: list[int]
) -> None:
    bare = core()
    if isinstance(bare, HyperbandCore | SuccessiveHalvingCore):
        bare.eta = 10**9  # one place in each rung, and one trial: it always goes on
    if isinstance(bare, ASHACore):
        bare.eta = 1
    assert climbs(bare, max_resource) == asked


def test_a_replay_is_asked_about_where_its_schedule_changes(tmp_path: Path) -> None:
    assert climbs(replay(tmp_path), 9) == [4, 7, 9]


def test_each_bracket_of_hyperband_begins_at_its_own_rung() -> None:
    core = HyperbandCore(81)
    for number in range(143):
        core.add(str(number))
    starts = [bracket.rungs[0].r for bracket in hyperband_brackets(81) for _ in range(bracket.rungs[0].n)]
    assert [core.next_decision(str(number)) for number in range(143)] == starts
    assert sorted(set(starts)) == [1, 3, 9, 27, 81]


def test_each_bracket_of_asha_begins_at_its_own_rung() -> None:
    core = ASHACore(27, brackets=3, seed=1)
    for number in range(40):
        core.add(str(number))
    starts = [3 ** core.bracket_of(number) for number in range(40)]
    assert [core.next_decision(str(number)) for number in range(40)] == starts and set(starts) == {1, 3, 9}


def test_asha_by_stopping_asks_at_each_rung_on_the_way() -> None:
    fold = SchedulerFold(ASHACore(27, variant="stopping"))
    fold.add("0")
    asked = []
    for resource in (1, 3, 9):
        asked.append(fold.next_decision("0"))
        assert fold.report("0", resource, 1.0) is CONTINUE, "the first of a rung always goes on"
    assert [*asked, fold.next_decision("0")] == [1, 3, 9, 27]
    fold.report("0", 27, 1.0)
    assert fold.core.next_decision("0") == 0, "it is over"


def test_the_median_rule_asks_at_each_report_from_min_resource_on() -> None:
    fold = SchedulerFold(MedianStoppingCore(9, min_resource=4))
    fold.add("0")
    assert fold.next_decision("0") == 4
    for resource in range(1, 8):
        fold.report("0", resource, 1.0)
    assert fold.next_decision("0") == 4, "it is beyond: the next report may end it"


def test_a_trial_that_lost_while_it_was_retried_is_asked_about_at_once() -> None:
    core = SuccessiveHalvingCore(9)
    for number in range(3):
        core.add(str(number))
        core.report(str(number), 1, float(number))
    assert core.advance(True, 1).promote == ("0",)
    assert [core.next_decision(str(number)) for number in range(3)] == [3, 0, 0]


def test_one_that_trains_again_up_to_its_pause_is_asked_about_there() -> None:
    """It has failed while it was saved: what was decided is repeated, though its core has asked for more since."""
    fold = SchedulerFold(PBTCore(SPACE, 9, population=4, interval=3))
    for number in range(4):
        fold.add(str(number), {"lr": 0.1})
    assert fold.report("0", 4, 1.0).action is Action.PAUSE  # its reports step over 3
    assert fold.next_decision("0") == 4
    assert fold.report("0", 3, 1.0) is CONTINUE and fold.report("0", 4, 1.0).action is Action.PAUSE


def test_a_clone_is_asked_about_after_the_resource_that_it_goes_on_from() -> None:
    fold = SchedulerFold(PBTCore(SPACE, 9, population=4, interval=3))
    for number in range(4):
        fold.add(str(number), {"lr": 0.1})
    fold.report("0", 3, 1.0)
    fold.report("1", 3, 0.0)
    fold.advance(True, 2)
    fold.start("0")
    fold.cloned("0", Clone("1", {"lr": 0.2}, {"lr": 0.1}), {"lr": 0.2}, 7, 0.0)
    assert fold.next_decision("0") == 9


def test_a_core_that_does_not_say_is_asked_about_each_report() -> None:
    class Silent:
        """A core of somebody's who has not heard of this."""

        def add(self, trial_id: str, config: Any = None) -> None:
            """Nothing to note."""

    fold = SchedulerFold(Silent())  # type: ignore[arg-type]
    fold.add("0")
    assert fold.next_decision("0") == 0 and fold.next_decision("unknown") == 0


@pytest.mark.parametrize("method", [method for method in SCHEDULERS.values() if method != "pb2"])  # slow, and as pbt
def test_law_nothing_is_decided_before(folder: Path, method: str) -> None:
    """In whole studies each report below the next decision lets its trial go on."""
    overrides = [f"method={method}", "task=branin_currin", "task.max_resource=9", "executor=inprocess"]
    result = run_study([*overrides, *small(method), "executor.workers=3"], folder)
    scheduler: Any = build(draft(OmegaConf.create(load_config(result.path)))).scheduler
    before = at = 0
    for event in read(result.path / FILE_NAME):
        asked = scheduler.fold.next_decision(event.trial_id) if isinstance(event, Reported) else 0
        scheduler.fold.observe(event)
        if isinstance(event, Reported):
            decision = scheduler.fold.standing[event.trial_id].decision
            before, at = before + (event.resource < asked), at + (event.resource == asked)
            assert event.resource >= asked or decision is CONTINUE, event
            assert event.resource != asked or decision is not CONTINUE or method in ("median", "asha"), event
    assert at > 0 and (before > 0 or method == "median" or "interval=1" in str(small(method)))
