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

    def write(self, news: TrialNews) -> None:
        number, state = news.trial.number, news.trial.state
        writer = self._writers.get(number)
        if writer is None and (news.points or news.ended is not None):
            writer = self._writers[number] = self._make(str(self._folder / str(number)))
        if writer is None:
            return
        for point in news.points:
            for name, value in point.metrics.items():
                writer.add_scalar(name, value, point.resource, walltime=point.time)
        if news.ended is not None:
            self._describe(writer, news)
        writer.flush()
        if state != "running":  # a paused one that goes on continues in another file: thousands may be paused
            writer.close()
            del self._writers[number]

    def _describe(self, writer: SummaryWriter, news: TrialNews) -> None:
        """The row of the HParams table, and what else is known as a text."""
        from tensorboardX.summary import hparams

        trial, metric = news.trial, self._study.started.metric
        params = {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in news.params.items()}
        for summary in hparams(params, {} if trial.value is None else {metric: trial.value}):
            writer.file_writer.add_summary(summary, walltime=news.ended)
        tags = self._study.trial_tags(trial)
        writer.add_text("trial", _table(tags), trial.resource, walltime=news.ended)

    def finish(self, state: StudyState) -> None:
        started = self._study.started
        writer = self._make(str(self._folder / STUDY))
        for best in state.incumbents:
            writer.add_scalar(f"{BEST}{started.metric}", best.value, best.trained, walltime=started.time + best.time)
        tags = self._study.tags(state)
        if (files := self._study.best_files(state.best)) is not None:
            tags["best_files"] = str(files)
        end = started.time + (state.ended.time if state.ended is not None else 0.0)
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
