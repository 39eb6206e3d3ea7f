"""Population-based training: who copies whom by hand, that it never hangs, and that the log tells it all."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, CheckpointSaved, Decided, Reported, TrialAdded, read
from hpo_ray.results import StudyResult, load_study
from hpo_ray.schedulers import Budget, PB2Core, PBTCore, PBTReplayCore
from hpo_ray.schedulers.core import NO_MOVES, Action, Moves
from hpo_ray.schedulers.pb2 import Observation, choose, kernel_class, time_varying_kernel, upper_confidence
from hpo_ray.schedulers.population import read_schedule
from hpo_ray.space import Categorical, Float, Int, Space
from hpo_ray.testing import check_same_decisions, check_same_events, run_study

SPACE = Space({"lr": Float(0.01, 1.0), "units": Int(4, 8)})
LEARN = ["task=custom", "space={lr: {low: 0.01, high: 1.0}}", "task.max_resource=9"]
CORES = [PBTCore, PB2Core]


def a_core(count: int = 4, cls: Any = PBTCore, **settings: Any) -> Any:
    core = cls(SPACE, 9, **{"population": count, "interval": 3, **settings})
    for number in range(count):
        core.add(str(number), {"lr": (number + 1) / 10, "units": 4 + number})
    return core


def all_report(core: Any, resource: int, losses: list[float]) -> list[Action]:
    return [core.report(str(number), resource, loss).action for number, loss in enumerate(losses)]


# Who copies whom -------------------------------------------------------------------------------------------------


def test_the_last_quarter_copies_the_first() -> None:
    core = a_core(8, synchronous=True)
    assert all_report(core, 2, [0.0] * 8) == [Action.CONTINUE] * 8 and core.advance(True, 9) is NO_MOVES
    assert all_report(core, 3, [5, 1, 7, 2, 8, 3, 6, 4]) == [Action.PAUSE] * 8
    moves = core.advance(True, 9)
    # Best first: 1 3 5 7 0 6 2 4. Two copy, before anybody goes on; the others in the order of their numbers.
    assert moves.promote == ("2", "4", "0", "1", "3", "5", "6", "7") and moves.stop == ()
    assert set(moves.clones) == {"2", "4"} and {clone.source for clone in moves.clones.values()} <= {"1", "3"}
    for clone in moves.clones.values():
        assert clone.source_config == {"lr": (int(clone.source) + 1) / 10, "units": 4 + int(clone.source)}
        assert SPACE.check(clone.config) == clone.config
    assert moves.reasons is not None and moves.reasons["0"] == "rank 5 of 8 at 3, goes on"
    number = moves.clones["2"].source
    assert moves.reasons["2"] == f"rank 7 of 8 at 3, copies trial {number} (rank {'13'.index(number) + 1})"
    assert core.advance(True, 9) is NO_MOVES


def test_all_of_the_first_quarter_are_copied_about_as_often() -> None:
    sources = []
    for seed in range(200):
        core = a_core(8, synchronous=True, seed=seed)
        all_report(core, 3, list(range(8)))
        sources += [clone.source for clone in core.advance(True, 9).clones.values()]
    assert set(sources) == {"0", "1"} and sources.count("0") / len(sources) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("count", "quantile", "copies"), [(4, 0.25, 1), (5, 0.25, 2), (10, 0.1, 1), (10, 0.3, 3), (5, 0.5, 2), (9, 0.01, 1)]
)
def test_how_many_copy(count: int, quantile: float, copies: int) -> None:
    """ceil(n quantile), at most half."""
    core = a_core(count, quantile=quantile, synchronous=True)
    all_report(core, 3, [1.0] * count)  # ties go by number
    moves = core.advance(True, 9)
    assert list(moves.clones) == [str(number) for number in range(count - copies, count)]
    assert {int(clone.source) for clone in moves.clones.values()} <= set(range(copies))


def test_a_copy_has_the_score_of_the_other() -> None:
    core = a_core(4, synchronous=True)
    all_report(core, 3, [1, 2, 3, 4])
    clone = core.advance(True, 9).clones["3"]
    core.cloned("3", "0", clone.config, 3)
    assert core.tags("3") == {"parent": 0, "exploits": 1} and core.tags("0") == {"exploits": 0}
    assert core._members["3"].scores == [(3, 1)] and core._members["3"].config == clone.config


def test_asynchronously_who_has_trained_least_comes_first_and_is_compared_at_its_own_age() -> None:
    core = a_core(4)
    for resource in (3, 6):
        for number, loss in (("0", 9 - resource), ("1", 8 - resource)):
            assert core.report(number, resource, loss).action is Action.PAUSE
            assert core.advance(True, 1).promote == (number,)
    assert core.report("2", 3, 4.0).action is core.report("3", 3, 5.5).action is Action.PAUSE
    # At 3: 2 has 4, 1 has 5, 3 has 5.5, 0 has 6. At 6, where two of them are, 0 has 3 and would come before all.
    assert core.advance(True, 0) is NO_MOVES
    moves = core.advance(True, 1)
    assert moves.promote == ("2",) and moves.reasons == {"2": "rank 1 of 4 at 3, goes on"}
    assert core.advance(True, 1).reasons == {"3": "rank 3 of 4 at 3, goes on"}


def test_the_first_at_a_point_are_compared_where_half_of_all_have_been() -> None:
    core = a_core(8)
    reasons: dict[str, str] = {}
    for resource, losses in ((3, [8, 7, 6, 5, 4, 3, 2, 1]), (6, [0, 0, 0, 0, 0, 0, 0, 0])):
        for number, loss in enumerate(losses):
            core.report(str(number), resource, loss)
            reasons[f"{number} at {resource}"] = next(iter(core.advance(True, 8).reasons.values())).partition(",")[0]
    assert [reasons[f"{number} at 3"] for number in (0, 2, 3, 7)] == [
        "among the first at 3",
        "among the first at 3",
        "rank 1 of 4 at 3",
        "rank 1 of 8 at 3",
    ]
    # Asked at 6, when all have been at 3 only.
    assert [reasons[f"{number} at 6"] for number in (0, 2, 3)] == [
        "rank 8 of 8 at 3",
        "rank 6 of 8 at 3",
        "rank 4 of 4 at 6",
    ]


def test_new_trials_start_before_any_goes_on() -> None:
    core = PBTCore(SPACE, 9, 4)
    core.add("0", {})
    core.report("0", 3, 1.0)
    assert core.advance(False, 9) is NO_MOVES
    assert core.waits_for() == "the population waits for 3 more of its 4 trials"
    assert core.advance(True, 9).promote == ("0",) and core.waits_for() == ""


def test_a_report_may_step_over_the_interval() -> None:
    core = a_core(4)
    assert [core.report("0", resource, 1.0).action for resource in (2, 4)] == [Action.CONTINUE, Action.PAUSE]
    core.advance(True, 1)
    assert [core.report("0", resource, 1.0).action for resource in (5, 8)] == [Action.CONTINUE, Action.PAUSE]
    core.advance(True, 1)
    assert core.report("0", 11, 1.0).action is Action.STOP


def test_who_failed_or_ended_is_neither_waited_for_nor_copied() -> None:
    core = a_core(5, synchronous=True)
    for number in "123":
        core.report(number, 3, float(number))
    core.report("4", 3, math.nan)
    assert core.advance(True, 9) is NO_MOVES
    core.end("0", None)
    moves = core.advance(True, 9)
    assert sorted(moves.promote) == ["1", "2", "3"] and {i: c.source for i, c in moves.clones.items()} == {"3": "1"}
    for number in "12":
        core.end(number, 0.0)
    core.report("3", 6, 3.0)
    assert core.advance(True, 9).reasons == {"3": "rank 1 of 1 at 6, goes on"}
    assert core.report("3", 9, 3.0).action is Action.STOP and core.advance(True, 9) is NO_MOVES


def test_frozen_names_come_from_the_other_and_a_second_parent_may_add_to_it() -> None:
    for seed in range(20):
        core = a_core(
            8, synchronous=True, frozen=("units", "not there"), crossover=1.0, seed=seed, factors=(0.99, 1.01)
        )
        core.resample_probability = 0.0
        all_report(core, 3, list(range(8)))
        for clone in core.advance(True, 9).clones.values():
            assert clone.config["units"] == 4 + int(clone.source)
            other = 1 - int(clone.source)  # all that isn't frozen comes from the other one of the best two
            assert clone.config["lr"] == pytest.approx((other + 1) / 10, rel=0.02)


@pytest.mark.parametrize("cls", CORES)
def test_seeded(cls: Any) -> None:
    def configs(seed: int) -> list[Any]:
        core = a_core(8, cls, synchronous=True, seed=seed)
        all_report(core, 3, list(range(8)))
        return [(clone.source, clone.config) for clone in core.advance(True, 9).clones.values()]

    assert configs(1) == configs(1) != configs(2)


# It never hangs, and it is a fold ----------------------------------------------------------------------------------


class Cluster:
    """Drives a core as the adapter does, with workers of random speed, failures, leaps, early ends and retries."""

    def __init__(self, core: Any, workers: int, seed: int) -> None:
        self.core, self.workers, self.rng = core, workers, np.random.default_rng(seed)
        self.at: dict[str, int] = {}
        self.running: list[str] = []
        self.promoted: list[str] = []
        self.clones: dict[str, Any] = {}
        self.log: list[tuple[Any, ...]] = []
        self.ended: set[str] = set()

    def tell(self, what: str, *arguments: Any) -> Any:
        self.log.append((what, *arguments))
        return getattr(self.core, what)(*arguments)

    def end(self, trial_id: str, loss: float | None) -> None:
        self.tell("end", trial_id, loss)
        self.ended.add(trial_id)
        self.running.remove(trial_id)

    def run(self) -> None:
        for _ in range(2000):
            while len(self.running) < self.workers and len(self.at) < self.core.population:
                trial_id = str(len(self.at))
                self.at[trial_id] = 0
                self.tell("add", trial_id, SPACE.sample(self.rng))
                self.running.append(trial_id)
            finished = len(self.at) == self.core.population
            while (moves := self.core.advance(finished, self.workers - len(self.running))) is not NO_MOVES:
                self.promoted += moves.promote
                self.clones.update(moves.clones)
                if not self.core.synchronous:
                    self.start()
            self.start()
            if not self.running:
                break
            self.step(str(self.rng.choice(self.running)))
        assert self.ended == set(self.at) and len(self.at) == self.core.population

    def start(self) -> None:
        while self.promoted and len(self.running) < self.workers:
            trial_id = self.promoted.pop(0)
            clone = self.clones.pop(trial_id, None)
            if clone is not None and clone.source not in self.ended:
                self.at[trial_id] = self.core._members[clone.source].scores[-1][0]
                self.tell("cloned", trial_id, clone.source, clone.config, self.at[trial_id])
            self.running.append(trial_id)

    def step(self, trial_id: str) -> None:
        chance = self.rng.random()
        if chance < 0.03:
            return self.end(trial_id, None)
        if chance < 0.06:  # retried, from the beginning
            self.at[trial_id] = 0
            return None
        self.at[trial_id] += int(self.rng.integers(1, 5))
        loss = float(self.rng.random())
        action = self.tell("report", trial_id, self.at[trial_id], loss).action
        if action is Action.STOP or chance > 0.98:
            self.end(trial_id, loss)
        elif action is Action.PAUSE:
            self.running.remove(trial_id)
        return None


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_whatever_happens_all_end(workers: int, synchronous: bool) -> None:
    for seed in range(40):
        core = PBTCore(SPACE, 30, 8, 3, synchronous=synchronous, crossover=0.3, seed=seed)
        Cluster(core, workers, seed).run()
        assert not core._members


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("cls", CORES)
def test_a_log_fed_again_gives_the_same_next_decision(cls: Any, synchronous: bool) -> None:
    """Also when it doesn't say when it was decided that somebody goes on: the next report does."""
    for seed in range(3 if cls is PB2Core else 20):
        make: Callable[[], Any] = lambda seed=seed: cls(SPACE, 30, 8, 3, synchronous=synchronous, seed=seed)  # noqa: E731
        cluster = Cluster(make(), 3, seed)
        original, checked = cluster.step, itertools.count()

        def step(trial_id: str, make=make, cluster=cluster, original=original, checked=checked) -> None:
            if next(checked) % 7 == 0:
                again = make()
                for what, *arguments in cluster.log:
                    getattr(again, what)(*arguments)
                live, fed = cluster.core._members, again._members
                for trial_id_, member in live.items():
                    other = fed[trial_id_]
                    same = ("number", "config", "points", "exploits", "parent", "scores", "resource")
                    assert [getattr(member, key) for key in same] == [getattr(other, key) for key in same]
                    if other.waiting and not member.waiting:
                        other.waiting = False  # it goes on, and hasn't reported yet
                assert list(live) == list(fed)
            original(trial_id)

        cluster.step = step  # type: ignore[method-assign]
        cluster.run()


