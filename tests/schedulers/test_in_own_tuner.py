"""The schedulers taken out of a study, in a plain `ray.tune.Tuner`; and what Ray's own Hyperband does instead."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
from ray import tune
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from hpo_ray.errors import StudyError
from hpo_ray.schedulers import ASHA, PBT, ASHACore, Hyperband, SuccessiveHalving, hyperband_brackets
from hpo_ray.schedulers.core import Action
from hpo_ray.searchers import RandomSearcher
from hpo_ray.space import Float, Space

# Trials end at 1: 9-3 = 6; at 3: 3-1 and 5-1 = 6; at 9: 1+1+3 = 5.
HYPERBAND_9 = {1: 6, 3: 6, 9: 5}
HALVING_9 = {1: 6, 3: 2, 9: 1}
SPACE = Space({"x": Float(0.0, 1.0)})


class Slope(tune.Trainable):
    """Its loss is `x` minus what it learnt, which a checkpoint keeps; it says which units it trained."""

    def setup(self, config: dict[str, Any]) -> None:
        self.x, self.learnt = config["x"], 0

    def step(self) -> dict[str, Any]:
        self.learnt += 1
        if self.learnt != self.training_iteration + 1:
            raise RuntimeError(f"{self.learnt} units learnt, {self.training_iteration} counted")
        return {"loss": self.x - self.learnt, "gain": self.learnt - self.x}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps(self.learnt))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.learnt = json.loads(Path(checkpoint_dir, "state.json").read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True


class Remembers(tune.Trainable):
    """Its weights are the `x` of each step so far."""

    def setup(self, config: dict[str, Any]) -> None:
        self.used: list[float] = []

    def step(self) -> dict[str, Any]:
        self.used.append(self.config["x"])
        return {"loss": -sum(self.used), "used": json.dumps(self.used)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps(self.used))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.used = json.loads(Path(checkpoint_dir, "state.json").read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.used = []
        return True


class Halves(Searcher):
    """A searcher of somebody else's, which leaves the limit to Ray's `ConcurrencyLimiter`."""

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"x": 0.5}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass


@pytest.fixture(scope="module")
def cluster():
    """The cluster of this process if there is one; else one with two logical cores."""
    with pytest.MonkeyPatch.context() as patch, pickled_by_value():
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        if ray.is_initialized():
            yield
            return
        patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        folder = tempfile.mkdtemp(prefix="hr", dir="/tmp")  # the paths of Ray's sockets must be short
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def pickled_by_value():
    """Sends this module's classes to the workers whole: they can't import a test."""
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)
    try:
        yield
    finally:
        ray.cloudpickle.unregister_pickle_by_value(here)


def fit(
    tmp_path: Path,
    scheduler: Any,
    *,
    param_space: Any = None,
    metric: str = "loss",
    mode: str = "min",
    trainable: type = Slope,
    **config: Any,
) -> Any:
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(scheduler=scheduler, metric=metric, mode=mode, **config),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="study", verbose=0),
    ).fit()


def resources(results: Any) -> dict[int, int]:
    assert not results.errors
    return dict(sorted(Counter(result.metrics["training_iteration"] for result in results).items()))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
class TestInRay:
    @pytest.mark.parametrize(
        ("scheduler", "trials", "planned", "metric", "mode"),
        [(Hyperband, 17, HYPERBAND_9, "loss", "min"), (SuccessiveHalving, 9, HALVING_9, "gain", "max")],
    )
    def test_trials_end_at_the_planned_resources(self, tmp_path, scheduler, trials, planned, metric, mode):
        xs = [round(math.cos(number), 6) for number in range(trials)]
        results = fit(
            tmp_path,
            scheduler(max_resource=9),
            param_space={"x": tune.grid_search(xs)},
            metric=metric,
            mode=mode,
            reuse_actors=True,
        )
        assert resources(results) == planned
        # All learn alike, so of the first bracket those with the smallest x go on.
        reached = {result.config["x"]: result.metrics["training_iteration"] for result in results}
        assert [reached[x] for x in sorted(xs[:9])] == [9, 3, 3, 1, 1, 1, 1, 1, 1]

    def test_with_a_searcher_of_ours_and_fewer_at_a_time_than_a_rung_has(self, tmp_path):
        searcher = RandomSearcher(SPACE, seed=3)
        results = fit(
            tmp_path,
            Hyperband(max_resource=9),
            search_alg=searcher,
            num_samples=17,
            max_concurrent_trials=2,
            reuse_actors=True,
        )
        assert resources(results) == HYPERBAND_9
        drawn = [searcher.core.sample(number)["x"] for number in range(17)]
        reached = {result.config["x"]: result.metrics["training_iteration"] for result in results}
        assert [reached[x] for x in sorted(drawn[:9])] == [9, 3, 3, 1, 1, 1, 1, 1, 1]
        assert [reached[x] for x in sorted(drawn[9:14])] == [9, 3, 3, 3, 3]
        assert [reached[x] for x in drawn[14:]] == [9, 9, 9]

    @pytest.mark.parametrize("limit", [None, pytest.param(2, marks=pytest.mark.slow)])
    def test_asha_moves_up_at_least_its_best_third_and_ends(self, tmp_path, limit):
        searcher = RandomSearcher(SPACE, seed=3)
        results = fit(
            tmp_path,
            ASHA(max_resource=9),
            search_alg=searcher,
            num_samples=12,
            max_concurrent_trials=limit,
            reuse_actors=True,
        )
        ends = resources(results)
        assert set(ends) == {1, 3, 9} and sum(ends.values()) == 12
        assert ends[3] + ends[9] >= 4 and ends[9] >= 1
        # All learn alike: whoever was among the best third when all had reported is not left at the first rung.
        reached = {result.config["x"]: result.metrics["training_iteration"] for result in results}
        assert all(reached[x] > 1 for x in sorted(reached)[:4]) and reached[min(reached)] == 9

    def test_asha_that_stops_needs_no_checkpoints(self, tmp_path):
        xs = [round(math.cos(number), 6) for number in range(9)]
        results = fit(
            tmp_path,
            ASHA(max_resource=9, variant="stopping"),
            param_space={"x": tune.grid_search(xs)},
            reuse_actors=True,
        )
        reached = {result.config["x"]: result.metrics["training_iteration"] for result in results}
        assert reached[min(xs)] == 9 and set(reached.values()) <= {1, 3, 9} and list(reached.values()).count(1) >= 3

    @pytest.mark.timeout(120)
    @pytest.mark.parametrize("synchronous", [pytest.param(True, marks=pytest.mark.slow), False])
    def test_a_population_copies_weights_and_changes_configurations(self, tmp_path, synchronous):
        xs = [0.1, 0.2, 0.4, 0.8]
        results = fit(
            tmp_path,
            PBT(SPACE, max_resource=9, population=4, synchronous=synchronous, resample_probability=0.0),
            param_space={"x": tune.grid_search(xs), "constant": "kept"},
            trainable=Remembers,
            reuse_actors=True,
        )
        assert resources(results) == {9: 4}
        used = [json.loads(result.metrics["used"]) for result in results]
        for result, trained_with in zip(results, used, strict=True):
            assert len(trained_with) == 9 and result.metrics["loss"] == -sum(trained_with)
            assert result.metrics["config"]["x"] == trained_with[-1] and result.config["constant"] == "kept"
            # What it went on with is 0.8 or 1.2 times what the one that it copied had, at an interval point.
            for step, (before, after) in enumerate(itertools.pairwise(trained_with), 1):
                factor = after / before
                assert after == before or after == 1.0 or (step % 3 == 0 and round(factor, 6) in (0.8, 1.2))
        if synchronous:  # otherwise it depends on how fast Ray starts each: test_population.py has that by itself
            assert any(len(set(trained_with)) > 1 for trained_with in used)

    @pytest.mark.timeout(60)
    def test_asha_behind_a_limit_that_counts_paused_trials_is_an_error_and_no_endless_wait(self, tmp_path):
        with pytest.raises(StudyError, match=r"2 paused trials wait for others .* max_concurrent_trials counts"):
            fit(tmp_path, ASHA(max_resource=9), search_alg=Halves(), num_samples=9, max_concurrent_trials=2)

    @pytest.mark.timeout(60)
    def test_a_limit_that_counts_paused_trials_is_an_error_and_no_endless_wait(self, tmp_path):
        # 2 of the 9 trials of the first rung are paused, and Ray's limiter gives no third.
        with pytest.raises(StudyError, match="max_concurrent_trials") as caught:
            fit(tmp_path, Hyperband(max_resource=9), search_alg=Halves(), num_samples=9, max_concurrent_trials=2)
        assert "rung 0 of bracket 0 (s=2) waits for 7 more of its 9 trials" in str(caught.value)


# What Ray's own does ---------------------------------------------------------------------------------------------


def brackets_of_ray(max_resource: int, eta: int) -> dict[int, list[tuple[int, int]]]:
    """(n, r) of each rung of the brackets that Ray's scheduler makes, by its own bookkeeping, without training."""
    try:
        scheduler = HyperBandScheduler(metric="loss", mode="min", max_t=max_resource, reduction_factor=eta)
        table = {}
        for s in range(scheduler._s_max_1):
            if scheduler._get_r0(s) == 0:
                continue  # Ray: "Bracket too small"
            bracket = scheduler._create_bracket(s)
            while not bracket.filled():
                bracket.add_trial(object())
            table[s] = [(len(bracket.current_trials()), bracket._cumul_r)]
            for _ in range(s):
                for loss, trial in enumerate(bracket.current_trials()):
                    bracket.update_trial_stats(trial, {"loss": loss, "training_iteration": bracket._cumul_r})
                _, bad = bracket.successive_halving("loss", -1.0)
                for trial in bad:
                    bracket.cleanup_trial(trial)
                table[s].append((len(bracket.current_trials()), bracket._cumul_r))
    except (AttributeError, TypeError) as error:
        pytest.skip(f"Ray has changed its scheduler: {error}")
    return table


