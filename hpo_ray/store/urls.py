"""The URL of a store: what can be said against it before a study starts, and how it is shown without its password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_ray.config import nearest
from hpo_ray.errors import ConfigError

KEY = "store.url"
EXAMPLES = "sqlite:///studies.db or postgresql+psycopg://user@host/database"
_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
_NICKNAMES = {"postgres": "postgresql", "pg": "postgresql", "sqlite3": "sqlite"}
_PACKAGES = {
    "psycopg": "hpo_ray[postgresql]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
"""What pip calls a module, where that is not the module's name."""


def without_password(text: str) -> str:
    """A URL, or a text with URLs in it, without their passwords."""
    text = re.sub(r"(://[^\s:/@]*):[^\s/]*@", r"\1@", text)
    return re.sub(r"([?&])[^\s=&?]*pass[^\s=&?]*=[^\s&]*&?", r"\1", text, flags=re.IGNORECASE).rstrip("?&")


def password_free(config: Mapping[str, Any]) -> dict[str, Any]:
    """A study's configuration as it may lie on a disk: without a password, and with the paths that it names whole.

    A study may be taken up from another folder.
    """
    for section in ("searcher", "scheduler"):
        part = config.get(section)
        if isinstance(part, Mapping) and isinstance(part.get("path"), str):
            config = {**config, section: {**part, "path": str(Path(part["path"]).resolve())}}
    for section, key in (("store", "url"), ("tracker", "uri")):
        part = config.get(section)
        if isinstance(part, Mapping) and isinstance(part.get(key), str):
            url = re.sub(r"^(sqlite[\w+]*:///)(?![/:])(.+)$", lambda m: f"{m[1]}{Path(m[2]).resolve()}", part[key])
            config = {**config, section: {**part, key: without_password(url)}}
    tracker = config.get("tracker")
    if isinstance(tracker, Mapping) and isinstance(tracker.get("repo"), str) and "://" not in tracker["repo"]:
        config = {**config, "tracker": {**tracker, "repo": str(Path(tracker["repo"]).resolve())}}
    return dict(config)


def check_url(url: str) -> None:
    """Refuses what can't be the URL of a database. Imports nothing that takes long.

    Raises:
        ConfigError: it can't be parsed, or names no database that is known.
    """
    shown = f"{KEY}={without_password(url)}"
    parts = re.fullmatch(r"(\w+)(?:\+(\w+))?://(?:[^\s/]*@)?(\[[^\]]*\]|[^\s/:?@]*)(?::([^\s/?@]*))?(?:/(\S*))?", url)
    if parts is None:
        raise ConfigError(
            f"{shown}: can't be parsed; give the URL of a database, {EXAMPLES}, or leave it out for the journal file "
            f"in study.root",
            key=KEY,
        )
    dialect, port, rest = parts[1], parts[4], parts[5]
    if dialect not in _DIALECTS:
        meant = f"; nearest: {_NICKNAMES[dialect]}" if dialect in _NICKNAMES else nearest(dialect, _DIALECTS)
        raise ConfigError(f"{shown}: no database {dialect!r} is known{meant}; write {EXAMPLES}", key=KEY)
    if port is not None and not port.isdigit():
        raise ConfigError(f"{shown}: its port {port!r} is no number; write {EXAMPLES}", key=KEY)
    if dialect == "sqlite":
        path = (rest or "").partition("?")[0]
        if not path or path == ":memory:":
            raise ConfigError(f"{shown}: would be in memory only; name a file, sqlite:///studies.db", key=KEY)
        if not Path(path).parent.is_dir():
            raise ConfigError(f"{shown}: there is no folder {Path(path).parent}; make it, or name another", key=KEY)


def check_driver(url: str) -> None:
    """Refuses a URL whose database module is not installed. Imports SQLAlchemy and that module.

    Raises:
        ConfigError: the driver is not known, or not installed; the message says what to install.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    shown = f"{KEY}={without_password(url)}"
    try:
        dialect = make_url(url).get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        driver = url.partition("://")[0]
        raise ConfigError(f"{shown}: SQLAlchemy knows no driver {driver!r}; write {EXAMPLES}", key=KEY) from None
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{shown}: can't be parsed: {without_password(str(error))}", key=KEY) from None
    except ImportError as error:
        module = error.name or str(getattr(dialect, "driver", "driver"))
        raise ConfigError(
            f"{shown}: needs the module {module}, which is not installed: "
            f"pip install '{_PACKAGES.get(module, module)}'",
            key=KEY,
        ) from None


def reason(error: BaseException) -> str:
    """What went wrong, in one line without a password: of a database what it says itself."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    cause = getattr(cause, "orig", None) or cause  # SQLAlchemy wraps the module's own errors
    lines = str(cause).strip().splitlines()
    return without_password(f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__)
