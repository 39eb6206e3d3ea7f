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

    def learning_curves(self) -> Figure:
        """The metric of each trial against its resource, coloured by the highest rung that it reached."""
        from hpo_ray.report.curves import learning_curves

        return self._shown(learning_curves(self._subject), "no trial has a value")

    def rung_flow(self) -> Figure:
        """What became of the trials that reported at each rung, beside what was planned."""
        from hpo_ray.report.rungs import rung_flow

        return self._shown(rung_flow(self._subject), "its scheduler has no rungs, or no trial came to one")

    def stopping(self) -> Figure:
        """How many trials a scheduler without rungs stopped early, by what they had reached."""
        from hpo_ray.report.rungs import stopping

        return self._shown(stopping(self._subject), "no trial was stopped, or its scheduler has rungs (`rung_flow`)")

    def lineage(self) -> Figure:
        """The members of a population against resource, with an arrow for each copy."""
        from hpo_ray.report.population import lineage

        return self._shown(lineage(self._subject), "no trial has copied another")

    def schedule(self) -> Figure:
        """Under which hyperparameters the weights of each member of a population were trained."""
        from hpo_ray.report.population import schedule

        return self._shown(schedule(self._subject), "no trial changed its configuration while it trained")

    def generations(self) -> Figure:
        """The values of an evolutionary search by generation."""
        from hpo_ray.report.population import generations

        return self._shown(generations(self._subject), "trials of two generations at least are needed")

    def trajectories(self) -> Figure:
        """The hyperparameters that trials move themselves, by gradient, against resource."""
        from hpo_ray.report.trajectories import trajectories

        return self._shown(trajectories(self._subject), "no trial moves its hyperparameters itself")

    def solver(self) -> Figure:
        """What trials report of how their hypergradients were found."""
        from hpo_ray.report.trajectories import solver

        return self._shown(solver(self._subject), "no trial reports how it found hypergradients")

    def workers(self) -> Figure:
        """The share of the workers that trained, and who trained when."""
        from hpo_ray.report.workers import workers

        return self._shown(workers(self._subject), "the log tells no time that a step took")

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
