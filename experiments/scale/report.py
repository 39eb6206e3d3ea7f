"""The tables of README.md and figure.png, from simulation.jsonl and throughput.jsonl.

python experiments/scale/report.py
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from hpo_ray.report.comparison import COLOURS, markdown

HERE = Path(__file__).parent
OPTIMUM = -3.322368011391339  # of hartmann6, as conf/task/hartmann6.yaml has it
METHODS = ("asha", "hyperband", "pbt")
STEPS_S = (0.01, 0.1, 0.5, 1.0, 4.0, 10.0, 60.0)
RAY_DOCUMENTS = {"without logging": 500.0, "with logging, at most": 100.0}
"""Results a second: docs.ray.io/en/latest/tune/tutorials/tune-scalability.html, "Many concurrent trials"."""

Studies = dict[tuple[int, str], list[dict[str, Any]]]


def studies() -> Studies:
    """Those of simulation.jsonl, by workers and method."""
    found: Studies = {}
    for line in (HERE / "simulation.jsonl").read_text(encoding="utf-8").splitlines():
        study = json.loads(line)
        found.setdefault((study["workers"], study["method"]), []).append(study)
    return dict(sorted(found.items()))


def regret(study: dict[str, Any]) -> float:
    return float(study["incumbents"][-1][1] - OPTIMUM)


def reached_at(study: dict[str, Any], target: float) -> float:
    """Virtual seconds until the regret at full resource is the target's; infinite if it never is."""
    return next((at for at, value in study["incumbents"] if value - OPTIMUM <= target), float("inf"))


