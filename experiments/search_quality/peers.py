"""The same problems, budgets and seeds for others: Optuna alone, SMAC3, Syne Tune; a line in peers.jsonl each.

Run it by a Python that has them; it needs neither hpo_ray nor Ray. `--server` names one that has hpo_ray: it computes
the problems, in a process of its own.

python -m venv smac && smac/bin/pip install smac
python -m venv syne && syne/bin/pip install syne-tune xgboost huggingface_hub
python experiments/search_quality/peers.py --methods optuna_random,optuna_sobol,optuna_tpe,optuna_gp,optuna_cmaes
smac/bin/python experiments/search_quality/peers.py --server .venv/bin/python --methods smac,smac_hyperband
syne/bin/python experiments/search_quality/peers.py --server .venv/bin/python --methods syne_random,syne_asha,syne_bohb

What peers.jsonl has is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

# One thread: SMAC3 would start many for each forest, and wait for them.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):
    os.environ.setdefault(variable, "1")

HERE = Path(__file__).parent
RESULTS = HERE / "peers.jsonl"
EVALUATIONS = 60
SEEDS = 20
PROBLEMS = ("branin", "hartmann6", "hartmann6_fidelity", "mixed10", "digits_mlp", "digits_cnn")
TWINS = {"hartmann6_fidelity": "hartmann6"}  # the same to those that know no fidelity; the report copies them


class Spent(Exception):
    """The budget does not last for what is asked."""


class Server:
    """A problem, computed by another Python."""

    def __init__(self, python: str, problem: str) -> None:
        command = [python, str(HERE / "problems.py"), problem]
        log = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        about = self._answer()
        self.space: list[dict[str, Any]] = about["space"]
        self.max_resource: int = about["max_resource"]

    def losses(self, config: dict[str, Any]) -> list[float]:
        """The values at the resources 1, 2 to max_resource."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(config, default=lambda value: value.item()) + "\n")
        self.process.stdin.flush()
        return list(self._answer()["losses"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended: run it by hand to see why")
        return dict(json.loads(line))


class Ledger:
    """Computes, and counts what it costs. As in a study, a trial goes on where it was: no unit is paid twice."""

    def __init__(self, server: Server, evaluations: int) -> None:
        self.server = server
        self.full = server.max_resource
        self.budget = evaluations * self.full
        self.spent = 0
        self.trace: list[tuple[int, float]] = []
        self._curves: dict[Any, list[float]] = {}
        self._trained: dict[Any, int] = {}

    def train(self, trial: Any, config: dict[str, Any], resource: int | None = None) -> float:
        """The value of a trial at a resource, full unless said otherwise.

        Raises:
            Spent: the budget does not last for it.
        """
        resource = self.full if resource is None else resource
        cost = max(0, resource - self._trained.get(trial, 0))
        if self.spent + cost > self.budget or (cost and self.spent == self.budget):
            raise Spent
        if trial not in self._curves:
            self._curves[trial] = self.server.losses(active(self.server.space, config))
        self.spent += cost
        self._trained[trial] = max(resource, self._trained.get(trial, 0))
        loss = self._curves[trial][resource - 1]
        if resource == self.full and (not self.trace or loss < self.trace[-1][1]):
            self.trace.append((self.spent, loss))
        return loss

    @property
    def trials(self) -> int:
        return len(self._curves)


def active(space: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what its conditions rule out, for those who know no conditions."""
    kept: dict[str, Any] = {}
    for of in space:
        if is_active(of, kept):
            kept[of["name"]] = config[of["name"]]
    return kept


def is_active(of: dict[str, Any], config: dict[str, Any]) -> bool:
    return all(parent in config and config[parent] in values for parent, values in of["when"].items())


def grid(of: dict[str, Any]) -> list[float]:
    """The points of a range with a step."""
    count = math.floor((of["high"] - of["low"]) / of["step"] + 1e-9) + 1
    return [min(of["high"], round(of["low"] + k * of["step"], 12)) for k in range(count)]


# Optuna


def optuna_sampler(name: str, seed: int) -> Any:
    """Everything that is not named is Optuna's default."""
    from optuna import samplers

    makers: dict[str, Callable[[], Any]] = {
        "random": lambda: samplers.RandomSampler(seed=seed),
        "sobol": lambda: samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed),
        "tpe": lambda: samplers.TPESampler(multivariate=True, group=True, seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed),
    }
    return makers[name]()


def run_optuna(name: str, ledger: Ledger, seed: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna_sampler(name, seed))

    def objective(trial: Any) -> float:
        config: dict[str, Any] = {}
        for of in ledger.server.space:
            if not is_active(of, config):
                continue
            if of["kind"] == "choice":
                config[of["name"]] = trial.suggest_categorical(of["name"], of["choices"])
            elif of["kind"] == "int":
                bounds = of["name"], of["low"], of["high"]
                config[of["name"]] = trial.suggest_int(*bounds, log=of["log"], step=of["step"] or 1)
            else:
                bounds = of["name"], of["low"], of["high"]
                config[of["name"]] = trial.suggest_float(*bounds, log=of["log"], step=of["step"])
        return ledger.train(trial.number, config)

    study.optimize(objective, n_trials=10**6)  # until it is spent


# SMAC3


def run_smac(name: str, ledger: Ledger, seed: int) -> None:
    import ConfigSpace
    from smac import BlackBoxFacade, HyperparameterOptimizationFacade, MultiFidelityFacade, Scenario
    from smac.runhistory import TrialValue

    space = ConfigSpace.ConfigurationSpace(seed=seed)
    grids: dict[str, list[float]] = {}
    for of in ledger.server.space:
        key = of["name"]
        if of["kind"] == "choice" and of["ordered"]:
            space.add(ConfigSpace.OrdinalHyperparameter(key, of["choices"]))
        elif of["kind"] == "choice":
            space.add(ConfigSpace.CategoricalHyperparameter(key, of["choices"]))
        elif of["step"]:
            grids[key] = grid(of)
            space.add(ConfigSpace.UniformIntegerHyperparameter(key, 0, len(grids[key]) - 1))
        elif of["kind"] == "int":
            space.add(ConfigSpace.UniformIntegerHyperparameter(key, of["low"], of["high"], log=of["log"]))
        else:
            space.add(ConfigSpace.UniformFloatHyperparameter(key, of["low"], of["high"], log=of["log"]))
        conditions = [ConfigSpace.InCondition(space[key], space[p], values) for p, values in of["when"].items()]
        if conditions:
            space.add(conditions[0] if len(conditions) == 1 else ConfigSpace.AndConjunction(*conditions))
    multi = name == "hyperband"
    facade = {"rf": HyperparameterOptimizationFacade, "gp": BlackBoxFacade, "hyperband": MultiFidelityFacade}[name]
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            space,
            deterministic=True,
            n_trials=ledger.budget // ledger.full * (4 if multi else 1),  # it sizes the initial design
            seed=seed,
            output_directory=Path(folder),
            **({"min_budget": 1, "max_budget": ledger.full} if multi else {}),
        )
        smac = facade(scenario, lambda config, seed, budget=None: 0.0, overwrite=True, logging_level=False)
        while True:
            info = smac.ask()
            config = dict(info.config)
            config |= {key: points[int(config[key])] for key, points in grids.items() if key in config}
            resource = ledger.full if info.budget is None else round(info.budget)
            loss = ledger.train(json.dumps(config, sort_keys=True, default=lambda v: v.item()), config, resource)
            smac.tell(info, TrialValue(cost=loss), save=False)


# Syne Tune


def run_syne(name: str, ledger: Ledger, seed: int) -> None:
    """Its schedulers, one trial at a time, without its backends. No conditions: what is inactive is ignored."""
    import numpy
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import choice, finrange, lograndint, loguniform, ordinal, randint, uniform
    from syne_tune.optimizer import baselines
    from syne_tune.optimizer.scheduler import SchedulerDecision

    random.seed(seed)
    numpy.random.seed(seed)  # some of it draws from the global generators
    space: dict[str, Any] = {}
    for of in ledger.server.space:
        if of["kind"] == "choice":
            space[of["name"]] = ordinal(of["choices"], kind="equal") if of["ordered"] else choice(of["choices"])
        elif of["step"]:
            points = grid(of)
            space[of["name"]] = finrange(points[0], points[-1], len(points), cast_int=of["kind"] == "int")
        else:
            kinds = {"int": (randint, lograndint), "float": (uniform, loguniform)}
            space[of["name"]] = kinds[of["kind"]][of["log"]](of["low"], of["high"])
    classes = {
        "random": "RandomSearch",
        "bore": "BORE",
        "kde": "TPE",
        "cqr": "CQR",
        "botorch": "BOTorch",
        "evolution": "REA",
        "asha": "ASHA",
        "bohb": "BOHB",
        "ashacqr": "ASHACQR",
    }
    multi = name in ("asha", "bohb", "ashacqr")
    metric = {"metrics": ["loss"]} if name == "random" else {"metric": "loss"}
    steps = {"time_attr": "epoch", "max_t": ledger.full, "reduction_factor": 3} if multi else {}
    scheduler = getattr(baselines, classes[name])(space, **metric, **steps, random_seed=seed)
    for number in range(10**6):
        suggested = scheduler.suggest()
        trial = Trial(number, suggested.config, datetime.now())
        scheduler.on_trial_add(trial)
        config = dict(suggested.config)
        for of in ledger.server.space:
            if of.get("step"):
                config[of["name"]] = min(grid(of), key=lambda point, at=config[of["name"]]: abs(point - at))
        result = {"loss": math.nan, "epoch": 0}
        for resource in range(1 if multi else ledger.full, ledger.full + 1):
            result = {"loss": ledger.train(number, config, resource), "epoch": resource}
            if scheduler.on_trial_result(trial, result) == SchedulerDecision.STOP:
                break
        if not multi:
            scheduler.on_trial_complete(trial, result)


RUNNERS = {"optuna": run_optuna, "smac": run_smac, "syne": run_syne}
MULTI = ("smac_hyperband", "syne_asha", "syne_bohb", "syne_ashacqr")


def known(path: Path) -> set[tuple[str, str, int, int]]:
    """(problem, method, seed, evaluations) of what a file of results has."""
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["problem"], row["method"], row["seed"], row["evaluations"]) for row in rows}


