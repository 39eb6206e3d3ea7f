"""Objects by their dotted paths, as a configuration names them; and those that were handed over in this process."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hpo_ray.config import nearest
from hpo_ray.errors import ConfigError

_given: dict[str, Any] = {}
_importing: list[str] = []


def given(found: Callable[..., Any] | type, path: str | None = None) -> str:
    """Remembers an object in this process, so that it needs no import, and gives the dotted path that names it.

    Another process, for example one that goes on with the study, imports it by that path: so the path of what a script
    defines is that of the script as a module.

    Args:
        found: a function or class.
        path: the name that it has already.
    """
    if path is None:
        module = str(getattr(found, "__module__", None) or "__main__")
        path = f"{_importable(module)}.{getattr(found, '__qualname__', type(found).__name__)}"
    _given[path] = found
    return path


def importing() -> str | None:
    """The path whose module is being imported now, if there is one."""
    return _importing[-1] if _importing else None


def _importable(module: str) -> str:
    """The name that a module has for another process: a script's own is `__main__` while it runs."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None and spec.name != "__main__":
        return str(spec.name).removesuffix(".__main__")
    stem = Path(getattr(main, "__file__", None) or "__main__").stem
    return stem if stem.isidentifier() else module


def locate(key: str, path: str) -> Any:
    """The object at a dotted path, `package.module.name`.

    Raises:
        ConfigError: it can't be imported; the message says which part, and why.
    """
    if path in _given:
        return _given[path]
    module_name, _, name = str(path).rpartition(".")
    if "<" in path or module_name == "__main__":
        raise ConfigError(
            f"{key}={path}: was handed to tune_study in another process, and can't be imported from a notebook or from "
            f"within a function; put it into a module of its own, or go on with it there: "
            f"hpo_ray.resume_study(path, task={name})",
            key=key,
        )
    if not module_name or not re.fullmatch(r"[\w.]+", path):
        raise ConfigError(f"{key}={path}: must be a dotted path, for example my_package.my_module.train", key=key)
    _importing.append(path)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise ConfigError(
                f"{key}={path}: {module_name} needs {error.name}, which is not installed", key=key
            ) from None
        here = {place.stem for folder in sys.path for place in Path(folder or ".").glob("*.py")}
        raise ConfigError(
            f"{key}={path}: no module {error.name!r} on Python's path (the current folder, {Path.cwd()}, and the "
            f"installed packages){nearest(module_name, here)}",
            key=key,
        ) from None
    except ConfigError:  # it runs a study while it is imported
        raise
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ConfigError(f"{key}={path}: importing {module_name} raised {_where(error)}", key=key) from None
    finally:
        _importing.pop()
    try:
        return getattr(module, name)
    except AttributeError:
        names = [known for known in dir(module) if not known.startswith("_")]
        raise ConfigError(f"{key}={path}: {module_name} has no {name!r}{nearest(name, names)}", key=key) from None


def load_trainable(path: str) -> Callable[..., Any] | type:
    """What is at a dotted path: a class, or a function of a configuration.

    Raises:
        ConfigError: it can't be imported, or is neither.
    """
    key = "task.trainable"
    found = locate(key, path)
    if isinstance(found, type):
        return found
    if not callable(found):
        raise ConfigError(f"{key}={path}: is a {type(found).__name__}, not a function or a class", key=key)
    positional = [
        p
        for p in inspect.signature(found).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    if len(positional) != 1:
        takes = ", ".join(p.name for p in positional) or "nothing"
        raise ConfigError(
            f"{key}={path}: must take one argument, the configuration: `def {path.rpartition('.')[2]}(config)`; "
            f"it takes {takes}",
            key=key,
        )
    return cast("Callable[..., Any]", found)


def _where(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" ({frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno})" if frame else ""
    return f"{type(error).__name__}: {error}{place}"
