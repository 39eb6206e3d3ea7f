"""10,000 trials of ASHA (R = 81, eta = 3) on 500 virtual workers, on one core: what does it take?

python experiments/simulated_cluster/large.py [--syne-tune PYTHON]    # minutes; writes large.json, prints the table

PYTHON is one that has Syne Tune (pip install syne-tune huggingface_hub): its simulator runs its own ASHA, which is the
stopping variant, on a table of the same shape.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TRIALS, WORKERS, MAX_RESOURCE = 10_000, 500, 81


def study(variant: str) -> dict[str, Any]:
    """One study in this process."""
    from hpo_ray.testing import run_study

    overrides = ["method=asha", f"scheduler.variant={variant}", "task=hartmann6", f"task.max_resource={MAX_RESOURCE}"]
    overrides += [f"budget.trials={TRIALS}", "executor=simulated", f"executor.workers={WORKERS}"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = run_study(overrides, Path(folder))
        seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "trials": len(result.state.trials), "reports": result.state.trained, "peak_mb": peak_mb}


def on_one_core(command: list[str]) -> dict[str, Any]:
    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {0})

    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=pin)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syne-tune", metavar="PYTHON", help="a Python that has Syne Tune")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(study(options.variant)))
        return
    cases = {
        f"hpo_ray, {variant}": [sys.executable, __file__, "--variant", variant] for variant in ("promotion", "stopping")
    }
    if options.syne_tune:
        script = str(HERE.parent / "overhead" / "syne_tune_simulator.py")
        cases["Syne Tune's simulator, stopping"] = [
            options.syne_tune, script, str(TRIALS), str(WORKERS), "asha", str(MAX_RESOURCE)
        ]  # fmt: skip
    results = {name: on_one_core(command) for name, command in cases.items()}
    content = {"date": date.today().isoformat(), "trials": TRIALS, "workers": WORKERS, "cases": results}
    (HERE / "large.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(
        "| 10,000 trials of ASHA on 500 workers | trials | reports | seconds | ms per trial | ms per report | peak MB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, r in results.items():
        per_trial, per_report = (r["seconds"] / r[key] * 1e3 for key in ("trials", "reports"))
        numbers = f"{r['seconds']:.0f} | {per_trial:.2f} | {per_report:.2f} | {r['peak_mb']:.0f}"
        print(f"| {name} | {r['trials']:,} | {r['reports']:,} | {numbers} |")


if __name__ == "__main__":
    main()
