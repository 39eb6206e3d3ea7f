"""What other programs have left becomes a study: a folder of ours, with a log that says what is known of theirs.

A module a source: `ray_tune` reads an experiment's folder, `optuna` a study in a storage. Each gives an `Imported`,
which `writing` writes. Only text is read (JSON, CSV, a database's tables); nothing is unpickled.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_ray.commands import python, short
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, LogError
from hpo_ray.importers.writing import Imported, write
from hpo_ray.location import is_uri
from hpo_ray.overrides import to_text

if TYPE_CHECKING:
    from hpo_ray.results import StudyResult
    from hpo_ray.study import Draft

_DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")


def is_foreign(source: str | Path) -> bool:
    """Whether a path or URL names something to import: a database, a journal file, a folder of Ray Tune's.

    Raises:
        ConfigError: the folder can't be read.
    """
    text = str(source)
    if is_uri(text):
        return text.partition("://")[0].partition("+")[0] in _DATABASES
    path = Path(source)
    from hpo_ray.importers.ray_tune import is_ray_tune

    try:
        return path.name != FILE_NAME if path.is_file() else is_ray_tune(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def import_study(
    source: Any,
    *,
    metric: str | None = None,
    mode: str | None = None,
    root: str | Path = "outputs",
    name: str | None = None,
    study_name: str | None = None,
    time_attr: str | None = None,
) -> Path:
    """Writes the folder of a study that holds what a source has; arguments as of `hpo_ray.load_study`.

    Returns:
        The folder.

    Raises:
        ConfigError: the source can't be read, or lacks what is asked of it; the message says what it has.
        LogError: there is nothing to read.
    """
    if mode not in (None, "min", "max"):
        raise ConfigError(f"mode={mode!r}: must be min or max", key="task.mode")
    return write(_read(source, metric, mode, study_name, time_attr), root, name)


def replay_command(result: StudyResult, draft: Draft) -> str:
    """What lets another method run on the curves of an imported study; empty of any other.

    Nor is there one where trials were stopped early: their curves end before a method may want them to.
    """
    started = result.state.started
    if started is None or started.source is None or result.best is None or result.state.states["stopped"]:
        return ""
    typed = [
        *("task=recorded", f"task.args.path={to_text(str(short(result.path)))}"),
        *(f"task.metric={to_text(started.metric)}", f"task.mode={started.mode}"),
        *(f"task.max_resource={result.best.resource}", f"space={to_text(draft.space.to_config())}"),
        *("method=tpe", "executor=simulated"),
    ]
    return shlex.join([python(), "-m", "hpo_ray", *typed])


def _read(source: Any, metric: str | None, mode: str | None, study_name: str | None, time_attr: str | None) -> Imported:
    if not isinstance(source, str | Path):
        return _of_optuna(source, metric, mode, study_name, time_attr)
    path = Path(source)
    if is_foreign(source) and not path.is_dir():
        return _of_optuna(source, metric, mode, study_name, time_attr)
    if is_uri(str(source)):
        raise ConfigError(
            f"{source}: is not the URL of a database; a study on an object store is brought here first: "
            f"python -m hpo_ray fetch {source}"
        )
    if not path.exists():
        raise LogError(f"{path}: no such folder or file (a study of ours is a folder with {FILE_NAME} in it)")
    if study_name is not None:
        raise ConfigError(f"study_name={study_name}: tells the studies of an Optuna storage apart; {path} is a folder")
    from hpo_ray.importers import ray_tune

    return ray_tune.read(path, metric, mode, time_attr)


def _of_optuna(
    source: Any, metric: str | None, mode: str | None, study_name: str | None, time_attr: str | None
) -> Imported:
    if time_attr is not None:
        raise ConfigError(f"time_attr={time_attr}: is of Ray Tune; a study of Optuna counts its own steps")
    from hpo_ray.importers import optuna

    return optuna.read(source, metric, mode, study_name)
