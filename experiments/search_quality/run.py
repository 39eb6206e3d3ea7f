"""What do the methods find with the same resource? Each on each problem, with each seed; a line in ours.jsonl each.

python experiments/search_quality/run.py                                          # all that is missing, hours
python experiments/search_quality/run.py --methods random,tpe --problems branin   # a part; several may run at once
python experiments/search_quality/run.py --quick                                  # two seeds, 10 evaluations; not kept
python experiments/search_quality/report.py                                       # tables, figure, README

What ours.jsonl has is not run again: after a change of a method delete its lines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, Problem

from hpo_ray.errors import ConfigError
from hpo_ray.testing.laws import run_study

HERE = Path(__file__).parent
RESULTS = HERE / "ours.jsonl"
EVALUATIONS = 60
SEEDS = 20
SINGLE = ("random", "sobol", "tpe", "gp", "cmaes", "evolution", "de")
MULTI = ("hyperband", "asha", "bohb", "dehb", "tpe_asha", "gp_hyperband")
TWINS = {"hartmann6_fidelity": "hartmann6"}
"""The same to SINGLE, which train in full: the report copies them, and checks them against one seed that is run."""


def known(path: Path) -> set[tuple[str, str, int, int]]:
    """(problem, method, seed, evaluations) of what a file of results has."""
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["problem"], row["method"], row["seed"], row["evaluations"]) for row in rows}


def run_one(problem: Problem, method: str, seed: int, evaluations: int, root: Path) -> dict[str, Any]:
    """A study, as a line of ours.jsonl. Its folder is removed."""
    typed = [
        *problem.overrides,
        f"method={method}",
        f"budget.resource={evaluations * problem.max_resource}",
        f"seed={seed}",
        "executor=simulated",  # keeps checkpoints in memory
        "executor.workers=1",
        "view=none",
        f"study.name={problem.name}-{method}-{seed}",
    ]
    shutil.rmtree(root / f"{problem.name}-{method}-{seed}", ignore_errors=True)
    started = time.perf_counter()
    state = run_study(typed, root).state
    seconds = time.perf_counter() - started
    shutil.rmtree(root / f"{problem.name}-{method}-{seed}")
    if state.ended is None or state.ended.state == "interrupted":
        raise SystemExit(f"{method} on {problem.name}, seed {seed}: interrupted")
    return {
        "problem": problem.name,
        "method": method,
        "seed": seed,
        "evaluations": evaluations,
        "spent": state.trained,
        "trials": len(list(state.trials.values())),
        "seconds": round(seconds, 2),
        "trace": [[i.trained, i.value] for i in state.best_at_full],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join((*SINGLE, *MULTI)))
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="the budget, in full evaluations")
    parser.add_argument("--quick", action="store_true", help="two seeds, 10 evaluations; ours.jsonl stays as it is")
    typed = parser.parse_args()
    torch.set_num_threads(1)  # a Gaussian process of 60 points is no faster with more
    seeds, evaluations = (2, 10) if typed.quick else (typed.seeds, typed.evaluations)
    root = Path(f"outputs/search_quality/ours-{os.getpid()}")
    done = set() if typed.quick else known(RESULTS)
    for method in typed.methods.split(","):
        for problem in (PROBLEMS[name] for name in typed.problems.split(",")):
            if method in MULTI and not problem.has_fidelity:
                continue
            started, ran, row = time.perf_counter(), 0, {}
            for seed in range(1 if problem.name in TWINS and method in SINGLE else seeds):
                if (problem.name, method, seed, evaluations) in done:
                    continue
                try:
                    row = run_one(problem, method, seed, evaluations, root)
                except ConfigError as error:
                    print(f"{method} on {problem.name}: {error}", file=sys.stderr)
                    break
                ran += 1
                if not typed.quick:
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            if ran:
                best = row["trace"][-1][1] if row["trace"] else None
                seconds = time.perf_counter() - started
                print(f"{method} on {problem.name}: {ran} seeds, {seconds:.0f} s; the last {best}", flush=True)
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
