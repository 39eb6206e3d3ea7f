"""Do hypergradients find better hyperparameters than black-box methods that spend as much?

python experiments/hypergradient/quality.py            # minutes; prints the tables and writes quality.json
python experiments/hypergradient/quality.py --print    # the tables of quality.json again
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sklearn
import torch
from torch import Tensor

from hpo_ray.gradients import SGD
from hpo_ray.tasks.bilevel_digits import HyperCleaning
from hpo_ray.testing import run_study
from hpo_ray.trainables import TrialContext
from hpo_ray.trainables.context import use_context

SEEDS = range(5)
RESULTS = Path(__file__).with_name("quality.json")
STEPS: Mapping[str, int] = {"ridge": 100, "logistic_l2": 100, "hyper_cleaning": 50, "weight_decay_per_parameter": 40}
"""Gradients in a unit of resource of a black-box trial: the task's `inner_steps`."""
UNITS: Mapping[str, int] = {"ridge": 3, "logistic_l2": 3, "hyper_cleaning": 3, "weight_decay_per_parameter": 9}
"""Length of a trial of random search and TPE in units: short, so that the budget is enough for several."""
FEATURES: Mapping[str, int] = {"ridge": 10, "logistic_l2": 30}
POPULATION = 4
CLEANING_STEPS = 100
TRAINED = 1000
"""Gradients that the references of hyper-cleaning are trained for."""


