"""What do more workers buy? ASHA, Hyperband and random search on 1, 8, 64 and 512 virtual workers.

python experiments/simulated_cluster/run.py            # some 15 minutes; writes results.json, figure.png, prints tables
python experiments/simulated_cluster/run.py --quick    # two seeds, less resource; prints the tables

An interrupted run goes on where it was: its studies lie in outputs/simulated_cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from hpo_ray.compare import parse, run_all
from hpo_ray.report.comparison import draw_panel, markdown, rows_of, target_of, trace

HERE = Path(__file__).parent
METHODS = ("random", "hyperband", "asha")
WORKERS = (1, 8, 64, 512)
MAX_RESOURCE = 27
STARTUP_S = 5


def compare(workers: int, seeds: int, steps: int) -> dict[str, Any]:
    """The methods on so many workers, all with the same number of steps."""
    typed = [
        f"methods=[{','.join(METHODS)}]",
        f"seeds={seeds}",
        "task=hartmann6",
        f"task.max_resource={MAX_RESOURCE}",
        "task.cost=costs.seconds",
        "executor=simulated",
        f"executor.workers={workers}",
        f"executor.startup_s={STARTUP_S}",
        f"budget.resource={steps}",
        "study.root=outputs/simulated_cluster",
        f"study.name=workers{workers}-steps{steps}",
    ]
    comparison = parse(typed)
    outcome = run_all(comparison, lambda line: print(line, flush=True))
    results = {
        method: [
            json.loads((outcome.folder / f"{method}-seed{seed}" / "result.json").read_text()) for seed in range(seeds)
        ]
        for method in METHODS
    }
    scale = comparison.scale
    traces = {method: [trace(result, scale) for result in of_method] for method, of_method in results.items()}
    busy = {m: sum(r["simulation"]["utilisation"] for r in of_method) / seeds for m, of_method in results.items()}
    ends = {m: sum(r["totals"]["seconds"] for r in of_method) / seeds for m, of_method in results.items()}
    return {"scale": scale, "traces": traces, "rows": rows_of(traces, scale), "busy": busy, "ends": ends}


def tables(of: dict[int, dict[str, Any]], target: float) -> str:
    """One row a method and number of workers. The target is the same in all of them."""
    lines = [
        ["workers", "method", "regret, median", "middle half", "virtual time to target", "speed-up", "workers busy"]
    ]
    alone: dict[str, float] = {}
    for workers, got in of.items():
        for row in got["rows"]:
            times = sorted(t.first_at(target, t.times) for t in got["traces"][row.method])
            reached = times[(len(times) - 1) // 2]
            alone.setdefault(row.method, reached)
            low, high = row.quartiles
            lines.append(
                [
                    str(workers),
                    row.method,
                    text(row.median),
                    f"{text(low)} to {text(high)}",
                    "not reached" if reached == float("inf") else f"{reached:,.0f} s",
                    "" if reached == float("inf") else f"{alone[row.method] / reached:.3g}",
                    f"{got['busy'][row.method]:.0%}",
                ]
            )
    return markdown(lines)


def text(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def draw(of: dict[int, dict[str, Any]], path: Path, steps: int) -> None:
    figure, panels = pyplot.subplots(1, len(of), figsize=(3.1 * len(of), 3.6), sharey=True, layout="constrained")
    for panel, (workers, got) in zip(panels, of.items(), strict=True):
        draw_panel(panel, got["traces"], got["scale"], 0)
        panel.set_title(f"{workers} worker{'s' if workers > 1 else ''}", fontsize=10)
        panel.set_xlabel("virtual time, s")
        panel.set_xlim(left=0.0)
        panel.set_yscale("log")
        panel.spines[["top", "right"]].set_visible(False)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    panels[0].set_ylabel("regret of the incumbent")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Hartmann6, {steps:,} steps each: the same work on more and more workers", fontsize=11)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="less of all; results.json and figure.png stay as they are"
    )
    quick = parser.parse_args().quick
    seeds, steps = (2, 27 * 64) if quick else (8, 27 * 1024)
    sys.path.insert(0, str(HERE))  # for costs.seconds
    of = {workers: compare(workers, seeds, steps) for workers in WORKERS}
    target = target_of(of[1]["traces"])[1]
    print(f"\n{tables(of, target)}\n\ntarget: regret {target:.3g}, the median of random search on one worker")
    if quick:
        return
    draw(of, HERE / "figure.png", steps)
    results = {
        "date": date.today().isoformat(),
        "machine": {"cpu_count": os.cpu_count(), "processor": platform.machine(), "system": platform.system()},
        "seeds": seeds,
        "steps": steps,
        "target": target,
        "workers": {
            workers: {
                "rows": [asdict(row) for row in got["rows"]],
                "utilisation": got["busy"],
                "virtual_seconds": got["ends"],
            }
            for workers, got in of.items()
        },
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
