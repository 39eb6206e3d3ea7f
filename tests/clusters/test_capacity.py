"""How many trials may ask for room as the nodes of a cluster come and go, and which idle workers are kept."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from hpo_ray.clusters.base import Attach
from hpo_ray.clusters.nodes import Request
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.executors import RayExecutor
from hpo_ray.executors import ray as module
from hpo_ray.executors.internals import Controller
from hpo_ray.schedulers.halving import SuccessiveHalvingCore


class FakeRay:
    """A cluster whose nodes are a list of cores, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: list[float]) -> None:
        self.cores, self.now, self.asked = cores, 1000.0, 0
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def nodes(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [{"NodeManagerAddress": "a", "Alive": True, "Resources": {"CPU": c}} for c in self.cores]


ONE_CORE = Request([{"CPU": 1.0}])


def test_nodes_that_come_and_go_are_counted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, [2.0])
    executor = RayExecutor(cluster=Attach())
    assert executor.start(ONE_CORE) == 2
    fake.cores, asked = [2.0, 4.0], fake.asked
    fake.now += 0.5
    assert executor.capacity() == 2 and fake.asked == asked, "what is known is new enough"
    fake.now += 0.5
    assert executor.capacity() == 6
    fake.cores = [1.0]
    fake.now += 1.0
    assert executor.capacity() == 1


def test_trials_ask_for_more_room_than_there_is_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes an autoscaler add nodes; where there is more room already, it is used."""
    fake = FakeRay(monkeypatch, [])
    executor = RayExecutor(cluster=Attach(grow_to=4))
    assert executor.start(ONE_CORE) == 4, "not one fits yet"
    for cores, expected in (([1.0], 4), ([2.0, 2.0], 4), ([6.0], 6)):
        fake.cores = cores
        fake.now += 1.0
        assert executor.capacity() == expected


def test_without_growth_a_trial_that_never_fits_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, [1.0])
    with pytest.raises(ConfigError, match="a trial asks for 2 CPU, and the cluster will never have that: no node has"):
        RayExecutor(cluster=Attach()).start(Request([{"CPU": 2.0}]))


@pytest.mark.parametrize("grow_to", [None, 3])
def test_a_study_waits_for_room_and_not_for_ever(monkeypatch: pytest.MonkeyPatch, grow_to: int | None) -> None:
    fake = FakeRay(monkeypatch, [1.0])
    executor = RayExecutor(cluster=Attach(grow_to=grow_to, wait_s=60))
    executor.start(ONE_CORE)
    fake.now += 5.0
    executor.capacity()
    fake.cores = []
    fake.now += 60.0
    assert executor.capacity() == (grow_to or 1)
    fake.now += 0.5
    with pytest.raises(StudyError, match=r"no node has had room for a trial \(1 CPU\) for 60 s \(cluster\.wait_s\)"):
        executor.capacity()
    fake.cores = [1.0]
    fake.now += 1.0
    assert executor.capacity() == (grow_to or 1)


class Cache:
    """Ray's cache of idle actors, as far as it counts."""

    def __init__(self) -> None:
        self.most: Counter[str] = Counter()

    def increase_max(self, key: str, by: int) -> None:
        self.most[key] += by


def test_idle_workers_are_kept_as_long_as_a_trial_may_want_them() -> None:
    cache = Cache()
    controller: Any = SimpleNamespace(resources="one core", _pending_trials={1}, _kept=0, _actor_cache=cache)
    for number, paused, kept, pending in ((8, None, 8, 8), (5, None, 5, 5), (5, 3, 4, 5), (5, 0, 1, 5), (5, 9, 5, 5)):
        Controller.keep_actors(controller, number, paused)
        assert (cache.most["one core"], controller._max_pending_trials) == (kept, pending)


def test_halving_knows_how_many_can_still_move_up() -> None:
    core = SuccessiveHalvingCore(max_resource=9, eta=3)
    numbers = [str(number) for number in range(9)]
    for number in numbers:
        core.add(number)
        assert core.may_promote() == max(1, (int(number) + 1) // 3)
    for number in numbers:
        core.report(number, 1, float(number))
    assert core.advance(True, 9).promote == ("0", "1", "2") and core.may_promote() == 1
    for number in numbers[:3]:
        core.report(number, 3, float(number))
    assert core.advance(True, 9).promote == ("0",) and core.may_promote() == 0
