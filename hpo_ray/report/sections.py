"""Which sections a report has, in the order of the page. One with nothing to show is left out."""

from __future__ import annotations

from collections.abc import Callable

from hpo_ray.report import front, importance, incumbent, parallel, slices
from hpo_ray.report.parts import Section
from hpo_ray.report.subject import Subject

SECTIONS: tuple[Callable[[Subject], Section | None], ...] = (
    incumbent.section,
    front.section,
    importance.section,
    parallel.section,
    slices.section,
)


def sections(subject: Subject) -> list[Section]:
    """The sections of a study that have something to show."""
    return [section for make in SECTIONS if (section := make(subject)) is not None]
