"""A study of Optuna's: an `optuna.Study`, or one in a storage, a database or a journal file.

| Optuna                      | here                                                                              |
|-----------------------------|-----------------------------------------------------------------------------------|
| COMPLETE, PRUNED, FAIL      | `completed`, `stopped`, `failed`                                                  |
| RUNNING, WAITING            | left unfinished; of one that waits there is what it was enqueued with             |
| intermediate values         | reports; where a study counts its steps from 0, a report at step k has k + 1 units |
| the value of a COMPLETE one | its report at the highest resource of all, since there all of them are compared   |
| distributions               | the space; conditions are inferred                                                |
| user attributes             | tags, if they are plain JSON                                                      |
| several values, constraints | `task.metrics`; `constraint.NAME`, which is to be 0 at most                       |

Optuna keeps a trial's times only: its reports are spread evenly between them. A study that one of ours was projected to
(`hpo_ray.store`) is known by its attributes, and comes back as it was.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_ray.config import nearest
from hpo_ray.domains import Categorical, Domain, Fixed
from hpo_ray.errors import ConfigError
from hpo_ray.importers.spaces import as_texts, plain, text
from hpo_ray.importers.writing import Imported, ImportedTrial, Report
from hpo_ray.location import is_uri
from hpo_ray.space import Space
from hpo_ray.store.storage import quiet
from hpo_ray.store.urls import check_driver, check_url, reason, without_password

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_STATES = {"COMPLETE": "completed", "PRUNED": "stopped", "FAIL": "failed"}
_TAKEN = (
    *("trial_id", "number", "state", "config", "hyperparameters", "value", "resource", "history", "trained", "seconds"),
    *("error", "feasible", "schedule", "lineage", "bracket", "exploits", "parent"),
)
"""What a line of trials.jsonl and the log have a meaning of their own for: an attribute of such a name gets a `_`."""
_METRICS = "metrics."
_OURS = ("trial_id", "method", "config", "schedule", "lineage", "error", "resource", "trained", "seconds", "feasible")
"""Attributes of a trial in a store of ours that are no tags."""


def read(source: Any, metric: str | None, mode: str | None, study_name: str | None = None) -> Imported:
    """Reads a study.

    Args:
        source: an `optuna.Study`, the URL of a database, or the path of a journal file or of an SQLite database.
        metric: what its value is called; by default what the study calls it, or `value`. Of several objectives the one
            to look at first.
        mode: `min` or `max`; the study says itself which.
        study_name: which study of the storage; may be left out where there is one.

    Raises:
        ConfigError: the source is no storage, or has no such study, or the study no trials.
    """
    if isinstance(source, str | Path):
        with _open(source) as (storage, where):
            import optuna

            name = _name_in(storage, where, study_name)
            with quiet():
                return _imported(optuna.load_study(study_name=name, storage=storage), where, metric, mode)
    if not all(hasattr(source, name) for name in ("get_trials", "directions", "user_attrs", "study_name")):
        raise ConfigError(
            f"{source!r}: must be the folder of a study, an experiment of Ray Tune, the storage of an Optuna study, or "
            f"an optuna.Study"
        )
    if study_name not in (None, source.study_name):
        raise ConfigError(f"study_name={study_name}: the study that is given is called {source.study_name}")
    return _imported(source, _where(source._storage), metric, mode)


def _imported(study: optuna.Study, where: str | None, metric: str | None, mode: str | None) -> Imported:
    attrs, name = study.user_attrs, study.study_name
    ours = "identity" in attrs and "max_resource" in attrs
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    if not trials:
        raise ConfigError(f"{where or 'Optuna'}: the study {name} has no trials")
    metrics = _metrics(study, metric)
    first = metric if metric in metrics else next(iter(metrics))
    if mode not in (None, metrics[first]):
        raise ConfigError(f"task.mode={mode}: the study {name} has {first} to {metrics[first]}imise", key="task.mode")
    steps = [step for trial in trials for step in trial.intermediate_values]
    shift = 0 if ours or not steps or min(steps) > 0 else 1
    full = int(attrs["max_resource"]) if ours else max(steps, default=1) + shift
    if where is None:
        begun = min((trial.datetime_start for trial in trials if trial.datetime_start is not None), default=None)
        source = f"Optuna, the study {name} in memory" + (f", begun {begun}" if begun is not None else "")
    else:
        source = f"Optuna, the study {name} in {where}"
    domains, texts = _domains(trials)
    constrained = dict.fromkeys(_constraint(name) for trial in trials for name in trial.constraints)
    words = ["python", "-m", "hpo_ray", "report", where or "", *([f"task.metric={metric}"] if metric else [])]
    return Imported(
        source=source,
        name=name,
        task=str(attrs["task"]) if ours else name,
        metric=first,
        mode=metrics[first],
        max_resource=full,
        unit="step",
        trials=[_trial(trial, list(metrics), shift, full, ours, texts) for trial in trials],
        domains=domains,
        metrics=metrics if len(metrics) > 1 else {},
        constraints={name: {"high": 0.0} for name in constrained},
        seed=int(attrs.get("seed", 0)) if ours else 0,
        command=None if where is None else shlex.join(words),
    )


def _metrics(study: optuna.Study, metric: str | None) -> dict[str, str]:
    """`min` or `max` by the name of each objective."""
    modes = ["max" if direction.name == "MAXIMIZE" else "min" for direction in study.directions]
    names = study.metric_names
    if len(modes) == 1:
        return {metric or (names[0] if names else "value"): modes[0]}
    names = names or [f"value_{i}" for i in range(len(modes))]
    if metric is not None and metric not in names:
        raise ConfigError(
            f"task.metric={metric}: the study {study.study_name} optimises {', '.join(names)}{nearest(metric, names)}",
            key="task.metric",
        )
    return dict(zip(names, modes, strict=True))


def _constraint(name: object) -> str:
    return f"constraint.{name}"


def _trial(
    trial: FrozenTrial, metrics: Sequence[str], shift: int, full: int, ours: bool, texts: Collection[str]
) -> ImportedTrial:
    attrs = trial.user_attrs
    state = _STATES.get(trial.state.name)
    start, end = (None if at is None else at.timestamp() for at in (trial.datetime_start, trial.datetime_complete))
    seconds = end - start if start is not None and end is not None else 0.0
    also = {_constraint(name): value for name, value in trial.constraints.items()}
    if ours:
        seconds = float(attrs.get("seconds", seconds))
        also |= {name.removeprefix(_METRICS): value for name, value in attrs.items() if name.startswith(_METRICS)}
    curve = [(step + shift, {metrics[0]: value, **also}) for step, value in sorted(trial.intermediate_values.items())]
    points: list[tuple[int, Mapping[str, Any], int | None]] = [(resource, told, None) for resource, told in curve]
    values = trial.values if state == "completed" or ours else None
    if values is not None:
        at = int(attrs.get("resource", full)) if ours else full
        last = {**dict(zip(metrics, values, strict=True)), **also}
        if points and points[-1][0] == at and points[-1][1][metrics[0]] == values[0]:
            points[-1] = (at, last, None)
        else:  # what a trial returned need not be what it reported last
            points.append((at, last, 0 if points else None))
    config = dict(trial.params)
    if trial.state.name == "WAITING":
        config = dict(trial.system_attrs.get("fixed_params", {}))
    if ours:
        config |= attrs.get("config", {})
    error, why = None, ""
    if state == "failed":
        error, why = str(attrs.get("error") or "failed in Optuna, which keeps no reason"), "failed"
    elif state == "stopped":
        why = f"pruned at {points[-1][0]}" if points else "pruned before it reported"
    elif state == "completed":
        why = "completed"
    return ImportedTrial(
        trial_id=str(attrs["trial_id"]) if ours and "trial_id" in attrs else str(trial.number),
        config={name: text(plain(value)) if name in texts else value for name, value in config.items()},
        reports=list(_reports(points, start, end, seconds)),
        state=state,
        reason=why,
        error=error,
        tags=_tags(attrs, ours),
        start=start,
        end=end,
    )


def _reports(
    points: Sequence[tuple[int, Mapping[str, Any], int | None]], start: float | None, end: float | None, seconds: float
) -> Iterator[Report]:
    """Reports with times: as if each unit of resource took the same. What cost nothing came in the end."""
    costly = max((resource for resource, _, trained in points if trained is None), default=1)
    before = 0
    for resource, metrics, trained in points:
        time = None if start is None else start
        took = 0.0
        if trained is None:
            took = seconds * (resource - before) / costly
            before = resource
        if start is not None and end is not None:
            time = start + (end - start) * min(resource, costly) / costly
        yield Report(resource, metrics, took, time, trained=trained)


def _tags(attrs: Mapping[str, Any], ours: bool) -> dict[str, Any]:
    """User attributes as tags: those that are plain JSON, under names that mean nothing else here."""
    if ours:
        return {name: value for name, value in attrs.items() if name not in _OURS and not name.startswith(_METRICS)}
    tags = {}
    for name, value in attrs.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            continue
        tags[f"{name}_" if name in _TAKEN else name] = value
    return tags


def _domains(trials: Sequence[FrozenTrial]) -> tuple[dict[str, Domain], set[str]]:
    """Of each parameter the domain that holds all its distributions, and names whose choices are told apart as texts.

    In the order in which they first came.
    """
    from optuna.distributions import CategoricalDistribution

    told: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            known = told.setdefault(name, [])
            if distribution not in known:
                known.append(distribution)
    domains: dict[str, Domain] = {}
    texts: set[str] = set()
    for name, distributions in told.items():
        if isinstance(distributions[0], CategoricalDistribution):
            choices = [plain(choice) for each in distributions for choice in getattr(each, "choices", ())]
            if as_texts(choices):
                texts.add(name)
                choices = [text(choice) for choice in choices]
            choices = list(dict.fromkeys(choices))
            domains[name] = Categorical(tuple(choices)) if len(choices) > 1 else Fixed(choices[0])
        else:
            domains[name] = Space.from_optuna({"x": _widest(distributions)}).domains["x"]
    return domains, texts


def _widest(distributions: Sequence[Any]) -> BaseDistribution:
    """One range of all: a study may widen what it searches; on a grid only where all are on the same."""
    if len(distributions) == 1:
        one: BaseDistribution = distributions[0]
        return one
    low, high = min(each.low for each in distributions), max(each.high for each in distributions)
    made: BaseDistribution = type(distributions[0])(low, high, log=all(each.log for each in distributions))
    return made


@contextmanager
def _open(source: str | Path) -> Iterator[tuple[BaseStorage, str]]:
    """The storage, to be read, and what it is called; nothing is made that isn't there."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    from hpo_ray.store.journal import JournalFile

    shown = without_password(str(source))
    url = str(source) if is_uri(str(source)) else None
    if url is None and _is_sqlite(Path(source)):
        url = f"sqlite:///{Path(source).resolve()}"
    if url is not None:
        check_url(url)
        check_driver(url)
        _check_sqlite(url)
        where = _whole(url)
    else:
        where = str(Path(source).resolve())
    storage: BaseStorage
    try:
        with quiet():
            if url is None:
                with Path(source).open("rb") as file:
                    if not file.read(1):
                        raise ValueError("the file is empty")
                # Ours names the line that is damaged, but opens the file as a writer does.
                ours = os.access(source, os.W_OK)
                storage = JournalStorage(JournalFile(Path(source)) if ours else JournalFileBackend(str(source)))
            else:
                storage = RDBStorage(url, skip_table_creation=True)
            storage.get_all_studies()
    except Exception as error:  # whatever a database's module raises, and Optuna of lines that it doesn't expect
        what = "of a database that Optuna has written" if url is not None else "of a journal file of Optuna's"
        raise ConfigError(f"{shown}: can't be read as the storage of Optuna studies: {reason(error)}. "
                          f"Give the URL or path {what}") from None  # fmt: skip
    try:
        yield storage, where
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def _check_sqlite(url: str) -> None:
    """SQLite makes a file that isn't there, and Optuna's tables are asked for before it says that there are none."""
    found = re.match(r"sqlite[+\w]*:///([^?]+)", url)
    if found is None:
        return
    path = Path(found[1])
    if not path.is_file():
        raise ConfigError(f"{without_password(url)}: there is no file {path}")
    if not _is_sqlite(path):
        raise ConfigError(f"{without_password(url)}: {path} is no SQLite database; give a journal file by its path")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    finally:
        connection.close()
    if not {"studies", "trials"} <= tables:
        raise ConfigError(
            f"{path}: is no storage of Optuna studies; its tables are {', '.join(sorted(tables)) or 'none'}"
        )


