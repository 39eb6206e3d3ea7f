"""What is compared: each tool's hypergradient of the problem, as a function without arguments; and the worker.

Run by `speed.py` in the environment of each tool. Reads commands from stdin, one JSON object a line, and answers each
with one.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from problem import RATE, Bare, Problem, bare_implicit, bare_unrolled, reference_cg, reference_neumann, relative_error
from torch import Tensor

Call = Callable[[], Sequence[Tensor]]
"""Computes one hypergradient, a tensor for each of the problem's hyperparameters."""


def ours(problem: Problem, k: int, alpha: float, method: str) -> Call:
    from hpo_ray.gradients import ConjugateGradient, Neumann, Nystrom, hypergradient

    solvers: dict[str, Any] = {
        "cg": lambda: ConjugateGradient(tol=0.0, max_iter=k),
        "neumann": lambda: Neumann(terms=k, step_size=alpha),
        "nystrom": lambda: Nystrom(rank=k, damping=1.0),
    }
    solver = solvers[method]()
    losses = problem.inner_loss, problem.outer_loss
    return lambda: list(hypergradient(*losses, problem.params, problem.hparams, solver).grads.values())


def ours_unrolled(problem: Problem, steps: int, **options: Any) -> Call:
    from hpo_ray.gradients import SGD, unrolled_hypergradient

    update = SGD(problem.inner_loss, inner_lr=RATE)
    start = update, problem.outer_loss, problem.params, problem.hparams, steps
    return lambda: list(unrolled_hypergradient(*start, **options).grads.values())


class BettyProblem:
    """As much of betty's `Problem` as its solvers call: without its engine, whose cost is not what is measured."""

    paths: tuple[()] = ()
    cur_batch = None

    def __init__(self, tensors: list[Tensor], config: Any, loss: Callable[[], Tensor]) -> None:
        self._tensors, self.config, self._loss = tensors, config, loss

    def parameters(self) -> list[Tensor]:
        return self._tensors

    trainable_parameters = parameters

    def training_step_exec(self, batch: None) -> Tensor:
        return self._loss()


def betty(problem: Problem, k: int, alpha: float, method: str) -> Call:
    from betty.configs import Config
    from betty.hypergradient import get_grads

    kind = {"type": method, f"{method}_iterations": k, f"{method}_alpha": 1.0 if method == "cg" else alpha}
    config = Config(**kind)

    def call() -> Sequence[Tensor]:
        params, hparams = problem.leaves()
        lower = BettyProblem(list(params.values()), config, lambda: problem.inner_loss(params, hparams))
        upper = BettyProblem(list(hparams.values()), Config(), lambda: problem.outer_loss(params, hparams))
        found: Sequence[Tensor] = get_grads(upper.training_step_exec(None), [upper, lower, upper], False)
        return found

    return call


def torchopt(problem: Problem, k: int, alpha: float, method: str) -> Call:
    from torch.func import grad
    from torchopt import linear_solve
    from torchopt.diff.implicit import custom_root

    solve = (
        linear_solve.solve_cg(maxiter=k, rtol=0.0)
        if method == "cg"
        else linear_solve.solve_inv(ns=True, maxiter=k, alpha=alpha)
    )
    names = tuple(problem.params), tuple(problem.hparams)

    def loss(params: tuple[Tensor, ...], hparams: tuple[Tensor, ...]) -> Tensor:
        return problem.inner_loss(dict(zip(names[0], params, strict=True)), dict(zip(names[1], hparams, strict=True)))

    @custom_root(grad(loss), argnums=1, solve=solve)
    def trained(params: tuple[Tensor, ...], hparams: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.detach().clone().requires_grad_() for tensor in params)

    def call() -> Sequence[Tensor]:
        params, hparams = (tuple(leaves.values()) for leaves in problem.leaves())
        weights = dict(zip(names[0], trained(params, hparams), strict=True))
        return torch.autograd.grad(problem.outer_loss(weights, {}), hparams)

    return call


def hypergrad(problem: Problem, k: int, alpha: float, method: str) -> Call:
    from hypergrad import approx_hypergrad

    names = tuple(problem.params), tuple(problem.hparams)
    options = {
        "cg": {"num_iters": k, "lr": 1.0},
        "neumann": {"num_iters": k, "lr": alpha},
        "nystrom": {"rank": k, "rho": 1.0},
    }[method]
    solve = getattr(approx_hypergrad, {"cg": "conjugate_gradient"}.get(method, method))

    def inner(params: Sequence[Tensor], hparams: Sequence[Tensor]) -> Tensor:
        return problem.inner_loss(dict(zip(names[0], params, strict=True)), dict(zip(names[1], hparams, strict=True)))

    def outer(params: Sequence[Tensor], hparams: Sequence[Tensor]) -> Tensor:
        return problem.outer_loss(dict(zip(names[0], params, strict=True)), {})

    at = tuple(problem.params.values()), tuple(problem.hparams.values())
    return lambda: solve(inner, outer, *at, **options)


