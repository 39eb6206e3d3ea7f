import copy
import math
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from ray.tune import PlacementGroupFactory
from torch import nn
from torch.optim import lr_scheduler as schedules

import hpo_ray.trainables
from hpo_ray.errors import ConfigError
from hpo_ray.trainables import TorchTrainable, TrialContext, get_context
from hpo_ray.trainables.context import use_context

CONFIG = {"lr": 0.05, "dropout": 0.4, "batch_size": 8, "momentum": 0.9}


class Toy(TorchTrainable):
    """Three classes of points in the plane; draws from every global generator while it trains."""

    def build_model(self, config):
        units = config.get("units", 8)
        return nn.Sequential(nn.Linear(2, units), nn.Tanh(), nn.Dropout(config["dropout"]), nn.Linear(units, 3))

    def build_optimizer(self, model, config):
        if config.get("optimizer") == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=config["lr"])
        return torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=config["momentum"])

    def build_data(self, config):
        target = torch.arange(60) % 3
        angle = target * 2.1 + 0.2 * torch.randn(60)
        x = torch.stack([angle.cos(), angle.sin()], dim=1)
        return {"train": (x[:40], target[:40]), "validation": (x[40:50], target[40:50]), "test": (x[50:], target[50:])}

    def train_epoch(self):
        metrics = super().train_epoch()
        return {**metrics, "noise": np.random.random() + np.random.normal() + random.random()}


class Decaying(Toy):
    def build_lr_scheduler(self, optimizer, config):
        return schedules.StepLR(optimizer, step_size=1, gamma=0.5)


