"""A store made whole from the logs: all of it when it is damaged or on demand, otherwise the studies that it lacks."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpo_ray.best import CONFIG_FILE, load_config
from hpo_ray.errors import StudyError
from hpo_ray.events import FILE_NAME, LogError
from hpo_ray.space import Space
from hpo_ray.store.contents import IDENTITY
from hpo_ray.store.copying import LOG_BYTES, Busy, StudyCopy, identity
from hpo_ray.store.journal import JournalDamaged, JournalFile
from hpo_ray.store.storage import OpenStore, Store, alone, open_journal, quiet
from hpo_ray.store.urls import reason, without_password


@dataclass
class Rebuilt:
    """What was written.

    Attributes:
        studies: how many are in the store now.
        trials: how many they have.
        running: studies that are being written by their own processes, which go on by themselves.
        unreadable: studies whose log can't be read, with why.
    """

    studies: int = 0
    trials: int = 0
    running: int = 0
    unreadable: tuple[str, ...] = ()


def studies(root: Path) -> list[Path]:
    """The folders of the studies that lie directly in a folder."""
    return sorted(path.parent for path in root.glob(f"*/{FILE_NAME}"))


def behind(root: Path, store: Store, opened: OpenStore) -> list[Path]:
    """Studies that the store should have and hasn't, or not to their end; those that are running among them."""
    with quiet():
        known = {study.user_attrs.get(IDENTITY): study.user_attrs for study in opened.storage.get_all_studies()}
    found = []
    for folder in studies(root):
        try:
            with (folder / FILE_NAME).open("rb") as file:
                first = file.readline()
                size = file.seek(0, os.SEEK_END)
            if known.get(identity(first), {}).get(LOG_BYTES) != size and _wants(folder, store):
                found.append(folder)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # not a study that could be copied
    return found


def copy(folder: Path, opened: OpenStore, stop: Callable[[], bool] = lambda: False) -> int:
    """Brings one study into a store that is open; how many trials it has.

    Raises:
        Busy: another process is doing so.
        LogError: its log can't be read.
    """
    study = StudyCopy(folder, opened, _space(folder))
    try:
        if study.catch_up(stop):
            study.finish()
        return len(study.state.trials)
    finally:
        study.close()


def forget(opened: OpenStore, identity: str) -> None:
    """Takes a study out of a store."""
    with quiet():
        for study in opened.storage.get_all_studies():
            if study.user_attrs.get(IDENTITY) == identity:
                opened.storage.delete_study(study._study_id)


def rebuild(store: Store) -> Rebuilt:
    """Writes all studies of a root anew, whatever their own `store.` keys say.

    A journal is written beside the old one, and takes its place when it is complete. Of a database those studies are
    written that lie in the root; others, of other roots, stay as they are.

    Raises:
        StudyError: the database can't be reached, or another process is rebuilding the same journal.
    """
    with alone(store.root) as free:
        if not free:
            raise StudyError(f"{store}: another process is rebuilding it")
        if store.url is None:
            return _rebuild_journal(store, studies(store.root), keep=False)
        try:
            opened = store.open()
        except Exception as error:  # whatever the database's module raises
            raise StudyError(f"{store}: {reason(error)}") from None
        try:
            return _rebuild_database(store, opened)
        except Exception as error:  # in the middle: what was written is right, and the next time writes the rest
            raise StudyError(f"{store}: {reason(error)}") from None
        finally:
            opened.close()


def mend(store: Store) -> None:
    """Rebuilds a journal that is damaged, and keeps the old one beside it. Once, whoever comes first.

    Raises:
        Busy: another process is at it.
    """
    with alone(store.root) as free:
        if not free:
            raise Busy(f"{store} is being rebuilt by another process")
        with suppress(JournalDamaged):
            store.open().close()
            return  # somebody else has mended it
        _rebuild_journal(store, [folder for folder in studies(store.root) if _wants(folder, store)], keep=True)


def _rebuild_journal(store: Store, folders: list[Path], keep: bool) -> Rebuilt:
    journal = store.journal
    new = journal.with_name(f"{journal.name}.new-{os.getpid()}")
    new.unlink(missing_ok=True)
    sizes: dict[Path, int] = {}
    try:
        done = Rebuilt()
        with quiet():
            opened = open_journal(new)
            for folder in folders:
                size = (folder / FILE_NAME).stat().st_size
                if _copy_into(done, folder, opened):
                    sizes[folder] = size
            _swap(new, journal, keep)
            # Those that were running may have ended by now, and were told of the old file only.
            opened = open_journal(journal)
            for folder in folders:
                if sizes.get(folder) != (folder / FILE_NAME).stat().st_size:
                    again = Rebuilt()
                    _copy_into(again, folder, opened)
                    if folder not in sizes and again.studies:
                        done.studies, done.running = done.studies + 1, done.running - 1
                        done.trials += again.trials
        return done
    finally:
        new.unlink(missing_ok=True)


def _swap(new: Path, journal: Path, keep: bool) -> None:
    """Puts the new journal into the place of the old one, under the lock of its writers."""
    old = JournalFile(journal)
    with old.alone():
        if keep:
            taken = (journal.with_name(f"{journal.name}.damaged-{n}") for n in itertools.count(1))
            damaged = next(path for path in taken if not path.exists())
            try:
                os.link(journal, damaged)
            except OSError:  # a file system without links: for a moment there is no journal
                journal.rename(damaged)
        new.replace(journal)


def _rebuild_database(store: Store, opened: OpenStore) -> Rebuilt:
    done = Rebuilt()
    with quiet():
        for folder in studies(store.root):
            with (folder / FILE_NAME).open("rb") as file:
                own = identity(file.readline())
            with alone(folder) as free:
                if free:
                    forget(opened, own)
            _copy_into(done, folder, opened)
    return done


def _copy_into(done: Rebuilt, folder: Path, opened: OpenStore) -> bool:
    """Copies a study and counts it; whether it could be."""
    try:
        done.trials += copy(folder, opened)
        done.studies += 1
        return True
    except Busy:
        done.running += 1
    except LogError as error:
        done.unreadable += (str(error),)
    return False


def _wants(folder: Path, store: Store) -> bool:
    """Whether a study's own configuration names this store.

    Only the section `store:` is parsed, which OmegaConf has written: there may be many studies.
    """
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    found = re.search(r"^store:\n((?:[ ].*\n)*)", text, re.MULTILINE)
    section: Mapping[str, Any] = (yaml.safe_load(found[0]) or {}).get("store") or {} if found else {}
    url = None if store.url is None else without_password(store.url)
    return bool(section.get("project")) and section.get("url") == url


def _space(folder: Path) -> Space | None:
    """A study's space; None if it can't be read, and then its configurations are told as they are."""
    from hpo_ray.study import space_of

    try:
        return space_of(load_config(folder))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
