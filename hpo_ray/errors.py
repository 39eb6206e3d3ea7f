"""What can go wrong, by who has to mend it: the person who typed the command, or the code that ran."""

from __future__ import annotations

from pathlib import Path


class HpoRayError(Exception):
    """Base of the errors that the command line prints as one message, without a traceback."""

    exit_code = 1


class ConfigError(HpoRayError, ValueError):
    """Something typed or configured can't be: found before anything runs. Exit code 2.

    Attributes:
        key: the configuration key at fault, dotted; empty where there is none.
    """

    exit_code = 2

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class StudyError(HpoRayError):
    """A study that ran could not go on, for example because the metric never came. Exit code 1.

    Attributes:
        report: the file that shows what it did; None if there is none.
    """

    report: Path | None = None
