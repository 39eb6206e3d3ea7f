"""What the README tells a user to write runs as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from hpo_ray.__main__ import main
from hpo_ray.results import load_study

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PIECE = re.compile(r"```python\n(.*?)```\n(.*?)(?=```|\Z)", re.DOTALL)
COMMAND = re.compile(r"^    (python -m hpo_ray (?:.*\\\n)*.*)$", re.MULTILINE)


def pieces() -> list[tuple[str, str]]:
    """Each module of a user's that the README has, and the first command after it."""
    found = []
    for code, after in PIECE.findall(TEXT):
        command = COMMAND.search(after)
        if command and "task.trainable=mine." in command[1]:
            found.append((code, command[1].replace("\\\n", "")))
    return found


@pytest.mark.parametrize(("code", "command"), pieces(), ids=["function", "gradient"])
def test_the_users_code_and_the_command_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    typed = shlex.split(command)[3:]
    assert main([*typed, "executor=inprocess", "task.max_resource=3", "study.name=it"]) == 0
    best = load_study("outputs/it").best
    assert best is not None and best.value is not None and best.state == "completed"
    del sys.modules["mine"]  # by hand: monkeypatch would put it back, and other tests have a `mine` of their own


def test_the_study_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (code for code, _ in PIECE.findall(TEXT) if "tune_study(" in code)
    exec(code.replace('method="asha",', 'method="asha", executor="inprocess", view="none",'), {"__name__": "mine"})
    best = load_study("outputs/custom-asha-1").best
    assert best is not None and capsys.readouterr().out == f"{best.config} {best.value}\n"
