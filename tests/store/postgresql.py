"""A real PostgreSQL, started for the tests that write into one."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path


class PostgreSQL:
    """A cluster in a temporary folder, on a port of 127.0.0.1. Started as another user where the tests are root's."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self._folder = programs, folder
        self._user = None if os.getuid() else next(u for u in ("postgres", "nobody") if _exists(u))
        if self._user is not None:
            shutil.chown(folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "--pgdata", folder / "data", "--auth=trust", "--username=me", "--no-sync")
        self._databases = 0

    @property
    def _options(self) -> str:
        return f"-h 127.0.0.1 -p {self.port} -k {self._folder} -F"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        log = self._folder / "log"
        self._run("pg_ctl", "start", "-w", "-D", self._folder / "data", "-l", log, "-o", self._options)

    def stop(self) -> None:
        """Ends it, connections and all."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._folder / "data")

    def new_database(self) -> str:
        """The URL of an empty database; its password is taken, since nobody is asked for one."""
        self._databases += 1
        name = f"studies{self._databases}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "me", name)
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql+psycopg://me:hush@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [str(self.programs / program), *map(str, arguments)]
        # Into a file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open.
        with tempfile.TemporaryFile() as out:
            done = subprocess.run(command, stdout=out, stderr=out, user=self._user, cwd="/", check=False)
            out.seek(0)
            assert done.returncode == 0, out.read().decode()


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def programs() -> Path | None:
    """Where PostgreSQL's programs are: on the path, or where Debian puts them."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    found = shutil.which("initdb", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    return Path(found).parent if found else None
