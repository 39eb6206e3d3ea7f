"""Records the learning curves of random configurations of the two digits tasks, each trained in full.

python experiments/search_quality/tables.py [digits_mlp] [digits_cnn]     # some 15 minutes on one core
python experiments/search_quality/tables.py digits_cnn --parts 1           # the first part only, a smaller table

It records in parts, of which an interrupted run does only the missing ones; they lie in outputs/search_quality/tables.
The metric is the cross entropy and not the accuracy, which takes few values.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from problems import FIXED

from hpo_ray.config import load
from hpo_ray.domains import Fixed
from hpo_ray.space import Space
from hpo_ray.study import draft
from hpo_ray.testing.laws import run_study

HERE = Path(__file__).parent
ROOT = Path("outputs/search_quality/tables")
TRIALS = 150  # of a part
PARTS = {"digits_mlp": 4, "digits_cnn": 2}
SEED = 20_000  # none that the methods are run with: random search would find its own configurations
WORST = math.log(10) * 4  # what a diverged network counts as: nothing is learned from how far it went


def record(task: str, part: int) -> list[dict[str, Any]]:
    """Runs a study, unless it has run; its trials. All parts share the split of the data."""
    folder = ROOT / f"{task}-{part}"
    if (folder / "trials").exists() or not folder.exists():
        shutil.rmtree(folder, ignore_errors=True)  # it was interrupted
        _run(task, part, folder.name)
        shutil.rmtree(folder / "trials")  # the checkpoints
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def _run(task: str, part: int, name: str) -> None:
    typed = [
        f"task={task}",
        *FIXED[task],
        "task.metric=loss",
        "task.mode=min",
        "method=random",
        f"budget.trials={TRIALS}",
        f"seed={SEED}",
        f"searcher.seed={SEED + part}",
        "executor=inprocess",
        f"study.name={name}",
    ]
    ended = run_study(typed, ROOT).state.ended
    if ended is None or ended.state == "interrupted":
        raise SystemExit(f"{name}: {ended.reason if ended else 'interrupted'}")


def table(trials: list[dict[str, Any]], space: Space) -> pyarrow.Table:
    """One row a report. A hyperparameter that a trial does not have is null."""
    names = [name for name, domain in space.domains.items() if not isinstance(domain, Fixed)]
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "resource", "value", "seconds")}
    for trial in trials:
        config = space.flatten(trial["config"])
        known = {resource: value for resource, value in trial["history"]}
        for resource in range(1, 28):
            value = known.get(resource)
            row = {name: config.get(name) for name in names}
            row |= {
                "resource": resource,
                "value": WORST if value is None or not math.isfinite(value) else min(value, WORST),
                "seconds": trial["seconds"] / max(1, trial["trained"]),
            }
            for name, cell in row.items():
                columns[name].append(cell)
    kinds = {"resource": pyarrow.int16(), "value": pyarrow.float32(), "seconds": pyarrow.float32()}
    return pyarrow.table({name: pyarrow.array(cells, kinds.get(name)) for name, cells in columns.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(FIXED))
    parser.add_argument("--parts", type=int, help="fewer or more than usual")
    typed = parser.parse_args()
    torch.set_num_threads(1)
    for task in typed.tasks:
        space = draft(load([f"task={task}", *FIXED[task]])).space
        trials = [trial for part in range(typed.parts or PARTS[task]) for trial in record(task, part)]
        to = HERE / f"{task}.parquet"
        pyarrow.parquet.write_table(table(trials, space), to, compression="zstd")
        ends = sorted(min(WORST, trial["value"] or WORST) for trial in trials if trial["state"] == "completed")
        print(f"{to}: {len(trials)} trials, {len(trials) - len(ends)} failed, {to.stat().st_size / 1000:.0f} kB")
        print(f"loss at 27 epochs: best {ends[0]:.4f}, median {ends[len(ends) // 2]:.4f}, worst {ends[-1]:.4f}")


if __name__ == "__main__":
    main()