# Before the start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 3}, "scheduler.population=3: must be a whole number >= 4"),
        ({"population": 8.0}, "scheduler.population=8.0: must be a whole number >= 4"),
        ({"interval": 0}, "scheduler.interval=0: must be a whole number >= 1"),
        ({"interval": 9}, "scheduler.interval=9: must be below scheduler.max_resource=9"),
        ({"quantile": 0.0}, "scheduler.quantile=0.0: must be a number from above 0 to 0.5"),
        ({"quantile": 0.6}, "scheduler.quantile=0.6: must be a number from above 0 to 0.5"),
        ({"resample_probability": 2}, "scheduler.resample_probability=2: must be a number from 0 to 1"),
        ({"crossover": -0.1}, "scheduler.crossover=-0.1: must be a number from 0 to 1"),
        ({"factors": [1.2]}, "scheduler.factors=[1.2]: must be two positive numbers"),
        ({"synchronous": "yes"}, "scheduler.synchronous='yes': must be true or false"),
        ({"frozen": "units"}, "scheduler.frozen='units': must be a list of names"),
        ({"frozen": ["lr", "units"]}, "scheduler.frozen=[lr, units]: leaves nothing of space"),
        ({"max_resource": 0}, "scheduler.max_resource=0: must be a whole number >= 1"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PBTCore(SPACE, **{"max_resource": 9, **settings})
    assert str(caught.value).startswith(message) and caught.value.key == message.partition("=")[0]


def test_pb2_needs_a_number() -> None:
    with pytest.raises(ConfigError, match=r"^space \(units, act\): PB2 models numbers.*frozen=\[units\].*method=pbt"):
        PB2Core(Space({"units": Int(4, 8), "act": ["a", "b"]}), 9, frozen=["units"])


@pytest.mark.parametrize(("budget", "fix"), [(Budget(trials=9), "population=8"), (Budget(rounds=2), "population")])
def test_the_population_is_the_number_of_trials(budget: Budget, fix: str) -> None:
    with pytest.raises(ConfigError, match=rf"^budget\..*scheduler\.{fix}"):
        PBTCore(SPACE, 9).plan(budget)
    plan = PBTCore(SPACE, 9, synchronous=True).plan(Budget(resource=50))
    assert (plan.trials, plan.max_resource, plan.total_resource, plan.exact) == (8, 9, 50, True)
    assert PBTCore(SPACE, 9).plan(Budget(time_s=60)).trials == 8


# PB2 ---------------------------------------------------------------------------------------------------------------


def test_the_kernel_by_hand() -> None:
    a = np.array([[0.0, 0.0, 0.0], [2.0, 0.3, 0.4]])
    k = time_varying_kernel(a, a, variance=2.0, length_scale=0.5, epsilon=0.19)
    assert np.diag(k) == pytest.approx([2.0, 2.0])
    assert k[0, 1] == k[1, 0] == pytest.approx(2.0 * math.exp(-0.5) * 0.81)
    assert time_varying_kernel(a, a, epsilon=0.0)[0, 1] == pytest.approx(math.exp(-0.125))  # nothing fades


def test_the_kernels_gradient_is_that_of_the_kernel() -> None:
    kernel, rng = kernel_class()(1.3, 0.4, 0.2), np.random.default_rng(0)
    points = np.column_stack([rng.integers(0, 5, 6), rng.random((6, 2))]).astype(float)
    value, gradient = kernel(points, eval_gradient=True)
    for i in range(3):
        theta = kernel.theta.copy()
        theta[i] += 1e-6
        assert (kernel.clone_with_theta(theta)(points) - value) / 1e-6 == pytest.approx(gradient[..., i], abs=1e-5)


def test_the_bound_by_hand() -> None:
    one = np.ones(1)
    assert upper_confidence(one, one, 2) == pytest.approx(1 + math.sqrt(0.2))  # log(0.8) < 0
    assert upper_confidence(one, one, 25) == pytest.approx(1 + math.sqrt(0.2 + math.log(10)))


GAINS = [Observation(t, (x,), -((x - 0.7) ** 2)) for t in range(4) for x in (0.0, 0.25, 0.5, 0.75, 1.0)]


def test_the_bandit_finds_the_obvious_point_and_leaves_it_to_who_is_there() -> None:
    alone = choose(GAINS, [], 4.0, 1, np.random.default_rng(0))
    assert alone == pytest.approx((0.7,), abs=0.1)
    crowded = choose(GAINS, [(4.0, alone)] * 3, 4.0, 1, np.random.default_rng(0))
    assert abs(crowded[0] - alone[0]) > 0.01


def test_what_is_new_counts_more_than_what_is_old() -> None:
    xs = np.linspace(0, 1, 9).tolist()
    moved = [Observation(t, (x,), -((x - (0.1 if t < 20 else 0.9)) ** 2)) for t in (0, 1, 20, 21) for x in xs]
    assert choose(moved, [], 22.0, 1, np.random.default_rng(0))[0] > 0.75


@pytest.mark.parametrize("known", [[], [Observation(0, (0.5, 0.5), 1.0)]])
def test_without_observations_it_draws(known: list[Observation]) -> None:
    points = [choose(known, [], 1.0, 2, np.random.default_rng(seed)) for seed in range(50)]
    assert len(set(points)) == 50 and all(0 <= u <= 1 for point in points for u in point)


def test_equal_gains_are_no_trouble() -> None:
    same = [Observation(t, (0.5,), 0.0) for t in range(5)]
    assert 0 <= choose(same, [(5.0, (0.5,))], 5.0, 1, np.random.default_rng(0))[0] <= 1


def test_observations_are_gains_per_interval() -> None:
    core = a_core(4, PB2Core, synchronous=True)
    all_report(core, 3, [1.0, 2.0, 3.0, 4.0])
    assert core.observations == []  # nothing to compare with
    clone = core.advance(True, 9).clones["3"]
    core.cloned("3", "0", clone.config, 3, 1.0)
    all_report(core, 6, [0.5, 2.0, 2.75, 0.75])
    points = [core._point(core._members[str(i)].config) for i in range(4)]
    assert core.observations == [Observation(1.0, p, g) for p, g in zip(points, (0.5, 0.0, 0.25, 0.25), strict=True)]


def test_pb2_stays_in_the_space_and_treats_choices_as_pbt() -> None:
    space = Space(
        {
            "lr": Float(1e-5, 0.1, log=True),
            "units": Int(4, 64, log=True),
            "dropout": Float(0.0, 1.0, step=0.25),
            "opt": ["sgd", "adam"],
            "momentum": Float(0.0, 0.99, when={"opt": "sgd"}),
            "batch": Categorical((8, 16, 32), ordered=True),
        }
    )
    rng = np.random.default_rng(0)
    core = PB2Core(space, 25, 8, 3, synchronous=True, frozen=("units",))
    for number in range(8):
        core.add(str(number), space.sample(rng))
    configs = []
    for resource in range(3, 25, 3):
        for number in range(8):
            core.report(str(number), resource, float(rng.random()))
        for trial_id, clone in core.advance(True, 9).clones.items():
            assert space.check(clone.config) == clone.config
            assert clone.config["units"] == clone.source_config["units"]
            core.cloned(trial_id, clone.source, clone.config, resource)
            configs.append(clone.config)
    assert len(configs) == 16
    for name in ("opt", "batch", "dropout"):
        assert len({config[name] for config in configs}) > 1


def test_rays_pb2_scales_time_so_that_nothing_is_ever_out_of_date() -> None:
    """Its times lie in [0, 1] and its epsilon below 0.5: what is oldest still counts at least 0.5^0.5 = 0.71."""
    utils = pytest.importorskip("ray.tune.schedulers.pb2_utils")
    try:
        times = np.arange(100.0).reshape(-1, 1)
        scaled = utils.normalize(np.hstack([times, np.zeros((100, 1))]), np.hstack([times, np.ones((100, 1))]))
        theirs = utils.TV_SquaredExp(epsilon=0.5)(scaled[[0, 99]])[0, 1]
    except (AttributeError, TypeError) as error:
        pytest.skip(f"Ray has changed its scheduler: {error}")
    assert theirs == pytest.approx(0.5**0.5, abs=1e-6)
    ours = time_varying_kernel(np.array([[0.0, 0.0]]), np.array([[99.0, 0.0]]), epsilon=0.5)
    assert ours[0, 0] == pytest.approx(0.5**49.5)


# Whole studies -----------------------------------------------------------------------------------------------------


def learn(folder: Path, name: str = "Learns", *more: str, method: str = "pbt") -> StudyResult:
    overrides = [f"method={method}", *LEARN, f"task.trainable=mine.{name}", "executor=inprocess", *more]
    return run_study(overrides, folder)


def decided(result: StudyResult, action: str) -> list[Decided]:
    return [e for e in read(result.path / FILE_NAME) if isinstance(e, Decided) and e.action == action]


@pytest.mark.parametrize("synchronous", ["true", "false"])
@pytest.mark.parametrize("method", ["pbt", "pb2"])
def test_lineage_schedule_and_weights_by_hand(folder: Path, method: str, synchronous: str) -> None:
    """The loss is minus the sum of the rates that the weights were trained with: the schedule must give it."""
    result = learn(folder, "Learns", f"scheduler.synchronous={synchronous}", "seed=1", method=method)
    assert result.state.states["completed"] == 8 and len(decided(result, "exploit")) >= 3
    for trial in result.records:
        schedule = trial.schedule or [(0, trial.config)]
        ends = [*(at for at, _ in schedule[1:]), 9]
        weight = sum((end - at) * config["lr"] for (at, config), end in zip(schedule, ends, strict=True))
        assert trial.value == pytest.approx(-weight), trial
        assert schedule[0][0] == 0 and schedule[-1][1] == trial.config
        assert [at for at, _ in schedule] == sorted({at for at, _ in schedule})
        assert (trial.lineage is None) == (len(trial.schedule or []) == 1)
    if synchronous == "true":
        assert result.state.trained == 8 * 9
    assert (
        result.state.trained
        == sum(trial.trained for trial in result.records)
        == sum(e.trained for e in read(result.path / FILE_NAME) if isinstance(e, Reported))
    )


def test_the_log_tells_all_of_it(folder: Path) -> None:
    result = learn(folder, "Learns", "scheduler.synchronous=true", "seed=4")
    events = read(result.path / FILE_NAME)
    first = {e.trial_id: e.config for e in events if isinstance(e, TrialAdded)}
    exploit = decided(result, "exploit")[0]
    parent = f"{exploit.tags['parent']:05d}"
    last = next(
        e for e in reversed(events[: events.index(exploit)]) if isinstance(e, Reported) and e.trial_id == parent
    )
    assert (exploit.resource, exploit.metrics) == (last.resource, last.metrics) and exploit.tags["exploits"] == 1
    assert exploit.config != first[exploit.trial_id] and "copies trial" in exploit.reason
    assert str(exploit.checkpoint).startswith(f"trials/{int(exploit.trial_id)}/checkpoint_"), "a copy of its own"
    lines = [json.loads(line) for line in (result.path / "trials.jsonl").read_text().splitlines()]
    line = lines[int(exploit.trial_id)]
    assert line["lineage"][0] == [3, exploit.tags["parent"]] and line["schedule"][0] == [0, first[parent]]
    assert all((len(line["schedule"]) > 1) == ("lineage" in line) for line in lines)
    best = json.loads((result.path / "result.json").read_text())["best"]
    assert best["schedule"][-1][1] == best["config"]
    loaded = load_study(result.path)
    assert loaded.to_json() == result.to_json() and loaded.records == result.records


def test_an_abandoned_training_does_not_count_for_the_best(folder: Path) -> None:
    """The incumbents are always what some living weights have."""
    result = learn(folder, "Learns", "seed=3")
    assert result.best is not None and result.best.value == min(t.value for t in result.records if t.resource == 9)
    assert all(trial.position == trial.resource == 9 and not trial.copied for trial in result.records)


def test_replay_trains_one_model_by_the_schedule(folder: Path) -> None:
    found = learn(folder / "a", "Learns", "scheduler.synchronous=true", "seed=4")
    assert found.best is not None and found.best.schedule is not None
    replayed = learn(folder / "b", "Learns", f"scheduler.path={found.path}", method="pbt_replay")
    assert len(replayed.records) == 1 and replayed.best is not None and replayed.state.trained == 9
    assert replayed.best.value == found.best.value
    assert replayed.best.schedule == found.best.schedule and replayed.best.lineage is None
    replays = decided(replayed, "replay")
    assert [(e.resource, e.config) for e in replays] == [tuple(entry) for entry in found.best.schedule[1:]]
    again = learn(folder / "c", "Learns", f"scheduler.path={replayed.path}", method="pbt_replay")
    assert again.best is not None and again.best.value == found.best.value
    overrides = ["method=pbt_replay", *LEARN, "task.trainable=mine.Learns", f"scheduler.path={found.path}"]
    check_same_decisions(replayed, run_study([*overrides, "executor=simulated"], folder / "d"))


def test_replay_of_nothing_is_an_error_before_the_start(folder: Path) -> None:
    for path, message in (
        (None, "scheduler.path is not set"),
        ("nowhere", r"scheduler.path=nowhere: .*No such file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read_schedule(path, SPACE)
        assert caught.value.key == "scheduler.path"
    (folder / "result.json").write_text('{"best": {"schedule": [[0, {"other": 1}]]}}')
    with pytest.raises(ConfigError, match=r"of another space.*schedule\[0\]\.other"):
        PBTReplayCore(SPACE, 9, str(folder))
    (folder / "result.json").write_text(json.dumps({"best": {"config": SPACE.from_units([0.5] * len(SPACE))}}))
    assert read_schedule(str(folder), SPACE) == [(0, SPACE.from_units([0.5] * len(SPACE)))], "it kept its configuration"
    (folder / "result.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no result of a study"):
        read_schedule(str(folder), SPACE)
    (folder / "result.json").write_text('{"best": null}')
    with pytest.raises(ConfigError, match="found no best trial"):
        read_schedule(str(folder), SPACE)


@pytest.mark.parametrize("synchronous", ["true", "false"])
@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("retries", [0, 1])
def test_who_fails_is_not_waited_for(folder: Path, synchronous: str, workers: int, retries: int) -> None:
    more = [f"scheduler.synchronous={synchronous}", f"executor.workers={workers}", f"failure.max_retries={retries}"]
    result = learn(folder, "LearnsUntilItFails", *more)
    assert sum(result.state.states[state] for state in ("completed", "failed")) == 8
    assert 1 <= result.state.states["failed"] <= 4 and result.best is not None and result.best.resource == 9


@pytest.mark.parametrize("executor", ["inprocess", "simulated"])
@pytest.mark.parametrize("synchronous", ["true", "false"])
def test_reports_that_step_over_points_and_functions_that_save_seldom_and_end_early(
    folder: Path, synchronous: str, executor: str
) -> None:
    more = [f"scheduler.synchronous={synchronous}", "scheduler.time_attr=epoch", f"executor={executor}"]
    leaps = learn(folder / "leaps", "LearnsInLeaps", *more)
    assert {trial.resource for trial in leaps.records} == {10} and decided(leaps, "exploit")
    assert {e.resource for e in decided(leaps, "exploit")} <= {4, 6, 8}
    seldom = learn(folder / "seldom", "learns", *more)
    assert {trial.resource for trial in seldom.records} == {8} and seldom.state.states["completed"] == 8
    for exploit in decided(seldom, "exploit"):
        assert exploit.resource in (2, 4, 6)  # where there was something saved
    for trial in seldom.records:
        schedule = trial.schedule or [(0, trial.config)]
        ends = [*(at for at, _ in schedule[1:]), 8]
        weight = sum((end - at) * config["lr"] for (at, config), end in zip(schedule, ends, strict=True))
        assert trial.value == pytest.approx(-weight), trial


def test_more_workers_end_the_same_trials(folder: Path) -> None:
    runs = [learn(folder / str(n), "Learns", f"executor.workers={n}", "scheduler.synchronous=true") for n in (1, 3, 8)]
    assert all([t.config for t in run.records] == [t.config for t in runs[0].records] for run in runs)
    check_same_events(runs[0], learn(folder / "again", "Learns", "scheduler.synchronous=true"))


def test_a_trainable_that_has_no_checkpoints_is_refused_or_trained_again(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no save_checkpoint"):
        learn(folder / "a", "NoCheckpoint")
    result = learn(folder / "b", "NoCheckpoint", "scheduler.on_missing_checkpoint=restart")
    assert result.state.states["completed"] == 8 and not decided(result, "exploit")
    assert any("goes on as it is: the other has no checkpoint" in e.reason for e in decided(result, "promote"))


def test_exploiting_copies_weights_and_optimizer_and_applies_the_new_rate(folder: Path) -> None:
    """A member that has copied holds the other's weights and Adam's moments, under its own learning rate."""
    torch = pytest.importorskip("torch")
    overrides = ["method=pbt", "task=digits_mlp", "space.optimizer=[adamw]", "~space.momentum", "executor=inprocess"]
    small = ["scheduler.max_resource=2", "scheduler.interval=1", "scheduler.population=4", "seed=2"]
    space = ["space.units=16", "space.layers=1", "scheduler.synchronous=true", "scheduler.resample_probability=0"]
    result = run_study([*overrides, *small, *space, "store.keep_checkpoints=all"], folder)
    events = read(result.path / FILE_NAME)
    (exploit,) = [e for e in events if isinstance(e, Decided) and e.action == "exploit"]
    parent = f"{exploit.tags['parent']:05d}"
    saved = next(e for e in events if isinstance(e, CheckpointSaved) and e.trial_id == parent)
    theirs, ours = (
        torch.load(result.path / str(path) / "state.pt", weights_only=True) for path in (saved.path, exploit.checkpoint)
    )
    assert theirs["config"] == ours["config"] != exploit.config
    assert all(torch.equal(a, b) for a, b in zip(theirs["model"].values(), ours["model"].values(), strict=True))

    from hpo_ray.importing import load_trainable

    cls = load_trainable("hpo_ray.tasks.digits.DigitsMLP")
    member = cls(dict(exploit.config))
    member.load_checkpoint(str(result.path / str(exploit.checkpoint)))
    assert all(
        torch.equal(a, b) for a, b in zip(member.model.state_dict().values(), ours["model"].values(), strict=True)
    )
    state = member.optimizer.state_dict()
    assert state["param_groups"][0]["lr"] == exploit.config["lr"] != theirs["config"]["lr"]
    assert all(
        torch.equal(state["state"][i]["exp_avg"], theirs["optimizer"]["state"][i]["exp_avg"]) for i in state["state"]
    )


class Weights:
    """A trial of Ray's whose checkpoint is a number."""

    def __init__(self, number: int, checkpoint: int | None = 3) -> None:
        self.trial_id, self.config, self.status, self.is_saving = (
            str(number),
            {"lr": 0.1, "units": 4 + number},
            "",
            False,
        )
        self.checkpoint = checkpoint

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Weights], Callable[[], str | None]]:
    """A synchronous population of four that all wait at 3, the last of which is to copy the first."""
    from hpo_ray.schedulers import PBT, population_adapter

    def metrics(trial: Weights) -> dict[str, Any] | None:
        return None if trial.checkpoint is None else {"training_iteration": trial.checkpoint, "loss": 0.0}

    def copied(source: Weights, trial: Weights) -> Any:
        trial.checkpoint = source.checkpoint
        return None if source.checkpoint == 2 else "a copy"

    monkeypatch.setattr(population_adapter, "last_metrics", metrics)
    monkeypatch.setattr(population_adapter, "copy_checkpoint", copied)
    scheduler = PBT(SPACE, 9, population=4, synchronous=True, metric="loss", mode="min")
    trials = [Weights(number) for number in range(4)]

    class Controller:
        search_alg = None

        def is_finished(self) -> bool:
            return True

    controller: Any = Controller()
    controller.search_alg = controller
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    for number, trial in enumerate(trials):
        scheduler.on_trial_result(controller, trial, {"training_iteration": 3, "loss": float(number)})
        trial.status = "PAUSED"

    def choose() -> str | None:
        trial = scheduler.choose_trial_to_run(controller)
        if trial is not None:
            trial.status = "RUNNING"
        return None if trial is None else trial.trial_id

    return scheduler, trials, choose


def test_it_waits_until_what_it_copies_is_saved(four: Any) -> None:
    scheduler, trials, choose = four
    trials[0].is_saving = True
    assert [choose(), choose()] == ["1", "2"] and choose() is None
    trials[0].is_saving = False
    assert choose() == "3" and trials[3].config["units"] != 7 and scheduler.tags("3") == {"parent": 0, "exploits": 1}
    change = scheduler.change("3")
    assert (change.action, change.resource, change.config, change.checkpoint) == (
        "exploit",
        3,
        trials[3].config,
        "a copy",
    )
    assert scheduler.change("3") is None and choose() == "0"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda trial: setattr(trial, "status", "TERMINATED"), "the other is over"),
        (lambda trial: setattr(trial, "checkpoint", None), "the other has no checkpoint"),
        (lambda trial: setattr(trial, "checkpoint", 9), "the other has changed since"),
        (lambda trial: setattr(trial, "config", {}), "the other has changed since"),
        (lambda trial: setattr(trial, "checkpoint", 2), "the other's checkpoint is gone"),
    ],
)
def test_without_something_to_copy_it_goes_on_as_it_is(four: Any, spoil: Any, why: str) -> None:
    scheduler, trials, choose = four
    scheduler.promotions(True)  # decides
    before = dict(trials[3].config)
    scheduler.on_missing_checkpoint = "restart"
    spoil(trials[0])
    assert choose() == "3" and trials[3].config == before and scheduler.change("3") is None
    assert scheduler.reason("3") == f"rank 4 of 4 at 3, copies trial 0 (rank 1); goes on as it is: {why}"
    assert scheduler.tags("3") == {"exploits": 0}


