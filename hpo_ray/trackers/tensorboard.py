"""TensorBoard: event files in the study's folder, `tensorboard --logdir outputs`.

Ray's `TBXLoggerCallback` names curves `ray/tune/NAME` and adds a dozen of Ray's own, counts steps by Ray's iteration,
begins another file each time that a paused trial goes on, writes the steps since the last checkpoint a second time
after a resume, and leaves the table of hyperparameters empty, which it takes from a field of Ray's own searchers. Here
the files are a projection of the log: a process that takes over writes them anew, so each point is there once.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hpo_ray.results import StudyState
from hpo_ray.trackers.base import BEST, Session, Tracked, Tracker, TrialNews

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FOLDER = "tensorboard"
STUDY = "study"


class TensorBoardTracker(Tracker):
    """A run per trial in `outputs/STUDY/tensorboard/NUMBER`, and `study` with the incumbent's curve."""

    name: ClassVar[str] = "tensorboard"
    module: ClassVar[str] = "tensorboardX"

    def open(self, study: Tracked) -> Session:
        """Begins the files anew."""
        folder = study.folder / FOLDER
        if folder.is_dir():
            shutil.rmtree(folder)
        return _TensorBoard(study, folder)

    def place(self, root: Path) -> str:
        """What it is called."""
        return "tensorboard"


class _TensorBoard(Session):
    def __init__(self, study: Tracked, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._study, self._folder, self._make = study, folder, SummaryWriter
        self._writers: dict[int, SummaryWriter] = {}
        self._files = 0
        self._unfinished: dict[int, TrialNews] = {}
        """The last news of trials that haven't ended."""

    def write(self, news: TrialNews) -> None:
        number = news.trial.number
        self._unfinished[number] = news
        if news.points:
            writer = self._writer(number)
            for point in news.points:
                for name, value in point.metrics.items():
                    writer.add_scalar(name, value, point.resource, walltime=point.time)
            writer.flush()
        if news.ended is not None:
            self._describe(news, news.ended)
            del self._unfinished[number]
        if news.trial.state != "running" and number in self._writers:  # of those that are paused there may be thousands
            self._writers.pop(number).close()

    def _writer(self, number: int) -> SummaryWriter:
        """That of a trial; one that goes on after a pause gets another file."""
        if number not in self._writers:
            self._files += 1  # two files of one second would have one name
            suffix = f".{self._files:08}"  # TensorBoard reads them in the order of their names
            self._writers[number] = self._make(str(self._folder / str(number)), filename_suffix=suffix)
        return self._writers[number]

    def _describe(self, news: TrialNews, time: float) -> None:
        """The row of the HParams table, and what else is known as a text."""
        from tensorboardX.summary import hparams

        trial, metric, writer = news.trial, self._study.started.metric, self._writer(news.trial.number)
        params = {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in news.params.items()}
        for summary in hparams(params, {} if trial.value is None else {metric: trial.value}):
            writer.file_writer.add_summary(summary, walltime=time)
        writer.add_text("trial", _table(self._study.trial_tags(trial)), trial.resource, walltime=time)

    def finish(self, state: StudyState) -> None:
        started = self._study.started
        writer = self._make(str(self._folder / STUDY))
        for best in state.incumbents:
            writer.add_scalar(f"{BEST}{started.metric}", best.value, best.trained, walltime=started.time + best.time)
        tags = self._study.tags(state)
        if (files := self._study.best_files(state.best)) is not None:
            tags["best_files"] = str(files)
        end = started.time + (state.ended.time if state.ended is not None else 0.0)
        for news in self._unfinished.values():
            self._describe(news, end)
        writer.add_text(STUDY, _table(tags), 0, walltime=end)
        writer.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _table(tags: dict[str, object]) -> str:
    """As Markdown, which TensorBoard shows."""
    rows = (f"| {name} | {str(value).replace('|', ' ')} |" for name, value in tags.items())
    return "\n".join(["| | |", "|---|---|", *(row.replace("\n", "<br>") for row in rows)])
