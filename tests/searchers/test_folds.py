"""Every method: what searcher and scheduler do is a function of the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from methods import METHODS, each_part_once

from hpo_ray.testing import check_same_events, check_scheduler_is_a_fold, check_searcher_is_a_fold, run_study


def overrides(method: str) -> list[str]:
    """A small study of any method, of most on a space of every kind of domain, with conditions."""
    own = ["searcher.startup=6"] if method == "gp" else []
    own += ["scheduler.min_resource=3"] if method == "gp_hyperband" else []
    decided = ("hyperband", "bohb", "dehb", "gp_hyperband", "pbt", "pb2")
    trials = [] if method in decided else [f"budget.trials={9 if method == 'gp' else 27}"]
    grid = ["searcher.sample=true"] if method == "grid" else []
    task = "branin" if "gp" in method else "mixed10"  # its suggestions take long in many dimensions
    return [
        f"method={method}",
        f"task={task}",
        "task.max_resource=9",
        "seed=2",
        *trials,
        *own,
        *grid,
    ]


@pytest.mark.parametrize("method", each_part_once(METHODS))
def test_law_searcher_and_scheduler_are_folds_over_the_log(folder: Path, method: str) -> None:
    workers = 1 if "gp" in method else 3
    result = run_study([*overrides(method), "executor=inprocess", f"executor.workers={workers}"], folder)
    check_searcher_is_a_fold(result, cuts=(7,) if "gp" in method else (0, 7, 14))
    check_scheduler_is_a_fold(result)


@pytest.mark.parametrize("method", each_part_once(m for m in METHODS if "gp" not in m))
def test_same_seed_same_trials(folder: Path, method: str) -> None:
    first, again = (run_study([*overrides(method), "executor=inprocess"], folder / name) for name in "ab")
    check_same_events(first, again)
