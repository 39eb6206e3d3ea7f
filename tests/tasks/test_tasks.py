import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from hpo_ray.errors import ConfigError
from hpo_ray.tasks.digits import DigitsCNN, DigitsMLP
from hpo_ray.tasks.supervised import split_indices, standardise
from hpo_ray.tasks.tabular import BreastCancerMLP, DiabetesMLP
from hpo_ray.trainables import TrialContext
from hpo_ray.trainables.context import use_context

CONF = Path(__file__).parents[2] / "conf"

# One configuration of each space, with every conditional parameter that is active in it.
SAMPLES = [
    (
        DigitsMLP,
        {
            "lr": 0.05,
            "units": 32,
            "layers": 1,
            "dropout": 0.3,
            "batch_size": 128,
            "weight_decay": 1e-4,
            "activation": "tanh",
            "optimizer": "sgd",
            "momentum": 0.9,
        },
    ),
    (
        DigitsCNN,
        {
            "lr": 0.003,
            "channels": 4,
            "dropout": 0.2,
            "batch_size": 128,
            "weight_decay": 1e-4,
            "activation": "relu",
            "optimizer": "adamw",
        },
    ),
    (
        BreastCancerMLP,
        {
            "lr": 0.01,
            "units": 8,
            "layers": 2,
            "dropout": 0.0,
            "batch_size": 32,
            "weight_decay": 1e-3,
            "activation": "gelu",
            "optimizer": "adamw",
        },
    ),
    (
        DiabetesMLP,
        {
            "lr": 0.01,
            "units": 8,
            "layers": 1,
            "dropout": 0.1,
            "batch_size": 16,
            "weight_decay": 1e-5,
            "activation": "relu",
            "optimizer": "sgd",
            "momentum": 0.5,
        },
    ),
]
SIZES = {
    DigitsMLP: (1079, 359, 359),
    DigitsCNN: (1079, 359, 359),
    BreastCancerMLP: (341, 114, 114),
    DiabetesMLP: (266, 88, 88),
}


@pytest.mark.parametrize(("task", "config"), SAMPLES)
def test_one_epoch_and_the_split_sizes(task, config):
    trial = task(dict(config))
    assert tuple(len(trial.data[part][1]) for part in ("train", "validation", "test")) == SIZES[task]
    result = trial.step()
    names = {"train_loss", "parameters", "loss", "r2" if task is DiabetesMLP else "accuracy"}
    assert result.keys() == names
    assert all(type(value) is float for value in result.values())
    assert trial.test().keys() == names - {"train_loss", "parameters"}
    assert trial.config == config


# Of each layer inputs times outputs, and a bias for each output.
PARAMETERS = {
    DigitsMLP: 64 * 32 + 32 + 32 * 10 + 10,
    DigitsCNN: 1 * 4 * 9 + 4 + 4 * 8 * 9 + 8 + (8 * 2 * 2) * 10 + 10,
    BreastCancerMLP: 30 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2,
    DiabetesMLP: 10 * 8 + 8 + 8 * 1 + 1,
}


@pytest.mark.parametrize(("task", "config"), SAMPLES)
def test_parameters(task, config):
    trial = task(dict(config))
    assert [trial.step()["parameters"] for _ in range(2)] == [PARAMETERS[task]] * 2
    next(trial.model.parameters()).requires_grad_(False)  # the first layer's weights are then not trained
    assert trial.step()["parameters"] < PARAMETERS[task]


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "breast_cancer", "diabetes"])
def test_the_reference_is_the_largest_network_of_the_space_and_what_needs_no_network(name):
    task, space = (OmegaConf.load(CONF / group / f"{name}.yaml") for group in ("task", "space"))
    cls = {"digits_mlp": DigitsMLP, "digits_cnn": DigitsCNN, "breast_cancer": BreastCancerMLP, "diabetes": DiabetesMLP}
    largest = {key: space[key].high for key in ("units", "layers", "channels") if key in space}
    trial = cls[name](largest)
    reference = task.task.reference
    assert sum(weights.numel() for weights in trial.model.parameters()) == reference.parameters
    target = trial.data["train"][1]
    if name == "diabetes":
        assert reference.loss == pytest.approx(target.var(correction=0).item(), rel=1e-5)  # which is standardised
    elif name == "breast_cancer":
        assert reference.accuracy == pytest.approx((target == 1).double().mean().item(), abs=0.002)
    else:
        assert reference.accuracy == 1 / 10
    assert set(task.task.tradeoff) == set(reference)


def test_digits_mlp_learns():
    trial = DigitsMLP({"lr": 3e-3, "units": 64, "layers": 1, "dropout": 0.1, "batch_size": 64, "optimizer": "adamw"})
    best = max(trial.step()["accuracy"] for _ in range(27))
    assert best > 0.95
    assert trial.test()["accuracy"] > 0.93


