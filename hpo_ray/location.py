"""A place that several machines see: an object store, or whatever else pyarrow or fsspec know by a URI.

    s3://bucket/prefix
    s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000     an S3-compatible server
    gs://bucket/prefix

The endpoint of an S3-compatible server is part of the URI, or stands in AWS_ENDPOINT_URL, which pyarrow reads. Keys and
passwords are never part of it: they come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or
GOOGLE_APPLICATION_CREDENTIALS), from the tool's own file, or from the machine's role. This module imports pyarrow, and
fsspec for what pyarrow doesn't know, where they are first needed.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hpo_ray.errors import ConfigError

KEY = "store.root"
_URI = re.compile(r"[A-Za-z][\w+.-]*://")
_SECRET = re.compile(r"key|secret|token|pass|sas|sig$|signature|credential", re.IGNORECASE)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role,",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's role,",
}
_CHUNK = 1 << 22
_S3 = {True: (3.0, 20.0, 3), False: (2.0, 3.0, 2)}
"""Seconds to connect, seconds without an answer, and tries; patient or not."""
_GS_S = {True: 60, False: 5}
"""Seconds that a request to gs:// is tried again for; its own default is a quarter of an hour."""


def is_uri(text: str) -> bool:
    """Whether a text is a URI other than that of a local file, and not a path."""
    return _URI.match(text) is not None and not text.startswith("file://")


