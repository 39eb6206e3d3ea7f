"""From 1 to 4,096 virtual workers: how many are busy, and how soon is the target reached? ASHA, Hyperband and PBT.

python experiments/scale/simulate.py            # some 20 minutes of one core; appends to simulation.jsonl
python experiments/scale/simulate.py --quick    # up to 64 workers, one seed; prints, writes nothing

A study that is in simulation.jsonl is not run again, so that an interrupted run goes on. `report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "simulation.jsonl"
WORKERS = (1, 4, 16, 64, 256, 1024, 4096)
SEEDS = {1024: 3, 4096: 1}
METHODS = ("asha", "hyperband", "pbt")
MAX_RESOURCE = 9
FEWEST_TRAININGS = 256
STARTUP_S = 5


def trainings(workers: int) -> int:
    """The work, in full trainings: two for each worker, and enough to reach the target with few of them."""
    return max(2 * workers, FEWEST_TRAININGS)


def overrides(workers: int, method: str, seed: int) -> list[str]:
    amount = trainings(workers)
    typed = [
        f"method={method}",
        "task=hartmann6",
        f"task.max_resource={MAX_RESOURCE}",
        "task.cost=costs.seconds",
        "executor=simulated",
        f"executor.workers={workers}",
        f"executor.startup_s={STARTUP_S}",
        "store=none",
        f"seed={seed}",
    ]
    return [*typed, f"scheduler.population={amount}" if method == "pbt" else f"budget.resource={amount * MAX_RESOURCE}"]


def study(workers: int, method: str, seed: int) -> dict[str, Any]:
    """One study in this process."""
    from hpo_ray.testing import run_study

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        left = run_study(overrides(workers, method, seed), Path(folder)).to_json()
        wall_s = time.perf_counter() - started
    return {
        "workers": workers,
        "method": method,
        "seed": seed,
        "steps": left["totals"]["resource"],
        "trials": left["totals"]["trials"],
        "virtual_s": left["totals"]["seconds"],
        "utilisation": left["simulation"]["utilisation"],
        "incumbents": [[i["seconds"], i["value"]] for i in left["best_at_full_resource"]],
        "wall_s": round(wall_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of all; simulation.jsonl stays as it is")
    quick = parser.parse_args().quick
    sys.path.insert(0, str(HERE))  # for costs.seconds
    # The target is what random search reaches on one worker.
    wanted = [
        (workers, method, seed)
        for workers in (WORKERS[:4] if quick else WORKERS)
        for method in (("random", *METHODS) if workers == 1 else METHODS)
        for seed in range(1 if quick else SEEDS.get(workers, 5))
    ]
    known = set()
    if RESULTS.exists() and not quick:
        lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
        known = {(line["workers"], line["method"], line["seed"]) for line in lines}
    for case in wanted:
        if case in known:
            continue
        result = study(*case)
        print({name: value for name, value in result.items() if name != "incumbents"}, flush=True)
        if not quick:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