def hypertorch_formulas(problem: Problem, k: int, alpha: float, method: str) -> Call:
    """Grazzi et al., ICML 2020, section 3, for the map Phi(w) = w - alpha grad f(w), J its derivative in w.

    Their eq. 10: v <- J'v + b, K times from 0 (fixed point), or K iterations of conjugate gradients on (I - J') v = b;
    the hypergradient is (d Phi / d lambda)' v. Written for this benchmark, on lists of tensors as their library works;
    not its code.
    """

    def call() -> Sequence[Tensor]:
        params, hparams = problem.leaves()
        weights = list(params.values())
        b = torch.autograd.grad(problem.outer_loss(params, hparams), weights)
        found = torch.autograd.grad(problem.inner_loss(params, hparams), weights, create_graph=True)
        mapped = [w - alpha * g for w, g in zip(weights, found, strict=True)]

        def back(v: Sequence[Tensor]) -> Sequence[Tensor]:
            return torch.autograd.grad(mapped, weights, v, retain_graph=True)

        v: list[Tensor] = [torch.zeros_like(t) for t in b]
        if method == "neumann":
            for _ in range(k):
                v = [j + t for j, t in zip(back(v), b, strict=True)]
        else:
            r, p = list(b), list(b)
            rho = sum((t * t).sum() for t in r)
            for _ in range(k):
                ap = [t - j for t, j in zip(p, back(p), strict=True)]
                step = rho / sum((s * t).sum() for s, t in zip(p, ap, strict=True))
                v = [s + step * t for s, t in zip(v, p, strict=True)]
                r = [s - step * t for s, t in zip(r, ap, strict=True)]
                before, rho = rho, sum((t * t).sum() for t in r)
                p = [s + rho / before * t for s, t in zip(r, p, strict=True)]
        return torch.autograd.grad(mapped, list(hparams.values()), v)

    return call


