"""The figures of a study by name, `result.plot.incumbent()`: those that stand in its report."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hpo_ray.errors import StudyError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject
    from hpo_ray.results import StudyResult

_NO_TWO = "no two trials with values that differ in a hyperparameter"


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

    def front(self) -> Figure:
        """Of several metrics the trials that no other beats in all."""
        from hpo_ray.report.front import front

        return self._shown(front(self._subject), "no two metrics to trade off, or no trial that has reported them")

    def importance(self, metric: str | None = None) -> Figure:
        """How much each hyperparameter matters, by fANOVA and by PED-ANOVA.

        Args:
            metric: one of the study's metrics; by default the one that it optimises.
        """
        from hpo_ray.report.importance import importance

        return self._shown(
            importance(self._subject, metric), "importances need ten trials at one resource that differ in two ways"
        )

    def parallel(self) -> Figure:
        """Each trial as a line through its value and its hyperparameters, the best ones in colour."""
        from hpo_ray.report.parallel import parallel

        return self._shown(parallel(self._subject), _NO_TWO)

    def slices(self) -> Figure:
        """The metric against each of the two most important hyperparameters."""
        from hpo_ray.report.slices import slices

        return self._shown(slices(self._subject), _NO_TWO)

    def contour(self) -> Figure:
        """The metric over the two most important hyperparameters."""
        from hpo_ray.report.slices import contour

        return self._shown(contour(self._subject), "no four trials with two hyperparameters that differ")

    def _shown(self, figure: Figure | None, why_not: str) -> Figure:
        if figure is None:
            raise StudyError(f"{self._subject.name}: nothing to plot: {why_not}")
        return figure
