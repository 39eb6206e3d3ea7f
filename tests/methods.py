"""Every method of conf/, by glob, and what makes a study of it small: a new file is tested as soon as it is there."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
ALL = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
NEEDS_A_STUDY = ("pbt_replay",)
"""It replays the schedule of another study: tests/schedulers/test_population.py."""
METHODS = [method for method in ALL if method not in NEEDS_A_STUDY]
SEVERAL = [m for m in METHODS if OmegaConf.load(CONF / f"method/{m}.yaml").method.get("several")]


def part(method: str, group: str) -> str:
    """The searcher or scheduler that a method names."""
    for entry in OmegaConf.load(CONF / f"method/{method}.yaml").defaults:
        for key, value in entry.items():
            if str(key) == f"override /{group}":
                return str(value)
    raise AssertionError(f"{method} names no {group}")


SCHEDULERS = {part(method, "scheduler"): method for method in reversed(METHODS) if method not in SEVERAL}
"""One method for each scheduler."""


def small(method: str) -> list[str]:
    """The overrides that make a method small, and let its model, if it has one, come to a say."""
    scheduler, searcher = part(method, "scheduler"), part(method, "searcher")
    overrides = []
    if scheduler in ("fifo", "median"):
        overrides.append(f"budget.trials={8 if scheduler == 'median' else 6}")
    elif scheduler in ("pbt", "pb2"):
        overrides += ["scheduler.population=4", "scheduler.interval=1"]
    else:
        overrides.append("scheduler.eta=2")
    if searcher in ("tpe", "gp", "mf_tpe"):
        overrides.append("searcher.startup=3")
    if searcher in ("evolution", "de", "dehb"):
        overrides.append("searcher.population=4")
    if searcher == "nsga2":
        overrides.append("searcher.settings.population_size=4")
    if searcher == "grid":
        overrides.append("searcher.sample=true")
    return overrides


def learns(method: str) -> bool:
    """Whether its suggestions depend on results."""
    import hpo_ray.searchers

    target = str(OmegaConf.load(CONF / f"searcher/{part(method, 'searcher')}.yaml")["_target_"])
    return bool(getattr(hpo_ray.searchers, target.rpartition(".")[2]).Core.learns)
