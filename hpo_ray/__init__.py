"""Hyperparameter optimisation on Ray Tune: one command per method, one override to change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy

if TYPE_CHECKING:
    from hpo_ray.best import load_best
    from hpo_ray.results import StudyResult, load_study
    from hpo_ray.space import Space
    from hpo_ray.study import Task
    from hpo_ray.trainables.context import get_context
    from hpo_ray.tuning import resume_study, tune_study

__all__ = ["Space", "StudyResult", "Task", "get_context", "load_best", "load_study", "resume_study", "tune_study"]

__getattr__ = lazy(
    __name__,
    {
        "Space": "space",
        "StudyResult": "results",
        "Task": "study",
        "get_context": "trainables.context",
        "load_best": "best",
        "load_study": "results",
        "resume_study": "tuning",
        "tune_study": "tuning",
    },
)