class Weights(torch.nn.Module):
    """A module that is nothing but weights; `higher` copies subclasses of `Module` only."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in params.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))


def higher(problem: Problem, steps: int) -> Call:
    from higher import innerloop_ctx

    names = tuple(problem.params)

    def call() -> Sequence[Tensor]:
        module = Weights(problem.params)
        _, hparams = problem.leaves()
        with innerloop_ctx(module, torch.optim.SGD(module.parameters(), lr=RATE)) as (copy, optimizer):
            for _ in range(steps):
                optimizer.step(problem.inner_loss(dict(zip(names, copy.parameters(), strict=True)), hparams))
            weights = dict(zip(names, copy.parameters(), strict=True))
            return torch.autograd.grad(problem.outer_loss(weights, hparams), list(hparams.values()))

    return call


OURS = "hpo_ray"
ENVIRONMENTS = {
    "bare": OURS,
    OURS: OURS,
    f"{OURS} sqrt": OURS,
    f"{OURS} graphs": OURS,
    f"{OURS} forward": OURS,
    "TorchOpt": "torchopt",
    "betty": "betty",
    "hypergrad": "hypergrad",
    "higher": "higher",
    "hypertorch's formulas": OURS,
}
"""Tool: the environment it runs in, which is also the name of its package."""
TOOLS: dict[str, dict[str, Callable[[Problem, int, float], Call]]] = {
    "cg": {
        "bare": lambda p, k, a: bare_implicit(p, k),
        OURS: lambda p, k, a: ours(p, k, a, "cg"),
        "TorchOpt": lambda p, k, a: torchopt(p, k, a, "cg"),
        "hypertorch's formulas": lambda p, k, a: hypertorch_formulas(p, k, a, "cg"),
        "betty": lambda p, k, a: betty(p, k, a, "cg"),
        "hypergrad": lambda p, k, a: hypergrad(p, k, a, "cg"),
    },
    "neumann": {
        "bare": lambda p, k, a: bare_implicit(p, k),
        OURS: lambda p, k, a: ours(p, k, a, "neumann"),
        "TorchOpt": lambda p, k, a: torchopt(p, k, a, "neumann"),
        "hypertorch's formulas": lambda p, k, a: hypertorch_formulas(p, k, a, "neumann"),
        "betty": lambda p, k, a: betty(p, k, a, "neumann"),
        "hypergrad": lambda p, k, a: hypergrad(p, k, a, "neumann"),
    },
    "nystrom": {
        "bare": lambda p, k, a: bare_implicit(p, k),
        OURS: lambda p, k, a: ours(p, k, a, "nystrom"),
        "hypergrad": lambda p, k, a: hypergrad(p, k, a, "nystrom"),
    },
    "unrolled": {
        "bare": lambda p, k, a: bare_unrolled(p, k),
        OURS: lambda p, k, a: ours_unrolled(p, k),
        f"{OURS} sqrt": lambda p, k, a: ours_unrolled(p, k, keep="sqrt"),
        f"{OURS} graphs": lambda p, k, a: ours_unrolled(p, k, keep="graphs"),
        f"{OURS} forward": lambda p, k, a: ours_unrolled(p, k, mode="forward"),
        "higher": lambda p, k, a: higher(p, k),
    },
}
"""Method: tool: makes the call for K iterations (terms and products, rank, steps), with step size `a` of the series."""
EXTRA_TERM = ("TorchOpt", "betty", "hypergrad")
"""Whose K products give K + 1 terms of the series."""


class Worker:
    """Answers commands: `problem`, `time`, `error`, `references`, `memory`."""

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self.calls: dict[tuple[str, str, int], Call] = {}
        self.last: dict[tuple[str, str, int], Sequence[Tensor]] = {}

    def problem(self, size: int, alpha: float, shared: bool = False) -> dict[str, Any]:
        """Sets the problem up, and drops what was before."""
        self.calls, self.last = {}, {}
        self.alpha, self.at = alpha, Problem(size, torch.float32, self.device, shared)
        return {"size": self.at.size}

    def time(self, method: str, tool: str, k: int, keep: bool = False) -> dict[str, Any]:
        """Seconds of one call; `keep` keeps what it returns."""
        key = method, tool, k
        if key not in self.calls:
            self.calls[key] = TOOLS[method][tool](self.at, k, self.alpha)
        self._wait()
        start = time.perf_counter()
        found = self.calls[key]()
        self._wait()
        seconds = time.perf_counter() - start
        if keep:
            self.last[key] = [g.detach().cpu().clone() for g in found]
        return {"seconds": seconds}

    def error(self, method: str, tool: str, k: int, references: dict[str, str]) -> dict[str, Any]:
        """The relative error of what was kept, against each reference file."""
        found = self.last[method, tool, k]
        return {name: relative_error(found, torch.load(path)) for name, path in references.items()}

    def references(self, size: int, ks: list[int], steps: list[int], folder: str, converge: bool) -> dict[str, Any]:
        """Writes references in double precision: METHOD-K.pt, and `converged.pt`; finds a step size of the series."""
        from hpo_ray.gradients import ConjugateGradient, Exact, hypergradient, top_eigenvalue
        from hpo_ray.gradients.products import InnerProblem

        at, out, answer = Problem(size, torch.float64, self.device), Path(folder), {}
        inner = InnerProblem(at.inner_loss, at.params, at.hparams)
        b = inner.layout.flatten(Bare(at).b)
        answer["alpha"] = float(f"{0.9 / top_eigenvalue(inner.hessian_product, b, iterations=12):.2g}")
        found = {f"cg-{k}": g for k, g in reference_cg(at, ks).items()}
        terms = sorted({*ks, *(k + 1 for k in ks)})
        found |= {f"neumann-{k}": g for k, g in reference_neumann(at, answer["alpha"], terms).items()}
        found |= {f"unrolled-{t}": list(bare_unrolled(at, t)()) for t in steps}
        where = at.inner_loss, at.outer_loss, at.params, at.hparams
        if converge:
            solved = hypergradient(*where, ConjugateGradient(tol=1e-10, max_iter=200))
            answer |= {"iterations": solved.iterations, "residual": solved.residual}
            found["converged"] = list(solved.grads.values())
            if at.size <= 600:
                exact = hypergradient(*where, Exact())
                answer["error_of_converged"] = relative_error(found["converged"], list(exact.grads.values()))
        for name, tensors in found.items():
            torch.save([t.detach().cpu() for t in tensors], out / f"{name}.pt")
        return answer

    def memory(self, method: str, tool: str, k: int) -> dict[str, Any]:
        """Bytes that one call needs on top of what was there: a process for each, after a call on a small problem."""
        make = TOOLS[method][tool]
        make(Problem(1000, torch.float32, self.device), 2, self.alpha)()
        call = make(self.at, k, self.alpha)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return {"bytes": torch.cuda.max_memory_allocated() - before}
        before = _peak(reset=True)
        result = call()
        del result
        return {"bytes": _peak() - before}

    def versions(self) -> dict[str, Any]:
        """Of Python's packages, and the device."""
        names = {
            "torch": "torch",
            "torchopt": "torchopt",
            "betty": "betty-ml",
            "hypergrad": "hypergrad",
            "higher": "higher",
        }
        found = {}
        for name, package in names.items():
            try:
                found[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        device = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        return {"versions": found, "device": device}

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _peak(reset: bool = False) -> int:
    """The most memory that the process has had, in bytes; with `reset` what it has now, and the peak starts anew."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # no Linux: then the peak can't be set back
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    warnings.simplefilter("ignore")
    worker = Worker(int(sys.argv[1]), sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as failure:
            answer = {"failed": f"{type(failure).__name__}: {str(failure)[:300]}"}
        answer = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in answer.items()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
