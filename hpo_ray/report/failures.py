"""Trials that failed: how many of which error, with which configuration and where; and those that were tried again."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from hpo_ray.events import TrialRetried
from hpo_ray.report.parts import Listing, Part, Section, Table, Words
from hpo_ray.report.words import shortened
from hpo_ray.results import TRIALS_FILE
from hpo_ray.trials import TrialRecord, split_error
from hpo_ray.view import config_text, count, last_line

if TYPE_CHECKING:
    from hpo_ray.report.subject import Subject

MOST_ROWS, MOST_LISTINGS, MOST_KINDS = 50, 10, 20
LONGEST_CONFIG, LONGEST_ERROR = 120, 20_000
_TYPE = re.compile(r"((?:\w+\.)*[A-Z]\w*)(?::|$)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def error_type(error: str) -> str:
    """What kind of error it was: the exception's name, or the last line with `…` for its numbers."""
    text = last_line(error)
    found = _TYPE.match(text)
    return found[1] if found else _NUMBER.sub("…", text)


def section(subject: Subject) -> Section | None:
    """Failures by kind, the trials that failed, their errors in full, and what was tried again."""
    failed = [trial for trial in subject.trials if trial.state == "failed"]
    again = _retried(subject)
    if not failed and not again:
        return None
    parts: list[Part] = []
    if failed:
        kinds = Counter(error_type(trial.error or "") for trial in failed)
        of = count(len(subject.trials), "trial")
        parts.append(Words(f"{len(failed)} of {of} failed. They count nothing for the best one."))
        left = len(kinds) - MOST_KINDS
        parts.append(
            Table(
                ("error", "trials"),
                [[kind, str(trials)] for kind, trials in kinds.most_common(MOST_KINDS)],
                (1,),
                f"and {count(left, 'further kind')} of error" if left > 0 else "",
            )
        )
        parts.append(_table(subject, failed))
    parts += again
    for trial in failed[:MOST_LISTINGS]:
        parts.append(Listing(f"trial {trial.number}, {_where(subject, trial)}", _cut(trial.error or "unknown error")))
    if len(failed) > MOST_LISTINGS:
        parts.append(Words(f"The errors of all {len(failed)} are in {TRIALS_FILE}."))
    return Section("failures", "Failures", tuple(parts))


def _table(subject: Subject, failed: list[TrialRecord]) -> Table:
    rows = [
        [
            str(trial.number),
            str(trial.history[-1][0]) if trial.history else "before the first",
            last_line(trial.error or ""),
            shortened(config_text(trial.config), LONGEST_CONFIG),
            split_error(trial.error or "")[1] or "",
        ]
        for trial in failed[:MOST_ROWS]
    ]
    head = ["trial", f"last {subject.unit}", "error", "configuration", "output"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    left = len(failed) - MOST_ROWS
    return Table(head, rows, (0, 1), f"and {left} more in {TRIALS_FILE}" if left > 0 else "")


def _retried(subject: Subject) -> list[Part]:
    """Trials that failed and were tried again."""
    events = [event for event in subject.events if isinstance(event, TrialRetried)]
    if not events:
        return []
    trials = {trial.trial_id: trial for trial in subject.trials}
    times = Counter(event.trial_id for event in events)
    last = {event.trial_id: event.error for event in events}
    rows = [
        [str(trials[i].number), str(n), last_line(last[i]), trials[i].state] for i, n in list(times.items())[:MOST_ROWS]
    ]
    left = len(times) - MOST_ROWS
    saved = sum(trials[trial_id].state not in ("failed", "running") for trial_id in times)
    return [
        Words(
            f"{count(len(times), 'trial')} failed and {'was' if len(times) == 1 else 'were'} tried again, "
            f"{count(len(events), 'time')} in all; {saved} of them went on to an end that is no failure."
        ),
        Table(
            ("trial", "tried again", "last error", "now"),
            rows,
            (0, 1),
            f"and {left} more" if left > 0 else "",
        ),
    ]


def _where(subject: Subject, trial: TrialRecord) -> str:
    return f"after {subject.unit} {trial.history[-1][0]}" if trial.history else f"before its first {subject.unit}"


def _cut(error: str) -> str:
    """An error's end, which says most, if it is too long for a page."""
    text = split_error(error)[0]
    return text if len(text) <= LONGEST_ERROR else f"…\n{text[-LONGEST_ERROR:]}"
