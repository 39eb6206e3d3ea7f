"""What does a trial cost that trains for nothing? 64 trials of 9 reports each, by Ray's Tuner and by hpo_ray.

python experiments/overhead/run.py            # some minutes; prints the table and writes results.json
python experiments/overhead/run.py --quick    # one repetition of what is slow; prints the table
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from trivial import REPORTS, Objective, objective

from hpo_ray.config import load
from hpo_ray.executors.loop import run
from hpo_ray.study import build, draft
from hpo_ray.view import View

TRIALS = 64
CPUS = 2
RESULTS = Path(__file__).with_name("results.json")


class Clock(tune.Callback):
    """Times the loop of Ray's controller, which hpo_ray and Ray's Tuner share.

    From the first step, which adds the first trial, to the end of the experiment, when the last actor has stopped.
    Starting Ray, importing and composing lie before it.
    """

    def __init__(self) -> None:
        self.started: float | None = None
        self.seconds = 0.0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Starts at the first step."""
        if self.started is None:
            self.started = time.perf_counter()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Stops."""
        assert self.started is not None
        self.seconds = time.perf_counter() - self.started


def ray_tuner(function: Callable[[dict[str, Any]], None], folder: Path, clock: Clock, **tune_config: Any) -> int:
    """Ray's own Tuner; gives how many reports there were."""
    tuner = tune.Tuner(
        function,
        param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(num_samples=TRIALS, **tune_config),
        run_config=tune.RunConfig(storage_path=str(folder), callbacks=[clock]),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its table, which would take longer in a terminal
        results = tuner.fit()
    return sum(result.metrics["training_iteration"] for result in results)


def hpo_ray_study(trainable: Any, folder: Path, clock: Clock, executor: str) -> int:
    """The same study by hpo_ray, composed as on its command line; gives how many reports there were."""
    config = load(
        [
            "method=random",
            "task=custom",
            f"task.trainable=trivial.{trainable.__name__}",
            f"task.max_resource={REPORTS}",
            "space={x: {low: 0.0, high: 1.0}}",
            f"budget.trials={TRIALS}",
            f"executor={executor}",
            f"study.root={folder}",
        ]
    )
    study = dataclasses.replace(build(draft(config)), callbacks=(clock,))
    return sum(len(trial.history) for trial in run(study, View()).records)


def measure(case: Callable[[Path, Clock], int], with_ray: bool) -> float:
    """Milliseconds a trial, on a Ray cluster of its own if it needs one."""
    folder, clock = Path(tempfile.mkdtemp(prefix="overhead-")), Clock()
    ray_folder = tempfile.mkdtemp(prefix="ovh-")  # short, since the paths of Ray's sockets must be
    if with_ray:
        ray.init(
            address="local",
            num_cpus=CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=ray_folder,
        )
    try:
        reports = case(folder, clock)
    finally:
        if with_ray:
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(ray_folder, ignore_errors=True)
    if reports != TRIALS * REPORTS:
        raise RuntimeError(f"{reports} reports, not {TRIALS * REPORTS}")
    return clock.seconds / TRIALS * 1e3


# Name, what runs it, whether on a Ray cluster. Ray's defaults come first: the others are compared with them.
CASES: list[tuple[str, Callable[[Path, Clock], int], bool]] = [
    ("Ray's Tuner, its defaults, function", partial(ray_tuner, objective), True),
    ("Ray's Tuner, reuse_actors=True, function", partial(ray_tuner, objective, reuse_actors=True), True),
    ("hpo_ray executor=ray, function", partial(hpo_ray_study, objective, executor="ray"), True),
    ("hpo_ray executor=ray, class", partial(hpo_ray_study, Objective, executor="ray"), True),
    ("hpo_ray executor=inprocess, function", partial(hpo_ray_study, objective, executor="inprocess"), False),
    ("hpo_ray executor=inprocess, class", partial(hpo_ray_study, Objective, executor="inprocess"), False),
    ("hpo_ray executor=simulated, class", partial(hpo_ray_study, Objective, executor="simulated"), False),
]


def table(results: dict[str, Any]) -> str:
    lines = [
        f"| {TRIALS} trials of {REPORTS} reports, {CPUS} CPUs | ms per trial | range | Tuner's defaults take |",
        "|---|---:|---:|---:|",
    ]
    for case in results["cases"]:
        times = case["ms_per_trial_all"]
        spread = f"{number(min(times))} to {number(max(times))}, {len(times)} runs"
        ratio = "" if case["ratio"] == 1 else f"{number(case['ratio'])} times as long"
        lines.append(f"| {case['name']} | {number(case['ms_per_trial'])} | {spread} | {ratio} |")
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions; results.json stays as it is")
    quick = parser.parse_args().quick
    times: dict[str, list[float]] = {name: [] for name, _, _ in CASES}
    load_average = os.getloadavg()[0]
    # Rounds, so that a time in which the machine is busy hits all cases and not one.
    for turn in range(1 if quick else 3):
        for name, case, with_ray in CASES:
            if turn == 0 and not with_ray:
                measure(case, with_ray)  # the first run of a process imports
            for _ in range(1 if with_ray else 5):
                times[name].append(measure(case, with_ray))
                print(f"round {turn + 1}: {name}: {times[name][-1]:.2f} ms per trial", flush=True)
    defaults = statistics.median(times[CASES[0][0]])
    results = {
        "date": date.today().isoformat(),
        "trials": TRIALS,
        "reports": REPORTS,
        "cpus": CPUS,
        "machine": {
            "cpu_count": os.cpu_count(),
            "processor": platform.machine(),
            "system": platform.system(),
            "load_average_before": round(load_average, 2),
        },
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
        "cases": [
            {
                "name": name,
                "ms_per_trial": round(statistics.median(times[name]), 3),
                "ratio": round(defaults / statistics.median(times[name]), 1),
                "ms_per_trial_all": [round(value, 3) for value in times[name]],
            }
            for name, _, _ in CASES
        ],
    }
    if not quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
