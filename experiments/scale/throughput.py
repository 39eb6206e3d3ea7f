"""How many results a second does the driver handle? Many tiny trials on a real, local Ray cluster, and Ray's Tuner.

python experiments/scale/throughput.py            # some 15 minutes; appends to throughput.jsonl
python experiments/scale/throughput.py --quick    # one round; prints, writes nothing

What is in throughput.jsonl is not measured again, so that an interrupted run goes on. `report.py` makes the tables.

Training costs nothing (`tiny.py`), so that what is measured is the driver, and the workers' messages to it. Each
measurement has a process and a cluster of its own, and the cases take turns: a time in which the machine is busy hits
all. Two figures: results a second by the clock on the wall, for which the workers need cores, too; and the driver's own
processor time for each result, all of its threads, whose reciprocal is what it handles with a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "throughput.jsonl"
CONCURRENCY = 4
ROUNDS = 3
# (trials, reports each): many results of few trials, and many trials of one result, as in a first rung at resource 1.
SIZES = {"results": (10, 200), "starts": (60, 1)}
# Name: (who, seconds that results are buffered for, store, CSV and JSON files).
CASES: dict[str, tuple[str, float, bool, bool]] = {
    "Ray's Tuner": ("ray", 0.0, False, False),
    "Ray's Tuner, CSV and JSON": ("ray", 0.0, False, True),
    "Ray's Tuner, its own buffering": ("ray", 0.5, False, False),
    "hpo_ray, each step, store=none": ("hpo_ray", 0.0, False, False),
    "hpo_ray, each step": ("hpo_ray", 0.0, True, False),
    "hpo_ray, each step, tracker=ray_loggers": ("hpo_ray", 0.0, True, True),
    "hpo_ray, buffered, store=none": ("hpo_ray", 0.5, False, False),
    "hpo_ray, buffered": ("hpo_ray", 0.5, True, False),
    "hpo_ray, buffered, tracker=ray_loggers": ("hpo_ray", 0.5, True, True),
}
STARTS = ("Ray's Tuner", "hpo_ray, each step", "hpo_ray, buffered")


def measure(name: str, size: str) -> dict[str, float]:
    """One case in this process: results a second, and the driver's processor time for each."""
    who, seconds, store, files = CASES[name]
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    if who == "ray" and seconds:
        os.environ["TUNE_RESULT_BUFFER_LENGTH"] = "1000"
        os.environ["TUNE_RESULT_BUFFER_MIN_TIME_S"] = str(seconds)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    import ray
    from ray import tune
    from ray.tune.execution.tune_controller import TuneController

    import hpo_ray.executors  # noqa: F401  # sets Ray's environment before its import

    trials, reports = SIZES[size]

    class Clock(tune.Callback):
        """From when as many trials have reported as run at a time, so that their processes are there, to the end."""

        def __init__(self) -> None:
            self.reported: set[str] = set()
            self.results = self.calls = 0
            self.since: tuple[float, float] | None = None
            self.last = (0.0, 0.0)

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            """Counts a result."""
            self.reported.add(trial.trial_id)
            self.last = time.perf_counter(), time.process_time()
            self.results += self.since is not None
            if self.since is None and len(self.reported) == CONCURRENCY:
                self.since, self.calls = self.last, 0

    clock = Clock()
    schedule = TuneController._schedule_trial_task

    def count(self: Any, trial: Any, method_name: str, *args: Any, **kwargs: Any) -> Any:
        clock.calls += method_name.startswith("train")
        return schedule(self, trial, method_name, *args, **kwargs)

    TuneController._schedule_trial_task = count
    folder, ray_folder = tempfile.mkdtemp(prefix="scale-"), tempfile.mkdtemp(prefix="scl", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=CONCURRENCY,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=ray_folder,
    )
    try:
        run = ray_tuner if who == "ray" else study
        run(clock, folder, trials, reports, seconds, store, files)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(ray_folder, ignore_errors=True)
    assert clock.since is not None
    wall, driver = (after - before for after, before in zip(clock.last, clock.since, strict=True))
    return {"results": clock.results, "wall_s": wall, "driver_s": driver, "calls": clock.calls}


def ray_tuner(clock: Any, folder: str, trials: int, reports: int, seconds: float, store: bool, files: bool) -> None:
    from ray import tune
    from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
    from tiny import Tiny

    loggers = [CSVLoggerCallback(), JsonLoggerCallback()] if files else []
    tuner = tune.Tuner(
        Tiny,
        param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True, max_concurrent_trials=CONCURRENCY),
        run_config=tune.RunConfig(
            storage_path=folder,
            callbacks=[*loggers, clock],
            stop={"training_iteration": reports},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    failed = tuner.fit().num_errors
    assert not failed, f"{failed} trials failed"


def study(clock: Any, folder: str, trials: int, reports: int, seconds: float, store: bool, files: bool) -> None:
    import dataclasses

    from hpo_ray.config import load
    from hpo_ray.executors.loop import run
    from hpo_ray.study import build, draft
    from hpo_ray.view import View

    config = load(
        [
            "method=random",
            "task=custom",
            "task.trainable=tiny.Tiny",
            f"task.max_resource={reports}",
            "space={x: {low: 0.0, high: 1.0}}",
            f"budget.trials={trials}",
            f"budget.concurrency={CONCURRENCY}",
            "executor=ray",
            f"executor.report_every_s={seconds}",
            f"store={'journal' if store else 'none'}",
            f"tracker={'ray_loggers' if files else 'none'}",
            f"study.root={folder}",
        ]
    )
    built = build(draft(config))
    run(dataclasses.replace(built, callbacks=(*built.callbacks, clock)), View())


def in_process_of_its_own(name: str, size: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", name, "--size", size]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round; throughput.jsonl stays as it is")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.size)))
        return
    known = set()
    if RESULTS.exists() and not options.quick:
        lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
        known = {(line["round"], line["name"], line["size"]) for line in lines}
    wanted = [(name, "results") for name in CASES] + [(name, "starts") for name in STARTS]
    for turn in range(1, (1 if options.quick else ROUNDS) + 1):
        for name, size in wanted:
            if (turn, name, size) in known:
                continue
            load = os.getloadavg()[0]
            measured = in_process_of_its_own(name, size)
            rate, cost = measured["results"] / measured["wall_s"], measured["driver_s"] / measured["results"] * 1e3
            print(f"round {turn}: {name}, {size}: {rate:.0f} a second, {cost:.2f} ms of the driver's each", flush=True)
            if options.quick:
                continue
            line = {"date": date.today().isoformat(), "round": turn, "name": name, "size": size, "load": round(load, 1)}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, **{k: round(v, 4) for k, v in measured.items()}}) + "\n")


if __name__ == "__main__":
    main()
