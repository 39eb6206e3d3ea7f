"""What a unit of resource is: epochs, steps of the optimizer, shares of the data."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from test_torch import CONFIG, Decaying, Toy, equal_states, same
from torch import nn

import hpo_ray
from hpo_ray.config import load
from hpo_ray.errors import ConfigError
from hpo_ray.study import build, draft
from hpo_ray.testing import run_study
from hpo_ray.trainables import TorchTrainable, TrialContext, get_context
from hpo_ray.trainables.context import FIDELITIES, use_context
from hpo_ray.trainables.torch import nested_order

CLASSES = torch.tensor([0] * 18 + [1] * 9 + [2] * 3)


class Noting(nn.Linear):
    """A layer that notes the rows, told by their number, and the batches that it was trained on."""

    def __init__(self):
        super().__init__(1, 3)
        self.rows, self.batches = [], []

    def forward(self, x):
        if self.training:
            self.rows += x[:, 0].int().tolist()
            self.batches.append(len(x))
        return super().forward(x)


class Numbered(TorchTrainable):
    """30 rows that hold their number; 18, 9 and 3 of three classes."""

    def build_model(self, config):
        return Noting()

    def build_optimizer(self, model, config):
        return torch.optim.SGD(model.parameters(), lr=1e-5)

    def build_data(self, config):
        rows = torch.arange(30.0)[:, None]
        return {"train": (rows, CLASSES), "validation": (rows, CLASSES)}


class Regression(Numbered):
    def build_data(self, config):
        rows = torch.arange(30.0)[:, None]
        return {"train": (rows, rows.expand(30, 3)), "validation": (rows, rows.expand(30, 3))}

    def loss(self, output, target):
        return nn.functional.mse_loss(output, target)


def units(context, steps, cls=Numbered, batch_size=8):
    """For each step the rows, the sizes of the batches and the metrics."""
    with use_context(context):
        trial = cls({"batch_size": batch_size})
        seen = []
        for _ in range(steps):
            trial.model.rows, trial.model.batches = [], []
            metrics = trial.step()
            seen.append((trial.model.rows, trial.model.batches, metrics))
        return seen


# Shares of the data.


def test_the_order_of_the_rows_by_hand():
    # Of six, three and one of a class: 1/12, 3/12, ... of class 0, 1/6, 3/6, 5/6 of class 1, 1/2 of class 2.
    target = torch.tensor([2, 0, 1, 0, 0, 1, 0, 1, 0, 0])
    order = nested_order(target, seed=3)
    classes = target[order].tolist()
    assert sorted(order.tolist()) == list(range(10))
    assert classes[:4] == [0, 1, 0, 0] and set(classes[4:6]) == {1, 2} and classes[6:] == [0, 0, 1, 0]
    assert torch.equal(order, nested_order(target, seed=3)) and not torch.equal(order, nested_order(target, seed=4))


@pytest.mark.parametrize("seed", range(5))
def test_beginnings_have_each_class_in_proportion(seed):
    # The last row comes at some t, and the count of class c is n_c t to within 1/2, also where others come at t, too.
    # So of four classes m is n t to within 4/2, and the count n_c m / n to within 1/2 + 4/2 n_c / n < 2.5.
    counts = np.random.default_rng(seed).integers(1, 50, size=4)
    target = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(np.arange(4), counts)))
    order = target[nested_order(target, seed)].numpy()
    for m in range(1, len(order) + 1):
        assert (abs(np.bincount(order[:m], minlength=4) - counts * m / len(order)) < 2.5).all()


def test_shares_are_nested_and_stratified():
    seen = units(TrialContext(max_resource=5, fidelity="data_fraction"), 6)
    rows = [set(unit[0]) for unit in seen]
    assert all(len(unit[0]) == len(set(unit[0])) for unit in seen), "each row once"
    assert all(below < above for below, above in itertools.pairwise(rows[:5]))
    # 6, 12, 18, 24, 30 rows. Class 0 comes at 1/36, 3/36, ..., class 1 at 1/18, 3/18, ..., class 2 at 1/6, 3/6, 5/6.
    counts = [[Counter(CLASSES[row].item() for row in unit[0])[c] for c in range(3)] for unit in seen]
    assert counts == [[3, 2, 1], [7, 4, 1], [11, 5, 2], [15, 7, 2], [18, 9, 3], [18, 9, 3]]
    assert [unit[2]["examples"] for unit in seen] == [6.0, 12.0, 18.0, 24.0, 30.0, 30.0]
    assert [unit[1] for unit in seen[:3]] == [[6], [8, 4], [8, 8, 2]]


def test_shares_are_rounded_up():
    seen = units(TrialContext(max_resource=40, fidelity="data_fraction"), 3)
    assert [len(unit[0]) for unit in seen] == [1, 2, 3]  # of 0.75, 1.5 and 2.25


def test_all_trials_of_a_study_have_the_same_shares_and_each_its_own_order():
    def first(number, study_seed):
        context = TrialContext(number, study_seed, max_resource=3, fidelity="data_fraction")
        return units(context, 1)[0][0]

    assert set(first(0, 0)) == set(first(7, 0)) and first(0, 0) != first(7, 0)
    assert set(first(0, 0)) != set(first(0, 1))


def test_shares_of_what_has_no_classes_are_random():
    seen = units(TrialContext(max_resource=3, fidelity="data_fraction"), 3, cls=Regression)
    rows = [set(unit[0]) for unit in seen]
    assert [len(share) for share in rows] == [10, 20, 30] and rows[0] < rows[1] < rows[2]
    assert rows[0] != set(range(10))


# Steps.


def test_steps_go_through_epochs_one_after_another():
    seen = units(TrialContext(max_resource=9, fidelity="steps", steps_per_unit=3), 4)
    # Batches of 8, 8, 8 and 6 an epoch, three a unit.
    assert [unit[1] for unit in seen] == [[8, 8, 8], [6, 8, 8], [8, 6, 8], [8, 8, 6]]
    assert [unit[2]["examples"] for unit in seen] == [24.0, 22.0, 22.0, 22.0]
    rows = [row for unit in seen for row in unit[0]]
    epochs = [rows[start : start + 30] for start in range(0, 90, 30)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_as_many_steps_as_an_epoch_has_are_an_epoch():
    epochs, steps = (units(TrialContext(fidelity=fidelity, steps_per_unit=4), 3) for fidelity in ("epochs", "steps"))
    assert epochs == steps and epochs[0][2]["examples"] == 30.0


# Checkpoints and reuse.


def context(fidelity, number=0, max_resource=7):
    return TrialContext(number, 3, max_resource, fidelity=fidelity, steps_per_unit=3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("trainable", [Toy, Decaying])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_save_load_continue_is_bit_exact(tmp_path, trainable, optimizer, fidelity):
    config = {**CONFIG, "optimizer": optimizer}
    with use_context(context(fidelity)):
        uninterrupted, resumed = trainable(config), trainable(config)
        resumed.step()  # of no consequence for what is loaded
        for _ in range(4):  # of 40 rows in batches of 8 an epoch has five: each save is at another place of an epoch
            uninterrupted.step()
            uninterrupted.save_checkpoint(str(tmp_path))
            resumed.load_checkpoint(str(tmp_path))
            resumed.save_checkpoint(str(tmp_path))  # what was loaded and not gone on with is saved as it was
            resumed.load_checkpoint(str(tmp_path))
            for _ in range(2):
                assert uninterrupted.step() == resumed.step()
        assert same(uninterrupted, resumed)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_a_reset_object_equals_a_fresh_one(fidelity):
    other = {**CONFIG, "units": 16, "batch_size": 7}
    with use_context(context(fidelity, number=1, max_resource=4)):
        fresh = Toy(other)
        expected = [fresh.step() for _ in range(3)]
    with use_context(context(fidelity)):
        reused = Toy(CONFIG)
        reused.step(), reused.step()
    data = reused.data
    with use_context(context(fidelity, number=1, max_resource=4)):
        assert reused.reset(dict(other)) is True and reused.data is data
        assert [reused.step() for _ in range(3)] == expected
    assert same(fresh, reused)


def test_new_data_has_new_shares():
    with use_context(context("data_fraction")):
        trial = Toy(CONFIG)
        trial.step()
    with use_context(TrialContext(0, 4, 7, fidelity="data_fraction")):
        trial.reset_config(CONFIG)
        assert trial.step() == Toy(CONFIG).step()


def test_another_configuration_goes_on_at_the_same_place(tmp_path):
    with use_context(context("steps")):
        donor, trial = Toy(CONFIG), Toy({**CONFIG, "lr": 0.5, "batch_size": 16})
        donor.step()
        donor.save_checkpoint(str(tmp_path))
        trial.load_checkpoint(str(tmp_path))
        assert [trial.step()["examples"] for _ in range(2)] == [16 + 16 + 16, 8 + 16 + 16]  # from row 24 of 40


def test_a_checkpoint_older_than_fidelities_can_be_read(tmp_path):
    trial = Toy(CONFIG)
    trial.step()
    trial.save_checkpoint(str(tmp_path))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["resource"], state["epoch"]
    torch.save(state, tmp_path / "state.pt")
    again = Toy(CONFIG)
    again.load_checkpoint(str(tmp_path))
    assert equal_states(again.step(), trial.step())


# Who follows which.


class Silent(Numbered):
    def train_epoch(self):
        return {}


class Knowing(Silent):
    fidelities = ("epochs", "steps")

    def train_epoch(self):
        return {"unit": f"{get_context().steps_per_unit} {get_context().fidelity}"}


def follows(name, fidelity):
    typed = ["task=custom", f"task.trainable=test_fidelity.{name}", "space={lr: [0.1, 0.2]}", "executor=inprocess"]
    return build(draft(load([*typed, f"fidelity={fidelity}"]))).context


def test_a_class_with_its_own_epoch_says_what_it_follows(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert [follows("Numbered", fidelity).fidelity for fidelity in FIDELITIES] == list(FIDELITIES)
    assert follows("Knowing", "steps").steps_per_unit == 10 and follows("Silent", "epochs").steps_per_unit == 1
    for name, fidelity in (("Silent", "steps"), ("Silent", "data_fraction"), ("Knowing", "data_fraction")):
        with pytest.raises(
            ConfigError, match=rf"fidelity={fidelity}: task.trainable=.*\.{name} follows epochs"
        ) as error:
            follows(name, fidelity)
        assert error.value.key == "fidelity"
    with use_context(TrialContext(fidelity="steps", steps_per_unit=5)):
        assert Knowing({}).step()["unit"] == "5 steps"


# Whole studies.


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_hyperband_goes_on_where_it_paused(folder: Path, fidelity: str) -> None:
    """A trial that waits at each rung, and moves to another object, gives the numbers of one that never does."""
    typed = ["task=breast_cancer", "task.max_resource=3", f"fidelity={fidelity}", "executor=inprocess"]
    halving = run_study(["method=hyperband", *typed, "executor.workers=2"], folder)
    full = run_study(["method=random", "budget.trials=5", *typed], folder / "full")
    assert [trial.resource for trial in halving.records].count(3) == 3 and halving.state.trained == 11
    for paused, whole in zip(halving.records, full.records, strict=True):
        assert paused.config == whole.config
        assert list(paused.history) == list(whole.history)[: paused.resource]
        expected = {"epochs": 341, "data_fraction": -(-341 * paused.resource // 3)}.get(fidelity)
        assert paused.metrics["examples"] == expected or fidelity == "steps"
        assert 0 < paused.metrics["examples"] <= (341 if fidelity != "steps" else 10 * 64)
    best = hpo_ray.load_best(halving.path)
    assert (best._context.fidelity, best._resource) == (fidelity, 3)
    assert best._context.steps_per_unit == (10 if fidelity == "steps" else 1)
    assert halving.test_metrics is not None


@pytest.mark.parametrize("method", ["successive_halving", "asha", "median"])
@pytest.mark.parametrize("fidelity", ["steps", "data_fraction"])
def test_every_method_takes_every_fidelity(folder: Path, method: str, fidelity: str) -> None:
    typed = ["task=diabetes", "task.max_resource=3", f"fidelity={fidelity}", "executor=inprocess", "budget.trials=3"]
    result = run_study([f"method={method}", *typed], folder)
    assert not result.state.states["failed"] and max(trial.resource for trial in result.records) == 3