def version(peer: str) -> str:
    from importlib.metadata import version as of

    return of({"optuna": "optuna", "smac": "smac", "syne": "syne-tune"}[peer])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", required=True, help="<peer>_<name>, as the functions above have them")
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="the budget, in full evaluations")
    parser.add_argument("--server", default=sys.executable, help="a Python that has hpo_ray")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    typed = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    done = known(RESULTS)
    for problem in typed.problems.split(","):
        server = Server(typed.server, problem)
        for method in typed.methods.split(","):
            peer, _, name = method.partition("_")
            if problem in TWINS if method not in MULTI else server.max_resource == 1:
                continue
            started = time.perf_counter()
            for seed in range(typed.seeds):
                if (problem, method, seed, typed.evaluations) in done and not typed.dry:
                    continue
                ledger, began = Ledger(server, typed.evaluations), time.perf_counter()
                try:
                    RUNNERS[peer](name, ledger, seed)
                except Spent:
                    pass
                row = {
                    "problem": problem,
                    "method": method,
                    "seed": seed,
                    "evaluations": typed.evaluations,
                    "spent": ledger.spent,
                    "trials": ledger.trials,
                    "seconds": round(time.perf_counter() - began, 2),
                    "trace": ledger.trace,
                    "version": version(peer),
                }
                if typed.dry:
                    print(json.dumps(row))
                    continue
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            print(f"{method} on {problem}: {time.perf_counter() - started:.0f} s", flush=True)
        server.close()


if __name__ == "__main__":
    main()
