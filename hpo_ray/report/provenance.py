"""Where a study comes from: its configuration, versions and command lines, and what runs it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hpo_ray.best import CONFIG_FILE
from hpo_ray.commands import python, resume_command
from hpo_ray.report.parts import Listing, Part, Section, Table, Words

if TYPE_CHECKING:
    from hpo_ray.report.subject import Subject


def section(subject: Subject) -> Section:
    """Configuration, versions, commands."""
    parts: list[Part] = []
    if subject.why_no_draft:
        parts.append(Words(f"Its configuration can't be read by this version: {subject.why_no_draft}"))
    if (source := subject.started.source) is not None:
        parts.append(
            Words(f"It was imported from {source}, which another program wrote, {_when(subject.started.time)}.")
        )
        parts.append(Listing("Import it again", subject.started.command or "", open=True))
    else:
        parts += _ours(subject)
    path = subject.folder / CONFIG_FILE
    if path.is_file():
        parts.append(Listing(f"The whole configuration ({CONFIG_FILE})", path.read_text("utf-8", errors="replace")))
    return Section("provenance", "Where it comes from", parts)


def _ours(subject: Subject) -> list[Part]:
    parts: list[Part] = [Table(("when", "what was typed"), _typed(subject))]
    parts.append(Listing("Run it again", run_again(subject), open=True))
    ended = subject.state.ended
    if ended is None or ended.state != "finished":
        parts.append(Listing("Go on with it", resume_command(subject.folder), open=True))
    return [*parts, _versions(subject)]


def run_again(subject: Subject) -> str:
    """The command that runs the same study again, under the next free name."""
    command = subject.started.command
    if command is None:
        return "not on record: this study was not started from the command line"
    words = shlex.split(command)
    kept = [word for word in words if not word.startswith("study.name=")]
    return shlex.join([python() if i == 0 else word for i, word in enumerate(kept)])


def _typed(subject: Subject) -> Sequence[Sequence[str]]:
    started = subject.started
    rows = [(_when(started.time), started.command or "not on record")]
    rows += [(_when(event.wall), event.command or "resumed; the command is not on record") for event in subject.resumed]
    return rows


def _when(time: float) -> str:
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _versions(subject: Subject) -> Table:
    """A row a package; a column for the start and one for each time that other versions went on."""
    columns: list[tuple[str, Mapping[str, Any]]] = [("version", subject.started.versions)]
    for number, event in enumerate(subject.resumed, 1):
        if event.versions and dict(event.versions) != dict(columns[-1][1]):
            columns.append((f"from resume {number} on", event.versions))
    names = list(dict.fromkeys(name for _, known in columns for name in known))
    rows = [[name, *(str(known.get(name, "")) for _, known in columns)] for name in names]
    rows.append(["seed", *(str(subject.started.seed) for _ in columns)])
    return Table(["package", *(title for title, _ in columns)], rows)
