"""`report --serve`: optuna-dashboard on all studies of a folder, for browsers of this machine only."""

from __future__ import annotations

import importlib.util
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from hpo_ray.commands import short
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, LogError
from hpo_ray.store.urls import check_driver, check_url, reason

if TYPE_CHECKING:
    from hpo_ray.store.storage import OpenStore, Store

HOST, PORT = "127.0.0.1", 8080
_KEY = "--port"


def serve(root: Path, url: str | None, port: str | None = None) -> int:
    """Serves the dashboard until Ctrl-C; prints where.

    Studies that the store lacks are brought into it first; a journal that isn't there is written from the logs.

    Args:
        root: the folder with the studies.
        url: of a database; None for the journal file in `root`.
        port: as typed; by default 8080, and 0 is any that is free.

    Returns:
        0: Ctrl-C is how it ends.

    Raises:
        ConfigError: optuna-dashboard is not installed, the port can't be had, or there is nothing to serve.
        StudyError: the database can't be reached.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ConfigError(
            "report --serve: needs optuna-dashboard, which is not installed: pip install 'hpo_ray[dashboard]'"
        )
    number = _port(port)
    if url is not None:
        check_url(url)
        check_driver(url)
    from hpo_ray.store.recovery import studies
    from hpo_ray.store.storage import Store

    store = Store(root, url)
    if url is None and not studies(root) and not store.journal.is_file():
        raise ConfigError(f"report --serve {short(root)}: there are no studies in it yet", key="study.root")
    with _listening(number) as server:
        dashboard = Dashboard(store)
        server.set_app(dashboard)
        print(f"{store}: {dashboard.contents}")
        print(
            f"optuna-dashboard on http://{HOST}:{server.server_port}/ (this machine only); Ctrl-C ends it", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            dashboard.close()
    return 0


class Dashboard:
    """A WSGI application: optuna-dashboard on a store, which is opened again when its journal has been replaced.

    Args:
        store: brought up to the logs first.

    Attributes:
        contents: what is in the store, for a person.

    Raises:
        StudyError: the database can't be reached, or another process is rebuilding the journal.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.contents = _catch_up(store)
        self._open = _opened(store)
        self._app = self._make()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answers a request, if it asks for this machine.

        A page from elsewhere may have the browser ask under a name of its own that it has pointed here.
        """
        host = str(environ.get("HTTP_HOST", "")).rpartition(":")
        if (host[0] or host[2]) not in (HOST, "localhost"):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"only http://127.0.0.1 and http://localhost are answered\n"]
        return self._current()(environ, start_response)

    def close(self) -> None:
        """Gives connections back."""
        self._open.close()

    def _current(self) -> Callable[..., Iterable[bytes]]:
        from hpo_ray.store.journal import JournalReplaced

        with self._lock:
            try:
                self._open.check()
            except (JournalReplaced, OSError):  # it was rebuilt, or removed
                self._open = _opened(self._store)
                self._app = self._make()
            return self._app

    def _make(self) -> Callable[..., Iterable[bytes]]:
        from optuna_dashboard import wsgi

        app: Callable[..., Iterable[bytes]] = wsgi(self._open.storage)
        return app


def _catch_up(store: Store) -> str:
    """Brings studies into a store that it lacks; what it has then, and what it hasn't."""
    from hpo_ray.store import recovery
    from hpo_ray.store.contents import IDENTITY
    from hpo_ray.store.copying import Busy, Differs, identity

    opened = _opened(store)  # not the one to read from: one that has written forgets what trials were that have ended
    try:
        for folder in recovery.behind(store.root, store, opened):
            with suppress(Busy, Differs, LogError):  # Busy: it runs, and tells the store itself
                recovery.copy(folder, opened)
        known = {study.user_attrs.get(IDENTITY) for study in opened.storage.get_all_studies()}
    except Exception as error:  # whatever the database's module raises
        raise StudyError(f"{store}: {reason(error)}") from None
    finally:
        opened.close()
    lacks = []
    for folder in recovery.studies(store.root):
        with (folder / FILE_NAME).open("rb") as log:
            if identity(log.readline()) not in known:
                lacks.append(folder.name)
    some = f"{', '.join(lacks[:3])}{', ...' if len(lacks) > 3 else ''}"
    left_out = f"\nleft out   {some}: no store, or another one; --rebuild-store takes all in" if lacks else ""
    return f"{len(known)} {'study' if len(known) == 1 else 'studies'}{left_out}"


def _opened(store: Store) -> OpenStore:
    """Opens a store; a journal that is damaged or isn't there is written from the logs."""
    from hpo_ray.store import recovery
    from hpo_ray.store.copying import Busy
    from hpo_ray.store.journal import JournalDamaged

    try:
        if store.url is None and not store.journal.is_file():
            recovery.rebuild(store)
        try:
            return store.open()
        except JournalDamaged:
            recovery.mend(store)
            return store.open()
    except StudyError:
        raise
    except Busy as error:
        raise StudyError(f"{error}; try again in a moment") from None
    except Exception as error:  # whatever the database's module raises
        raise StudyError(f"{store}: {reason(error)}") from None


def _port(typed: str | None) -> int:
    if typed is None:
        return PORT
    if not typed.isdecimal() or int(typed) > 65535:
        raise ConfigError(f"--port {typed}: must be a whole number from 0 (any that is free) to 65535", key=_KEY)
    return int(typed)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread a request, since a browser keeps some open; none of them holds the process."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Listens. The standard library's own asks the network for the name of the address first."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing about each request."""


@contextmanager
def _listening(port: int) -> Iterator[_Server]:
    """A server that has its port, and answers nothing yet.

    Raises:
        ConfigError: somebody else has it.
    """
    try:
        server = _Server((HOST, port), _Quiet)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: can't be had on {HOST}: {error.strerror}; give another one, or --port 0 for any that is "
            f"free",
            key=_KEY,
        ) from None
    with server:
        yield server
