"""The trials of a study: what is known of each, and a table that holds the live ones in memory only."""

from __future__ import annotations

import math
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from typing import IO, Any

HYPERPARAMETER = "hyperparameter/"
"""What the metrics begin with that say where a trial that moves its hyperparameters itself has moved them to."""


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        trial_id: its id in Ray Tune and in the log.
        number: its number in the study, from 0.
        config: its hyperparameters.
        state: `running`, `paused`, `completed`, `stopped` or `failed`.
        value: the metric at its highest resource; None before the first finite report.
        resource: the highest resource that it reported.
        history: [resource, value] of each report, in the order of reporting.
        metrics: all metrics of the report at its highest resource.
        retries: how often it has failed and was tried again.
        trained: units really trained for it, repeated ones included.
        seconds: of its steps, on the study's clock.
        error: what it failed with.
        tags: what its method says of it: bracket, rung.
        feasible: whether its value keeps the study's constraints; None if there are none.
        checkpoint: path of its last checkpoint, relative to the study's folder; None if it stays in memory.
        checkpoint_resource: the resource at which that was saved.
        position: the resource that it has trained to, or went on from with another trial's weights.
        furthest: the highest resource of the weights that it has.
        copied: whether its value is that of another trial, whose weights it has and hasn't trained yet.
        schedule: (resource, configuration from there on) of its weights, from 0; None if they had only one.
        lineage: (resource, number of the trial whose weights it copied there); None if it copied none.
    """

    trial_id: str
    number: int
    config: Mapping[str, Any]
    state: str = "running"
    value: float | None = None
    resource: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 0
    trained: int = 0
    seconds: float = 0.0
    error: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    feasible: bool | None = None
    checkpoint: str | None = None
    checkpoint_resource: int = 0
    position: int = 0
    furthest: int = 0
    copied: bool = False
    schedule: list[tuple[int, Mapping[str, Any]]] | None = None
    lineage: list[tuple[int, int]] | None = None

    def schedule_before(self, resource: int) -> list[tuple[int, Mapping[str, Any]]]:
        """Under which configurations the weights that it has at a resource were trained."""
        return [entry for entry in self.schedule or [(0, self.config)] if entry[0] < resource]

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Where the trial itself has moved hyperparameters to, by name, or `name.mean`, `.min`, … of many; often none.

        Its value belongs to these; `config` has where they started.
        """
        found = {n.removeprefix(HYPERPARAMETER): v for n, v in self.metrics.items() if n.startswith(HYPERPARAMETER)}
        return found

    def moved_json(self) -> dict[str, Any]:
        """`hyperparameters`, for a trial that has moved any."""
        return {"hyperparameters": self.hyperparameters} if self.hyperparameters else {}

    def to_json(self) -> dict[str, Any]:
        """A line of trials.jsonl. Values that are not finite become null."""
        return {
            "trial_id": self.trial_id,
            "number": self.number,
            "state": self.state,
            "config": self.config,
            **self.moved_json(),
            "value": self.value,
            "resource": self.resource,
            "history": [[r, v if math.isfinite(v) else None] for r, v in self.history],
            "trained": self.trained,
            "seconds": round(self.seconds, 6),
            "error": self.error,
            **({} if self.feasible is None else {"feasible": self.feasible}),
            **self.tags,
            **({} if self.schedule is None else {"schedule": self.schedule_json()}),
            **({} if self.lineage is None else {"lineage": [list(entry) for entry in self.lineage]}),
        }

    def schedule_json(self) -> list[list[Any]] | None:
        """[resource, configuration from there on] of each part of the schedule."""
        return None if self.schedule is None else [[resource, config] for resource, config in self.schedule]


def to_row(trial: TrialRecord) -> dict[str, Any]:
    """A trial as a row of a table: nested names dotted, `config.lr`, `metrics.accuracy`."""
    return {
        "number": trial.number,
        "trial_id": trial.trial_id,
        "state": trial.state,
        "value": trial.value,
        "resource": trial.resource,
        "trained": trial.trained,
        "seconds": trial.seconds,
        **{name: value for name, value in trial.tags.items()},
        **{f"config.{name}": value for name, value in flat(trial.config).items()},
        **{f"metrics.{name}": value for name, value in trial.metrics.items()},
        "error": trial.error,
    }


