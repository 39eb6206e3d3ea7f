"""What runs on each node of a cluster before a study starts there. It needs nothing but Python, and Ray's pyarrow.

It is sent as a whole: a node may not have this package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from typing import Any


def look(root: str, mark: str, modules: Sequence[str], packages: Sequence[str]) -> dict[str, Any]:
    """Looks at the node that this runs on.

    Args:
        root: where studies lie: a folder, or the URI of an object store.
        mark: name of a file to write there, for the driver to find.
        modules: names of modules that have to be there.
        packages: names of packages whose versions are wanted.

    Returns:
        python, versions by package (None where it is not installed as one), missing modules, and error: why it could
        not write, None if it could.
    """
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        "missing": [name for name in modules if importlib.util.find_spec(name) is None],
        "error": _write(root, mark),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write(root: str, mark: str) -> str | None:
    try:
        if "://" not in root:
            if not os.path.isdir(root):
                return "there is no such folder"
            with open(os.path.join(root, mark), "w") as file:
                file.write(mark)
            return None
        from pyarrow import fs

        if root.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in root:
            root += f"{'&' if '?' in root else '?'}retry_limit_seconds=10"  # its own is a quarter of an hour
        try:
            filesystem, path = fs.FileSystem.from_uri(root)
        except Exception:
            import fsspec

            wrapped, path = fsspec.core.url_to_fs(root)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(wrapped))
        with filesystem.open_output_stream(f"{path.rstrip('/')}/{mark}") as stream:
            stream.write(mark.encode())
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
