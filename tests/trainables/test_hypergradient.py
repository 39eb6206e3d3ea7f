"""The trainable that moves hyperparameters along their gradient: steps by hand, checkpoints, studies, bad input."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mine_differentiable import Net, OneRate, Rates, Ridge, Saddle, regression

import hpo_ray
from hpo_ray import gradients as g
from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, Reported, read
from hpo_ray.space import Space
from hpo_ray.testing import run_study
from hpo_ray.trainables import Hypergradient, TrialContext
from hpo_ray.trainables.context import use_context
from hpo_ray.trainables.differentiable import as_task
from hpo_ray.trainables.hypergradient import HypergradientTrainable
from hpo_ray.trainables.settings import OF_SPACE, SEARCHABLE

DECAY = {"decay": {"low": 1e-4, "high": 10.0, "log": True}}
RATE = {"inner_lr": {"low": 0.01, "high": 0.3, "log": True}}
MOMENTUM = {"inner_momentum": {"low": 0.0, "high": 0.95}}


def make(
    task: type,
    config: dict[str, Any],
    space: dict[str, Any] = DECAY,
    number: int = 0,
    precision: str = "fp32",
    **rules: Any,
) -> HypergradientTrainable:
    """A trial of a task."""
    known = as_task(task)
    assert known is not None
    with use_context(TrialContext(number=number, max_resource=9, space=Space(space), precision=precision)):
        searched = [name for name in space if name in SEARCHABLE and name not in OF_SPACE]
        trial: HypergradientTrainable = Hypergradient(**rules).searching(searched).bind(known)(dict(config))
    return trial


def implicit_by_hand(w: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """The derivative in log(decay) by the closed form, at any weights: -decay w (A^-1 b)."""
    x, y = regression(0)["train"]
    hessian = x.T @ x / len(y) + torch.diag(decay)
    x, y = regression(0)["validation"]
    return -decay * w * torch.linalg.solve(hessian, x.T @ (x @ w - y) / len(y))


# Steps.


@pytest.mark.parametrize(
    "rules",
    [{}, {"estimator": "exact"}, {"estimator": "fixed_point", "tol": 1e-12, "iterations": 2000}],
    ids=lambda rules: rules.get("estimator", "conjugate_gradient"),
)
def test_a_step_of_the_hyperparameters_is_the_closed_form(rules: dict[str, Any]) -> None:
    rules = {"tol": 1e-13, **rules}
    trial = make(Ridge, {"decay": 0.1}, outer_optimizer="sgd", outer_lr=0.7, **rules)
    for _ in range(3):
        before = trial._free["decay"].detach().clone()
        report = trial.step()
        expected = implicit_by_hand(trial.params["w"], before.exp())
        assert torch.allclose(trial._free["decay"], before - 0.7 * expected, rtol=1e-9, atol=1e-13)
        assert torch.equal(trial.hparams["decay"], before.exp()), (
            "the report belongs to what the weights were trained with"
        )
        assert report["hyperparameter/decay.mean"] == before.exp().mean().item()
        own_units = (expected / before.exp()).norm().item()
        assert report["hypergradient_norm"] == pytest.approx(own_units, rel=1e-9)
        assert report["residual"] < 1e-11 and report["damping"] == 0.0


def test_the_training_is_gradient_descent() -> None:
    trial = make(Ridge, {"decay": 0.1}, inner_lr=0.05, inner_momentum=0.5, inner_steps=7)
    start = trial.params["w"].clone()
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.05, momentum=0.5)
    task, losses = Ridge(), []
    task.init({"decay": 0.1}, 0)
    for _ in range(7):
        optimizer.zero_grad()
        loss = task.inner_loss(
            {"w": weights}, {"decay": torch.full((5,), 0.1, dtype=torch.float64)}, task.data["train"]
        )
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    report = trial.step()
    assert torch.allclose(trial.params["w"], weights, rtol=1e-13)
    assert report["train_loss"] == pytest.approx(sum(losses) / 7, rel=1e-6)
    assert report["loss"] == task.outer_loss({"w": trial.params["w"]}, task.data["validation"]).item()
    assert report["test_loss"] == task.outer_loss({"w": trial.params["w"]}, task.data["test"]).item()
    assert report["error"] == task.metrics({"w": trial.params["w"]}, task.data["validation"])["error"]
    assert trial.test() == {"loss": report["test_loss"], "error": report["test_error"]}


def test_it_descends_the_validation_loss_and_says_what_it_cost() -> None:
    trial = make(Ridge, {"decay": 5.0}, iterations=4, tol=0.0)
    reports = [trial.step() for _ in range(30)]
    assert reports[-1]["loss"] < 0.7 * reports[0]["loss"]
    # 40 gradients of the training; a gradient and its graph, four products, one with the mixed derivative, one outer
    # gradient; and from the second step on one product more, for the residual of the last solution.
    costs = [b["gradient_evaluations"] - a["gradient_evaluations"] for a, b in itertools.pairwise(reports)]
    assert reports[0]["gradient_evaluations"] == 40 + 2 * 4 + 4
    assert set(costs) == {40 + 2 * 5 + 4}


def test_bounds_hold() -> None:
    trial = make(Ridge, {"decay": 9.0}, outer_lr=3.0, outer_optimizer="adam")
    for _ in range(8):
        report = trial.step()
        assert report["hyperparameter/decay.min"] >= 1e-4 * (1 - 1e-9)
        assert report["hyperparameter/decay.max"] <= 10.0 * (1 + 1e-9)
    assert report["hyperparameter/decay.min"] < 1e-2 or report["hyperparameter/decay.max"] > 9.9


def test_fixed_and_stepped_names_stay() -> None:
    for domain in (0.1, {"low": 0.1, "high": 0.5, "step": 0.1}, [0.1, 0.2]):
        space = {**RATE, **MOMENTUM, "decay": domain}
        config = {"decay": 0.1, "inner_lr": 0.1, "inner_momentum": 0.5}
        trial = make(Rates, config, space, estimator="forward", inner_steps=4)
        trial.step()
        report = trial.step()
        assert set(trial.hparams["decay"].tolist()) == {0.1} and "hyperparameter/decay.mean" not in report
        assert report["hyperparameter/inner_lr"] != 0.1 and report["hyperparameter/inner_momentum"] != 0.5


def test_unrolled_has_a_rate_for_each_step_of_a_training_from_the_start() -> None:
    space = {**DECAY, **RATE, **MOMENTUM}
    config = {"decay": 0.1, "inner_lr": 0.1, "inner_momentum": 0.5}
    trial = make(Rates, config, space, estimator="unrolled", inner_steps=6, outer_optimizer="sgd", outer_lr=0.05)
    start = dict(trial.params)
    task = Rates()
    task.init(config, 0)
    trial.step()
    measured = trial.hparams
    assert measured["inner_lr"].shape == (6,) and measured["inner_momentum"].shape == ()
    update = g.SGD(lambda p, h, step: task.inner_loss(p, h, task.data["train"]), keeps_momentum=True)
    by_hand = g.unrolled_hypergradient(
        update, lambda p, h: task.outer_loss(p, task.data["validation"]), start, measured, steps=6
    )
    assert by_hand.params is not None
    assert torch.allclose(trial.params["w"], by_hand.params["w"], rtol=1e-12)
    moved = trial._values()
    rate, slope = measured["inner_lr"], by_hand.grads["inner_lr"]
    assert torch.allclose(moved["inner_lr"], (rate.log() - 0.05 * slope * rate).exp(), rtol=1e-10)
    place, width = torch.logit(measured["inner_momentum"] / 0.95), 0.95
    inside = torch.sigmoid(place)
    new = place - 0.05 * by_hand.grads["inner_momentum"] * width * inside * (1 - inside)
    assert torch.allclose(moved["inner_momentum"], 0.95 * torch.sigmoid(new), rtol=1e-10)
    trial.step()
    assert trial._trained == 6, "each training starts anew"


@pytest.mark.parametrize("rules", [{"truncate": 3}, {"keep": "sqrt"}, {"keep": "graphs"}, {"restart": False}], ids=str)
def test_variants_of_unrolling(rules: dict[str, Any]) -> None:
    config, space = {"decay": 0.1, "inner_lr": 0.1}, {**DECAY, **RATE}
    plain, other = (make(Rates, config, space, estimator="unrolled", inner_steps=9, **more) for more in ({}, rules))
    first, second = plain.step(), other.step()
    assert second["loss"] == first["loss"]
    same = second["hypergradient_norm"] == pytest.approx(first["hypergradient_norm"], rel=1e-10)
    assert same == ("keep" in rules), "one rate for all steps, where training goes on"
    plain.step()
    other.step()
    assert (plain._trained, other._trained) == (9, 18 if rules == {"restart": False} else 9)


def test_forward_online_follows_the_whole_past() -> None:
    """With hyperparameters that stand still, what is carried along is the derivative of the whole training."""
    space = {**DECAY, **RATE}
    rules = {"outer_lr": 1e-12, "outer_optimizer": "sgd", "inner_steps": 5}
    online = make(Rates, {"decay": 0.1, "inner_lr": 0.1}, space, estimator="forward", **rules)
    start = dict(online.params)
    for _ in range(4):
        online.step()
    task = Rates()
    task.init({}, 0)
    whole = g.unrolled_hypergradient(
        g.SGD(lambda p, h, step: task.inner_loss(p, h, task.data["train"])),
        lambda p, h: task.outer_loss(p, task.data["validation"]),
        start,
        online.hparams,
        steps=20,
    )
    carried = online._project_tangents()
    for name in ("decay", "inner_lr"):
        assert torch.allclose(carried.grads[name], whole.grads[name], rtol=1e-6)


def test_forward_online_takes_weights_without_dimensions() -> None:
    class Shifted(OneRate):
        def init(self, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
            return {**super().init(config, seed), "shift": torch.tensor(0.0, dtype=torch.float64)}

        def outer_loss(self, params: dict[str, torch.Tensor], batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return 0.5 * ((batch[0] @ params["w"] + params["shift"] - batch[1]) ** 2).mean()

    trial = make(Shifted, {"inner_lr": 0.05}, RATE, estimator="forward")
    first, task = trial.step()["hypergradient_norm"], trial.task
    whole = g.unrolled_hypergradient(
        g.SGD(lambda p, h, step: task.inner_loss(p, h, task.data["train"])),
        lambda p, h: task.outer_loss(p, task.data["validation"]),
        {"w": torch.zeros(5, dtype=torch.float64), "shift": torch.tensor(0.0, dtype=torch.float64)},
        {"inner_lr": torch.tensor(0.05, dtype=torch.float64)},
        steps=10,
    )
    assert first == pytest.approx(whole.grads["inner_lr"].abs().item(), rel=1e-6)


def test_descent_of_the_learning_rate_by_hand() -> None:
    trial = make(OneRate, {"inner_lr": 0.02}, RATE, estimator="descent", outer_lr=0.002)
    x, y = regression(0)["train"]
    w, rate, last = torch.zeros(5, dtype=torch.float64), 0.02, None
    for _ in range(20):
        slope = x.T @ (x @ w - y) / len(y)
        if last is not None:
            rate = min(max(rate + 0.002 * float(slope @ last), 0.01), 0.3)
        w, last = w - rate * slope, slope
    trial.step()
    report = trial.step()
    assert report["hyperparameter/inner_lr"] == pytest.approx(rate, rel=1e-6) and rate > 0.03
    assert torch.allclose(trial.params["w"], w, rtol=1e-6)


def test_damping_grows_where_curvature_is_negative_and_falls_again() -> None:
    trial = make(Saddle, {"pull": 0.1}, {"pull": {"low": 0.0, "high": 1.0}})
    reports = [trial.step() for _ in range(25)]
    damping = [report["damping"] for report in reports]
    assert damping[0] > 0.9, "the curvature is 3 w^2 - 1 at w about 0.1"
    assert damping[-1] < damping[0] / 100
    assert all(math.isfinite(report["hypergradient_norm"]) for report in reports)


def test_damping_grows_where_nothing_is_solved() -> None:
    """What a sketch of rank 1 misses is divided by the damping alone."""
    trial = make(Ridge, {"decay": 0.1}, estimator="nystrom", iterations=1, damping=1e-6)
    report = trial.step()
    assert report["residual"] < 1.0 and report["damping"] > 1e-3


def test_k_folds() -> None:
    trial = make(Ridge, {"decay": 0.1}, outer_folds=4, tol=1e-13)
    held_out = [set(map(tuple, splits["validation"][0].tolist())) for splits in trial._splits]
    kept = [set(map(tuple, splits["train"][0].tolist())) for splits in trial._splits]
    assert len(set().union(*held_out)) == sum(map(len, held_out)) == 36
    assert all(not a & b and len(a | b) == 36 for a, b in zip(held_out, kept, strict=True))
    before = trial.hparams["decay"].clone()
    report = trial.step()
    task = Ridge()
    slope, losses = torch.zeros(5, dtype=torch.float64), []
    for k, splits in enumerate(trial._splits):
        w = trial.params[f"{k}/w"]
        losses.append(task.outer_loss({"w": w}, splits["validation"]).item())
        (x, y), (xv, yv) = splits["train"], splits["validation"]
        hessian = x.T @ x / len(y) + torch.diag(before)
        slope += -w * torch.linalg.solve(hessian, xv.T @ (xv @ w - yv) / len(yv)) / 4
    assert report["loss"] == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert report["hypergradient_norm"] == pytest.approx(slope.norm().item(), rel=1e-9)
    assert trial.test()["loss"] == pytest.approx(report["test_loss"], rel=1e-12)


def test_half_precision_of_the_losses_comes_near() -> None:
    full, half = (make(Net, {"decay": 0.01}, precision=p, inner_lr=1e-3) for p in ("fp32", "bf16"))
    a, b = full.step(), half.step()
    assert b["loss"] == pytest.approx(a["loss"], rel=0.05) and b["loss"] != a["loss"]
    assert math.isfinite(b["hypergradient_norm"])


def test_half_precision_in_forward_mode() -> None:
    trial = make(Net, {"decay": 0.01}, precision="bf16", estimator="forward")
    assert all(math.isfinite(trial.step()["hypergradient_norm"]) for _ in range(2))


def test_unrolled_differentiates_the_loss_that_it_reports() -> None:
    """With running statistics, which the training has moved by then."""

    class Normed(Net):
        batch_size = outer_batch_size = None

        def init(self, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
            self.data = regression(0, torch.float32)
            self.model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
            self.call = g.Functional(self.model)
            return self.call.params()

        def error(self, params: dict[str, torch.Tensor], batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return ((self.call(params, batch[0])[:, 0] - batch[1]) ** 2).mean()

        def after_step(self, params: dict[str, torch.Tensor], batch: tuple[torch.Tensor, ...]) -> None:
            self.model.train()
            self.call.update_buffers(params, batch[0])

        def state(self) -> dict[str, torch.Tensor]:
            return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

        def load_state(self, state: Any) -> None:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(state[name])

    trial, seen = make(Normed, {"decay": 0.01}, estimator="unrolled", inner_steps=6), []
    outer_on = trial._outer_on
    trial._outer_on = lambda *args: seen.append(value := outer_on(*args)) or value  # type: ignore[method-assign]
    for _ in range(2):
        report = trial.step()
        assert seen.pop().item() == pytest.approx(report["loss"], rel=1e-6)
        assert trial.task.model[1].num_batches_tracked == 6, "each training starts anew"  # type: ignore[attr-defined]


def test_weights_that_are_frozen_stay() -> None:
    class Frozen(Net):
        def init(self, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
            params = super().init(config, seed)
            self.model[0].weight.requires_grad_(False)
            return params

    trial = make(Frozen, {"decay": 0.01})
    before = trial.task.model[0].weight.clone()  # type: ignore[attr-defined]
    report = trial.step()
    assert set(trial.params) == {"0.bias", "3.weight", "3.bias"} and math.isfinite(report["hypergradient_norm"])
    assert torch.equal(trial.task.model[0].weight, before)  # type: ignore[attr-defined]


def test_a_hyperparameter_of_the_tasks_own_may_be_called_as_a_setting_of_a_solver() -> None:
    known = as_task(Ridge)
    assert known is not None
    space = {**DECAY, "damping": {"low": 1.0, "high": 5.0}}
    with use_context(TrialContext(space=Space(space))):
        trial = Hypergradient().bind(known)({"decay": 0.1, "damping": 3.0})
    assert trial.step()["damping"] == 0.0


# Checkpoints.

CASES: list[tuple[type, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (Ridge, {"decay": 0.1}, DECAY, {}),
    (Ridge, {"decay": 0.1}, DECAY, {"estimator": "neumann", "iterations": 7}),
    (Ridge, {"decay": 0.1}, DECAY, {"outer_folds": 3, "batch_size": 9, "outer_batch_size": 11}),
    (Ridge, {"decay": 0.1}, DECAY, {"estimator": "none", "batch_size": 9}),
    (
        Rates,
        {"decay": 0.1, "inner_lr": 0.1, "inner_momentum": 0.5},
        {**DECAY, **RATE, **MOMENTUM},
        {"estimator": "forward", "inner_steps": 4},
    ),
    (Rates, {"decay": 0.1, "inner_lr": 0.1}, {**DECAY, **RATE}, {"estimator": "unrolled", "inner_steps": 5}),
    (
        Rates,
        {"decay": 0.1, "inner_lr": 0.1},
        {**DECAY, **RATE},
        {"estimator": "unrolled", "restart": False, "batch_size": 7},
    ),
    (OneRate, {"inner_lr": 0.05}, RATE, {"estimator": "descent", "outer_lr": 0.01}),
    (Saddle, {"pull": 0.1}, {"pull": {"low": 0.0, "high": 1.0}}, {}),
    (Net, {"decay": 0.01}, DECAY, {}),
    (Net, {"decay": 0.01}, DECAY, {"estimator": "nystrom", "iterations": 5}),
    (Net, {"decay": 0.01}, DECAY, {"estimator": "darts"}),
    (Net, {"decay": 0.01}, DECAY, {"estimator": "sama", "epsilon": 0.1}),
    (Net, {"decay": 0.01}, DECAY, {"estimator": "unrolled", "keep": "sqrt"}),
    (Net, {"decay": 0.01}, DECAY, {"estimator": "forward", "inner_steps": 4}),
]


def named(case: Any) -> str:
    return case[0].__name__ + " " + " ".join(f"{k}={v}" for k, v in case[3].items())


@pytest.mark.parametrize("case", CASES, ids=named)
def test_taken_up_in_the_middle_it_gives_the_same_bits(tmp_path: Path, case: Any) -> None:
    task, config, space, rules = case
    straight, cut = make(task, config, space, **rules), make(task, config, space, **rules)
    reports = [straight.step() for _ in range(4)]
    assert [cut.step(), cut.step()] == reports[:2]
    cut.save_checkpoint(str(tmp_path))
    torch.manual_seed(99)
    other = make(task, config, space, number=7, **rules)  # another trial's object, with other seeds
    other.step()
    other.load_checkpoint(str(tmp_path))
    assert [other.step(), other.step()] == reports[2:]
    assert all(torch.equal(other.params[name], value) for name, value in straight.params.items())


def test_a_reused_object_is_as_a_fresh_one() -> None:
    fresh = make(Net, {"decay": 0.1})
    reused = make(Net, {"decay": 0.01}, number=3)
    reused.step()
    with use_context(TrialContext(number=0, max_resource=9, space=Space(DECAY))):
        assert reused.reset_config({"decay": 0.1})
    assert [reused.step(), reused.step()] == [fresh.step(), fresh.step()]


def test_after_a_copy_the_outer_rate_is_the_trials_own(tmp_path: Path) -> None:
    space = {**DECAY, "outer_lr": {"low": 0.01, "high": 1.0, "log": True}}
    donor = make(Ridge, {"decay": 0.1, "outer_lr": 0.1}, space, outer_optimizer="sgd")
    donor.step()
    donor.save_checkpoint(str(tmp_path))
    copy = make(Ridge, {"decay": 3.0, "outer_lr": 0.8}, space, number=1, outer_optimizer="sgd")
    copy.load_checkpoint(str(tmp_path))
    assert torch.equal(copy.params["w"], donor.params["w"])
    assert torch.equal(copy._values()["decay"], donor._values()["decay"]), "the donor's hyperparameters, not 3.0"
    starts = [trial._free["decay"].detach().clone() for trial in (donor, copy)]
    donor.step()
    copy.step()
    moved = [(trial._free["decay"] - start).detach() for trial, start in zip((donor, copy), starts, strict=True)]
    assert torch.allclose(moved[1], 8 * moved[0], rtol=1e-9)


def test_a_checkpoint_that_does_not_fit_names_what(tmp_path: Path) -> None:
    make(Net, {"decay": 0.1, "units": 4}, {**DECAY, "units": [4, 6]}).save_checkpoint(str(tmp_path))
    with pytest.raises(ConfigError, match=r"another configuration.*'units': 4.*does not fit.*0\.weight.*leave them"):
        make(Net, {"decay": 0.1, "units": 6}, {**DECAY, "units": [4, 6]}).load_checkpoint(str(tmp_path))


# Studies.


def study(task: str, *more: str, space: str = "{decay: {low: 1e-4, high: 10.0, log: true}}") -> list[str]:
    return [
        "task=custom",
        f"task.trainable=mine_differentiable.{task}",
        f"space={space}",
        "task.max_resource=4",
        "executor=inprocess",
        *more,
    ]


def test_the_result_of_a_trial_is_where_its_hyperparameters_went(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "{decay: 0.1, inner_lr: {low: 0.01, high: 0.3, log: true}}"
    typed = study("Rates", "method=forward_online", "trainable.inner_steps=4", space=space)
    assert main([*typed, "study.name=it"]) == 0
    out = capsys.readouterr().out
    result = json.loads((folder / "outputs/it/result.json").read_text())["best"]
    rate = result["hyperparameters"]["inner_lr"]
    assert rate != result["config"]["inner_lr"] == pytest.approx(math.sqrt(0.01 * 0.3))
    assert f"inner_lr: {rate} (by gradient, from {result['config']['inner_lr']})" in out and "decay: 0.1\n" in out
    trial = json.loads((folder / "outputs/it/trials.jsonl").read_text())
    assert trial["hyperparameters"] == {"inner_lr": rate}
    assert json.loads((folder / "outputs/it/best/best.json").read_text())["hyperparameters"] == {"inner_lr": rate}
    best = hpo_ray.load_best("outputs/it")
    assert best.hparams["inner_lr"].item() == rate
    assert best.test() == pytest.approx(result["test_metrics"]) and result["metrics"]["loss"] == result["value"]


def test_a_black_box_trains_the_same_task(folder: Path) -> None:
    result = run_study(
        study("Rates", "method=random", "budget.trials=3", space="{decay: [0.1, 1.0], inner_lr: 0.05}"), folder
    )
    assert [t.state for t in result.records] == ["completed"] * 3
    for trial in result.records:
        assert trial.hyperparameters == {} and trial.metrics["gradient_evaluations"] == 4 * 40
    fixed = make(Rates, {"decay": result.records[0].config["decay"], "inner_lr": 0.05}, {}, estimator="none")
    losses = [fixed.step()["loss"] for _ in range(4)]
    assert len({value for _, value in result.records[0].history}) == 4 and losses[3] < losses[0]


def test_a_training_from_the_start_ends_by_itself_without_a_gradient() -> None:
    class Once(OneRate):
        restarts = True

    trial = make(Once, {"inner_lr": 0.1}, RATE, estimator="none")
    assert trial.step()["done"] is True
    assert "done" not in make(OneRate, {"inner_lr": 0.1}, RATE, estimator="none").step()


@pytest.mark.parametrize("method", ["hypergradient_multistart", "unrolled", "forward_online"])
def test_conditions_may_leave_nothing_to_move(folder: Path, method: str) -> None:
    space = "{kind: [a, b, c], decay: {low: 1e-4, high: 1.0, when: {kind: c}}}"
    typed = study("Sometimes", f"method={method}", "budget.trials=6", "searcher=random", space=space)
    result = run_study([*typed, "trainable.inner_steps=4"], folder)
    moved = {trial.config["kind"]: bool(trial.hyperparameters) for trial in result.records}
    assert {trial.state for trial in result.records} <= {"completed", "stopped"}
    assert all(moves == (kind == "c") for kind, moves in moved.items()) and len(moved) > 1


def test_asha_can_count_gradient_evaluations(folder: Path) -> None:
    typed = study(
        "Ridge", "method=hypergradient_multistart", "scheduler.time_attr=gradient_evaluations", "budget.trials=12"
    )
    result = run_study([*typed, "task.max_resource=500", "scheduler.min_resource=50", "scheduler.eta=3"], folder)
    assert any(trial.state == "stopped" for trial in result.records)
    assert max(trial.resource for trial in result.records) >= 500
    assert all(trial.resource == trial.metrics["gradient_evaluations"] for trial in result.records)


def test_a_population_explores_the_outer_rate_alone(folder: Path) -> None:
    typed = study("Ridge", "method=hypergradient_pbt", "scheduler.population=4", "scheduler.interval=1", "seed=1")
    result = run_study([*typed, "task.max_resource=8"], folder)
    schedules = [trial.schedule for trial in result.records if trial.schedule]
    assert schedules
    started = {trial.config["decay"] for trial in result.records}
    for schedule in schedules:
        configs = [config for _, config in schedule]
        assert {config["decay"] for config in configs} <= started, "what the gradient moves is not explored"
        assert len({config["outer_lr"] for config in configs}) > 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("trainable.inner_lr=1000", "step 1: the inner problem diverges: inner_loss is"),
        ("task.trainable=mine_differentiable.NaNAtTheThird task.max_resource=7", "step 3: "),
    ],
)
def test_what_is_not_finite_ends_the_trial_with_the_step(folder: Path, overrides: str, says: str) -> None:
    with pytest.raises(StudyError, match=f"all 1 trials failed(.|\n)*{says}"):
        run_study(study("Ridge", "method=hypergradient", *overrides.split(), "study.name=it"), folder)
    reports = [event for event in read(folder / "it" / FILE_NAME) if isinstance(event, Reported)]
    assert len(reports) == (2 if "NaN" in overrides else 0)


BAD = [
    (["method=hypergradient", "task=branin"], ["hpo_ray.tasks.analytic", "differentiable task", "init, inner_loss"]),
    (["method=hypergradient", "task.trainable=mine.train"], ["it is a function", "inner_loss"]),
    (["method=hypergradient", "task.trainable=mine_differentiable.NoInit"], ["lacks init, inner_loss, outer_loss"]),
    (["method=random", "task.trainable=mine_differentiable.NoInit"], ["lacks init, inner_loss, outer_loss"]),
    (["method=hypergradient", "space={decay: [0.1, 1.0]}"], ["space: none", "decay", "range of floats"]),
    (["method=hypergradient", "space={decay: 0.1, other: {low: 0, high: 1.0}}"], ["none of what Ridge differentiates"]),
    (["method=hypergradient", "task.trainable=mine_differentiable.Ignores"], ["'decay'", "inner_loss does not depend"]),
    (["method=unrolled", "task.trainable=mine_differentiable.Ignores"], ["'decay'", "depends on"]),
    (["method=hypergradient", "task.trainable=mine_differentiable.ManyLosses"], ["outer_loss", "scalar", "(12,)"]),
    (["method=hypergradient", "task.trainable=mine_differentiable.NoData"], ["init", "self.data", "validation"]),
    (
        ["method=hypergradient", "task.trainable=mine_differentiable.Weighted"],
        ["not differentiable with respect to argument 'weight'", "Weighted"],
    ),
    (["method=hypergradient", "task.trainable=mine_differentiable.Forgets"], ["hyperparameters", "decay"]),
    (
        [
            "method=hypergradient",
            "task.trainable=mine_differentiable.OneRate",
            "space={inner_lr: {low: 0.1, high: 0.2}}",
        ],
        ["space.inner_lr", "conjugate_gradient", "method=unrolled", "forward_online", "hypergradient_descent"],
    ),
    (["method=hypergradient_descent"], ["space.decay", "descent moves inner_lr alone", "method=hypergradient"]),
    (["method=hypergradient", "trainable.estimator=cg"], ["trainable.estimator=cg", "conjugate_gradient"]),
    (
        ["method=hypergradient", "trainable.truncate=3"],
        ["trainable.truncate=3", "conjugate_gradient has none", "unrolled"],
    ),
    (["method=unrolled", "trainable.iterations=3"], ["trainable.iterations=3", "unrolled has none"]),
    (["method=hypergradient", "trainable.iterations=0"], ["trainable.iterations=0", ">= 1"]),
    (["method=hypergradient", "trainable.outer_lr=0"], ["trainable.outer_lr=0", "> 0"]),
    (["method=hypergradient", "trainable.damping=-1"], ["trainable.damping=-1", ">= 0"]),
    (
        ["method=hypergradient", "trainable.estimator=nystrom", "trainable.damping=0"],
        ["trainable.damping=0", "nystrom"],
    ),
    (["method=hypergradient", "trainable.inner_momentum=1"], ["trainable.inner_momentum=1", "below 1"]),
    (["method=hypergradient", "trainable.outer_optimizer=lion"], ["trainable.outer_optimizer=lion", "adam"]),
    (["method=hypergradient", "trainable.estimator=sama"], ["estimator=sama", "inner_optimizer=adam"]),
    (["method=hypergradient", "trainable.outer_folds=99"], ["trainable.outer_folds=99", "36"]),
    (
        ["method=hypergradient", "trainable.outer_folds=2", "task.trainable=mine_differentiable.Unlike"],
        ["trainable.outer_folds=2", "pooled"],
    ),
    (
        ["method=hypergradient", "trainable.tol={low: 0.1, high: 0.2}"],
        ["trainable.tol", "can't be searched", "outer_lr"],
    ),
    (["method=hypergradient", "trainable.outer_lr={low: 2.0, high: 1.0}"], ["outer_lr", "low"]),
    (
        ["method=hypergradient", "trainable.outer_lr={low: 0.1, high: 1.0}", "+space.outer_lr={low: 0.1, high: 1.0}"],
        ["outer_lr is in the space, too"],
    ),
    (["method=hypergradient", "trainable.outr_lr=1"], ["trainable.outr_lr=1", "nearest: trainable.outer_lr"]),
    (["method=pbt", "trainable=hypergradient"], ["moved by the gradient", "trainable.outer_lr="]),
    (["method=hypergradient", "searcher.middle_first=3"], ["searcher.middle_first=3", "true or false"]),
    (["method=hypergradient", "trainable.outer_lr={low: -1.0, high: 1.0}"], ["trainable.outer_lr=-1.0", "> 0"]),
    (
        ["method=hypergradient", "trainable.truncate={low: 1, high: 5}"],
        ["trainable.truncate=1", "has none"],
    ),
    (["method=hypergradient", "trainable.precision=fp16", "resources=gpu"], ["trainable.precision=fp16", "bf16"]),
    (
        ["method=hypergradient_descent", "trainable.outer_optimizer=sgd"],
        ["trainable.outer_optimizer=sgd", "descent has none"],
    ),
    (
        ["method=hypergradient", "trainable.estimator=none", "trainable.outer_lr=0.1"],
        ["trainable.outer_lr", "none has"],
    ),
    (["method=forward_online", "task=weight_decay_per_parameter"], ["forward", "GiB", "method=hypergradient"]),
    (["trainable=hypergradien"], ["trainable=hypergradien", "nearest: hypergradient"]),
    (["+trainable.inner_lr=1"], ["trainable.inner_lr=1"]),
    (["method=hypergradient", "fidelity=steps"], ["fidelity=steps", "epochs"]),
]


@pytest.mark.parametrize(("typed", "says"), BAD, ids=lambda value: " ".join(value)[:70])
def test_a_mistake_is_one_message_with_the_fix_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], typed: list[str], says: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    keys = {word.partition("=")[0] for word in typed}
    own = [word for word in study("Ridge") if word.partition("=")[0] not in keys]
    if "task=branin" in typed or "task=weight_decay_per_parameter" in typed:
        own = ["executor=inprocess"]
    assert main([*own, *typed]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("hpo_ray: ") and err.count("\n") == 1 and "Traceback" not in err
    for part in says:
        assert part in err
    assert out == "" and [path for path in sorted(folder.rglob("*")) if "pycache" not in str(path)] == before


def test_a_task_that_fails_on_the_driver_alone_is_left_to_its_trials() -> None:
    class Elsewhere(Ridge):
        def init(self, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
            raise FileNotFoundError("/data/on/the/workers")

    task = as_task(Elsewhere)
    assert task is not None
    Hypergradient().bind(task).check_study(TrialContext(space=Space(DECAY)))  # type: ignore[attr-defined]
