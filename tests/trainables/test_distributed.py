"""One trial in several processes: the numbers of one in a single process, whatever happens to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import nn

from hpo_ray.config import load
from hpo_ray.errors import ConfigError
from hpo_ray.study import build, draft
from hpo_ray.trainables import TorchTrainable, TrialContext
from hpo_ray.trainables.context import get_context, use_context
from hpo_ray.trainables.distributed import Group, meeting_place
from hpo_ray.trainables.peers import _is_loss

CONFIG = {"lr": 0.05, "batch_size": 8, "momentum": 0.9}
# A unit is at most 5 steps of sums over at most 8 numbers near 1, in another order: each differs by a few 2^-52, and
# 12 units of a training that does not diverge add up to far less than this.
CLOSE = {"rel": 1e-10, "abs": 1e-12}


class Points(TorchTrainable):
    """Three classes of points in the plane, in float64, without dropout. 37 rows: no batch size divides them."""

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        layers = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3))
        return layers.double()

    def build_optimizer(self, model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
        if config.get("optimizer") == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=config["lr"])
        return torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=config["momentum"])

    def build_lr_scheduler(self, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
        if config.get("plateau"):  # no loss can fall by 1e9: each unit but the first halves the learning rate
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
            )
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def build_data(self, config: dict[str, Any]) -> dict[str, Any]:
        target = torch.arange(60) % 3
        angle = target * 2.1 + 0.5 * torch.randn(60)
        x = torch.stack([angle.cos(), angle.sin()], dim=1).double()
        return {"train": (x[:37], target[:37]), "validation": (x[37:50], target[37:50])}

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target)


class Drawing(Points):
    """Its evaluation draws from the generator that shuffles, which with ddp the first process alone does."""

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        return {**super().evaluate(split), "draw": torch.rand(1, generator=self.generator).item()}


class Nested(Points):
    """A container without a forward, and a batch norm where that is asked for."""

    def build_model(self, config: dict[str, Any]) -> nn.Module:
        return _Nested(config.get("norm", False)).double()


class _Nested(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 3)])
        self.scale = nn.Parameter(torch.ones(5))
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layers[0](x))
        return self.layers[1](self.norm(hidden * self.scale))


class Dropping(Points):
    def build_model(self, config: dict[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()


class OwnEpoch(Points):
    def train_epoch(self) -> dict[str, float]:
        return super().train_epoch()


class OwnShare(Points):
    """Trains on every n-th row, and says what it sees."""

    distributed = True

    def train_epoch(self) -> dict[str, float]:
        x, y = self.data["train"]
        rows = torch.arange(self.rank, 36, self.world_size)
        self.optimizer.zero_grad()
        self.loss(self.model(x[rows]), y[rows]).backward()
        self.optimizer.step()
        return {"rank": self.rank, "world_size": self.world_size}


@pytest.fixture(scope="module")
def ranks() -> Any:
    started = Ranks(3)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """As the processes have, which the last digits depend on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def context(workers: int, strategy: str = "ddp", **more: Any) -> TrialContext:
    return TrialContext(number=1, study_seed=3, workers=workers, strategy=strategy, **more)


# What the processes run.


def train(
    cls: type[TorchTrainable],
    config: dict[str, Any],
    units: int,
    save: str | None = None,
    donor: str | None = None,
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], list[float]]:
    """The metrics of each unit, the whole weights and learning rate at the end."""
    trial = cls(config)
    try:
        if donor is not None:
            trial.load_checkpoint(donor)
        results = [trial.step() for _ in range(units)]
        weights, _ = trial._whole_state()
        if save is not None:
            trial.save_checkpoint(save)
        weights = {name: value.clone() for name, value in weights.items()}
        return results, weights, [group["lr"] for group in trial.optimizer.param_groups]
    finally:
        trial.stop()


def two_trials_one_after_another(cls: type[TorchTrainable], config: dict[str, Any], meeting: str) -> Any:
    """As a reused actor has them, each with a place to meet of its own: the second must not depend on the first."""
    trial = cls({**config, "lr": 0.3})
    trial.step()
    with use_context(replace(get_context(), meeting=meeting)):
        trial.reset_config(config)
        results = [trial.step() for _ in range(2)]
        trial.stop()
    return results, torch.distributed.is_initialized()


def by_hand(ranks: Ranks, workers: int, *arguments: Any, **how: Any) -> Any:
    """What the first process returns; without a group if there is only one."""
    if workers == 1:
        with use_context(context(1, **how)):
            return train(*arguments)
    return ranks.call(train, context(workers, **how), *arguments)[0]