def equal_states(a, b):
    """Whether two nested structures are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal_states, a, b))
    return a == b


def same(a, b):
    return equal_states(a.model.state_dict(), b.model.state_dict()) and equal_states(
        a.optimizer.state_dict(), b.optimizer.state_dict()
    )


def test_the_packages_load_lazily():
    code = "import sys, hpo_ray.trainables, hpo_ray.tasks; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert hpo_ray.trainables.TorchTrainable is TorchTrainable
    with pytest.raises(AttributeError, match="TensorFlowTrainable"):
        _ = hpo_ray.trainables.TensorFlowTrainable


def test_a_step_reports_floats_and_learns():
    config = copy.deepcopy(CONFIG)
    trial = Toy(config)
    first = trial.train()
    for _ in range(9):
        last = trial.train()
    assert config == CONFIG == trial.config
    assert {name: type(last[name]) for name in ("train_loss", "loss", "accuracy", "noise")} == dict.fromkeys(
        ("train_loss", "loss", "accuracy", "noise"), float
    )
    assert last["accuracy"] == 1.0
    assert last["loss"] < first["loss"]
    assert trial.test().keys() == {"loss", "accuracy"}


def test_evaluate_in_chunks_gives_the_exact_means():
    trial = Toy(CONFIG)
    trial.evaluation_batch_size = 4  # 10 examples: chunks of 4, 4, 2
    x, y = trial.data["validation"]
    trial.model.eval()
    with torch.no_grad():
        scores = trial.model(x)
    metrics = trial.evaluate()
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(scores, y).item(), rel=1e-6)
    assert metrics["accuracy"] == (scores.argmax(1) == y).double().mean().item()


def test_flags_for_ray_pass_as_they_are():
    class Finished(Toy):
        def train_epoch(self):
            return {"done": True, "note": "converged", "scalar": torch.tensor(0.5), "count": 3}

    result = Finished(CONFIG).train()
    assert (result["done"], result["note"]) == (True, "converged")
    assert (result["scalar"], type(result["scalar"]), type(result["count"])) == (0.5, float, float)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"no 'holdout' split, only 'train', 'validation', 'test'"):
        Toy(CONFIG).evaluate("holdout")


def test_missing_hooks_are_named():
    class Half(TorchTrainable):
        def build_data(self, config):
            return {}

    with pytest.raises(NotImplementedError, match=r"Half must define build_model\(self, config\)"):
        Half({})


# Checkpoints.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("trainable", [Toy, Decaying])
def test_save_load_continue_is_bit_exact(tmp_path, trainable, optimizer):
    config = {**CONFIG, "optimizer": optimizer}
    uninterrupted = trainable(config)
    for _ in range(2):
        uninterrupted.step()
    assert uninterrupted.save_checkpoint(str(tmp_path)) is None
    resumed = trainable(config)
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    resumed.load_checkpoint(str(tmp_path))
    for _ in range(2):
        assert uninterrupted.step() == resumed.step()
    assert same(uninterrupted, resumed)
    assert uninterrupted.test() == resumed.test()


def test_loading_into_a_trained_object_goes_back_exactly(tmp_path):
    trial = Decaying(CONFIG)
    trial.step()
    trial.save_checkpoint(str(tmp_path))
    then = [trial.step(), trial.step()]
    trial.load_checkpoint(str(tmp_path))
    assert [trial.step(), trial.step()] == then


def test_ray_restores_the_iteration_too():
    trial = Toy(CONFIG)
    trial.train()
    saved = trial.save()
    expected = trial.train()
    other = Toy(CONFIG)
    other.restore(saved)
    result = other.train()
    assert (result["training_iteration"], result["loss"]) == (2, expected["loss"])


def test_a_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    trial = Toy(CONFIG)
    trial.save_checkpoint(str(tmp_path))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**state, "config": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trial.load_checkpoint(str(tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_configurations_of_other_types_can_be_saved(tmp_path):
    config = {**CONFIG, "lr": np.float64(0.05), "nested": {"sizes": (1, 2)}, "block": nn.ReLU, "none": None}
    trial = Toy(config)
    trial.step()
    trial.save_checkpoint(str(tmp_path))
    again = Toy({**config, "lr": 0.05})
    again.load_checkpoint(str(tmp_path))
    assert trial.step() == again.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda o: schedules.CosineAnnealingLR(o, T_max=6),
        lambda o: schedules.CosineAnnealingWarmRestarts(o, T_0=2),
        lambda o: schedules.MultiStepLR(o, milestones=[1, 3]),
        lambda o: schedules.OneCycleLR(o, max_lr=o.param_groups[0]["lr"], total_steps=8),
        lambda o: schedules.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
        lambda o: schedules.ChainedScheduler([schedules.ExponentialLR(o, 0.9), schedules.StepLR(o, 2)]),
        lambda o: schedules.SequentialLR(o, [schedules.LinearLR(o), schedules.ExponentialLR(o, 0.9)], milestones=[2]),
    ],
)
def test_schedules_survive_checkpoints_and_new_learning_rates(tmp_path, build):
    class Scheduled(Toy):
        def build_lr_scheduler(self, optimizer, config):
            return build(optimizer)

    def rates(trial, epochs):
        return [(trial.step(), trial.optimizer.param_groups[0]["lr"])[1] for _ in range(epochs)]

    donor = Scheduled({**CONFIG, "lr": 0.5})
    rates(donor, 3)
    donor.save_checkpoint(str(tmp_path))
    equal, changed = Scheduled({**CONFIG, "lr": 0.5}), Scheduled({**CONFIG, "lr": 0.1})
    equal.load_checkpoint(str(tmp_path))
    changed.load_checkpoint(str(tmp_path))
    expected = rates(Scheduled({**CONFIG, "lr": 0.1}), 6)[2:]  # as if it had been trained with 0.1 from the start
    assert changed.optimizer.param_groups[0]["lr"] == expected[0]
    assert rates(changed, 3) == expected[1:]
    assert rates(equal, 3) == rates(donor, 3)


def test_plateau_schedule_steps_on_the_training_loss_and_starts_anew_for_a_new_configuration(tmp_path):
    class Plateau(Toy):
        def build_lr_scheduler(self, optimizer, config):
            return schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")

    donor = Plateau(CONFIG)  # no loss can fall by 1e9: each epoch but the first halves the learning rate
    for _ in range(3):
        donor.step()
    assert donor.optimizer.param_groups[0]["lr"] == CONFIG["lr"] / 4
    donor.save_checkpoint(str(tmp_path))
    equal, changed = Plateau(CONFIG), Plateau({**CONFIG, "lr": 0.2})
    equal.load_checkpoint(str(tmp_path))
    changed.load_checkpoint(str(tmp_path))
    assert equal.optimizer.param_groups[0]["lr"] == CONFIG["lr"] / 4
    assert changed.optimizer.param_groups[0]["lr"] == 0.2


# Population-based training.


def test_exploit_keeps_the_new_learning_rate():
    # As Ray's PBT does it: the new configuration first, the donor's checkpoint second.
    donor, trial = Toy({**CONFIG, "lr": 0.1}), Toy(CONFIG)
    for _ in range(2):
        donor.train()
    new = {**CONFIG, "lr": 0.5, "momentum": 0.3}
    assert trial.reset(dict(new))
    trial.restore(donor.save())
    group = trial.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.5, 0.3)
    assert equal_states(trial.model.state_dict(), donor.model.state_dict())
    buffers = [state["momentum_buffer"] for state in trial.optimizer.state.values()]
    assert equal_states(buffers, [state["momentum_buffer"] for state in donor.optimizer.state.values()])
    weights = [p.detach().clone() for p in trial.model.parameters()]
    assert group["params"] == list(trial.model.parameters())
    trial.train()
    assert not any(torch.equal(a, b) for a, b in zip(weights, trial.model.parameters(), strict=True))


def test_exploit_keeps_the_place_in_the_schedule(tmp_path):
    donor = Decaying({**CONFIG, "lr": 0.1})
    for _ in range(2):
        donor.step()
    donor.save_checkpoint(str(tmp_path))
    equal, changed = Decaying({**CONFIG, "lr": 0.1}), Decaying({**CONFIG, "lr": 0.5})
    equal.load_checkpoint(str(tmp_path))
    changed.load_checkpoint(str(tmp_path))
    assert equal.optimizer.param_groups[0]["lr"] == 0.1 * 0.25
    assert changed.optimizer.param_groups[0]["lr"] == 0.5 * 0.25
    assert changed.optimizer.param_groups[0]["initial_lr"] == 0.5
    changed.step()
    assert changed.optimizer.param_groups[0]["lr"] == 0.5 * 0.125


def test_another_optimizer_class_starts_with_an_empty_state(tmp_path):
    donor = Toy(CONFIG)
    donor.step()
    donor.save_checkpoint(str(tmp_path))
    trial = Toy({**CONFIG, "optimizer": "adamw"})
    trial.load_checkpoint(str(tmp_path))
    assert equal_states(trial.model.state_dict(), donor.model.state_dict())
    assert not trial.optimizer.state
    assert math.isfinite(trial.step()["loss"])


def test_a_change_of_shapes_is_explained(tmp_path):
    Toy(CONFIG).save_checkpoint(str(tmp_path))
    trial = Toy({**CONFIG, "units": 16})
    with pytest.raises(ConfigError, match=r"(?s)theirs, ours: \{'units': \(None, 16\)\}.*size mismatch"):
        trial.load_checkpoint(str(tmp_path))


# Isolation.


def numbers(trials, contexts, epochs=2):
    """Per trial the results of its steps, taken in turns."""
    results = [[] for _ in trials]
    for _ in range(epochs):
        for trial, context, log in zip(trials, contexts, results, strict=True):
            with use_context(context):
                log.append(trial.step())
    return results


def build(context, config=CONFIG):
    with use_context(context):
        return Toy(config)


def test_interleaved_trials_give_the_numbers_of_trials_run_alone():
    contexts = [TrialContext(number=0, study_seed=3), TrialContext(number=1, study_seed=3)]
    alone = [numbers([build(context)], [context])[0] for context in contexts]
    assert numbers([build(context) for context in contexts], contexts) == alone
    assert alone[0] != alone[1]


def test_the_process_is_left_as_it_was_found():
    def state():
        numpy = np.random.get_state()
        return torch.get_rng_state(), numpy[1].tolist(), numpy[2:], random.getstate(), torch.get_num_threads()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = state()
    trial = Toy(CONFIG)
    trial.step(), trial.test(), trial.reset_config(CONFIG)
    assert equal_states(before, state())

    class Broken(Toy):
        def train_epoch(self):
            torch.rand(1)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        Broken(CONFIG).step()
    assert equal_states(before, state())


def test_threads_are_those_of_the_trial_s_cores():
    seen = []

    class Counting(Toy):
        def train_epoch(self):
            seen.append(torch.get_num_threads())
            return super().train_epoch()

    outside = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for cpus in (0.5, 1.0, 2.0):
            with use_context(TrialContext(cpus=cpus)):
                trial = Counting(CONFIG)
            trial.step()
        assert (seen, torch.get_num_threads()) == ([1, 1, 2], 3)
    finally:
        torch.set_num_threads(outside)


def test_testing_does_not_disturb_training():
    class Noisy(Toy):
        def evaluate(self, split="validation"):
            return {**super().evaluate(split), "draw": torch.rand(1, generator=self.generator) + torch.rand(1)}

    a, b = Noisy(CONFIG), Noisy(CONFIG)
    a.test()
    assert a.step() == b.step()


def test_a_reset_object_equals_a_fresh_one():
    contexts = [TrialContext(number=0, study_seed=3), TrialContext(number=1, study_seed=3)]
    other = {**CONFIG, "units": 16, "optimizer": "adamw"}
    fresh = build(contexts[1], other)
    reused = build(contexts[0])
    reused.step()
    data = reused.data
    with use_context(contexts[1]):
        assert reused.reset(dict(other)) is True
    assert reused.data is data
    assert numbers([fresh], [contexts[1]]) == numbers([reused], [contexts[1]])
    assert same(fresh, reused)


def test_data_is_rebuilt_when_it_has_to_be():
    built = []

    class Counting(Toy):
        def build_data(self, config):
            built.append((get_context().study_seed, get_context().args, config["lr"]))
            config.clear()  # a hook may do to its copy what it likes
            return super().build_data(config)

    class Dependent(Counting):
        data_depends_on_config = True

    trial = Counting(CONFIG)
    assert trial.config == CONFIG
    first = trial.data["train"][0]
    trial.reset_config({**CONFIG, "lr": 0.1})
    for context in (TrialContext(study_seed=1), TrialContext(study_seed=1, args={"path": "a"})):
        with use_context(context):
            trial.reset_config(CONFIG)
    assert built == [(0, {}, 0.05), (1, {}, 0.05), (1, {"path": "a"}, 0.05)]
    assert not torch.equal(first, trial.data["train"][0])
    built.clear()
    trial = Dependent(CONFIG)
    trial.reset_config({**CONFIG, "lr": 0.1})
    assert [lr for _, _, lr in built] == [0.05, 0.1]


def test_all_trials_of_a_study_draw_the_same_data():
    a, b, c = (build(TrialContext(number=n, study_seed=s)) for n, s in ((0, 0), (7, 0), (0, 1)))
    assert torch.equal(a.data["train"][0], b.data["train"][0])
    assert not torch.equal(a.data["train"][0], c.data["train"][0])


def test_cleanup_frees():
    trial = Toy(CONFIG)
    trial.stop()
    assert not {"model", "optimizer", "data"} & trial.__dict__.keys()
    trial.reset_config(CONFIG)
    assert trial.step() == Toy(CONFIG).step()


# Device and precision.


def test_precision():
    full, half = build(TrialContext()), build(TrialContext(precision="bf16"))
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    a, b = full.evaluate()["loss"], half.evaluate()["loss"]
    # bf16 rounds by at most 2^-9 of a value, and all values here are below 2. There are three roundings in each of the
    # two layers (input, weight, output), and the cross entropy moves by at most twice as much as the scores.
    assert 0 < abs(a - b) < 2 * 6 * 2 * 2**-9
    assert math.isfinite(half.step()["train_loss"])
    with pytest.raises(ConfigError, match=r"trainable.precision=fp16 needs a GPU.*use trainable.precision=bf16"):
        build(TrialContext(precision="fp16"))
    with pytest.raises(ConfigError, match=r"trainable.precision=fp8 is unknown: use one of fp32, bf16, fp16") as error:
        build(TrialContext(precision="fp8"))
    assert error.value.key == "trainable.precision"


def test_a_gpu_that_torch_cannot_use_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    class Assigned(Toy):
        trial_resources = PlacementGroupFactory([{"CPU": 1, "GPU": 0.5}])

    with pytest.raises(RuntimeError, match=r"given 1 GPU, but torch.cuda.is_available\(\) is False"):
        build(TrialContext(gpus=1))
    with pytest.raises(RuntimeError, match=r"given 0.5 GPU"):
        Assigned(CONFIG)
    Assigned.trial_resources = PlacementGroupFactory([{"CPU": 1}])
    with use_context(TrialContext(gpus=1)):  # what Ray assigned comes first
        assert Assigned(CONFIG).device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(tmp_path, precision):
    context = TrialContext(gpus=1, precision=precision)
    trial, resumed = build(context), build(context)
    outside = torch.cuda.get_rng_state()
    trial.step()
    assert next(trial.model.parameters()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), outside)
    trial.save_checkpoint(str(tmp_path))
    resumed.load_checkpoint(str(tmp_path))
    assert trial.step()["loss"] == pytest.approx(resumed.step()["loss"], rel=1e-5)
    on_cpu = build(TrialContext())
    on_cpu.load_checkpoint(str(tmp_path))
    assert math.isfinite(on_cpu.step()["loss"])
