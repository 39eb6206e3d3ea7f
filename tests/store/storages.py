"""What an Optuna storage holds, read by Optuna's own code, as plain values; and what it should hold."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from hpo_ray.best import CONFIG_FILE, load_config
from hpo_ray.events import FILE_NAME, StudyStarted, TrialAdded, read, to_line
from hpo_ray.results import TRIALS_FILE, StudyResult
from hpo_ray.space import Space
from hpo_ray.store.projection import Projection
from hpo_ray.store.storage import Store

STATES = {"completed": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING", "paused": "RUNNING"}


def storage(store: Store) -> BaseStorage:
    """A store as anybody would open it."""
    if store.url is not None:
        return RDBStorage(store.url)
    return JournalStorage(JournalFileBackend(str(store.journal)))


@contextmanager
def reading(store: Store) -> Iterator[BaseStorage]:
    """A store that is open, and closed afterwards."""
    opened = storage(store)
    try:
        yield opened
    finally:
        if isinstance(opened, RDBStorage):
            opened.remove_session()
            opened.engine.dispose()


def contents(store: Store, dates: bool = False) -> dict[str, Any]:
    """All that is in a store, by study; without dates, which say when a trial was written where that was late."""
    with reading(store) as opened:
        return {
            study.study_name: {
                "directions": [direction.name for direction in study.directions],
                "user_attrs": study.user_attrs,
                "system_attrs": study.system_attrs,
                "trials": [_plain(trial, dates) for trial in opened.get_all_trials(study._study_id, deepcopy=False)],
            }
            for study in opened.get_all_studies()
        }


def _plain(trial: optuna.trial.FrozenTrial, dates: bool) -> dict[str, Any]:
    known = {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "curve": {step: None if math.isnan(v) else v for step, v in sorted(trial.intermediate_values.items())},
        "user_attrs": dict(sorted(trial.user_attrs.items())),
        "constraints": trial.constraints,
    }
    return {**known, "dates": (trial.datetime_start, trial.datetime_complete)} if dates else known


def check_is_the_study(stored: dict[str, Any], result: StudyResult) -> None:
    """Everything that a study's own files say is in the store, in its own words."""
    started = result.state.started
    assert started is not None
    metrics = dict(started.metrics) or {started.metric: started.mode}
    assert stored["directions"] == [{"min": "MINIMIZE", "max": "MAXIMIZE"}[mode] for mode in metrics.values()]
    assert stored["system_attrs"] == {"study:metric_names": list(metrics)}
    said = {name: getattr(started, name) for name in ("method", "task", "seed", "metric", "mode", "max_resource")}
    assert said.items() <= stored["user_attrs"].items()
    ended = result.state.ended
    assert stored["user_attrs"]["state"] == (ended.state if ended else "running")
    assert stored["user_attrs"]["folder"] == result.path.name
    lines = [json.loads(line) for line in (result.path / "trials.jsonl").read_text().splitlines()]
    first = {e.number: e.config for e in read(result.path / FILE_NAME) if isinstance(e, TrialAdded)}
    assert [trial["number"] for trial in stored["trials"]] == [line["number"] for line in lines]
    for trial, line, record in zip(stored["trials"], lines, result.records, strict=True):
        assert trial["state"] == STATES[line["state"]]
        attrs = trial["user_attrs"]
        assert {**trial["params"], **attrs.get("config", {})} == _flat(first[line["number"]])
        assert trial["curve"] == {resource: value for resource, value in line["history"]}
        if line["state"] in ("completed", "stopped"):
            several = [line["value"]] if len(metrics) == 1 else [record.metrics[name] for name in metrics]
            assert trial["values"] == several
        else:
            assert trial["values"] is None
        assert record.tags.items() <= attrs.items()
        assert attrs["trial_id"] == line["trial_id"] and attrs["method"] == started.method
        assert attrs.get("error") == line["error"] and attrs.get("schedule") == line.get("schedule")
        if line["state"] != "running":
            assert (attrs["resource"], attrs["seconds"]) == (line["resource"], line["seconds"])


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def all_of(root: Path) -> dict[str, Any]:
    """The contents of the journal of a folder."""
    return contents(Store(root))


def follow(folder: Path, store: Store) -> None:
    """Projects a study that is over, as its process would have if it went on until all others are copied, too."""
    looked = threading.Event()

    class Following(Projection):
        def _catch_up_others(self) -> None:
            super()._catch_up_others()
            if not self._behind:
                looked.set()

    space = Space.from_config(load_config(folder)["space"])
    following = Following(folder, space, store, poll_s=0.01)
    assert looked.wait(60)
    assert following.close(60) is None


def play(source: Path, folder: Path, store: Store) -> None:
    """Lets a study that is over happen again in another folder, line by line, with its projection beside it."""
    started, *events = read(source / FILE_NAME)
    assert isinstance(started, StudyStarted)
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_bytes((source / CONFIG_FILE).read_bytes())
    (folder / TRIALS_FILE).write_bytes((source / TRIALS_FILE).read_bytes())
    space = Space.from_config(load_config(folder)["space"])
    with (folder / FILE_NAME).open("wb", buffering=0) as log, Projection(folder, space, store, 0.001) as projection:
        for event in (replace(started, study=folder.name), *events):
            log.write(to_line(event).encode())
        note = projection.close(120)
    assert note is None, note


if __name__ == "__main__":
    play(Path(sys.argv[1]), Path(sys.argv[2]), Store(Path(sys.argv[2]).parent, sys.argv[3] if sys.argv[3:] else None))
