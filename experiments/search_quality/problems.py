"""The problems that methods are compared on, for studies of hpo_ray and for everybody else.

python experiments/search_quality/problems.py branin     # serves a problem to a process without hpo_ray, see `serve`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo_ray.config import load
from hpo_ray.domains import Categorical, Domain, Fixed, Int, Range
from hpo_ray.study import Draft, build, draft

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Problem:
    """A function of a configuration, and what a study of it is called with.

    Attributes:
        name: as typed.
        title: as shown.
        overrides: what says it to hpo_ray.
        max_resource: units of resource of a full evaluation; 1 where there is nothing cheaper.
        table: the recording, for a problem that has one.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    max_resource: int
    table: str | None = None

    @cached_property
    def draft(self) -> Draft:
        """The study, whatever its method."""
        return draft(load([*self.overrides, "method=random", "executor=inprocess"]))

    @property
    def has_fidelity(self) -> bool:
        """Whether less than a full evaluation can be had."""
        return self.max_resource > 1

    @cached_property
    def optimum(self) -> float:
        """The lowest value at full resource. All problems are minimised."""
        if self.table is None:
            known = self.draft.task.optimum
            assert known is not None
            return known
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(HERE / self.table).to_pydict()
        return min(v for v, r in zip(table["value"], table["resource"], strict=True) if r == self.max_resource)

    def evaluator(self) -> Callable[[Mapping[str, Any]], list[float]]:
        """A function that gives the values of a configuration (flat) at the resources 1, 2 to max_resource."""
        from hpo_ray.trainables.context import use_context

        study = build(self.draft)
        space, metric = study.draft.space, study.draft.task.metric

        def evaluate(flat: Mapping[str, Any]) -> list[float]:
            config = space.nest(space.check(flat))
            with use_context(study.context):
                trial = study.trainable(config)
                return [float(trial.step()[metric]) for _ in range(self.max_resource)]

        return evaluate

    def neutral_space(self) -> list[dict[str, Any]]:
        """The hyperparameters in plain words, parents before their children."""
        space = self.draft.space
        return [{"name": name, **_plain(space.domains[name])} for name in space.order]


def _plain(domain: Domain) -> dict[str, Any]:
    when = {name: list(values) for name, values in domain.conditions.items()}
    if isinstance(domain, Categorical):
        return {"kind": "choice", "choices": list(domain.choices), "ordered": domain.ordered, "when": when}
    if isinstance(domain, Fixed):
        return {"kind": "choice", "choices": [domain.value], "ordered": False, "when": when}
    assert isinstance(domain, Range)
    kind = "int" if isinstance(domain, Int) else "float"
    return {
        "kind": kind,
        "low": domain.low,
        "high": domain.high,
        "log": domain.log,
        "step": domain.step,
        "when": when,
    }


# What the recorded problems don't search: in all dimensions of the space, the nearest of some hundred configurations
# has little to do with the one that was asked for, and there is nothing for a model to learn.
FIXED = {
    "digits_mlp": ("space.dropout=0.1", "space.weight_decay=1e-4", "space.batch_size=64", "space.activation=relu"),
    "digits_cnn": ("space.dropout=0.1", "space.weight_decay=1e-4", "space.batch_size=64"),
}


def _recorded(name: str, title: str) -> Problem:
    table = f"{name}.parquet"
    overrides = (
        "task=recorded",
        f"task.name={name}",
        f"task.args.path={HERE / table}",
        "task.args.match=nearest",
        f"space={name}",
        *FIXED[name],
        "task.metric=loss",
        "task.mode=min",
        "task.max_resource=27",
    )
    return Problem(name, title, overrides, 27, table)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("branin", "Branin", ("task=branin", "task.max_resource=1"), 1),
        Problem("hartmann6", "Hartmann6", ("task=hartmann6", "task.max_resource=1"), 1),
        Problem("hartmann6_fidelity", "Hartmann6 with fidelity", ("task=hartmann6", "task.max_resource=27"), 27),
        Problem("mixed10", "Mixed10", ("task=mixed10", "task.max_resource=27"), 27),
        _recorded("digits_mlp", "Digits, perceptron (recorded)"),
        _recorded("digits_cnn", "Digits, convolutional (recorded)"),
    )
}


def serve(problem: Problem) -> None:
    """Answers on standard output, a line of JSON each: what the problem is, then the values of each configuration."""
    out, sys.stdout = sys.stdout, sys.stderr  # only answers go there
    evaluate = problem.evaluator()
    for answer in _answers(problem, evaluate):
        out.write(json.dumps(answer) + "\n")
        out.flush()


def _answers(problem: Problem, evaluate: Callable[[Mapping[str, Any]], list[float]]) -> Any:
    yield {"space": problem.neutral_space(), "max_resource": problem.max_resource}
    for line in sys.stdin:
        yield {"losses": evaluate(json.loads(line))}


if __name__ == "__main__":
    serve(PROBLEMS[sys.argv[1]])
