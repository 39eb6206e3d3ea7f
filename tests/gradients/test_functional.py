"""Modules as functions of their weights: buffers, and hypergradients of networks with BatchNorm and dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import Tensors, dense, flat, minimum, normal, relative, slope_of
from torch import Tensor, nn
from torch.func import grad, jacrev

from hpo_ray.gradients import SGD, ConjugateGradient, Exact, Functional, hypergradient, unrolled_hypergradient

X, Y, XV, YV = normal(0, 10, 2), normal(1, 10), normal(2, 8, 2), normal(3, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).double()


def by_hand(params: Tensors, x: Tensor) -> Tensor:
    """The same in training mode."""
    z = x @ params["0.weight"].T
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() * params["1.weight"] + params["1.bias"]
    return torch.tanh(z) @ params["3.weight"].T + params["3.bias"]


def losses(model: Any) -> tuple[Any, Any]:
    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        weight = sum(tensor.square().sum() for tensor in params.values())
        return (model(params, X)[:, 0] - Y).square().mean() + hparams["decay"].exp() * weight / 2

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return (model(params, XV)[:, 0] - YV).square().mean()

    return inner, outer


DECAY = {"decay": torch.tensor(-2.0, dtype=torch.float64)}


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_running_statistics_are_left_alone_until_they_are_asked_to_move() -> None:
    model, twin = Functional(network()), network()
    params, before = model.params(), buffers(model.module)
    assert set(before) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    moved = {name: tensor + 0.5 for name, tensor in params.items()}
    assert relative(model(moved, X), by_hand(moved, X)) < 1e-13
    inner, outer = losses(model)
    hypergradient(inner, outer, params, DECAY, ConjugateGradient(damping=5.0))
    unrolled_hypergradient(SGD(lambda p, h, step: inner(p, h)), outer, params, DECAY, steps=3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(model.module).items())

    twin.load_state_dict({**twin.state_dict(), **moved})
    twin(X)
    with torch.no_grad():
        model.update_buffers(moved, X)
    after = buffers(model.module)
    assert int(after["1.num_batches_tracked"]) == 1
    assert all(torch.equal(buffer, after[name]) for name, buffer in buffers(twin).items())
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    # Its own weights are as they were, and in evaluation mode the moved statistics count.
    assert all(torch.equal(params[name], weight) for name, weight in model.module.named_parameters())
    model.module.eval(), twin.eval()
    assert torch.equal(model(moved, XV), twin(XV)) and relative(model(moved, XV), by_hand(moved, XV)) > 1e-3


def test_buffers_move_without_a_graph_whatever_the_weights_are() -> None:
    model = Functional(network())
    params = {name: tensor.requires_grad_() for name, tensor in model.params().items()}
    model.update_buffers(params, X)
    assert not any(buffer.requires_grad for buffer in model.module.buffers())


def test_weights_are_copies_of_those_that_are_trained() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    model = Functional(module)
    params = model.params()
    assert list(params) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert not any(tensor.requires_grad for tensor in params.values())
    with torch.no_grad():
        params["3.bias"] += 1.0
    assert not torch.equal(params["3.bias"], module[3].bias)
    full = {"0.weight": module[0].weight, **params}
    assert relative(model(params, X), by_hand(full, X).detach()) < 1e-13


def test_weights_that_two_layers_share() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    module[2].weight = module[0].weight
    model = Functional(module)
    params = {name: normal(i, *tensor.shape) for i, (name, tensor) in enumerate(model.params().items())}
    assert list(params) == ["0.weight", "0.bias", "2.bias"]
    want = torch.tanh(X @ params["0.weight"].T + params["0.bias"]) @ params["0.weight"].T + params["2.bias"]
    assert relative(model(params, X), want) < 1e-14


def test_options_of_a_module_are_passed_on() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return scale * super().forward(x)

    model = Functional(Scaled(2, 1).double())
    params = model.params()
    assert torch.equal(model(params, X, scale=3.0), 3.0 * nn.functional.linear(X, *params.values()))


@pytest.mark.parametrize("solver", [ConjugateGradient(tol=1e-13, max_iter=200), Exact()], ids=repr)
def test_a_hypergradient_through_batch_normalisation(solver: Any) -> None:
    model = Functional(network())
    plain, plain_outer = losses(by_hand)
    params = minimum(plain, model.params(), DECAY)
    got = hypergradient(*losses(model), params, DECAY, solver)

    # By a dense solve, at the same weights
    vector = flat(params)
    a, b = jacrev(grad(dense(plain, params, DECAY)))(vector), grad(dense(plain_outer, params, DECAY))(vector)
    want = -DECAY["decay"].exp() * vector @ torch.linalg.solve(a, b)
    curvatures = torch.linalg.eigvalsh(a)
    # eps kappa, and the gradient that is left, 3e-13 over the lowest curvature
    assert curvatures[0] > 1e-2 and curvatures[-1] / curvatures[0] < 1e4
    assert relative(got.grads["decay"], want) < 1e-10
    # By training anew: see the test of a network without it for the bound.
    through = slope_of(
        lambda h: float(plain_outer(minimum(plain, params, {"decay": DECAY["decay"] + h}), DECAY)), 1e-3
    )  # fmt: skip
    assert float(got.grads["decay"]) == pytest.approx(through, rel=1e-7)


def test_dropout_in_training_mode() -> None:
    """One call, one mask: what the solver works on is symmetric and the same in all products."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1, bias=False)).double()
    calls, masks = 0, []

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        nonlocal calls
        calls += 1
        masks.append((output != 0).double() * 2.0)

    module[1].register_forward_hook(count)
    module[2].requires_grad_(False)  # so that the loss is a quadratic
    model = Functional(module)
    params = model.params()

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        weight = sum(tensor.square().sum() for tensor in params.values())
        return (model(params, X)[:, 0] - Y).square().mean() + hparams["decay"].exp() * weight / 2

    outer: Any = lambda p, h: sum((tensor - 1.0).square().sum() for tensor in p.values())  # noqa: E731
    got = hypergradient(inner, outer, params, DECAY, ConjugateGradient(tol=1e-12, max_iter=60))
    assert calls == 1 and got.converged and got.products > 5

    def masked(params: Tensors, hparams: Tensors) -> Tensor:
        hidden = (X @ params["0.weight"].T + params["0.bias"]) * masks[0]
        weight = sum(tensor.square().sum() for tensor in params.values())
        return ((hidden @ module[2].weight.T)[:, 0] - Y).square().mean() + hparams["decay"].exp() * weight / 2

    assert relative(got.grads, hypergradient(masked, outer, params, DECAY, Exact()).grads) < 1e-9
    model(params, X)
    assert not torch.equal(masks[0], masks[1])
