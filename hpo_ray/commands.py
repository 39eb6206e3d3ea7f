"""What to type: commands that are shown to a person."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def resume_command(folder: Path) -> str:
    """What goes on with a study."""
    return shlex.join([python(), "-m", "hpo_ray", "resume", str(short(folder))])


def report_command(folder: Path) -> str:
    """What writes the report of a study."""
    return shlex.join([python(), "-m", "hpo_ray", "report", str(short(folder))])


def python() -> str:
    """The Python that runs this: `python` if that is it."""
    here = Path(sys.executable)
    found = shutil.which("python")
    return "python" if found is not None and Path(found) == here else str(short(here))


def short(path: Path) -> Path:
    """The path as it is typed in the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
