"""What of the working directory a job takes along."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from hpo_ray.clusters.archive import Archive
from hpo_ray.errors import ConfigError

KEY = "cluster.runtime_env.working_dir"


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def names(folder: Path, *excludes: str) -> list[str]:
    return [name for name, _ in Archive.of(folder, excludes, 10**6).files]


@pytest.mark.parametrize(
    ("files", "excludes", "expected"),
    [
        ({"train.py": "", "lib/a.py": ""}, [], ["lib/a.py", "train.py"]),
        (dict.fromkeys([".git/config", ".venv/x", "a/venv/x", "a/__pycache__/a.pyc", "b.pyc"], ""), [], []),
        (dict.fromkeys([".ruff_cache/x", "node_modules/x", "me.egg-info/x", "git/x"], ""), [], ["git/x"]),
        # a .gitignore counts for its folder and what is below
        (
            {".gitignore": "*.csv\n# a note\n\n/out/\n", "a.csv": "", "b/a.csv": "", "out/x": "", "b/out/x": ""},
            [],
            [".gitignore", "b/out/x"],
        ),
        (
            {
                "b/.gitignore": "/a.csv\nlogs/\n",
                "a.csv": "",
                "b/a.csv": "",
                "b/c/a.csv": "",
                "b/c/logs/x": "",
                "logs/x": "",
            },
            [],
            ["a.csv", "b/.gitignore", "b/c/a.csv", "logs/x"],
        ),
        ({".rayignore": "big", "big": "", "a/big": "", "small": ""}, [], [".rayignore", "small"]),
        # negations: the last pattern of a file says, and the file that lies deeper
        ({".gitignore": "*.pt\n!best.pt\n", "a.pt": "", "best.pt": ""}, [], [".gitignore", "best.pt"]),
        (
            {".gitignore": "*.pt\n", "a/.gitignore": "!best.pt\n", "best.pt": "", "a/best.pt": ""},
            [],
            [".gitignore", "a/.gitignore", "a/best.pt"],
        ),
        ({".gitignore": "data/*\n!data/keep\n", "data/keep": "", "data/x": ""}, [], [".gitignore", "data/keep"]),
        # as with git, a folder that is left out is not looked at
        ({".gitignore": "data/\n!data/keep\n", "data/keep": ""}, [], [".gitignore"]),
        (
            {".gitignore": "*.bin\n", ".rayignore": "!a.bin\n", "a.bin": "", "b.bin": ""},
            [],
            [".gitignore", ".rayignore", "a.bin"],
        ),
        # what was typed comes first
        ({"data/x": "", "data.py": "", "a/data/x": ""}, ["/data"], ["a/data/x", "data.py"]),
        ({".gitignore": "!x.csv\n", "x.csv": ""}, ["*.csv"], [".gitignore"]),
        ({".gitignore": "*.csv\n", "x.csv": "", "y.csv": ""}, ["!x.csv"], [".gitignore", "x.csv"]),
        ({".gitignore": "!a.pyc\n", "a.pyc": ""}, [], [".gitignore"]),
        ({}, [], []),
    ],
)
def test_what_is_left_out(tmp_path: Path, files: dict[str, str], excludes: list[str], expected: list[str]) -> None:
    assert names(lay(tmp_path, files), *excludes) == expected


def test_links(tmp_path: Path) -> None:
    """To a file: its content. To a folder, to nothing, a socket or pipe: nothing; so no link can lead in circles."""
    lay(tmp_path, {"outside/data": "content", "work/a.py": ""})
    work = tmp_path / "work"
    (work / "data").symlink_to(tmp_path / "outside/data")
    (work / "folder").symlink_to(tmp_path / "outside")
    (work / "circle").symlink_to(work)
    (work / "nothing").symlink_to(tmp_path / "nothing")
    os.mkfifo(work / "pipe")
    archive = Archive.of(work, [], 10**6)
    assert archive.files == (("a.py", 0), ("data", 7)) and archive.size == 7
    archive.write(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as written:
        assert written.read("data") == b"content"


def test_the_same_files_are_the_same_bytes(tmp_path: Path) -> None:
    """Whenever and in whichever order they were written: Ray uploads an archive that it has no second time."""
    contents = {"b/two.py": "2", "a.py": "1", "run.sh": "#!/bin/sh"}
    for folder, files in (("one", contents), ("two", dict(reversed(contents.items())))):
        lay(tmp_path / folder, files)
        (tmp_path / folder / "run.sh").chmod(0o755)
        Archive.of(tmp_path / folder, [], 10**6).write(tmp_path / f"{folder}.zip")
    os.utime(tmp_path / "two/a.py", (0, 0))
    Archive.of(tmp_path / "two", [], 10**6).write(tmp_path / "again.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as written:
        assert written.namelist() == ["a.py", "b/two.py", "run.sh"]
        assert stat.S_IMODE(written.getinfo("run.sh").external_attr >> 16) == 0o755


def test_too_much_names_what_is_large(tmp_path: Path) -> None:
    sizes = {"data/a": 300_000, "data/b/c": 400_000, "model.pt": 600_000, "f": 5, "e": 4, "d": 3, "c": 1, "b": 2}
    lay(tmp_path, {name: "x" * size for name, size in sizes.items()})
    with pytest.raises(ConfigError) as error:
        Archive.of(tmp_path, [], 1_000_000)
    assert error.value.key == "cluster.max_upload_mb"
    assert str(error.value) == (
        f"cluster.max_upload_mb=1: the working directory {tmp_path} has 1.3 MB in 8 files; the largest: data/ 0.7 MB, "
        f"model.pt 0.6 MB, f 0.0 MB, e 0.0 MB, d 0.0 MB. Leave out what the job doesn't need, "
        f"'cluster.excludes=[data/]' or a .gitignore; data belong on the nodes, task.args.path=/where/they/lie"
    )
    assert Archive.of(tmp_path, ["data/"], 600_015).size == 600_015, "the limit itself is allowed"


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"{KEY}={tmp_path}/none: no such folder") as error:
        Archive.of(tmp_path / "none", [], 1)
    assert error.value.key == KEY
    archive = Archive.of(lay(tmp_path / "work", {"a": "", "gone": ""}), [], 1)
    (tmp_path / "work/gone").unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path}/work/gone can't be read: No such file .* cluster.excludes="):
        archive.write(tmp_path / "a.zip")

    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)  # root, who runs tests in containers, may read all
    with pytest.raises(ConfigError, match=f"{KEY}={tmp_path}/work: {tmp_path}/work can't be read: Permission denied"):
        Archive.of(tmp_path / "work", [], 1)
