"""Tuning from Python, in a script or a notebook: `tune_study`, with the names of the command line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_ray.commands import report_command, resume_command, short
from hpo_ray.config import groups, load
from hpo_ray.errors import ConfigError
from hpo_ray.importing import given, importing
from hpo_ray.overrides import to_text
from hpo_ray.results import REPORT_FILE, StudyResult
from hpo_ray.space import Space
from hpo_ray.study import Draft, Task, build, draft

if TYPE_CHECKING:
    from hpo_ray.view import View


def tune_study(
    task: str | Callable[..., Any] | type | Task,
    space: str | Mapping[str, Any] | Space | None = None,
    method: str = "hyperband",
    *,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    config_name: str | None = None,
    **settings: Any,
) -> StudyResult:
    """Runs a study, as `python -m hpo_ray` does, and gives what it found.

    It leaves the same folder behind: `outputs/<study>` with log, results, best checkpoint and `report.html`.

    >>> import hpo_ray
    >>> from ray import tune
    >>> def train(config):
    ...     for epoch in range(1, 10):
    ...         tune.report({"loss": (config["lr"] - 0.1) ** 2 + 1 / epoch})
    >>> result = hpo_ray.tune_study(
    ...     train,
    ...     {"lr": {"low": 1e-3, "high": 1.0, "log": True}},
    ...     method="random",
    ...     budget={"trials": 5},
    ...     executor="inprocess",
    ...     view="none",
    ... )
    >>> len(result.trials), result.trials["state"].unique().tolist()
    (5, ['completed'])
    >>> bool(result.best.value == result.trials["value"].min())
    True

    A shipped task by its name, settings of a group as a mapping or as they are typed:

    >>> result = hpo_ray.tune_study(
    ...     "branin",
    ...     method="tpe",
    ...     seed=3,
    ...     budget={"trials": 12},
    ...     searcher={"startup": 5},
    ...     overrides=["space.x1.low=0"],
    ...     executor="inprocess",
    ...     view="none",
    ... )
    >>> bool(result.trials["config.x1"].min() >= 0)
    True

    Args:
        task: what is tuned: a Ray Tune function `def train(config)` or a `Trainable` class, or its dotted path; the
            name of a shipped task, as `digits_mlp`; or a `Task`.
        space: the hyperparameters, as a mapping in the form of the configuration or a `Space`, or the name of a shipped
            one. None for a shipped task's own.
        method: as in `method=`.
        overrides: whatever else, as typed on the command line: `["scheduler.eta=4", "space.lr.low=1e-3"]`.
        config_dir: a folder with choices of your own, as in `--config-dir`.
        config_name: the configuration to start from, as in `--config-name`.
        settings: the keys of the command line: `seed=1`, `scheduler="asha"` (a choice), `budget={"trials": 50}` (some
            keys of a group); and of the task, in short, `metric=`, `mode=` and `max_resource=`. Dotted keys go by
            `**{"scheduler.eta": 4}`.

    Raises:
        ConfigError: something can't be; nothing was started. The message names key, value and fix.
        StudyError: the study could not go on. Its log and results are there all the same.
        KeyboardInterrupt: it was interrupted. All that it had is saved; `hpo_ray.resume_study` goes on.
    """
    if (path := importing()) is not None:
        raise ConfigError(
            f"task.trainable={path}: importing its module runs tune_study; put that call under "
            f'`if __name__ == "__main__":`',
            key="task.trainable",
        )
    typed = [*_of_task(task), f"method={method}", *_of_space(space), *_of_settings(settings), *overrides]
    return _carry_out(draft(load(typed, None if config_dir is None else str(config_dir), config_name)))


def resume_study(
    path: str | Path, task: Callable[..., Any] | type | None = None, *, overrides: Sequence[str] = (), **settings: Any
) -> StudyResult:
    """Goes on with a study that was interrupted, or with one that has ended and gets a larger budget.

    >>> import hpo_ray
    >>> first = hpo_ray.tune_study("branin", method="random", budget={"trials": 4}, executor="inprocess", view="none")
    >>> more = hpo_ray.resume_study(first.path, budget={"trials": 6}, view="none")
    >>> len(more.trials), more.path == first.path
    (6, True)

    Args:
        path: its folder, or its URI on an object store.
        task: the function or class, if it can't be imported: one from a notebook.
        overrides: what changes, as typed after `python -m hpo_ray resume PATH`.
        settings: the same as in `tune_study`.

    Raises:
        ConfigError: there is no such study, or a change would make it another one.
        LogError: its log is damaged.
        StudyError: the study could not go on.
        KeyboardInterrupt: it was interrupted again.
    """
    from hpo_ray.resume import reopen

    study = reopen(str(path), [*_of_settings(settings), *overrides])
    if task is not None:
        given(task, study.draft.task.trainable)
    if study.done:
        from hpo_ray.executors.loop import complete

        return complete(study.folder, study.draft)
    return _carry_out(study.draft, study.folder)


def _carry_out(drafted: Draft, folder: Path | None = None) -> StudyResult:
    from hpo_ray.view import make_view

    view = make_view(drafted.config["view"])
    view.prepare(drafted)
    try:
        study = build(drafted)
        from hpo_ray.executors.loop import run

        result = run(study, view, folder)
    finally:
        view.stop()
    _say(result, view)
    ended = result.state.ended
    if ended is not None and ended.state == "interrupted":
        if ended.reason.startswith(signal.SIGTERM.name):
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
    return result


def _say(result: StudyResult, view: View) -> None:
    """One line at the end: how it ended, and what to look at."""
    ended = result.state.ended
    if view.silent or ended is None:
        return
    if ended.state == "interrupted":
        print(f"interrupted; to go on: {resume_command(result.path)}")
        return
    report = result.path / REPORT_FILE
    print(f"{ended.state}: {ended.reason}; report {short(report) if report.is_file() else report_command(result.path)}")


def _of_task(task: str | Callable[..., Any] | type | Task) -> list[str]:
    """What would be typed for a task."""
    if isinstance(task, Task):
        keys = {name: value for name, value in vars(task).items() if value not in (None, {}, ())}
        return ["task=custom", *_of_mapping("task", keys)]
    if isinstance(task, str):
        return [f"task={task}"] if "." not in task else ["task=custom", f"task.trainable={task}"]
    if not callable(task):
        raise ConfigError(
            f"task={task!r}: must be a function or class of Ray Tune, its dotted path, the name of a shipped task, or "
            f"an hpo_ray.Task",
            key="task",
        )
    return ["task=custom", f"task.trainable={to_text(given(task))}"]


def _of_space(space: str | Mapping[str, Any] | Space | None) -> list[str]:
    if space is None:
        return []
    if isinstance(space, str):
        return [f"space={space}"]
    return [f"space={to_text(space.to_config() if isinstance(space, Space) else space)}"]


_OF_TASK = ("metric", "mode", "max_resource", "metrics", "constraints", "args", "unit")


def _of_settings(settings: Mapping[str, Any]) -> list[str]:
    """What would be typed for keyword arguments: choices of a group come before what changes in one."""
    choices, values = [], []
    for key, value in settings.items():
        name = f"task.{key}" if key in _OF_TASK else key
        if name in groups() and isinstance(value, str):
            choices.append(f"{name}={value}")
        elif isinstance(value, Mapping) and "." not in name:
            values += _of_mapping(name, value)
        else:
            values.append(f"{name}={to_text(value)}")
    return [*choices, *values]


def _of_mapping(key: str, values: Mapping[str, Any]) -> list[str]:
    return [f"{key}.{name}={to_text(value)}" for name, value in values.items()]
