"""Aim: a run per trial, an experiment per study.

Ray's `AimLoggerCallback` makes another run each time that a paused trial goes on or a study is resumed, names curves
`ray/tune/NAME` beside a dozen of Ray's own, leaves the hyperparameters empty with searchers that are not Ray's, says
nothing of failures, and makes a repository per study unless told otherwise. Here the hashes that Aim gives to runs are
kept in the study's folder, so that they go on. Steps count a trial's reports, since Aim keeps one value for each;
epochs are units of resource.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hpo_ray.errors import ConfigError
from hpo_ray.results import StudyState
from hpo_ray.trackers.base import Memory, Session, Tracked, Tracker, TrialNews
from hpo_ray.trials import TrialRecord

if TYPE_CHECKING:
    from aim import Repo, Run


_LISTED_S = 0.6
"""Aim remembers for half a second which runs there are, and takes one that it has just made for missing."""


class AimTracker(Tracker):
    """Writes to an Aim repository.

    Args:
        repo: the folder that has, or gets, `.aim` in it, or a server, aim://HOST:PORT; None: that of the studies.
    """

    name: ClassVar[str] = "aim"
    module: ClassVar[str] = "aim"

    def __init__(self, repo: str | None = None) -> None:
        self._repo = repo

    def check(self, root: Path) -> None:
        """Refuses an address that Aim doesn't take.

        Raises:
            ConfigError: it is one, or aim is not installed.
        """
        super().check(root)
        if self._repo is None:
            return
        if "://" in self._repo:
            if not re.fullmatch(r"aim://(\[[^\]]+\]|[^\s/:@]+):\d+(/\S*)?", self._repo):
                raise ConfigError(
                    f"tracker.repo={self._repo}: must be a folder or a server, aim://HOST:53800", key="tracker.repo"
                )
        elif not Path(self._repo).is_dir():
            raise ConfigError(f"tracker.repo={self._repo}: there is no such folder; make it", key="tracker.repo")

    def open(self, study: Tracked) -> Session:
        """Opens the repository, and makes one where there is none.

        Raises:
            Exception: whatever Aim raises of a server that is down, or a folder that can't be written.
        """
        from aim import Repo

        place = self._repo or str(study.folder.parent)
        repo = Repo(place) if "://" in place or (Path(place) / ".aim").is_dir() else Repo(place, init=True)
        return _Aim(study, repo, place)

    def place(self, root: Path) -> str:
        """Its repository."""
        return f"aim at {self._repo or root / '.aim'}"


class _Aim(Session):
    def __init__(self, study: Tracked, repo: Repo, place: str) -> None:
        self._study, self._repo = study, repo
        self._memory = Memory(study, "aim", place)
        self._runs: dict[int, Run] = {}

    def write(self, news: TrialNews) -> None:
        trial = news.trial
        if trial.number in self._memory.ended:
            return
        run = self._runs.get(trial.number) or self._open(trial)
        had = run.get("reports", 0)
        if had == 0:
            run["hparams"] = dict(news.config)
        for point in news.points:
            if point.number > had:
                run.track(dict(point.metrics), step=point.number, epoch=point.resource)
        if news.points:
            run["reports"] = max(had, news.points[-1].number)
        run["trial"] = _plain(self._study.trial_tags(trial))
        if news.ended is not None:
            if trial.state == "failed":
                _tag(run, "failed")
            run.close()
            del self._runs[trial.number]
            self._memory.ended.add(trial.number)
            self._memory.save()

    def finish(self, state: StudyState) -> None:
        best, tags = state.best, self._study.tags(state)
        for trial in [] if best is None else [best]:
            run = self._runs.get(trial.number) or self._open(trial)
            files = self._study.best_files(trial)
            run["best"] = {**tags, **({} if files is None else {"files": str(files)})}
            _tag(run, "best")
        self.close()

    def close(self) -> None:
        for run in self._runs.values():
            run.close()
        self._runs.clear()

    def _open(self, trial: TrialRecord) -> Run:
        """The run of a trial, which is made if there is none."""
        from aim import Run

        quiet: dict[str, Any] = {"system_tracking_interval": None, "capture_terminal_logs": False}
        run_hash = self._memory.runs.get(str(trial.number))
        if run_hash is not None and not self._repo.run_exists(run_hash):
            time.sleep(_LISTED_S)
            if not self._repo.run_exists(run_hash):
                run_hash = None  # somebody has deleted it
        run = Run(run_hash, repo=self._repo, experiment=self._study.name, **quiet)
        if run_hash is None:
            self._memory.runs[str(trial.number)] = run.hash
            self._memory.save()
            run.name = self._study.run_name(trial)
            for tag in (self._study.started.method, self._study.started.task):
                _tag(run, tag)
        self._runs[trial.number] = run
        return run


def _tag(run: Run, tag: str) -> None:
    if tag not in run.tags:
        run.add_tag(tag)


def _plain(tags: dict[str, Any]) -> dict[str, Any]:
    """As Aim takes it."""
    return {n: v if isinstance(v, bool | int | float | str | list | None) else str(v) for n, v in tags.items()}
