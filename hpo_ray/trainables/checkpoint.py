"""What a checkpoint of a class trainable holds beside the files that the class itself writes: nothing that runs code.

Ray Tune pickles the dict that `save_checkpoint` returns, and unpickles it. A study's folder is something that people
hand on, and whoever unpickles a file runs what is in it. So here a dict goes into a JSON file if that gives it back
exactly, and otherwise into a file that `torch.load(weights_only=True)` reads. What neither can hold is refused when it
is saved: then nothing is lost yet.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpo_ray.errors import StudyError

STATE_FILE = ".hpo_ray.json"
"""Where a trial was, and the dict if JSON can hold it. Each checkpoint of a class has it."""
DICT_FILE = ".hpo_ray.pt"
"""The dict, where JSON can't hold it."""


class UnreadableCheckpoint(Exception):
    """A checkpoint that can't be gone on from: it is damaged, or gone."""


@dataclass(frozen=True)
class Progress:
    """Where a trial was when it was saved: what Ray Tune counts for a class.

    Attributes:
        iteration: steps.
        time_total: seconds of training.
        timesteps_total: what the class reported as such; None if it didn't.
        episodes_total: likewise.
    """

    iteration: int = 0
    time_total: float = 0.0
    timesteps_total: int | None = None
    episodes_total: int | None = None


def write(folder: Path, progress: Progress, state: dict[str, Any] | None, owner: str) -> None:
    """Completes a checkpoint.

    Args:
        folder: where the class has written its files, if any.
        progress: where the trial is.
        state: what `save_checkpoint` returned, if that was a dict.
        owner: the trainable's name, for messages.

    Raises:
        StudyError: the dict holds what can't be read back without running code.
    """
    content = {"progress": asdict(progress), "dict": None if state is None else "json"}
    if state is not None:
        if _round_trips(state, set()):
            content["state"] = state
        else:
            content["dict"] = "torch"
            _write_torch(folder / DICT_FILE, state, owner)
    (folder / STATE_FILE).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path) -> tuple[Progress, dict[str, Any] | None]:
    """Where the trial was, and its dict; None if the class wrote files of its own.

    Raises:
        UnreadableCheckpoint: the folder is gone or damaged.
    """
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        progress, kind = Progress(**content["progress"]), content["dict"]
        if kind is None:
            return progress, None
        state = content["state"] if kind == "json" else _read_torch(folder / DICT_FILE)
    except FileNotFoundError as error:
        what = "there is no such folder" if not folder.is_dir() else f"{Path(error.filename).name} is not in it"
        raise UnreadableCheckpoint(f"{folder}: {what}") from error
    except Exception as error:  # torch raises many kinds of a damaged file
        raise UnreadableCheckpoint(f"{folder}: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{folder}: holds a {type(state).__name__} in place of a dict")
    return progress, state


def _round_trips(value: Any, seen: set[int]) -> bool:
    """Whether JSON gives back the same: exact types, and no list or dict that is in two places."""
    kind = type(value)
    if kind in (str, float, bool, type(None)):
        return True
    if kind is int:
        return bool(value.bit_length() < 4096)  # Python refuses to print very long ones
    if kind not in (dict, list) or id(value) in seen:
        return False
    seen.add(id(value))
    if kind is list:
        return all(_round_trips(item, seen) for item in value)
    return all(type(key) is str and _round_trips(item, seen) for key, item in value.items())


def _write_torch(path: Path, state: dict[str, Any], owner: str) -> None:
    import torch

    try:
        # The default protocol: `weights_only` reads no later one.
        torch.save(state, path)
        _read_torch(path, check=True)
    except Exception as error:
        key = _at_fault(state)
        if key is None:  # not the dict's fault, but the disk's
            raise
        raise StudyError(
            f"{owner}.save_checkpoint: {key} can't be read back without running code from the file; a dict may hold "
            f"numbers, texts, lists, tuples, sets, dicts, tensors, arrays and the states of generators. Write the "
            f"object to a file in checkpoint_dir yourself, and read it in load_checkpoint: return no dict then"
        ) from error


def _at_fault(value: Any, name: str = "its dict") -> str | None:
    """The innermost key whose value can't be held, as `a.b[2] (a module.Class)`; None if there is none."""
    if _holds(value):
        return None
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not _holds(key):
                return f"the key {key!r} (a {type(key).__module__}.{type(key).__qualname__})"
            if fault := _at_fault(item, f"{name}[{key!r}]"):
                return fault
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            if fault := _at_fault(item, f"{name}[{index}]"):
                return fault
    return f"{name} (a {type(value).__module__}.{type(value).__qualname__})"


def _holds(value: Any) -> bool:
    import torch

    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        _read_torch(buffer)
    except Exception:
        return False
    return True


def _read_torch(file: Path | io.BytesIO, check: bool = False) -> Any:
    """The content of a file.

    Args:
        file: what `torch.save` wrote.
        check: only whether it can be read: the numbers of its tensors stay on the disk.
    """
    import torch

    # To where its tensors were, or to the processor: their GPU may not be here.
    device = "cpu" if check or not torch.cuda.is_available() else None
    with _arrays_allowed():
        return torch.load(file, map_location=device, weights_only=True, mmap=check)


@contextmanager
def _arrays_allowed() -> Iterator[None]:
    """Lets `weights_only` read numpy's arrays, numbers and types, and frozen sets: making one runs no other code."""
    import numpy as np
    from torch.serialization import safe_globals

    try:
        from numpy._core import multiarray
    except ImportError:  # numpy 1
        from numpy.core import multiarray  # type: ignore[no-redef]
    makers: list[Any] = [np.ndarray, np.dtype, frozenset, bytes]
    makers += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    # By both names: numpy 2 reads what numpy 1 wrote, and the other way round.
    makers += [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    with safe_globals(makers):
        yield