def check_same(one: Any, other: Any) -> None:
    """Equal metrics and weights, to what rounding may do."""
    assert len(one[0]) == len(other[0])
    for left, right in zip(one[0], other[0], strict=True):
        assert left == pytest.approx(right, **CLOSE)
    assert one[1].keys() == other[1].keys()
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=1e-10, atol=1e-12)
    assert one[2] == other[2]


# The law.


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (Points, CONFIG),
        (Points, {**CONFIG, "optimizer": "adamw"}),
        (Points, {**CONFIG, "batch_size": 12, "plateau": True}),  # the last batch has one row: two have nothing
        (Drawing, CONFIG),
        (Nested, CONFIG),
    ],
)
def test_law_as_many_processes_as_you_like(ranks: Ranks, cls: type[TorchTrainable], config: dict[str, Any]) -> None:
    alone = by_hand(ranks, 1, cls, config, 3)
    assert alone[0][0]["train_loss"] > alone[0][2]["train_loss"]
    for workers in (2, 3):
        for strategy in ("ddp", "fsdp"):
            if cls is Drawing and strategy == "fsdp":
                continue  # every process draws, as the one does
            check_same(by_hand(ranks, workers, cls, config, 3, strategy=strategy), alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("fidelity", ["steps", "data_fraction"])
def test_law_with_other_units(ranks: Ranks, fidelity: str, strategy: str) -> None:
    how = {"fidelity": fidelity, "steps_per_unit": 3, "max_resource": 4}
    alone = by_hand(ranks, 1, Points, CONFIG, 4, **how)
    check_same(by_hand(ranks, 2, Points, CONFIG, 4, strategy=strategy, **how), alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_goes_on_in_any_number_of_processes(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    config = {**CONFIG, "optimizer": "adamw"}
    alone = by_hand(ranks, 1, Points, config, 4)
    first = by_hand(ranks, 2, Points, config, 2, str(tmp_path), strategy=strategy)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {type(t) for t in state["model"].values()} == {torch.Tensor}
    assert [t["exp_avg"].shape for t in state["optimizer"]["state"].values()] == [(7, 2), (7,), (3, 7), (3,)]
    for workers in (1, 2, 3):
        rest = by_hand(ranks, workers, Points, config, 2, None, str(tmp_path), strategy=strategy)
        check_same((first[0] + rest[0], *rest[1:]), alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_donor_of_another_configuration(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    """As PBT exploits: the donor's weights and momenta, the trial's own learning rate at the donor's place."""
    by_hand(ranks, 2, Points, CONFIG, 2, str(tmp_path), strategy=strategy)
    mine = {**CONFIG, "lr": 0.2, "momentum": 0.5}
    alone = by_hand(ranks, 1, Points, mine, 2, None, str(tmp_path))
    assert alone[2] == [pytest.approx(0.2 * 0.9**4, rel=1e-12)]
    check_same(by_hand(ranks, 2, Points, mine, 2, None, str(tmp_path), strategy=strategy), alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_trial_after_another_in_the_same_processes(ranks: Ranks, strategy: str) -> None:
    alone = by_hand(ranks, 1, Points, CONFIG, 2)
    store, second = meeting_place("127.0.0.1")
    results = ranks.call(two_trials_one_after_another, context(2, strategy), Points, CONFIG, second)
    del store
    for left, right in zip(results[0][0], alone[0], strict=True):
        assert left == pytest.approx(right, **CLOSE)
    assert [left_over for _, left_over in results] == [False, False]


# What differs, and what is refused.


def test_who_reports(ranks: Ranks) -> None:
    ddp = ranks.call(train, context(2), Points, CONFIG, 1)
    assert set(ddp[0][0][0]) == {"train_loss", "examples", "loss", "accuracy"}
    assert set(ddp[1][0][0]) == {"train_loss", "examples"}
    assert ddp[1][0][0] == {name: ddp[0][0][0][name] for name in ddp[1][0][0]}, "to the bit"
    fsdp = ranks.call(train, context(2, "fsdp"), Points, CONFIG, 1)
    assert fsdp[0][0] == fsdp[1][0]


def test_dropout_repeats_from_a_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    """The other process's states are not in the checkpoint: they are those of the unit."""
    whole = by_hand(ranks, 2, Dropping, CONFIG, 3)
    first = by_hand(ranks, 2, Dropping, CONFIG, 1, str(tmp_path))
    rest = by_hand(ranks, 2, Dropping, CONFIG, 2, None, str(tmp_path))
    assert first[0] + rest[0] == whole[0]
    assert by_hand(ranks, 1, Dropping, CONFIG, 3)[0] != whole[0]


def test_another_rank_and_unit_draw_other_numbers() -> None:
    seeds = {Group(rank, 3).unit_seed(7, unit) for rank in (1, 2) for unit in (1, 2, 3)}
    assert len(seeds) == 6


def test_an_epoch_of_its_own_takes_its_own_share(ranks: Ranks) -> None:
    alone = by_hand(ranks, 1, OwnShare, CONFIG, 2)
    both = ranks.call(train, context(2), OwnShare, CONFIG, 2)
    assert [unit["rank"] for unit in both[1][0]] == [1.0, 1.0]
    torch.testing.assert_close(both[0][1]["0.weight"], alone[1]["0.weight"], rtol=1e-10, atol=1e-12)
    assert torch.equal(both[0][1]["0.weight"], both[1][1]["0.weight"])


def test_batch_norm_needs_gpus(ranks: Ranks) -> None:
    with pytest.raises(RuntimeError, match=r"resources.workers=2: the model has BatchNorm1d, whose statistics"):
        ranks.call(train, context(2), Nested, {**CONFIG, "norm": True}, 1)
    assert by_hand(ranks, 1, Nested, {**CONFIG, "norm": True}, 1)[0][0]["examples"] == 37


def test_shares_of_a_batch() -> None:
    batch = torch.arange(4) + 10
    assert [Group(rank, 3).share(batch) for rank in range(3)][1][0].tolist() == [12]
    assert [Group(rank, 3).share(batch)[1] for rank in range(3)] == [2, 1, 1]
    rows, own = Group(2, 3).share(batch[:2])
    assert (rows.tolist(), own) == ([10], 0)
    assert Group().share(batch) == (batch, 4)


def test_one_process_makes_no_group() -> None:
    with use_context(context(1)):
        trial = Points(CONFIG)
    assert (trial.rank, trial.world_size, trial._peers) == (0, 1, None)
    assert not torch.distributed.is_initialized()


TYPED = ["task=custom", "space={lr: [0.1, 0.2], batch_size: 8, momentum: 0.9}", "executor.num_cpus=4"]


@pytest.mark.parametrize(
    ("typed", "key", "message"),
    [
        (
            ["task.trainable=test_distributed.OwnEpoch", "resources.gpu=0"],
            "resources.workers",
            r"=2: task.trainable=.*OwnEpoch has a train_epoch of its own.*distributed = True; otherwise use "
            r"resources.workers=1$",
        ),
        (
            ["task.trainable=mine.train"],
            "resources.workers",
            r"=2: task.trainable=mine.train trains in one process.* use resources.workers=1 resources.gpu=2 \(one",
        ),
        (["task=hyper_cleaning"], "resources.workers", r"=2: task.trainable=.* trains in one process"),
        (
            ["task.trainable=test_distributed.Points", "executor=inprocess", "~executor.num_cpus"],
            "resources.workers",
            r"=2: InProcessExecutor runs each trial in this one process; use executor=ray",
        ),
        (
            ["task.trainable=test_distributed.Points", "executor=simulated", "~executor.num_cpus"],
            "resources.workers",
            r"=2: SimulatedExecutor runs each trial in this one process; use executor=ray",
        ),
    ],
)
def test_what_has_one_process(
    monkeypatch: pytest.MonkeyPatch, folder: Path, typed: list[str], key: str, message: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    base = [t for t in TYPED if not (t.startswith("executor") and "~executor.num_cpus" in typed)]
    if "task=hyper_cleaning" in typed:
        base = []
    with pytest.raises(ConfigError, match=message) as error:
        build(draft(load([*base, *(t for t in typed if t[0] != "~"), "resources=multi_gpu"])))
    assert error.value.key == key


def test_a_class_that_shares_is_told_its_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    typed = [*TYPED, "resources=multi_gpu", "resources.strategy=fsdp", "resources.free_gpu_memory=0.5"]
    for name in ("Points", "Drawing", "OwnShare"):
        shared = build(draft(load([*typed, f"task.trainable=test_distributed.{name}"]))).context
        assert (shared.workers, shared.strategy, shared.rank, shared.meeting) == (2, "fsdp", 0, "")
        assert shared.free_gpu_memory == 0.5


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:20616"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("connection to the data base"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_only_says_that_another_is_gone(error: BaseException, loss: bool) -> None:
    assert _is_loss(error) is loss


def test_replace_keeps_the_seed() -> None:
    assert replace(context(2), rank=1).seed == context(1).seed
