"""What a tracker is told of a study, and what a tracker of your own has to give.

Derive `Tracker`, which is configured and checked before a study starts, and `Session`, which writes; then
`tracker: {_target_: my_package.MyTracker, ...}`. A session is told each trial's news in the order of the log. When one
fails it is dropped, and a fresh one is told everything from the start: it has to find out what its tracker has already.
"""

from __future__ import annotations

import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hpo_ray.errors import ConfigError
from hpo_ray.events import StudyStarted
from hpo_ray.results import BEST_FOLDER, StudyState, write_whole
from hpo_ray.trials import TrialRecord, flat

BEST = "best/"
"""What the name of the incumbent's curve begins with; its steps are the units that the study had trained by then."""
CONFIG = "config/"
"""What the curves of a population's hyperparameters begin with, whose values change while it trains."""
_LONGEST_TAG = 5000


@dataclass(frozen=True)
class Point:
    """A report of a trial.

    Attributes:
        number: from 1, of the reports of this trial. A trial of a population may report at a resource twice.
        resource: units trained.
        time: seconds since the epoch.
        metrics: all that are finite numbers; of a population also `config/NAME`, the hyperparameters at that time.
    """

    number: int
    resource: int
    time: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialNews:
    """What is new about a trial.

    Attributes:
        trial: it, as it is now.
        config: the hyperparameters that it began with, nested as in its space.
        began: seconds since the epoch.
        ended: likewise; None while it hasn't.
        points: its reports since the last news, or from its first on where the session is new. Not those that repeat
            what it had reported before it was tried again or taken up.
    """

    trial: TrialRecord
    config: Mapping[str, Any]
    began: float
    ended: float | None
    points: tuple[Point, ...]

    @property
    def params(self) -> dict[str, Any]:
        """The configuration with dotted names."""
        return flat(self.config)


@dataclass(frozen=True)
class Tracked:
    """A study that is tracked.

    Attributes:
        folder: where it lies, an absolute path.
        identity: eight letters that no other study has.
        started: the first event of its log.
    """

    folder: Path
    identity: str
    started: StudyStarted

    @property
    def name(self) -> str:
        """What it is called; a study of a comparison has that in front."""
        compared = (self.folder.parent / "comparison.json").is_file()
        return f"{self.folder.parent.name}/{self.started.study}" if compared else self.started.study

    def run_name(self, trial: TrialRecord) -> str:
        """What the run of a trial is called."""
        return f"{self.name}/{trial.number}"

    def tags(self, state: StudyState) -> dict[str, Any]:
        """What a tracker is told of the study itself."""
        started, best = self.started, state.best
        said: dict[str, Any] = {
            "method": started.method,
            "task": started.task,
            "seed": started.seed,
            "metric": started.metric,
            "mode": started.mode,
            "max_resource": started.max_resource,
            "folder": str(self.folder),
            "state": "running" if state.ended is None else state.ended.state,
            "trials": len(state.trials),
        }
        if started.command is not None:
            said["command"] = started.command
        if best is not None:
            said |= {"best_trial": best.number, "best_value": best.value, "best_resource": best.resource}
        return said

    def trial_tags(self, trial: TrialRecord) -> dict[str, Any]:
        """What a tracker is told of a trial beside its configuration and curves; texts are cut at 5000 letters."""
        said: dict[str, Any] = {
            **trial.tags,
            "study": self.name,
            "method": self.started.method,
            "task": self.started.task,
            "seed": self.started.seed,
            "trial": trial.number,
            "state": trial.state,
            "resource": trial.resource,
        }
        if trial.value is not None:
            said["value"] = trial.value
        if trial.error is not None:
            said["error"] = trial.error[-_LONGEST_TAG:]  # a traceback says at its end what it was
        if trial.schedule is not None:
            said["schedule"] = json.dumps(trial.schedule_json())[:_LONGEST_TAG]
        if trial.lineage is not None:
            said["lineage"] = json.dumps(trial.lineage)[:_LONGEST_TAG]
        return said

    def best_files(self, trial: TrialRecord | None) -> Path | None:
        """The folder with the best checkpoint and its configuration; None if it is not this trial's, or not there."""
        folder = self.folder / BEST_FOLDER
        try:
            best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return folder if trial is not None and best.get("trial_id") == trial.trial_id else None


class Session(ABC):
    """An open connection to a tracker, for one study."""

    @abstractmethod
    def write(self, news: TrialNews) -> None:
        """Tells what is new about a trial, its end included.

        Raises:
            Exception: whatever the tracker raises; the session is closed then, and another is opened later.
        """

    @abstractmethod
    def finish(self, state: StudyState) -> None:
        """Tells that nothing comes any more: the study has ended, or its process has died; and which trial is best."""

    def close(self) -> None:
        """Lets the tracker go. Raises nothing."""
        return


class Tracker(ABC):
    """A tracker as it is configured: a class whose parameters are the keys of its file in conf/tracker/."""

    name: ClassVar[str]
    """That of the choice: `tracker=NAME`."""
    module: ClassVar[str]
    """What it needs to have installed, which `pip install hpo_ray[NAME]` brings."""

    def check(self, root: Path) -> None:
        """Refuses what can be known to fail before a study starts. Asks no server: one that is down costs no study.

        Args:
            root: the folder that studies lie in.

        Raises:
            ConfigError: a package lacks, an address can't be, nobody has logged in.
        """
        try:
            found = importlib.util.find_spec(self.module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise ConfigError(
                f"tracker={self.name} needs {self.module}: pip install 'hpo_ray[{self.name}]'", key="tracker"
            )

    @abstractmethod
    def open(self, study: Tracked) -> Session:
        """Connects.

        Raises:
            Exception: whatever the tracker raises that can't be reached.
        """

    @abstractmethod
    def place(self, root: Path) -> str:
        """Where it is, for messages: without password."""


class Memory:
    """What a session has to know of an earlier one where its tracker can't be asked: a file in the study's folder.

    Args:
        study: the study.
        tracker: the tracker's name.
        place: where it is; what was told elsewhere doesn't count.
    """

    def __init__(self, study: Tracked, tracker: str, place: str) -> None:
        self._file = study.folder / f"{tracker}.json"
        self._whose = {"study": study.identity, "place": place}
        self.runs: dict[str, str] = {}
        """The tracker's own names of its runs, by the number of the trial."""
        self.ended: set[int] = set()
        """Trials whose end was told: there is nothing to add."""
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if {name: known.get(name) for name in self._whose} == self._whose:
            self.runs, self.ended = dict(known["runs"]), set(known["ended"])

    def save(self) -> None:
        """Writes it."""
        content = {**self._whose, "runs": self.runs, "ended": sorted(self.ended)}
        write_whole(self._file, [json.dumps(content) + "\n"])


def check_no_password(key: str, address: str, instead: str) -> None:
    """Refuses an address with a password, which would lie on the disk with the study's configuration.

    Raises:
        ConfigError: it has one.
    """
    if re.search(r"://[^/@]*:[^/]*@", address):
        shown = re.sub(r"(://[^:/@]*):[^/]*@", r"\1@", address)
        raise ConfigError(
            f"{key}={shown}: has a password in it, which would be written to config.yaml; {instead}", key=key
        )