def ours(max_resource: int, eta: int) -> dict[int, list[tuple[int, int]]]:
    return {b.s: [(rung.n, rung.r) for rung in b.rungs] for b in hyperband_brackets(max_resource, eta)}


def test_rays_hyperband_rounds_up_where_algorithm_1_rounds_down():
    theirs = brackets_of_ray(81, 3)
    assert {s: [n for n, _ in rungs] for s, rungs in theirs.items()} == {
        4: [81, 27, 9, 3, 1],
        3: [34, 12, 4, 2],
        2: [15, 5, 2],
        1: [8, 3],
        0: [5],
    }
    assert {s: [n for n, _ in rungs] for s, rungs in ours(81, 3).items()} == {
        4: [81, 27, 9, 3, 1],
        3: [34, 11, 3, 1],
        2: [15, 5, 1],
        1: [8, 2],
        0: [5],
    }
    assert {s: [r for _, r in rungs] for s, rungs in theirs.items()} == {
        s: [r for _, r in rungs] for s, rungs in ours(81, 3).items()
    }


@pytest.mark.parametrize(("max_resource", "eta"), [(729, 3), (49, 7)])
def test_rays_hyperband_drops_its_most_exploratory_bracket(max_resource, eta):
    theirs, mine = brackets_of_ray(max_resource, eta), ours(max_resource, eta)
    assert set(mine) - set(theirs) == {max(mine)}


@pytest.mark.parametrize(
    ("losses", "theirs", "mine"),
    [
        ([1.0] * 9, 9, 2),  # ties: Ray stops none
        ([0.0, *[math.nan] * 8], 9, 1),  # nor a loss that is not finite
        ([float(-number) for number in range(27)], 27, 27),  # each is the best so far: neither does
    ],
)
def test_rays_asha_stops_neither_ties_nor_losses_that_are_not_finite(losses, theirs, mine):
    rays, core = ASHAScheduler(metric="loss", mode="min", max_t=9, reduction_factor=3), ASHACore(9, variant="stopping")
    try:
        bracket = rays._brackets[0]
        actions = [bracket.on_result(OneTrial(str(n)), 1, -loss) for n, loss in enumerate(losses)]
    except (AttributeError, TypeError) as error:
        pytest.skip(f"Ray has changed its scheduler: {error}")
    assert actions.count(TrialScheduler.CONTINUE) == theirs
    ours = []
    for number, loss in enumerate(losses):
        core.add(str(number))
        ours.append(core.report(str(number), 1, loss).action)
    assert ours.count(Action.CONTINUE) == mine


class OneTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
