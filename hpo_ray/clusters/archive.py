"""The working directory as an archive: what a job takes along, how much that is, and what is left out."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

LEFT_OUT = (".git/", ".venv/", "venv/", "__pycache__/", "*.pyc", "*.egg-info/", "node_modules/", ".*_cache/")
"""Never uploaded."""
IGNORE_FILES = (".gitignore", ".rayignore")
"""Name what else is not uploaded, in each folder for what is below it."""
_TIME = (1980, 1, 1, 0, 0, 0)
_SHOWN = 5


@dataclass(frozen=True)
class Archive:
    """The files of a folder that a job takes along.

    Attributes:
        folder: where they lie.
        files: (path relative to it, bytes) of each, in order.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, folder: Path, excludes: Sequence[str], most_bytes: int) -> Archive:
        """Looks which files of a folder would be sent.

        Args:
            folder: the working directory.
            excludes: patterns of files that are left out, as in a .gitignore; before those of the folder's own
                .gitignore and .rayignore files. What a pattern with `!` names is taken along.
            most_bytes: how much may be sent, before it is compressed.

        Raises:
            ConfigError: there is no such folder, it can't be read, or it holds more; the message names what is large.
        """
        if not folder.is_dir():
            raise ConfigError(
                f"cluster.runtime_env.working_dir={folder}: no such folder", key="cluster.runtime_env.working_dir"
            )
        try:
            files = tuple(sorted(_files(folder, [*LEFT_OUT, *excludes])))
        except OSError as error:
            raise _unreadable(folder, error) from None
        total = sum(size for _, size in files)
        if total > most_bytes:
            largest = sorted(_by_entry(files).items(), key=lambda item: -item[1])[:_SHOWN]
            listed = ", ".join(f"{name} {megabytes(size)}" for name, size in largest)
            raise ConfigError(
                f"cluster.max_upload_mb={most_bytes / 1e6:g}: the working directory {folder} has {megabytes(total)} in "
                f"{len(files)} files; the largest: {listed}. Leave out what the job doesn't need, 'cluster.excludes="
                f"[{largest[0][0]}]' or a .gitignore; data belong on the nodes, task.args.path=/where/they/lie",
                key="cluster.max_upload_mb",
            )
        return cls(folder, files)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for _, size in self.files)

    def write(self, path: Path) -> None:
        """Writes the archive: the same bytes for the same files, so that it is uploaded once.

        Raises:
            ConfigError: a file can't be read.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, _ in self.files:
                source = self.folder / name
                try:
                    mode, content = source.stat().st_mode, source.read_bytes()
                except OSError as error:
                    raise _unreadable(self.folder, error) from None
                entry = zipfile.ZipInfo(name, _TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (mode & 0o777) << 16
                archive.writestr(entry, content)


def megabytes(size: int) -> str:
    """Bytes in megabytes."""
    return f"{size / 1e6:.1f} MB"


def _unreadable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cluster.runtime_env.working_dir={folder}: {error.filename} can't be read: {error.strerror}; leave it out, "
        f"cluster.excludes=[NAME]",
        key="cluster.runtime_env.working_dir",
    )


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, int]]:
    try:
        from pathspec import GitIgnoreSpec
    except ImportError:
        raise ConfigError("submit needs more packages: pip install 'hpo_ray[cluster]'", key="cluster") from None
    yield from _walk(folder, "", [("", GitIgnoreSpec.from_lines(patterns))])


def _walk(folder: Path, below: str, specs: list[tuple[str, GitIgnoreSpec]]) -> Iterator[tuple[str, int]]:
    """The files below a folder that the patterns don't leave out.

    The patterns of a folder count for what is below it, and before those of the folders above, as git has it; those
    that were typed count before all.
    """
    lines = [
        line
        for name in IGNORE_FILES
        if (folder / below / name).is_file()
        for line in (folder / below / name).read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    if lines:
        specs = [specs[0], (below, type(specs[0][1]).from_lines(lines)), *specs[1:]]
    with os.scandir(folder / below) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{below}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        path = name + ("/" if is_folder else "")
        said = (spec.check_file(path[len(base) :]).include for base, spec in specs)
        if next((left_out for left_out in said if left_out is not None), False):
            continue
        if is_folder:
            yield from _walk(folder, path, specs)
        elif entry.is_file():  # what a link leads to is sent as a file; a link to a folder is left out
            yield name, entry.stat().st_size


def _by_entry(files: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Bytes by what lies directly in the folder."""
    sizes: dict[str, int] = {}
    for name, size in files:
        top = name.partition("/")[0] + ("/" if "/" in name else "")
        sizes[top] = sizes.get(top, 0) + size
    return sizes