@pytest.mark.parametrize("n", [10, 442, 569, 1797])
def test_split_is_a_partition(n):
    split = split_indices(n, seed=0)
    rows = np.concatenate([split.train, split.validation, split.test])
    assert sorted(rows.tolist()) == list(range(n))
    assert len(split.validation) == len(split.test) == round(n / 5)


def test_split_is_stratified():
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    split = split_indices(200, seed=1, labels=labels)
    counts = [np.bincount(labels[part]).tolist() for part in (split.train, split.validation, split.test)]
    assert counts == [[60, 36, 24], [20, 12, 8], [20, 12, 8]]


def test_split_follows_the_study_and_not_the_trial():
    def train(number, study_seed):
        with use_context(TrialContext(number=number, study_seed=study_seed)):
            return BreastCancerMLP({}).data["train"][1]

    assert torch.equal(train(0, 0), train(5, 0))
    assert not torch.equal(train(0, 0), train(0, 1))


def test_standardisation_knows_the_training_rows_only():
    values = np.array([[0.0, 5.0], [2.0, 5.0], [100.0, 7.0]])
    result = standardise(values, np.array([0, 1]))
    assert result.tolist() == [[-1.0, 0.0], [1.0, 0.0], [99.0, 2.0]]  # mean 1, deviation 1; a constant column
    assert standardise(np.array([[0.0, 2.0], [8.0, 8.0]]), np.array([0]), axis=None).tolist() == [[-1, 1], [7, 7]]
    train, _ = BreastCancerMLP({}).data["train"]
    validation, _ = BreastCancerMLP({}).data["validation"]
    assert train.mean(0).abs().max() < 1e-5
    assert (train.std(0, correction=0) - 1).abs().max() < 1e-5
    assert validation.mean(0).abs().max() > 1e-3


@pytest.mark.parametrize(("task", "config"), SAMPLES)
def test_a_poisoned_test_split_shows_in_the_test_only(task, config):
    clean, poisoned = task(dict(config)), task(dict(config))
    x, y = poisoned.data["test"]
    poisoned.data = {**poisoned.data, "test": (torch.full_like(x, float("nan")), y)}
    assert clean.step() == poisoned.step()
    assert np.isnan(poisoned.test()["loss"])


def test_diabetes_r2_is_the_explained_share():
    trial = DiabetesMLP({})
    trial.step()
    x, y = trial.data["validation"]
    trial.model.eval()
    with torch.no_grad():
        residual = (y - trial.model(x)).square().sum()
    expected = 1 - residual / (y - y.mean()).square().sum()
    assert trial.evaluate()["r2"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "message", "key"),
    [
        ({"learning_rate": 0.1}, r"space.learning_rate: DigitsMLP has no such .* it has activation, batch_size", None),
        ({"optimizer": "lion"}, r"optimizer=lion is unknown: use sgd or adamw", "space.optimizer"),
        ({"activation": "swish"}, r"activation=swish is unknown: use relu, tanh, gelu", "space.activation"),
    ],
)
def test_what_a_task_does_not_know_is_named(config, message, key):
    with pytest.raises(ConfigError, match=message) as error:
        DigitsMLP(config)
    assert error.value.key == (key or "space.learning_rate")


def test_a_resumed_digits_trial_is_bit_exact(tmp_path):
    config = {**SAMPLES[0][1], "dropout": 0.5}
    uninterrupted = DigitsMLP(dict(config))
    uninterrupted.step()
    uninterrupted.save_checkpoint(str(tmp_path))
    resumed = DigitsMLP(dict(config))
    resumed.load_checkpoint(str(tmp_path))
    assert uninterrupted.step() == resumed.step()
    weights = zip(uninterrupted.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("path", sorted(CONF.glob("task/*.yaml")), ids=lambda path: path.stem)
def test_task_files(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python -m hpo_ray task={path.stem}")
    assert lines[2].startswith("# ") and lines[2].endswith(".")
    file = OmegaConf.load(path)
    task = file.task
    keys = ["name", "trainable", "metric", "mode", "max_resource", "unit", "args"]
    optional = [key for key in ("optimum", "tradeoff", "reference") if key in task]
    assert list(task) == keys + optional and set(task.get("tradeoff", {})) == set(task.get("reference", {}))
    assert task.name == path.stem
    if path.stem == "custom":
        assert task.trainable is None and "defaults" not in file
        return
    if path.stem == "recorded":  # whose space is that of what was recorded
        assert "defaults" not in file
        return
    assert file.defaults == [{"override /space": path.stem}]
    module, _, name = task.trainable.rpartition(".")
    trainable = getattr(importlib.import_module(module), name)
    space = OmegaConf.load(CONF / "space" / path.name)
    if hasattr(trainable, "defaults"):
        assert space.keys() == trainable.defaults.keys()


@pytest.mark.parametrize("path", sorted(CONF.glob("space/*.yaml")), ids=lambda path: path.stem)
def test_space_files(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package space"
    assert lines[1].startswith("# python -m hpo_ray ") and f"space={path.stem}" in lines[1]
    assert lines[2].startswith("# ") and lines[2].endswith(".")
