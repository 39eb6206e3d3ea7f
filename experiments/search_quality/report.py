"""Tables, tests and figure from ours.jsonl and peers.jsonl: writes results.json, figure.png, and README.md's tables.

python experiments/search_quality/report.py
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from problems import PROBLEMS, Problem
from run import MULTI, SINGLE, TWINS
from scipy.stats import wilcoxon

from hpo_ray.report.comparison import COLOURS, markdown, medians

HERE = Path(__file__).parent
OURS = (*SINGLE, *MULTI)
PEERS = {
    "optuna_random": "Optuna, random",
    "optuna_sobol": "Optuna, Sobol",
    "optuna_tpe": "Optuna, TPE",
    "optuna_gp": "Optuna, GP",
    "optuna_cmaes": "Optuna, CMA-ES",
    "smac_rf": "SMAC3, random forest",
    "smac_hyperband": "SMAC3, Hyperband",
    "syne_kde": "Syne Tune, TPE",
    "syne_bore": "Syne Tune, BORE",
    "syne_botorch": "Syne Tune, BoTorch",
    "syne_asha": "Syne Tune, ASHA",
    "syne_bohb": "Syne Tune, BOHB",
}
MULTI_PEERS = ("smac_hyperband", "syne_asha", "syne_bohb")
WITHOUT_MODEL = ("random", "sobol", "hyperband", "asha")
ALONE = {"sobol": "optuna_sobol", "tpe": "optuna_tpe", "gp": "optuna_gp", "cmaes": "optuna_cmaes"}
LEVEL = 0.05
FLOOR, FLOOR_RECORDED = 1e-4, 1e-3  # lower regrets are drawn there
# What the figure shows: few enough to be told apart. Peers are dashed.
SHOWN = {
    "random": ("#888888", "-"),
    "tpe": (COLOURS[0], "-"),
    "gp": (COLOURS[1], "-"),
    "cmaes": (COLOURS[2], "-"),
    "asha": (COLOURS[4], "-"),
    "bohb": (COLOURS[3], "-"),
    "gp_hyperband": (COLOURS[5], "-"),
    "smac_rf": ("#000000", "--"),
    "syne_bohb": ("#000000", ":"),
}


@dataclass(frozen=True)
class Run:
    """One method on one problem with one seed.

    Attributes:
        spent: full evaluations after which it got better, rising.
        regrets: what the regret was then.
        seconds: what it took.
    """

    spent: tuple[float, ...]
    regrets: tuple[float, ...]
    seconds: float

    @property
    def final(self) -> float:
        return self.regrets[-1] if self.regrets else math.inf

    def at(self, spent: float) -> float:
        place = bisect_right(self.spent, spent)
        return self.regrets[place - 1] if place else math.inf


@dataclass(frozen=True)
class Row:
    """A method on a problem.

    Attributes:
        median: of the final regrets; None if half of the seeds or more have nothing at full resource.
        quartiles: of the final regrets.
        wins: seeds on which it is better than random search, a tie counting half.
        p_random: that it is no better than random search (Wilcoxon signed-rank, paired by seed, one-sided).
        p_alone: that it is no worse than Optuna alone with the same sampler; small is bad.
        seconds: median time of a run.
    """

    problem: str
    method: str
    seeds: int
    median: float | None
    quartiles: tuple[float | None, float | None]
    wins: float | None
    p_random: float | None
    p_alone: float | None
    seconds: float


Runs = dict[tuple[str, str], dict[int, Run]]


def read() -> tuple[Runs, int]:
    """(the runs by problem and method, the budget): the budget that most lines have; others are left out."""
    lines = [
        json.loads(line)
        for name in ("ours.jsonl", "peers.jsonl")
        if (HERE / name).exists()
        for line in (HERE / name).read_text().splitlines()
    ]
    budgets = [line["evaluations"] for line in lines]
    budget = max(set(budgets), key=budgets.count)
    runs: Runs = {}
    for line in lines:
        if line["evaluations"] == budget:
            problem = PROBLEMS[line["problem"]]
            runs.setdefault((problem.name, line["method"]), {})[line["seed"]] = _run(problem, line)
    for of, twin in TWINS.items():
        for (problem_name, method), by_seed in list(runs.items()):
            if problem_name == twin and method not in (*MULTI, *MULTI_PEERS):
                _check_twins(method, by_seed, runs.get((of, method), {}))
                runs[of, method] = by_seed
    return runs, budget


def _run(problem: Problem, line: dict[str, Any]) -> Run:
    spent = tuple(trained / problem.max_resource for trained, _ in line["trace"])
    return Run(spent, tuple(max(0.0, value - problem.optimum) for _, value in line["trace"]), line["seconds"])


def _check_twins(method: str, first: dict[int, Run], second: dict[int, Run]) -> None:
    for seed, run in second.items():
        if seed in first and not np.allclose(run.regrets, first[seed].regrets):
            raise ValueError(f"{method}, seed {seed}: not the same with and without fidelity: run both in full")


def row_of(problem: str, method: str, runs: Runs) -> Row:
    by_seed = runs[problem, method]
    finals = [run.final for run in by_seed.values()]
    low, high = (float(np.quantile(finals, q, method="nearest")) for q in (0.25, 0.75))
    middle = float(medians(np.array(finals)[:, None])[0])
    random, alone = runs.get((problem, "random")), runs.get((problem, ALONE.get(method, "")))
    is_random = method == "random" or random is None
    return Row(
        problem,
        method,
        len(finals),
        _finite(middle),
        (_finite(low), _finite(high)),
        None if is_random else sum(_win(a, b) for a, b in pairs(by_seed, random)),
        None if is_random else test(pairs(by_seed, random), "less"),
        None if alone is None else test(pairs(by_seed, alone), "greater"),
        round(float(np.median([run.seconds for run in by_seed.values()])), 2),
    )


def pairs(first: dict[int, Run], second: dict[int, Run] | None) -> list[tuple[float, float]]:
    """The final regrets by seed."""
    assert second is not None
    return [(first[seed].final, second[seed].final) for seed in sorted(first) if seed in second]


def test(of: Sequence[tuple[float, float]], alternative: str) -> float:
    """Wilcoxon's signed-rank test; what has no value at full resource is worse than all that has."""
    if not of:
        return math.nan
    values = np.array(of)
    finite = values[np.isfinite(values)]
    values = np.where(np.isfinite(values), values, 2 * finite.max(initial=0.0) + 1)
    if (values[:, 0] == values[:, 1]).all():
        return 1.0
    return float(wilcoxon(values[:, 0], values[:, 1], alternative=alternative, zero_method="zsplit").pvalue)