def study(*overrides: str) -> dict[str, Any]:
    """What a study found: validation loss, test loss and the metrics of its best trial, and what it spent."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_study(["executor=inprocess", "store=none", *overrides], Path(folder))
        found = json.loads((result.path / "result.json").read_text())
        units = sum(trial.resource or 0 for trial in result.records)
    metrics = found["best"]["metrics"]
    return {"loss": metrics["loss"], "test": metrics["test_loss"], "metrics": metrics, "units": units}


# Hyper-cleaning.


def reference(seed: int) -> dict[str, float]:
    """Test accuracy in percent of models that know nothing, the validation data alone, and which labels are right."""
    with use_context(TrialContext(study_seed=seed)):
        task = HyperCleaning()
        params = task.init({}, 0)
    n, (x, y) = len(task.corrupted), task.data["validation"]
    return {
        "noisy": trained(task, params, task.data["train"], torch.ones(n)),
        "validation": trained(task, params, (x, y, torch.arange(len(x))), torch.ones(len(x))),
        "oracle": trained(task, params, tuple(t[~task.corrupted] for t in task.data["train"]), torch.ones(n)),
    }


def trained(task: HyperCleaning, params: dict[str, Tensor], batch: tuple[Tensor, ...], weight: Tensor) -> float:
    update = SGD(lambda p, h, step: task.inner_loss(p, h, batch), task.inner_lr, task.inner_momentum)
    state, hparams = update.start(params), {"weight": weight}
    with torch.no_grad():
        for step in range(TRAINED):
            state = update(state, hparams, step)
    return 100 * task.metrics(update.weights(state), task.data["test"])["accuracy"]


def cleaning(seed: int, shorter: Mapping[str, Any]) -> dict[str, float]:
    """Test accuracies in percent; `shorter` is the best trial of a descent of the default length."""
    longer = study(
        "method=hypergradient", "task=hyper_cleaning", f"seed={seed}", f"scheduler.max_resource={CLEANING_STEPS}"
    )
    found = reference(seed)
    for name, run in (("cleaned", shorter["metrics"]), ("cleaned_longer", longer["metrics"])):
        found[name], found[f"{name}_f1"] = 100 * run["test_accuracy"], run["corrupted_f1"]
    return found


# At equal gradients.


def methods(task: str, seed: int) -> dict[str, dict[str, Any]]:
    """Of each method the best trial, at as many gradients as `hypergradient` spends by its defaults."""
    same = [f"task={task}", f"seed={seed}"]
    found = {
        "hypergradient": study(*same, "method=hypergradient"),
        "its start, not moved": study(*same, "method=hypergradient", "trainable=task"),
    }
    units = round(found["hypergradient"]["metrics"]["gradient_evaluations"] / STEPS[task])
    limit = ["budget.trials=null", f"budget.resource={units}"]
    for method in ("random", "tpe"):
        found[method] = study(*same, f"method={method}", f"scheduler.max_resource={UNITS[task]}", *limit)
    found["pbt"] = study(
        *same,
        "method=pbt",
        f"scheduler.population={POPULATION}",
        f"scheduler.max_resource={units // POPULATION}",
        *limit,
    )
    if task in FEATURES:
        own = [f"+space.decay.f{i}={{low: 1e-5, high: 10.0, log: true}}" for i in range(FEATURES[task])]
        for method in ("random", "tpe"):
            found[f"{method}, each feature"] = study(
                *same, f"method={method}", f"scheduler.max_resource={UNITS[task]}", *limit, "~space.decay", *own
            )
    if task == "logistic_l2":
        found["hypergradient, 5 folds"] = study(*same, "method=hypergradient", "trainable.outer_folds=5")
        found["its start, 5 folds"] = study(
            *same, "method=hypergradient", "trainable.estimator=none", "trainable.outer_folds=5"
        )
    return found


def measure() -> dict[str, Any]:
    begin = time.perf_counter()
    found: dict[str, Any] = {"cleaning": [], "methods": {task: [] for task in STEPS}}
    for seed in SEEDS:
        for task in STEPS:
            runs = methods(task, seed)
            if task == "hyper_cleaning":
                found["cleaning"].append(cleaning(seed, runs["hypergradient"]))
            found["methods"][task].append(
                {
                    name: {
                        "loss": run["loss"],
                        "test": run["test"],
                        "units": run["units"],
                        "gradients": run["metrics"]["gradient_evaluations"],
                    }
                    for name, run in runs.items()
                }
            )
            print(f"seed {seed}, {task}: {time.perf_counter() - begin:.0f} s", flush=True)
    found["about"] = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "device": f"one core of {platform.machine()}, no GPU",
        "seconds": round(time.perf_counter() - begin),
    }
    return found


# Tables.


def median(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def tables(found: Mapping[str, Any]) -> str:
    lines = [
        f"| hyper-cleaning, {len(SEEDS)} seeds | test accuracy, mean | median | range | F1 of wrong labels, median |",
        "|---|---:|---:|---:|---:|",
    ]
    names = {
        "noisy": "noisy: all training images alike",
        "validation": "validation images only",
        "cleaned": "cleaned, 27 steps of the weights",
        "cleaned_longer": f"cleaned, {CLEANING_STEPS} steps of the weights",
        "oracle": "oracle: the clean training images only",
    }
    for key, name in names.items():
        values = [run[key] for run in found["cleaning"]]
        f1 = f"{median(found['cleaning'], f'{key}_f1'):.3f}" if f"{key}_f1" in found["cleaning"][0] else ""
        middle = f"{statistics.mean(values):.1f} | {statistics.median(values):.1f}"
        lines.append(f"| {name} | {middle} | {min(values):.1f} to {max(values):.1f} | {f1} |")
    for task, runs in found["methods"].items():
        gradients = statistics.median(run["hypergradient"]["gradients"] for run in runs)
        lines += [
            "",
            f"| {task}, {gradients:.0f} gradients | validation loss | test loss | hypergradient lower in validation "
            "| and in test |",
            "|---|---:|---:|---:|---:|",
        ]
        for name in runs[0]:
            own = [run[name] for run in runs]
            wins = (sum(run["hypergradient"][key] < run[name][key] for run in runs) for key in ("loss", "test"))
            shares = ("" if name == "hypergradient" else f"{count} of {len(runs)}" for count in wins)
            lines.append(f"| {name} | {median(own, 'loss'):.4f} | {median(own, 'test'):.4f} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--print", action="store_true", help="the tables of quality.json again")
    if not parser.parse_args().print:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    print(tables(json.loads(RESULTS.read_text())))