@dataclass(frozen=True)
class Location:
    """A folder in such a place. What can't be reached or done there raises an `OSError`.

    Attributes:
        root: the URI that it is opened with, without query.
        query: of the URI: options of the file system.
        parts: names of folders below.
        patient: whether an answer is waited for as long as a large file may take. Otherwise an answer that doesn't
            come within 10 seconds is an error.
    """

    root: str
    query: str = ""
    parts: tuple[str, ...] = ()
    patient: bool = True

    @classmethod
    def of(cls, uri: str) -> Location:
        """The place that a URI names. Looks at its text only.

        Raises:
            ConfigError: there is a key or password in it, or no bucket.
        """
        split = urlsplit(uri)
        scheme = split.scheme
        shown = f"{KEY}={scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
        try:
            password = split.password
        except ValueError:  # of a netloc that makes no sense
            password = None
        wrong = [name for name, _ in parse_qsl(split.query, keep_blank_values=True) if _SECRET.search(name)]
        if password is not None or wrong or (scheme in ("s3", "s3a") and "@" in split.netloc):
            what = f"{wrong[0]}=" if wrong else "a key or password"
            where = _CREDENTIALS.get(scheme, "the environment variables of its tool").rstrip(",")
            raise ConfigError(
                f"{shown}: {what} is in the URI, which is written down in each study's config.yaml; take it out, and "
                f"give it by {where}",
                key=KEY,
            )
        if not split.netloc:
            raise ConfigError(f"{shown}: names no bucket; write {scheme}://bucket/prefix", key=KEY)
        return cls(f"{scheme}://{split.netloc}{split.path.rstrip('/')}", split.query)

    def join(self, *names: str) -> Location:
        """A folder or file below; a name may be a path with slashes."""
        return replace(self, parts=(*self.parts, *names))

    def hurried(self) -> Location:
        """The same place, which isn't waited for."""
        return replace(self, patient=False)

    @property
    def name(self) -> str:
        """The last part."""
        return "/".join((self.root, *self.parts)).rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that it lies in."""
        if self.parts:
            return replace(self, parts=self.parts[:-1])
        return replace(self, root=self.root.rpartition("/")[0])

    def __str__(self) -> str:
        """The URI."""
        return "/".join((self.root, *self.parts)) + (f"?{self.query}" if self.query else "")

    @property
    def filesystem(self) -> Any:
        """The file system, as pyarrow has it."""
        return _open(self.root, self.query, self.patient)[0]

    @property
    def path(self) -> str:
        """The path in `filesystem`."""
        return "/".join((_open(self.root, self.query, self.patient)[1], *self.parts))

    def size(self) -> int | None:
        """Bytes of a file; None if there is none."""
        with _plain_errors():
            info = self.filesystem.get_file_info(self.path)
        return int(info.size) if info.is_file else None

    def read(self) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with _plain_errors(), self.filesystem.open_input_stream(self.path) as file:
            return bytes(file.read())

    def write(self, content: bytes) -> None:
        """Writes a file; on an object store it is there whole or not at all."""
        with _plain_errors():
            self._make_parent()
            with self.filesystem.open_output_stream(self.path) as file:
                file.write(content)

    def names(self) -> list[str]:
        """The names of what lies in the folder; none if there is no folder."""
        return sorted({name.partition("/")[0] for name, _ in self._below(recursive=False)})

    def files(self) -> list[str]:
        """The paths, relative to the folder, of all files in it and below; none if there is no folder."""
        return sorted(name for name, is_file in self._below(recursive=True) if is_file)

    def upload(self, folder: Path) -> None:
        """Copies a local folder, with all that is in it, here."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.join(path.relative_to(folder).as_posix()).put(path)

    def put(self, path: Path) -> None:
        """Copies a local file here."""
        with _plain_errors(), path.open("rb") as source:
            self._make_parent()
            with self.filesystem.open_output_stream(self.path) as target:
                shutil.copyfileobj(source, target, _CHUNK)

    def download(self, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
        """Copies the folder, with all that is in it, to a local one.

        Args:
            folder: made if it isn't there.
            wanted: says of a file's path, relative to the folder, whether it is copied.

        Returns:
            The paths of what was copied, relative to the folder.

        Raises:
            FileNotFoundError: there is nothing.
        """
        names = self.files()
        if not names:
            raise FileNotFoundError(f"{self}: there is nothing")
        names = [name for name in names if wanted(name) and ".." not in name.split("/")]
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self.join(name).get(folder / name)
        return names

    def get(self, path: Path) -> None:
        """Copies a file to a local one.

        Raises:
            FileNotFoundError: there is none.
        """
        with _plain_errors(), self.filesystem.open_input_stream(self.path) as source:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)

    def copy_from(self, source: Location) -> None:
        """Copies a folder of the same place here; an object store does so by itself.

        Raises:
            FileNotFoundError: there is nothing.
        """
        names = source.files()
        if not names:
            raise FileNotFoundError(f"{source}: there is nothing")
        with _plain_errors():
            for name in names:
                target = self.join(name)
                target._make_parent()
                self.filesystem.copy_file(source.join(name).path, target.path)

    def delete(self) -> None:
        """Removes a folder with all that is in it; nothing if there is none."""
        if self._below(recursive=False):
            with _plain_errors():
                self.filesystem.delete_dir(self.path)

    def unlink(self) -> None:
        """Removes a file."""
        with _plain_errors():
            self.filesystem.delete_file(self.path)

    def check(self) -> None:
        """Writes a small file here, reads it back and removes it.

        Raises:
            ConfigError: that can't be done, or nobody answers; the message says what to set.
        """
        marker = self.hurried().join(f".hpo_ray-{uuid.uuid4().hex}")
        content = marker.name.encode()
        with self.explained():
            marker.write(content)
            if marker.read() != content:
                raise OSError("what was written is not what was read")
            marker.unlink()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within it, what can't be reached or done is a `ConfigError`."""
        try:
            yield
        except OSError as error:
            scheme = self.root.partition("://")[0]
            who = _CREDENTIALS.get(scheme, "whoever runs this")
            server = (
                f"; a server of your own is named as {self.root}?endpoint_override=http://HOST:PORT or by "
                f"AWS_ENDPOINT_URL"
                if scheme == "s3" and not self.query
                else ""
            )
            raise ConfigError(
                f"{KEY}={self}: can't be used: {reason(error)}. Check that it is there and that {who} may read, write "
                f"and delete in it{server}",
                key=KEY,
            ) from None

    def _below(self, recursive: bool) -> list[tuple[str, bool]]:
        """(path relative to the folder, whether it is a file) of what lies in it."""
        from pyarrow.fs import FileSelector

        base = self.path
        with _plain_errors():
            found = self.filesystem.get_file_info(FileSelector(base, allow_not_found=True, recursive=recursive))
        start = len(base.strip("/")) + 1
        return [(info.path.strip("/")[start:], info.is_file) for info in found]

    def _make_parent(self) -> None:
        """Makes the folder of a file, where folders are more than a part of the file's name."""
        if self.filesystem.type_name not in ("s3", "gcs", "abfs"):
            self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = re.sub(r"^When .*?(?=AWS Error )", "", text)
    return re.sub(r" \(Request ID: [^)]*\)", "", text).rstrip(".")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Within it, all that goes wrong is an OSError: each file system of fsspec has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {reason(error)}") from error


@cache
def _open(root: str, query: str, patient: bool) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    from pyarrow import ArrowInvalid
    from pyarrow import fs as pyarrow_fs

    with _plain_errors():
        if root.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in query:
            query = "&".join(filter(None, (query, f"retry_limit_seconds={_GS_S[patient]}")))
        uri = f"{root}?{query}" if query else root
        try:
            filesystem, path = pyarrow_fs.FileSystem.from_uri(uri)
        except ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            from fsspec.core import url_to_fs

            known, path = url_to_fs(uri)
            return pyarrow_fs.PyFileSystem(pyarrow_fs.FSSpecHandler(known)), path.rstrip("/")
        if filesystem.type_name == "s3":
            filesystem = _timed(filesystem, *_S3[patient])
    return filesystem, path.rstrip("/")


def _timed(filesystem: Any, connect_s: float, request_s: float, tries: int) -> Any:
    """The same S3 file system with limits on how long it waits, which a URI can't say.

    Small files go in one request, and not in the three that pyarrow takes by default.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options = {
        **filesystem.__reduce__()[1][0],
        "connect_timeout": connect_s,
        "request_timeout": request_s,
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=tries),
    }
    if "allow_delayed_open" in options:
        options["allow_delayed_open"] = True
    return S3FileSystem(**options)