def middle(values: list[float]) -> float:
    """The lower median: when half of the seeds had come so far."""
    return sorted(values)[(len(values) - 1) // 2]


def driver_cores(study: dict[str, Any], result_ms: float, start_ms: float) -> float:
    """How many cores a real driver would need for it: each trial's start, and its results after the first.

    Without what pauses, saves and promotions cost beside.
    """
    starts, further = study["trials"], study["steps"] - study["trials"]
    return float((starts * start_ms + further * result_ms) / 1e3 / study["virtual_s"])


def simulated(found: Studies, target: float, result_ms: float, start_ms: float) -> str:
    lines = [["workers", "method", "seeds", "workers busy", "time to target", "speed-up", "results a second"]]
    lines[0] += ["driver's cores", "regret"]
    for (workers, method), of_case in found.items():
        if method not in METHODS:
            continue
        time = middle([reached_at(study, target) for study in of_case])
        alone = middle([reached_at(study, target) for study in found[1, method]])
        rate = statistics.median(study["steps"] / study["virtual_s"] for study in of_case)
        lines.append(
            [
                f"{workers:,}",
                method,
                str(len(of_case)),
                f"{statistics.mean(study['utilisation'] for study in of_case):.0%}",
                "not reached" if time == float("inf") else f"{time:,.0f} s",
                "" if time == float("inf") else f"{alone / time:.3g}",
                f"{rate:,.3g}",
                f"{statistics.median(driver_cores(study, result_ms, start_ms) for study in of_case):.2g}",
                f"{statistics.median(regret(study) for study in of_case):.3g}",
            ]
        )
    return markdown(lines)


@dataclass(frozen=True)
class Case:
    """What the driver handled, in several rounds.

    Attributes:
        rates: results a second, by the clock on the wall.
        costs: milliseconds of the driver's processor time for a result.
        per_call: results in one answer of a worker.
    """

    rates: list[float]
    costs: list[float]
    per_call: float

    @property
    def cost(self) -> float:
        return statistics.median(self.costs)


def throughput() -> dict[str, dict[str, Case]]:
    """The cases of throughput.jsonl, by size and name."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in (HERE / "throughput.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs.setdefault((run["size"], run["name"]), []).append(run)
    found: dict[str, dict[str, Case]] = {}
    for (size, name), of_case in runs.items():
        found.setdefault(size, {})[name] = Case(
            [run["results"] / run["wall_s"] for run in of_case],
            [run["driver_s"] / run["results"] * 1e3 for run in of_case],
            statistics.median(run["results"] / max(1, run["calls"]) for run in of_case),
        )
    return found


def measured(cases: dict[str, Case]) -> str:
    """Rows of one size; the first, Ray's Tuner, is what the others are compared with."""
    lines = [["", "results a second", "range", "driver's ms a result", "range", "Ray's Tuner takes", "results a call"]]
    rays = next(iter(cases.values())).cost
    for name, case in cases.items():
        lines.append(
            [
                name,
                f"{statistics.median(case.rates):,.0f}",
                f"{min(case.rates):,.0f} to {max(case.rates):,.0f}",
                f"{case.cost:.2f}",
                f"{min(case.costs):.2f} to {max(case.costs):.2f}",
                f"{rays / case.cost:.2f} times as long",
                f"{case.per_call:,.3g}",
            ]
        )
    return markdown(lines)


def most_workers(step_s: float, every_s: float, call_ms: float, result_ms: float) -> float:
    """With so many workers one core of the driver's is busy: W (result / step + call / max(step, every)) = 1."""
    return 1000.0 / (result_ms / step_s + call_ms / max(step_s, every_s))


def limits(call_ms: float, result_ms: float) -> str:
    lines = [
        ["seconds a step", "each step reported", "report_every_s=0.5", "report_every_s=10", "500 results a second"]
    ]
    for step_s in STEPS_S:
        workers = [most_workers(step_s, every_s, call_ms, result_ms) for every_s in (0.0, 0.5, 10.0)]
        workers.append(RAY_DOCUMENTS["without logging"] * step_s)
        lines.append([f"{step_s:g}", *(f"{number:,.0f}" for number in workers)])
    return markdown(lines)


def draw(found: Studies, target: float, call_ms: float, result_ms: float) -> None:
    figure, (times, busy, driver) = pyplot.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    for method, colour, marker in zip(METHODS, COLOURS, "osD", strict=False):
        sizes = sorted(workers for workers, name in found if name == method)
        reached = [middle([reached_at(study, target) for study in found[size, method]]) for size in sizes]
        times.plot(sizes, reached, marker=marker, ms=5, color=colour, label=method)
        shares = [statistics.mean(study["utilisation"] for study in found[size, method]) for size in sizes]
        busy.plot(sizes, [100 * share for share in shares], marker=marker, ms=5, color=colour, label=method)
    sizes = sorted({workers for workers, _ in found})
    first = middle([reached_at(study, target) for study in found[1, METHODS[0]]])
    times.plot(sizes, [first / size for size in sizes], ":", color="0.6", label="asha, if each worker helped as much")
    times.set(yscale="log", ylabel="virtual seconds", title=f"Time to a regret of {target:.2f}")
    busy.set(ylim=(0, 104), ylabel="% of the time", title="Workers busy")
    for panel in (times, busy):
        panel.set_xscale("log", base=4)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        panel.set_xlabel("workers")
        panel.legend(frameon=False, fontsize=8)
    steps = [10 ** (exponent / 20) for exponent in range(-40, 41)]
    for every_s, colour, name in (
        (0.0, COLOURS[0], "each step"),
        (0.5, COLOURS[1], "0.5 s"),
        (10.0, COLOURS[2], "10 s"),
    ):
        curve = [most_workers(step_s, every_s, call_ms, result_ms) for step_s in steps]
        driver.plot(steps, curve, color=colour, label=f"reported: {name}")
    driver.plot(steps, [500 * s for s in steps], "--", color="0.4", lw=1, label="Ray documents, no logging")
    driver.fill_between(
        steps, [50 * s for s in steps], [100 * s for s in steps], color="0.85", label="Ray documents, logging"
    )
    driver.set(
        xscale="log",
        yscale="log",
        xlabel="seconds a step",
        ylabel="workers",
        title="So many keep one core of the driver busy",
    )
    driver.legend(frameon=False, fontsize=8)
    for panel in (times, busy, driver):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "figure.png", dpi=110)


def main() -> None:
    found = studies()
    target = statistics.median(regret(study) for study in found[1, "random"])
    of_size = throughput()
    each, together = (of_size["results"][name] for name in ("hpo_ray, each step", "hpo_ray, buffered"))
    start_ms = of_size["starts"]["hpo_ray, each step"].cost
    print(f"{simulated(found, target, each.cost, start_ms)}\n")
    print(f"target: regret {target:.3g}, the median of random search on one worker\n")
    for cases in of_size.values():
        print(f"{measured(cases)}\n")
    # each = result + call, together = result + call / results a call
    call_ms = (each.cost - together.cost) / (1 - 1 / together.per_call)
    result_ms = each.cost - call_ms
    print(f"a call {call_ms:.2f} ms, a result {result_ms:.3f} ms\n\n{limits(call_ms, result_ms)}")
    draw(found, target, call_ms, result_ms)


if __name__ == "__main__":
    main()
