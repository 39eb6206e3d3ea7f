"""A study as a report reads it: one pass over its log, kept in arrays, and its configuration."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo_ray.events import FILE_NAME, Event, Reported, StudyResumed, StudyStarted, read
from hpo_ray.results import StudyResult, StudyState, load_study
from hpo_ray.space import Space
from hpo_ray.study import Draft
from hpo_ray.trials import TrialRecord, flat


@dataclass(frozen=True)
class Steps:
    """All reports of a study in the order of the log, one entry each.

    Attributes:
        trial: the number of the trial.
        end: when it was reported, in seconds since the study started.
        seconds: how long the step took.
        resource: what the trial had reached.
        trained: units that the step cost.
    """

    trial: array[int] = field(default_factory=lambda: array("q"))
    end: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    resource: array[int] = field(default_factory=lambda: array("q"))
    trained: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.trial)


class Subject:
    """A study that has trials, and all that a report says of it is derived from here.

    Args:
        result: the study.

    Attributes:
        result: the study.
        folder: its folder.
        started: the first event of its log.
        draft: its plan, space and task; None if its configuration can't be read by this version, or is not there.
        why_no_draft: why not.
        resumed: each time that it was taken up.

    Raises:
        LogError: its log can't be read.
    """

    def __init__(self, result: StudyResult) -> None:
        self.result = result
        self.folder = result.path
        assert result.state.started is not None
        self.started: StudyStarted = result.state.started
        self.why_no_draft = ""
        self.draft = self._draft()

    @classmethod
    def of(cls, folder: str | Path) -> Subject:
        """The study in a folder.

        Raises:
            LogError: there is no readable log in it.
        """
        return cls(load_study(folder))

    @property
    def name(self) -> str:
        """What the study is called."""
        return self.started.study

    @property
    def state(self) -> StudyState:
        """The fold of its log."""
        return self.result.state

    @property
    def unit(self) -> str:
        """What a unit of resource is called."""
        return self.draft.task.unit if self.draft is not None else "step"

    @property
    def space(self) -> Space | None:
        """Its search space, if it is known."""
        return self.draft.space if self.draft is not None else None

    @property
    def sign(self) -> int:
        """1 when less is better, -1 when more is."""
        return self.state.sign

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """All trials by number."""
        return self.result.records

    @cached_property
    def events(self) -> list[Event]:
        """All events of its log. Those of a large study take much memory: `steps` takes little."""
        return read(self.folder / FILE_NAME)

    @cached_property
    def steps(self) -> Steps:
        """All its reports."""
        steps, numbers = Steps(), {trial.trial_id: trial.number for trial in self.trials}
        for event in self.events:
            if isinstance(event, Reported):
                steps.trial.append(numbers[event.trial_id])
                steps.end.append(event.time)
                steps.seconds.append(event.seconds)
                steps.resource.append(event.resource)
                steps.trained.append(event.trained)
        return steps

    @property
    def resumed(self) -> list[StudyResumed]:
        """Each time that it was taken up."""
        return [event for event in self.events if isinstance(event, StudyResumed)]

    @cached_property
    def seconds(self) -> float:
        """How long it ran, on its clock."""
        return float(self.state.ended.time if self.state.ended is not None else max(self.steps.end, default=0.0))

    def config_of(self, trial: TrialRecord) -> dict[str, Any]:
        """A trial's configuration with dotted names."""
        return flat(trial.config)

    def _draft(self) -> Draft | None:
        from omegaconf import OmegaConf

        from hpo_ray.best import load_config
        from hpo_ray.study import draft

        try:
            return draft(OmegaConf.create(load_config(self.folder)))
        except Exception as error:  # of another version, changed by hand, or gone: a report can do without
            self.why_no_draft = f"{type(error).__name__}: {error}"
            return None
