"""What a checkpoint of a class holds: it comes back exactly, and nothing in it is ever run."""

from __future__ import annotations

import collections
import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo_ray.errors import StudyError
from hpo_ray.trainables.checkpoint import DICT_FILE, STATE_FILE, Progress, UnreadableCheckpoint, read, write

torch = pytest.importorskip("torch")

PLAIN = {
    "numbers": [1, -2.5, 1 << 200, True, None],
    "texts": {"a": "ü\u2028\ud800", "": []},
    "not finite": [float("inf"), -float("inf")],
}
SHARED = [1, 2]
OTHERS: dict[str, Any] = {
    "tuple": (1, (2, "x")),
    "set": {1, 2},
    "frozenset": frozenset({"a"}),
    "ordered": collections.OrderedDict(b=1, a=2),
    "counter": collections.Counter("aab"),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "complex": 1 + 2j,
    "keys": {1: "one", (2, 3): "two"},
    "long": 1 << 1000,
    "float": np.float32(0.1),
    "int": np.int64(-3),
    "bool": np.bool_(True),
    "date": np.datetime64("2020-01-01"),
    "dtype": np.dtype("float16"),
    "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.ones((3, 2))),
    "empty": np.zeros((0, 3), dtype=np.int8),
    "texts": np.array(["a", "bc"]),
    "record": np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "state of numpy": np.random.RandomState(1).get_state(),
    "state of a generator": np.random.default_rng(1).bit_generator.state,
    "state of a twister": np.random.MT19937(1).state,
    "state of random": random.Random(1).getstate(),
    "tensor": torch.arange(3, dtype=torch.bfloat16),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "torch's types": (torch.float16, torch.Size([1, 2]), torch.device("cpu")),
    "state of torch": torch.Generator().manual_seed(1).get_state(),
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(),
}


def saved(folder: Path, state: dict[str, Any] | None, progress: Progress | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    write(folder, progress or Progress(), state, "Mine")
    return read(folder)[1]


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


def test_where_the_trial_was_comes_back(tmp_path: Path) -> None:
    progress = Progress(7, 0.1 + 0.2, None, 3)
    write(tmp_path, progress, None, "Mine")
    assert read(tmp_path) == (progress, None)


@pytest.mark.parametrize("state", [{}, PLAIN, *({key: value} for key, value in PLAIN.items())], ids=str)
def test_plain_values_are_json_and_come_back_exactly(tmp_path: Path, state: dict[str, Any]) -> None:
    assert same(saved(tmp_path, state), state)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    json.loads((tmp_path / STATE_FILE).read_text())


@pytest.mark.parametrize("key", OTHERS)
def test_other_values_come_back_exactly_by_torch(tmp_path: Path, key: str) -> None:
    state = {"a": 1, key: OTHERS[key]}
    assert same(saved(tmp_path, state), state)
    assert (tmp_path / DICT_FILE).exists() == (key not in ("long", "state of a generator"))


def test_what_is_in_two_places_still_is(tmp_path: Path) -> None:
    state = saved(tmp_path, {"a": SHARED, "b": SHARED})
    assert state["a"] is state["b"]
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    state = saved(tmp_path, cycle)
    assert state["self"] is state


class Model:
    """Somebody's class."""


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"a": 1, "model": Model()}, r"its dict\['model'\] \(a \S+\.Model\) can't be read back"),
        ({"a": {"b": [1, lambda: 1]}}, r"its dict\['a'\]\['b'\]\[1\] \(a builtins.function\)"),
        ({"a": (1, {"f": len})}, r"its dict\['a'\]\[1\]\['f'\] \(a builtins.builtin_function_or_method\)"),
        ({"random": random.Random(1)}, r"its dict\['random'\] \(a random.Random\)"),
        ({"numpy": np.random.RandomState(1)}, r"its dict\['numpy'\]"),
        ({"objects": np.array([Model()], dtype=object)}, r"its dict\['objects'\] \(a numpy.ndarray\)"),
        ({"counts": collections.defaultdict(int)}, r"its dict\['counts'\] \(a collections.defaultdict\)"),
        ({Path("x"): 1}, r"the key (Posix|Windows)Path\('x'\)"),
    ],
)
def test_an_object_is_refused_when_it_is_saved(tmp_path: Path, state: dict[Any, Any], fault: str) -> None:
    with pytest.raises(StudyError, match=rf"^Mine\.save_checkpoint: .*{fault}.*file in checkpoint_dir yourself"):
        write(tmp_path, Progress(), state, "Mine")


@pytest.mark.parametrize("state", [None, {"a": 1}, {"a": (1, 2)}])
def test_damage_is_told(tmp_path: Path, state: dict[str, Any] | None) -> None:
    with pytest.raises(UnreadableCheckpoint, match="there is no such folder"):
        read(tmp_path / "gone")
    saved(tmp_path / "it", state)
    for path in (tmp_path / "it").iterdir():
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"null", content.replace(b"{", b"[")):
            if damaged != content:
                path.write_bytes(damaged)
                with pytest.raises(UnreadableCheckpoint):
                    read(tmp_path / "it")
        path.unlink()
        with pytest.raises(UnreadableCheckpoint, match=f"{path.name} is not in it"):
            read(tmp_path / "it")
        path.write_bytes(content)
    assert same(read(tmp_path / "it")[1], state)


class Harmful:
    """What unpickling it would do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


def test_a_harmful_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "it", {"a": (1, 2)})
    torch.save({"a": Harmful()}, tmp_path / "it" / DICT_FILE)
    with pytest.raises(UnreadableCheckpoint, match="UnpicklingError"):
        read(tmp_path / "it")
    (tmp_path / "it" / DICT_FILE).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UnreadableCheckpoint):
        read(tmp_path / "it")
    shutil.rmtree(tmp_path / "it")
    saved(tmp_path / "it", {"a": 1})
    for name in (".tune_metadata", "dict_checkpoint.pkl", "_dict_checkpoint.pkl"):
        (tmp_path / "it" / name).write_bytes(pickle.dumps(Harmful()))
    assert read(tmp_path / "it")[1] == {"a": 1}
    assert not Path("harmed").exists()


def test_plain_values_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; "
        "from hpo_ray.trainables.checkpoint import Progress, write, read; f = pathlib.Path(sys.argv[1]); "
        "write(f, Progress(), {'a': [1, 0.5]}, 'Mine'); read(f); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