def _win(a: float, b: float) -> float:
    return 0.5 if a == b else float(a < b)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary(rows: dict[tuple[str, str], Row], methods: Iterable[str]) -> str:
    """A row a method, a column a problem: the median regret, and * where it beats random search."""
    most = max(row.seeds for row in rows.values())
    lines = [["median regret", *(problem.title for problem in PROBLEMS.values())]]
    for method in methods:
        cells = []
        for name in PROBLEMS:
            row = rows.get((name, method))
            star = row is not None and row.p_random is not None and row.p_random < LEVEL
            few = "" if row is None or row.seeds == most else f" ({row.seeds} seeds)"
            cells.append("" if row is None else _text(row.median) + (" *" if star else "") + few)
        if any(cells):
            lines.append([PEERS.get(method, f"`{method}`"), *cells])
    return markdown(lines)


def against_optuna(rows: dict[tuple[str, str], Row]) -> str:
    """A row a sampler, a column a problem: our median, Optuna's, and the p-value of ours being worse."""
    lines = [["ours / Optuna alone (p)", *(problem.title for problem in PROBLEMS.values())]]
    for method, peer in ALONE.items():
        cells = []
        for name in PROBLEMS:
            ours, theirs = rows.get((name, method)), rows.get((name, peer))
            if ours is None or theirs is None or ours.p_alone is None:
                cells.append("")
                continue
            cells.append(f"{_text(ours.median)} / {_text(theirs.median)} ({ours.p_alone:.2g})")
        if any(cells):
            lines.append([f"`{method}`", *cells])
    return markdown(lines)


def details(problem: Problem, rows: dict[tuple[str, str], Row], methods: Iterable[str]) -> str:
    lines = [["method", "regret, median", "middle half", "seeds won against random", "p", "seconds a run"]]
    for method in methods:
        row = rows.get((problem.name, method))
        if row is None:
            continue
        low, high = row.quartiles
        wins = "" if row.wins is None else f"{row.wins:g} of {row.seeds}"
        p = "" if row.p_random is None else f"{row.p_random:.1g}"
        name = PEERS.get(method, f"`{method}`")
        lines.append([name, _text(row.median), f"{_text(low)} to {_text(high)}", wins, p, f"{row.seconds:.3g}"])
    return f"### {problem.title}\n\n{markdown(lines)}"


