"""`resume`: a study goes on where its log ends, whatever ended it.

What is needed lies in the study's folder: its configuration, its log, its checkpoints. Here it is read and checked,
without Ray or torch; `executors.resuming` brings trials, scheduler and searcher back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpo_ray.best import CONFIG_FILE
from hpo_ray.compare import FILE as COMPARISON_FILE
from hpo_ray.config import groups, load_again
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, Event, LogError, StudyResumed, StudyStarted, parse, whole
from hpo_ray.fetching import bring
from hpo_ray.location import Location, is_uri
from hpo_ray.results import StudyState, fold
from hpo_ray.study import NAME, Draft, draft, versions

MAY_CHANGE = ("budget", "executor", "resources", "cluster", "failure", "tracker", "store", "view", "report")
"""Sections of the configuration that don't decide which trials there are and what they find."""


@dataclass(frozen=True)
class Reopened:
    """A study that is to go on.

    Attributes:
        draft: what it is from now on.
        folder: where it lies.
        state: the fold of its log.
        done: why there is nothing left to do; empty if there is.
        changed: versions that are not those that it ran with before: (package, before, now).
    """

    draft: Draft
    folder: Path
    state: StudyState
    done: str
    changed: tuple[tuple[str, str, str], ...]


def reopen(
    path: str, overrides: Sequence[str] = (), config_dir: str | None = None, root: str | Path = "outputs"
) -> Reopened:
    """Reads a study that is to go on, and changes nothing but one thing.

    The folder of a study on an object store is brought up to what lies there, and made if it isn't here.

    Args:
        path: its folder, or its URI.
        overrides: what changes, as typed: of the sections in `MAY_CHANGE`; `budget.*` may only grow.
        config_dir: a folder with choices of the user's own.
        root: the folder that the study of a URI lies in.

    Raises:
        ConfigError: there is no study, or a change is one that makes it another, or its store can't be reached.
        LogError: its log is damaged.
    """
    if is_uri(path):
        location = Location.of(path)
        folder = Path(root, location.name).resolve()
        bring(location, folder)
        saved = _saved_config(folder)
        saved["store"]["root"] = str(location.parent)  # it may have been copied elsewhere
    else:
        folder = _study_folder(path)
        saved = _saved_config(folder)
        if (uri := saved["store"].get("root")) is not None:
            bring(Location.of(uri).join(folder.name), folder)
            saved = _saved_config(folder)
    events = _events(folder)
    state = fold(events)
    if state.started is not None and state.started.source is not None:
        raise ConfigError(
            f"{folder.name}: it was imported from {state.started.source}; there is nothing to go on with. Import it "
            f"again for what has come since"
        )
    config = load_again(saved, _allowed(saved, overrides, config_dir), config_dir)
    config.store.root = saved["store"].get("root")  # whatever `store=none` says
    again = draft(config)
    before = draft(load_again(saved, (), config_dir))
    if bool(again.virtual_workers) != bool(before.virtual_workers):
        raise ConfigError(
            f"executor: {folder.name} ran {'on a virtual clock' if before.virtual_workers else 'in real time'}, and "
            f"its times can't go on otherwise; leave executor= out, or start a new study",
            key="executor",
        )
    if again.virtual_workers and again.plan.trials != before.plan.trials:
        raise ConfigError(
            f"budget: a simulated study is simulated again from its start, and with another number of trials "
            f"({again.plan.trials}, it has had {before.plan.trials}) it would not come to the same; start a new one, "
            f"whose virtual time costs nothing",
            key="budget.trials",
        )
    _check_grown(again, before, state)
    done = _over(again, state)
    if done and again.config["budget"] != before.config["budget"]:
        raise ConfigError(f"{folder.name} has ended: {done}. Grow what ended it", key="budget")
    return Reopened(again, folder, state, done, _changed_versions(events))


def _study_folder(path: str) -> Path:
    folder = Path(path)
    folder = folder.parent if folder.name == FILE_NAME else folder
    if not folder.is_dir():
        raise ConfigError(f"{path}: no such folder; `python -m hpo_ray list` tells which studies there are", key=path)
    if (folder / COMPARISON_FILE).is_file():
        raise ConfigError(f"{path}: is a comparison; it goes on when its command is typed again", key=path)
    if not (folder / CONFIG_FILE).is_file():
        inside = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG_FILE}"))
        which = f"; it holds the studies {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}" if inside else ""
        raise ConfigError(f"{path}: is no study, it has no {CONFIG_FILE}{which}", key=path)
    return folder.resolve()