def test_moves_are_none_by_default() -> None:
    assert Moves().clones == {}


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_at_each_point_a_quarter_copies_at_most_and_each_is_ranked_once(folder: Path, workers: int) -> None:
    """Who has copied keeps its old place at that point: else the next one would become the last, and copy, too."""
    overrides = ["method=pbt", "task=mixed10", "executor=simulated", f"executor.workers={workers}", "seed=1"]
    result = run_study(overrides, folder)
    ranked: Counter[tuple[str, int]] = Counter()
    copied: Counter[int] = Counter()
    for event in read(result.path / FILE_NAME):
        if isinstance(event, Decided) and (found := re.match(r"rank \d+ of \d+ at (\d+)", event.reason)):
            ranked[event.trial_id, int(found[1])] += 1
            copied[int(found[1])] += event.action == "exploit"
    assert max(ranked.values()) == 1
    # A quarter is 2; one more where some that were ranked before had ended, or were not there yet.
    assert 0 < max(copied.values()) <= 3 and 6 <= sum(copied.values()) <= 8 * 2 + 3
    assert abs(result.state.trained - 216) <= 3 * 8, "one interval of each is lost or saved at most"


def test_asynchronously_who_was_replaced_since_is_not_copied_for_what_it_had_been() -> None:
    """0 is the first at 3, and among the last at 6; 3 gets to 3 after that: what was good of 0 is gone."""
    core = a_core(4)
    reasons: dict[str, str] = {}

    def at(resource: int, number: int, loss: float) -> Any:
        core.report(str(number), resource, loss)
        moves = core.advance(True, 1)
        reasons.update(moves.reasons or {})
        return moves.clones.get(str(number))

    assert at(3, 0, 0.0) is None and at(3, 1, 0.1) is not None  # not carried out: it goes on as it is
    assert at(3, 2, 0.05) is None and at(6, 1, 1.0) is None
    clone = at(6, 0, 9.0)
    assert clone is not None and clone.source == "1" and reasons["0"] == "rank 2 of 2 at 6, copies trial 1 (rank 1)"
    core.cloned("0", "1", clone.config, 6)
    assert at(3, 3, 5.0) is None
    assert reasons["3"] == "rank 4 of 4 at 3, but the first have been replaced since; goes on"
