"""Differentiable tasks: their data, their losses by hand, and two reports of each by gradient and without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from hpo_ray.errors import ConfigError
from hpo_ray.space import Space
from hpo_ray.tasks.bilevel import LogisticL2, Ridge
from hpo_ray.tasks.bilevel_digits import (
    HyperCleaning,
    LossWeights,
    LRSchedule,
    WeightDecayPerParameter,
    corrupt,
    imbalanced,
)
from hpo_ray.trainables import Hypergradient, TrialContext
from hpo_ray.trainables.context import use_context

CONF = Path(__file__).parents[2] / "conf"
TASKS = {
    "ridge": Ridge,
    "logistic_l2": LogisticL2,
    "hyper_cleaning": HyperCleaning,
    "lr_schedule": LRSchedule,
    "loss_weights": LossWeights,
    "weight_decay_per_parameter": WeightDecayPerParameter,
}
DIGITS = ("hyper_cleaning", "lr_schedule", "loss_weights", "weight_decay_per_parameter")


def context(name, number=0):
    return TrialContext(number=number, space=Space(OmegaConf.to_container(OmegaConf.load(CONF / f"space/{name}.yaml"))))


def middle(space):
    return space.from_units([0.5] * len(space))


def started(name, number=0):
    """The task of a trial, as the trial starts it."""
    task, here = TASKS[name](), context(name, number)
    with use_context(here):
        torch.manual_seed(number)
        params = task.init(middle(here.space), number)
        return task, params, task.hyperparameters(middle(here.space))


def trial(name, estimator, config=None, **settings):
    here = context(name)
    settings = {"inner_steps": 3, "iterations": 3 if estimator == "conjugate_gradient" else None, **settings}
    cls = Hypergradient(estimator=estimator, **settings).bind(TASKS[name])
    with use_context(here):
        return cls(middle(here.space) if config is None else config)


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint_and_the_same_in_all_trials(name):
    first, second = (started(name, number)[0].data for number in (0, 1))
    for split in ("train", "validation", "test"):
        assert all(torch.equal(a, b) for a, b in zip(first[split], second[split], strict=True))
    rows = {"ridge": 442, "logistic_l2": 569}.get(name, 1797)
    if name == "loss_weights":
        assert len(first["train"][0]) < 700
    else:
        assert sum(len(first[split][0]) for split in first) == rows
    seen = np.concatenate([np.unique(first[split][0].numpy(), axis=0) for split in first])
    assert len(np.unique(seen, axis=0)) == len(seen), "no image or patient is in two splits"


@pytest.mark.parametrize("name", TASKS)
def test_the_weights_of_a_trial_are_its_own_where_they_are_random(name):
    first, second = (started(name, number)[1] for number in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first) == (name in ("ridge", *list(TASKS)[1:3]))


@pytest.mark.parametrize(
    ("name", "weights", "shapes"),
    [
        ("ridge", 10, {"decay": (10,)}),
        ("logistic_l2", 31, {"decay": (30,)}),
        ("hyper_cleaning", 650, {"weight": (1079,)}),
        ("lr_schedule", 64 * 32 + 32 + 32 * 10 + 10, {"inner_lr": ()}),
        ("loss_weights", 8 * 9 + 8 + 2 * 8 + 16 * 8 * 9 + 16 + 650, {"class_weight": (10,), "noise": ()}),
        ("weight_decay_per_parameter", 106590, {"decay": (106590,)}),
    ],
)
def test_shapes(name, weights, shapes):
    task, params, hparams = started(name)
    assert sum(p.numel() for p in params.values()) == weights
    assert {key: tuple(value.shape) for key, value in hparams.items()} == shapes
    assert tuple(shapes) == tuple(task.differentiable)
    config = middle(context(name).space)
    assert all(torch.allclose(value, torch.full_like(value, config[key])) for key, value in hparams.items())


def test_exactly_half_of_the_training_labels_are_wrong():
    task = started("hyper_cleaning")[0]
    true = started("lr_schedule")[0].data["train"]
    x, labels, rows = task.data["train"]
    assert torch.equal(x, true[0]) and torch.equal(rows, torch.arange(1079))
    assert torch.equal(labels != true[1], task.corrupted) and task.corrupted.sum() == 539
    assert labels.min() == 0 and labels.max() == 9
    assert all(len(task.data[split]) == 2 for split in ("validation", "test")), "only training images have a weight"


def test_wrong_labels_are_uniform_over_the_other_nine():
    labels = torch.zeros(90_000, dtype=torch.long)
    found, wrong = corrupt(labels, 0)
    counts = torch.bincount(found[wrong], minlength=10)
    assert counts[0] == 0 and wrong.sum() == 45_000
    assert (counts[1:] - 5000).abs().max() < 5 * 5000**0.5
    assert not torch.equal(found, corrupt(labels, 1)[0])


def test_the_training_set_alone_is_imbalanced():
    data = started("loss_weights")[0].data
    whole = torch.bincount(started("lr_schedule")[0].data["train"][1])
    counts = torch.bincount(data["train"][1])
    assert torch.equal(counts[:5], whole[:5])
    assert counts[5:].tolist() == [-(-n // 10) for n in whole[5:].tolist()]
    assert torch.bincount(data["validation"][1]).min() >= 34
    assert imbalanced(torch.tensor([9, 0, 9, 0, 9])).tolist() == [0, 1, 3]


# Losses by hand.


def test_logistic_loss():
    task = LogisticL2()
    params = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(0.5)}
    batch = (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))  # logits -0.5, -1.5
    cross = (np.log1p(np.exp(0.5)) + np.log1p(np.exp(-1.5))) / 2
    assert task.outer_loss(params, batch).item() == pytest.approx(cross, rel=1e-6)
    hparams = {"decay": torch.tensor([0.1, 0.2])}
    assert task.inner_loss(params, hparams, batch).item() == pytest.approx(cross + 0.5 * (0.1 + 0.2 * 4), rel=1e-6)
    assert task.metrics(params, batch) == {"accuracy": 0.5}


def test_cleaning_loss_and_f1():
    task = HyperCleaning()
    params = {"w": torch.eye(2, 3), "b": torch.tensor([0.0, 0.0, 1.0])}
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 2])  # logits (1, 0, 1), (0, 2, 1)
    losses = [np.log(2 * np.e + 1) - 1, np.log(1 + np.e**2 + np.e) - 1]
    assert task.outer_loss(params, (x, y)).item() == pytest.approx(np.mean(losses), rel=1e-6)
    hparams = {"weight": torch.tensor([9.0, 0.25, 9.0, 0.75])}
    found = task.inner_loss(params, hparams, (x, y, torch.tensor([1, 3])))
    assert found.item() == pytest.approx((0.25 * losses[0] + 0.75 * losses[1]) / 2 + 0.005 * 3, rel=1e-6)
    task.corrupted = torch.tensor([True, True, True, False])
    weights = torch.tensor([0.1, 0.5, 0.9, 0.2])  # one found, two missed, one accused
    assert task.hyperparameter_metrics({"weight": weights}) == {"corrupted_f1": 2 * 1 / (2 * 1 + 2 + 1)}


def test_per_parameter_loss():
    task, params, _ = started("weight_decay_per_parameter")
    batch = tuple(tensor[:4] for tensor in task.data["train"])
    flat = torch.cat([p.flatten() for p in params.values()])
    hparams = {"decay": torch.linspace(0, 1, len(flat))}
    expected = task.outer_loss(params, batch).item() + 0.5 * (hparams["decay"] * flat**2).sum().item()
    assert task.inner_loss(params, hparams, batch).item() == pytest.approx(expected, rel=1e-5)


def test_loss_weights_loss():
    task, params, _ = started("loss_weights")
    rows = torch.tensor([0, 1, 2, 3, 100, 200])
    x, y = (tensor[rows] for tensor in task.data["train"])
    weight = torch.arange(1.0, 11.0)
    task.model.module.train()
    logits = task.model(params, x)
    decay = 0.0005 * sum(p.square().sum() for p in params.values())
    expected = cross_entropy(logits, y, weight=weight) + decay
    still = {"class_weight": weight, "noise": torch.tensor(0.0)}
    assert task.inner_loss(params, still, (x, y)).item() == pytest.approx(expected.item(), rel=1e-5)
    scaled = {"class_weight": 3 * weight, "noise": torch.tensor(0.0)}
    assert task.inner_loss(params, scaled, (x, y)).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.manual_seed(0)
    noisy = x + 0.5 * torch.randn_like(x)
    torch.manual_seed(0)
    found = task.inner_loss(params, {"class_weight": weight, "noise": torch.tensor(0.5)}, (x, y))
    expected = cross_entropy(task.model(params, noisy), y, weight=weight) + decay
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["ridge", "logistic_l2"])
def test_each_feature_may_have_a_decay_of_its_own_in_the_space(name):
    task, _, hparams = started(name)
    own = {f"f{i}": 0.1 * (i + 1) for i in range(len(hparams["decay"]))}
    assert task.hyperparameters({"decay": own})["decay"].tolist() == list(own.values())
    with pytest.raises(ConfigError, match=r"space\.decay: has 1 names, and there are"):
        task.hyperparameters({"decay": {"f0": 1.0}})


# As trials.

GRADIENTS = [
    *((name, "conjugate_gradient") for name in TASKS if name != "lr_schedule"),
    *(("lr_schedule", estimator) for estimator in ("unrolled", "forward", "descent")),
    *(("loss_weights", estimator) for estimator in ("unrolled", "forward")),
]


@pytest.mark.parametrize(("name", "estimator"), GRADIENTS)
def test_two_reports_by_gradient_and_the_second_again_from_a_checkpoint(name, estimator, tmp_path):
    settings = {"outer_batch_size": 64} if name == "weight_decay_per_parameter" else {}
    gone = trial(name, estimator, **settings)
    first = gone.step()
    before = {key: value.clone() for key, value in gone.hparams.items()}
    gone.save_checkpoint(str(tmp_path))
    resumed = trial(name, estimator, **settings)
    resumed.load_checkpoint(str(tmp_path))
    second = gone.step()
    assert resumed.step() == second
    assert all(torch.equal(gone.params[key], resumed.params[key]) for key in gone.params)
    assert second["loss"] != first["loss"] and {"test_loss", "train_loss", "gradient_evaluations"} <= set(second)
    if estimator != "descent":  # which moves before it reports
        assert all(
            np.isfinite(report["hypergradient_norm"]) and report["hypergradient_norm"] > 0 for report in (first, second)
        )
    for key in TASKS[name].differentiable:
        assert not torch.equal(before[key], gone.hparams[key])
        domain = context(name).space.domains[key]
        assert gone.hparams[key].min() >= domain.low * (1 - 1e-6) and gone.hparams[key].max() <= domain.high * (
            1 + 1e-6
        )
    if name != "ridge":
        assert 0 <= second["accuracy"] <= 1 and 0 <= second["test_accuracy"] <= 1


@pytest.mark.parametrize("name", TASKS)
def test_two_reports_without_gradients(name, tmp_path):
    box = trial(name, "none")
    first = box.step()
    if name == "lr_schedule":
        assert first["done"] is True
        assert first == trial(name, "none").step()
        return
    box.save_checkpoint(str(tmp_path))
    resumed = trial(name, "none")
    resumed.load_checkpoint(str(tmp_path))
    second = box.step()
    assert resumed.step() == second and "done" not in second
    assert second["gradient_evaluations"] == 6 and second["train_loss"] != first["train_loss"]
    assert "hypergradient_norm" not in second


def test_a_schedule_has_a_rate_for_each_step_and_one_to_black_boxes():
    unrolled = trial("lr_schedule", "unrolled", outer_optimizer="sgd")  # adam's first steps are alike for all
    unrolled.step()
    assert unrolled.hparams["inner_lr"].shape == (3,)
    unrolled.step()
    assert len(set(unrolled.hparams["inner_lr"].tolist())) == 3
    assert trial("lr_schedule", "none").hparams["inner_lr"].shape == ()


@pytest.mark.parametrize("estimator", ["forward", "descent"])
def test_online_rates_move_in_one_training(estimator):
    online = trial("lr_schedule", estimator, outer_lr=1e-12)
    twice = trial("lr_schedule", estimator, outer_lr=1e-12, inner_steps=6)
    last = [online.step() for _ in range(2)][-1]
    assert last["loss"] == pytest.approx(twice.step()["loss"], rel=1e-5)


def test_cleaning_reports_how_well_weights_tell_wrong_labels():
    cleaning = trial("hyper_cleaning", "conjugate_gradient", inner_steps=50, iterations=20)
    reports = [cleaning.step()["corrupted_f1"] for _ in range(3)]
    assert reports[0] == 0.0, "all weights are a half"
    assert reports[-1] > 0.6
    box = trial("hyper_cleaning", "none", {"weight": 0.4})
    assert box.step()["corrupted_f1"] == pytest.approx(2 * 539 / (1079 + 539)), "all are accused"


def test_running_statistics_are_moved_by_training_steps_only():
    task, params, hparams = started("loss_weights")
    batch = tuple(tensor[:32] for tensor in task.data["train"])
    before = {name: tensor.clone() for name, tensor in task.state().items()}
    assert set(before) == {f"2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    task.inner_loss(params, hparams, batch)
    task.outer_loss(params, batch)
    task.metrics(params, batch)
    assert all(torch.equal(task.state()[name], tensor) for name, tensor in before.items())
    task.after_step(params, batch)
    assert not any(torch.equal(task.state()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("estimator", "steps"), [("conjugate_gradient", 6), ("none", 6), ("forward", 6), ("unrolled", 3)]
)
def test_each_training_step_counts_once(estimator, steps):
    """Unrolled, each training is the first of its own."""
    moved = trial("loss_weights", estimator)
    for _ in range(2):
        moved.step()
    moved.test()
    assert moved.task.state()["2.num_batches_tracked"].item() == steps


@pytest.mark.parametrize("name", ["hyper_cleaning", "loss_weights"])
def test_folds_are_refused_where_they_make_no_sense(name):
    with pytest.raises(ConfigError, match=r"trainable\.outer_folds=2: .* use 1"):
        trial(name, "conjugate_gradient", outer_folds=2)