def _saved_config(folder: Path) -> dict[str, Any]:
    """The configuration that the study has, with the name and root that its folder has now."""
    try:
        saved = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name = folder.name if re.fullmatch(NAME, folder.name) else None  # it may have been renamed to anything
        study = {**saved["study"], "name": name, "root": str(folder.parent)}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder / CONFIG_FILE}: can't be read: {str(error).splitlines()[0]}; without it the study can't go on"
        ) from None
    return {**saved, "study": study}


def _events(folder: Path) -> list[Event]:
    """The events of its log; none if the study had not come to its first."""
    path = folder / FILE_NAME
    left = [found.name for found in folder.iterdir() if found.name not in (CONFIG_FILE, FILE_NAME)]
    begun = path.is_file() and b"\n" in path.read_bytes()
    if not begun and not left:
        return []
    if not begun:
        raise LogError(
            f"{path}: holds no event, but the study has left {', '.join(sorted(left)[:3])}: its log is lost. It can't "
            f"go on; start a new one"
        )
    try:
        data = path.read_bytes()  # that it is there was seen above
        events = list(parse(path, data[: whole(data)]))
    except LogError as error:
        raise LogError(
            f"{error}. It can't go on from a log that is damaged in the middle. If the lines before that one are "
            f"enough: keep a copy of the file, and cut it before that line"
        ) from None
    first = events[0]
    assert isinstance(first, StudyStarted)
    if first.schema_version < 2:
        raise LogError(f"{path}: written by an older hpo_ray (schema 1), whose log doesn't tell enough to go on from")
    return events


def _allowed(saved: Mapping[str, Any], overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """The overrides without those that say what is so already.

    Raises:
        ConfigError: one would make it another study; the message shows the difference.
    """
    kept = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.partition(".")[0] in MAY_CHANGE and key != "store.root":
            kept.append(override)
            continue
        now = _value(saved, key)
        if key in groups(config_dir) and isinstance(now, Mapping):
            now = now.get("name", now.get("_target_"))
        if "=" in override and now == yaml.safe_load(value):
            continue
        said = "is not in it" if now is None else f"is {now}"
        raise ConfigError(
            f"{override}: a study keeps what it is; here {key} {said}. What may change is {', '.join(MAY_CHANGE)}; for "
            f"anything else start a new study",
            key=key,
        )
    return kept


def _value(saved: Mapping[str, Any], key: str) -> Any:
    node: Any = saved
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _check_grown(again: Draft, before: Draft, state: StudyState) -> None:
    """Refuses a budget that is smaller than it was."""
    for key in ("trials", "rounds"):
        new, old = again.config["budget"][key], before.config["budget"][key]
        if new == old:
            continue
        ours, theirs = again.plan.trials, before.plan.trials
        if ours is not None and theirs is not None and ours < theirs:
            raise ConfigError(
                f"budget.{key}={new}: that is {ours} trials, and the study has had {theirs}; a budget can only grow",
                key=f"budget.{key}",
            )
    for key in ("time_s", "resource"):
        new, old = again.config["budget"][key], before.config["budget"][key]
        if new is not None and old is not None and new < old:
            raise ConfigError(f"budget.{key}={new:g}: it is {old:g}; a budget can only grow", key=f"budget.{key}")
    if again.plan.trials is not None and again.plan.trials < len(state.trials):
        raise ConfigError(
            f"budget: {again.plan.trials} trials, and the study has {len(state.trials)} already; give more",
            key="budget.trials",
        )


def _over(again: Draft, state: StudyState) -> str:
    """Why a study that has finished has nothing left to do under its budget."""
    ended, budget = state.ended, again.budget
    if ended is None or ended.state != "finished":
        return ""
    if budget.time_s is not None and ended.time >= budget.time_s:
        return f"budget.time_s={budget.time_s:g} is used up"
    if budget.resource is not None and state.trained - state.again >= budget.resource:
        return f"budget.resource={budget.resource} is used up"
    if budget.target is not None and ended.reason == f"budget.target={budget.target:g} reached":
        return f"budget.target={budget.target:g} is reached"
    unfinished = state.states["running"] + state.states["paused"]
    if not unfinished and again.plan.trials is not None and len(state.trials) >= again.plan.trials:
        return f"all {len(state.trials)} trials are done"
    return ""


def _changed_versions(events: Sequence[Event]) -> tuple[tuple[str, str, str], ...]:
    known = [event.versions for event in events if isinstance(event, StudyStarted | StudyResumed) and event.versions]
    now = versions()
    before = known[-1] if known else now
    return tuple((name, before[name], now[name]) for name in now if name in before and before[name] != now[name])
