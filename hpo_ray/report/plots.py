"""The figures of a study by name, `result.plot.incumbent()`: those that stand in its report."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hpo_ray.errors import StudyError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject
    from hpo_ray.results import StudyResult


class Plots:
    """Draws a study. Each method gives a `plotly.graph_objects.Figure`, which a notebook shows.

    Raises:
        StudyError: the study has nothing for the figure to show; the message says what lacks.
    """

    def __init__(self, result: StudyResult) -> None:
        self._result = result

    @cached_property
    def _subject(self) -> Subject:
        from hpo_ray.report.subject import Subject

        return Subject(self._result)

    def incumbent(self, along: str = "resource") -> Figure:
        """The best trial known so far, against what had been spent by then.

        Args:
            along: `resource`, units trained by the whole study; or `time`, seconds on its clock.
        """
        from hpo_ray.report.incumbent import incumbent

        return self._shown(incumbent(self._subject, along), "no trial has a value")

    def _shown(self, figure: Figure | None, why_not: str) -> Figure:
        if figure is None:
            raise StudyError(f"{self._subject.name}: nothing to plot: {why_not}")
        return figure
