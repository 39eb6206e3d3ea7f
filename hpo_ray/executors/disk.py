"""A disk that is full: how it is recognised, whoever met it first, and what the study then says."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from hpo_ray.errors import StudyError

_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(os.strerror(number) for number in _ERRORS)
_NO_ROOM = 1 << 20
"""Bytes: with fewer left, an error of torch's that doesn't say why it could not write a file is for want of room."""


class DiskFull(StudyError):
    """There is no room for what a study writes. It can go on when there is."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__(
            f"no space left on the device of {folder}: free some and go on with `python -m hpo_ray resume {folder}`"
        )


def is_full(error: BaseException, folder: Path | str | None = None) -> bool:
    """Whether an error, or what it came from, is that of a full disk or of a quota.

    Args:
        error: of this process, or as Ray brings it from another one.
        folder: where was written, if that was here and just now.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _ERRORS:
            return True
        text = str(error)
        if any(known in text for known in _TEXTS):  # of another process, or one of several that copying a tree met
            return True
        if "PytorchStreamWriter failed" in text and folder is not None and _free(Path(folder)) < _NO_ROOM:
            return True
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__  # type: ignore[assignment]
    return False


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