COLUMNS = ("number", "trial_id", "state", "value", "resource", "trained", "seconds", "error")
"""Of `to_row`, those that all trials have."""
_GROUPS = ("config.", "metrics.", "error")


def column_order(name: str) -> int:
    """Columns of `to_row` in the order of their groups; within one they stay as they are."""
    return next((1 + i for i, group in enumerate(_GROUPS) if name.startswith(group)), 0)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


OUTPUT = "\noutput: "
"""What stands in an error before the path of what the trial has printed."""


def split_error(error: str) -> tuple[str, str | None]:
    """What a trial failed with, and where its output lies, relative to the study's folder; None if it has none."""
    text, found, output = error.rpartition(OUTPUT)
    return (text, output) if found else (error, None)


class Trials(Mapping[str, TrialRecord]):
    """Trials by id, in the order of their numbers, which count from 0 without a gap.

    Those that ended lie in a temporary file: a study may have hundreds of thousands of them. Eight bytes each stay in
    memory, where it lies. What is read from there is a copy; `live` brings a trial back that is to be changed.
    """

    def __init__(self) -> None:
        self._live: dict[str, TrialRecord] = {}
        self._numbers: dict[str, int] = {}
        """Of ids that are not just their number."""
        self._places = array("q")
        """Where in the file a trial lies, by number; -1 for live ones."""
        self._file: IO[bytes] | None = None

    def add(self, trial: TrialRecord) -> None:
        """A new trial, whose number is the next one."""
        if trial.number != len(self._places):
            raise ValueError(f"trial {trial.trial_id} has the number {trial.number}; the next one is {len(self)}")
        self._live[trial.trial_id] = trial
        self._places.append(-1)
        if not trial.trial_id.isdecimal() or int(trial.trial_id) != trial.number:
            self._numbers[trial.trial_id] = trial.number

    def live(self, trial_id: str) -> TrialRecord:
        """The trial itself, to be changed."""
        if trial_id not in self._live:
            self._live[trial_id] = self[trial_id]
            self._places[self._number(trial_id)] = -1
        return self._live[trial_id]

    def unfinished(self) -> list[TrialRecord]:
        """Those that have not ended, by number."""
        return sorted(self._live.values(), key=lambda trial: trial.number)

    def store(self, trial_id: str) -> None:
        """The trial has ended: puts it into the file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="hpo_ray-")
            weakref.finalize(self, self._file.close)
        trial = self._live.pop(trial_id)
        self._places[trial.number] = self._file.seek(0, 2)
        pickle.dump(trial, self._file, pickle.HIGHEST_PROTOCOL)

    def __getitem__(self, trial_id: str) -> TrialRecord:
        if trial_id in self._live:
            return self._live[trial_id]
        return self._read(self._number(trial_id))

    def __contains__(self, trial_id: object) -> bool:
        if trial_id in self._live:
            return True
        try:
            return self[str(trial_id)].trial_id == trial_id
        except KeyError:
            return False

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return (trial.trial_id for trial in self.values())

    def values(self) -> ValuesView[TrialRecord]:
        """All trials, by number."""
        return _Values(self)

    def _number(self, trial_id: str) -> int:
        number = self._numbers.get(trial_id, int(trial_id) if trial_id.isdecimal() else -1)
        if not 0 <= number < len(self._places) or self._places[number] < 0:
            raise KeyError(trial_id)
        return number

    def _read(self, number: int) -> TrialRecord:
        assert self._file is not None
        self._file.seek(self._places[number])
        trial = pickle.load(self._file)
        assert isinstance(trial, TrialRecord)
        return trial


class _Values(ValuesView[TrialRecord]):
    _mapping: Trials

    def __iter__(self) -> Iterator[TrialRecord]:
        by_number = {trial.number: trial for trial in self._mapping._live.values()}
        for number, place in enumerate(self._mapping._places):
            yield by_number[number] if place < 0 else self._mapping._read(number)
