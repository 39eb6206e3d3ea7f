"""`fetch`: a study's folder is brought here, from an object store or another folder; and what `resume` needs of one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from hpo_ray.best import CONFIG_FILE
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, is_running, whole
from hpo_ray.location import Location, is_uri, reason

_OF_TRIALS = re.compile(r"trials/\d+/checkpoint_\d{6,}/")


def fetch(source: str, into: Path, everything: bool = False) -> tuple[Path, int]:
    """Copies a study's folder.

    Args:
        source: its URI or path.
        into: the folder that it is put into, under its own name.
        everything: with the checkpoints of its trials; otherwise only that of the best, in `best/`.

    Returns:
        The new folder, and how many bytes are in it.

    Raises:
        ConfigError: there is no study, or one of its name is there already.
        StudyError: it could not be copied; nothing of it is left.
    """
    location = Location.of(source) if is_uri(source) else None
    origin = Path(source).resolve()
    name = origin.name if location is None else location.name
    target, aside = into / name, into / f".{name}.{os.getpid()}"
    if target.exists():
        raise ConfigError(f"fetch {source}: {target} is there already; remove it, or name another folder to put it in")
    if location is None:
        if not (origin / CONFIG_FILE).is_file():
            raise ConfigError(f"fetch {source}: is no study, it has no {CONFIG_FILE}")
    else:
        _check_there(location)

    def wanted(path: str) -> bool:
        return everything or not _OF_TRIALS.match(path)

    try:
        if location is None:
            _copy(origin, aside, wanted)
        else:
            location.download(aside, wanted)
        aside.rename(target)
    except OSError as error:
        raise StudyError(f"fetch {source}: {reason(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target, sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def bring(location: Location, folder: Path) -> None:
    """Brings a study's folder up to what its store holds, without what its trials have left.

    Of two logs of which one goes on where the other ends, the longer one counts.

    Args:
        location: the study's folder there.
        folder: the study's folder here, which need not be there.

    Raises:
        ConfigError: there is no such study, the store can't be reached, or the logs have gone different ways.
    """
    _check_there(location)
    hurried = location.hurried()
    with hurried.explained():
        there = _lines(lambda: hurried.join(FILE_NAME).read())
    here = _lines((folder / FILE_NAME).read_bytes)
    if (folder / CONFIG_FILE).is_file() and here.startswith(there):
        return
    if not there.startswith(here):
        same = sum(a == b for a, b in zip(here.splitlines(), there.splitlines(), strict=False))
        raise ConfigError(
            f"{folder} and {location} are two studies since line {same + 1} of their logs: both have gone on by "
            f"themselves. Move {folder} away to go on with the other one",
            key=str(folder),
        )
    if is_running(folder / FILE_NAME):
        raise ConfigError(f"{folder}: this study is running, in another process", key=str(folder))
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with location.explained():
            location.download(aside, lambda path: not path.startswith("trials/"))
        if folder.exists():
            # The log last: until then the next one to come brings all of it again.
            for path in sorted(aside.iterdir(), key=lambda path: path.name == FILE_NAME):
                shutil.rmtree(folder / path.name) if (folder / path.name).is_dir() else None
                path.replace(folder / path.name)
        else:
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_there(location: Location) -> None:
    """Raises `ConfigError` if there is no study, or nobody answers."""
    hurried = location.hurried()
    with hurried.explained():
        if hurried.join(CONFIG_FILE).size() is not None:
            return
        studies = [name for name in hurried.names() if hurried.join(name, CONFIG_FILE).size() is not None][:3]
    which = f"; it holds the studies {', '.join(studies)}" if studies else ""
    raise ConfigError(f"{location}: is no study, it has no {CONFIG_FILE}{which}", key=str(location))


def _lines(read: Callable[[], bytes]) -> bytes:
    """The complete lines of a log; none if there is no log."""
    try:
        data = read()
    except FileNotFoundError:
        return b""
    return data[: whole(data)]


def _copy(origin: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    for path in sorted(origin.rglob("*")):
        relative = path.relative_to(origin).as_posix()
        if path.is_file() and wanted(relative):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / relative)