def _name_in(storage: BaseStorage, where: str, study_name: str | None) -> str:
    names = sorted(study.study_name for study in storage.get_all_studies())
    some = f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    if not names:
        raise ConfigError(f"{where}: there is no study in it")
    if study_name is None and len(names) > 1:
        raise ConfigError(
            f"{where}: holds {len(names)} studies; say which by study.name= (study_name= in Python): {some}",
            key="study.name",
        )
    if study_name is not None and study_name not in names:
        raise ConfigError(
            f"study.name={study_name}: no such study in {where}{nearest(study_name, names)}; there are: {some}",
            key="study.name",
        )
    return study_name or names[0]


def _where(storage: Any) -> str | None:
    """Where a storage lies, as `_open` calls it; None if that can't be told, as of one in memory."""
    storage = getattr(storage, "_backend", storage)
    url = getattr(storage, "url", None)
    if isinstance(url, str):
        return None if re.fullmatch(r"sqlite[+\w]*://(/:memory:)?", url) else _whole(url)
    path = getattr(storage, "_file_path", None) or getattr(storage, "path", None)
    return None if path is None else str(Path(path).resolve())


def _whole(url: str) -> str:
    """A URL without password, with the path of an SQLite file whole."""
    absolute = re.sub(r"^(sqlite[+\w]*:///)([^?]+)", lambda found: f"{found[1]}{Path(found[2]).resolve()}", url)
    return without_password(absolute)


__all__ = ["read"]