def sentences(rows: dict[tuple[str, str], Row]) -> str:
    """Where a method with a model does not beat random search, and where ours is worse than Optuna alone."""
    said = []
    tested = [row for row in rows.values() if row.p_random is not None and row.method not in WITHOUT_MODEL]
    ours = [row for row in tested if row.method in OURS]
    failed = [row for row in ours if row.p_random is not None and row.p_random >= LEVEL]
    said.append(
        f"Of {len(ours)} cases of ours with a model or a population, {len(ours) - len(failed)} beat random search."
    )
    for row in failed:
        random = rows[row.problem, "random"]
        said.append(
            f"- `{row.method}` does not beat random search on {PROBLEMS[row.problem].title}: median regret "
            f"{_text(row.median)} against {_text(random.median)}, better on {row.wins:g} of {row.seeds} seeds, "
            f"p = {row.p_random:.2g}."
        )
    theirs = [row for row in tested if row.method in PEERS and row.method not in ("optuna_random", "optuna_sobol")]
    theirs = [row for row in theirs if row.method != "syne_asha"]
    lost = [row for row in theirs if row.p_random is not None and row.p_random >= LEVEL]
    if theirs:
        names = "; ".join(f"{PEERS[row.method]} on {PROBLEMS[row.problem].title}" for row in lost)
        said.append(f"- Of {len(theirs)} cases of the others, {len(theirs) - len(lost)} do. Not: {names or 'none'}.")
    compared = [row for row in rows.values() if row.p_alone is not None]
    worse = [row for row in compared if row.p_alone is not None and row.p_alone < LEVEL]
    if compared:
        names = ": " * bool(worse) + "; ".join(f"`{row.method}` on {PROBLEMS[row.problem].title}" for row in worse)
        said.append(
            f"- Against Optuna alone with the same sampler, ours is worse (p < {LEVEL:g}) in {len(worse)} of "
            f"{len(compared)} cases, where chance alone makes {LEVEL * len(compared):.2g}{names}."
        )
    return "\n".join([said[0], "", *said[1:]])


def _text(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.3g}"


def draw(runs: Runs, budget: int, path: Path) -> None:
    figure, panels = pyplot.subplots(2, 3, figsize=(11, 6.6), sharex=True, layout="constrained")
    grid = np.linspace(1.0, budget, 4 * budget)
    handles: dict[str, Any] = {}
    for panel, problem in zip(panels.flat, PROBLEMS.values(), strict=True):
        floor = FLOOR_RECORDED if problem.table else FLOOR
        for method, (colour, style) in SHOWN.items():
            by_seed = runs.get((problem.name, method))
            if not by_seed:
                continue
            middle = medians(np.array([[max(floor, run.at(x)) for x in grid] for run in by_seed.values()]))
            seen = np.isfinite(middle)
            label = PEERS.get(method, method)
            (line,) = panel.step(
                grid[seen], middle[seen], where="post", color=colour, linestyle=style, linewidth=1.5, label=label
            )
            handles.setdefault(label, line)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(panel) < 2 else (1,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_title(problem.title, fontsize=10)
        panel.set_xlim(0, budget)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("resource spent, full evaluations")
    for panel in panels[:, 0]:
        panel.set_ylabel("regret at full resource, median")
    labels = [label for method in SHOWN if (label := PEERS.get(method, method)) in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)


def _decades(panel: Any) -> float:
    low, high = panel.get_ylim()
    return math.log10(high / low)


def write_readme(path: Path, parts: dict[str, str]) -> None:
    """Puts each part between its markers."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert pattern.search(text), f"{path} has no {begin} … {end}"
        text = pattern.sub(lambda _, new=f"{begin}\n{part}\n{end}": new, text)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    runs, budget = read()
    rows = {key: row_of(*key, runs) for key in sorted(runs)}
    methods = [method for method in (*OURS, *PEERS) if any((name, method) in rows for name in PROBLEMS)]
    parts = {
        "findings": sentences(rows),
        "summary": summary(rows, methods),
        "optuna": against_optuna(rows),
        "details": "\n\n".join(details(problem, rows, methods) for problem in PROBLEMS.values()),
    }
    draw(runs, budget, HERE / "figure.png")
    results = {"evaluations": budget, "rows": [asdict(row) for row in rows.values()]}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_readme(HERE / "README.md", parts)
    print(parts["summary"], parts["findings"], parts["optuna"], sep="\n\n")


if __name__ == "__main__":
    main()
