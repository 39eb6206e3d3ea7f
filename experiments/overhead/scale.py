"""Does a trial cost more the more there are? 500 and 5,000 trials of 9 reports each, training for nothing.

python experiments/overhead/scale.py [--syne-tune PYTHON]    # some 10 minutes; writes scale.json and prints the table

PYTHON is one that has Syne Tune (pip install syne-tune huggingface_hub); without it, its rows are left out. Each
measurement runs in a process of its own, and the cases take turns: a time in which the machine is busy hits all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPORTS = 9
SIZES = (500, 5000)
WORKERS = 8
ROUNDS = 3
CASES = {
    "Optuna `study.optimize`, random, in memory": "optuna",
    "Syne Tune's simulator, random, 8 workers": "syne_tune",
    "hpo_ray executor=simulated, random, 8 workers": "simulated random",
    "hpo_ray executor=simulated, ASHA, 8 workers": "simulated asha",
    "hpo_ray executor=simulated, Hyperband, 8 workers": "simulated hyperband",
    "hpo_ray executor=inprocess, random": "inprocess random",
    "hpo_ray executor=inprocess, ASHA": "inprocess asha",
}


def optuna_study(trials: int) -> int:
    """Optuna's own loop: in one process, no log, nothing on disk."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in range(REPORTS):
            trial.report(x, step)
        return x

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return REPORTS * trials


def hpo_ray_study(trials: int, executor: str, method: str) -> tuple[float, int, int]:
    """(seconds, trials, reports) of a study as the command line runs it, its log and results included."""
    from hpo_ray.config import load
    from hpo_ray.executors.loop import run
    from hpo_ray.study import build, draft
    from hpo_ray.view import View

    # A round of Hyperband with R = 9 has 17 trials.
    budget = f"budget.rounds={trials // 17}" if method == "hyperband" else f"budget.trials={trials}"
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"method={method}",
            "task=custom",
            f"task.trainable=trivial.{'Objective' if method == 'random' else 'Resumable'}",
            f"task.max_resource={REPORTS}",
            "space={x: {low: 0.0, high: 1.0}}",
            budget,
            f"executor={executor}",
            f"executor.workers={WORKERS if executor == 'simulated' else 1}",
            f"study.root={folder}",
        ]
        study = build(draft(load(overrides)))
        started = time.perf_counter()
        result = run(study, View())
        seconds = time.perf_counter() - started
        return seconds, len(result.state.trials), sum(len(t.history) for t in result.state.trials.values())


def measure(case: str, trials: int) -> dict[str, Any]:
    """One case in this process."""
    sys.path.insert(0, str(HERE))
    if case == "optuna":
        optuna_study(2)  # imports
        started = time.perf_counter()
        reports = optuna_study(trials)
        seconds, done = time.perf_counter() - started, trials
    else:
        executor, method = case.split()
        hpo_ray_study(20, executor, method)  # imports
        seconds, done, reports = hpo_ray_study(trials, executor, method)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "trials": done, "reports": reports, "peak_mb": peak_mb}


def in_process_of_its_own(case: str, trials: int, syne_tune: str | None) -> dict[str, Any]:
    if case == "syne_tune":
        command = [
            str(syne_tune),
            str(HERE / "syne_tune_simulator.py"),
            str(trials),
            str(WORKERS),
            "random",
            str(REPORTS),
        ]
    else:
        command = [sys.executable, __file__, "--case", case, "--trials", str(trials)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(cases: list[dict[str, Any]]) -> str:
    few, many = SIZES
    lines = [
        f"| ms per trial, up to {REPORTS} reports | {few} trials | {many:,} trials | ratio | ms per report | peak MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        a, b = (case["ms_per_trial"][str(size)] for size in SIZES)
        peaks = " to ".join(f"{case['peak_mb'][str(size)]:.0f}" for size in SIZES)
        lines.append(f"| {case['name']} | {a:.2f} | {b:.2f} | {b / a:.2f} | {case['ms_per_report']:.3f} | {peaks} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syne-tune", metavar="PYTHON", help="a Python that has Syne Tune")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--trials", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.trials)))
        return
    names = {name: case for name, case in CASES.items() if case != "syne_tune" or options.syne_tune}
    got: dict[str, dict[int, list[dict[str, Any]]]] = {name: {size: [] for size in SIZES} for name in names}
    load_average = os.getloadavg()[0]
    for turn in range(ROUNDS):
        for name, case in names.items():
            for size in SIZES:
                result = in_process_of_its_own(case, size, options.syne_tune)
                got[name][size].append(result)
                print(
                    f"round {turn + 1}: {name}: {result['seconds'] / result['trials'] * 1e3:.3f} ms per trial",
                    flush=True,
                )
    cases = []
    for name, by_size in got.items():
        per_trial = {n: [r["seconds"] / r["trials"] * 1e3 for r in results] for n, results in by_size.items()}
        per_report = [r["seconds"] / r["reports"] * 1e3 for r in by_size[SIZES[1]]]
        cases.append(
            {
                "name": name,
                "ms_per_trial": {str(n): round(statistics.median(values), 3) for n, values in per_trial.items()},
                "ms_per_trial_all": {str(n): [round(value, 3) for value in values] for n, values in per_trial.items()},
                "ms_per_report": round(statistics.median(per_report), 4),
                "peak_mb": {str(n): round(statistics.median(r["peak_mb"] for r in rs)) for n, rs in by_size.items()},
            }
        )
    results = {
        "date": date.today().isoformat(),
        "reports": REPORTS,
        "machine": {
            "cpu_count": os.cpu_count(),
            "processor": platform.machine(),
            "system": platform.system(),
            "load_average_before": round(load_average, 2),
        },
        "versions": {name: version(name) for name in ("ray", "optuna")} | {"python": platform.python_version()},
        "cases": cases,
    }
    if options.syne_tune:
        results["versions"]["syne-tune"] = got["Syne Tune's simulator, random, 8 workers"][500][0]["version"]
    (HERE / "scale.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(cases)}")


if __name__ == "__main__":
    main()
