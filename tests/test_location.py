"""A place that several machines see: an S3-compatible server, and a file system of fsspec."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hpo_ray
from hpo_ray.__main__ import main
from hpo_ray.best import load_best
from hpo_ray.config import load
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.location import Location, is_uri, reason
from hpo_ray.results import load_study
from hpo_ray.study import draft
from hpo_ray.testing import outcomes, resume_study, run_study

TEXTS = [
    ("s3://bucket/prefix", True),
    ("s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000", True),
    ("gs://bucket", True),
    ("memory://a/b", True),
    ("/nfs/studies", False),
    ("outputs/s", False),
    ("file:///nfs/studies", False),
    ("study.name=s3://x", False),
    ("C:/studies", False),
]


@pytest.mark.parametrize(("text", "uri"), TEXTS)
def test_what_is_a_uri(text: str, uri: bool) -> None:
    assert is_uri(text) is uri


def test_names_and_parents() -> None:
    root = Location.of("s3://bucket/a/b/?region=x")
    study = root.join("study")
    assert str(root) == "s3://bucket/a/b?region=x" and str(study) == "s3://bucket/a/b/study?region=x"
    assert (
        study.name == "study"
        and study.parent == root
        and root.name == "b"
        and str(root.parent) == str(Location.of("s3://bucket/a?region=x"))
    )
    assert Location.of(str(study)).parent == root and pickle.loads(pickle.dumps(study)) == study


def test_nothing_is_imported_for_a_location() -> None:
    code = "import sys; from hpo_ray.location import Location; Location.of('s3://b/x').join('y')"
    code += "; print([m for m in ('pyarrow', 'fsspec', 'ray', 'torch') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "[]\n"


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest) -> Location:
    """An empty folder."""
    if request.param == "s3":
        return request.getfixturevalue("store")  # type: ignore[no-any-return]
    location = Location.of("memory://place")
    location.delete()
    return location


def test_files_and_folders(tmp_path: Path, place: Location) -> None:
    for name, content in {"a.txt": "a", "b/c/.d": "dd", "b/e": ""}.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text(content)
    folder = place.join("folder")
    assert folder.names() == folder.files() == place.names() == []
    folder.upload(tmp_path / "here")
    assert folder.files() == ["a.txt", "b/c/.d", "b/e"] and folder.names() == ["a.txt", "b"]
    assert place.names() == ["folder"]
    assert [folder.join(name).size() for name in ("b/c/.d", "b/e", "b", "none")] == [2, 0, None, None]
    assert folder.join("a.txt").read() == b"a"
    with pytest.raises(FileNotFoundError):
        folder.join("none").read()
    assert folder.download(tmp_path / "there", lambda name: name != "b/e") == ["a.txt", "b/c/.d"]
    assert (tmp_path / "there/b/c/.d").read_text() == "dd" and not (tmp_path / "there/b/e").exists()
    place.join("copy").copy_from(folder)
    folder.join("a.txt").unlink()
    place.join("copy", "b").delete()
    assert place.files() == ["copy/a.txt", "folder/b/c/.d", "folder/b/e"]
    place.join("none").delete()
    for missing in (
        lambda: place.join("none").download(tmp_path),
        lambda: place.join("x").copy_from(place.join("none")),
    ):
        with pytest.raises(FileNotFoundError):
            missing()
    before = place.files()
    place.check()
    assert place.files() == before, "it leaves nothing"


def test_a_name_that_leads_out_of_a_folder_is_not_followed(
    tmp_path: Path, store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Location, "files", lambda self: ["../outside", "inside"])
    store.join("inside").write(b"x")
    assert store.download(tmp_path / "here") == ["inside"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_an_endpoint_in_the_environment(monkeypatch: pytest.MonkeyPatch, store: Location) -> None:
    endpoint = store.query.partition("=")[2].partition("&")[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    there = Location.of(store.root)
    there.check()
    there.join("file").write(b"x")
    assert store.join("file").read() == b"x"


def test_reasons_are_one_line() -> None:
    error = OSError(
        "When uploading key 'x' in bucket 'b': AWS Error NO_SUCH_BUCKET during PutObject (Request ID: A1)\nmore"
    )
    assert reason(error) == "AWS Error NO_SUCH_BUCKET during PutObject"
    assert reason(OSError()) == "OSError"


def test_a_root_with_options_needs_no_quotes() -> None:
    uri = "s3://b/x?endpoint_override=http://127.0.0.1:9000&region=us-east-1"
    for typed in (f"store.root={uri}", f'store.root="{uri}"', f"store.root='{uri}'"):
        assert draft(load([typed])).location == Location.of(uri)
    assert draft(load([])).location is None
    assert draft(load(["store.root=/nfs/x"])).root == Path("/nfs/x")


def test_a_comparison_lies_in_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "methods=[random]", "task=parabola", "store.root=s3://b/x"]) == 2
    assert "store.root=s3://b/x: a comparison has its studies in a folder" in capsys.readouterr().err


OVERRIDES = [
    *["task=custom", "task.trainable=mine.DictCheckpoint", "space={lr: {low: 0.01, high: 1.0}}", "task.max_resource=4"],
    *["method=asha", "scheduler.eta=2", "budget.trials=5", "executor=inprocess", "study.name=s"],
]


def test_fetch(folder: Path, store: Location, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the checkpoints of trials; what it says loads the best."""
    study = run_study([*OVERRIDES, f"store.root={store}", "store.keep_checkpoints=completed"], folder / "elsewhere")
    uri = str(store.join("s"))
    assert main(["fetch", uri]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "outputs/s: 0.0 MB, without the checkpoints of trials (--all)" and out[1].startswith("load it    ")
    assert 'hpo_ray.load_best("outputs/s")' in out[1]
    fetched = load_study(folder / "outputs/s")
    assert outcomes(fetched) == outcomes(study)
    names = {path.relative_to(study.path).as_posix() for path in study.path.rglob("*") if path.is_file()}
    assert {p.relative_to(fetched.path).as_posix() for p in fetched.path.rglob("*") if p.is_file()} == names
    assert load_best(folder / "outputs/s").steps == 4  # type: ignore[union-attr]
    assert main(["fetch", uri]) == 2
    assert "outputs/s is there already" in capsys.readouterr().err
    assert main(["fetch", uri, "all", "--all"]) == 0
    assert capsys.readouterr().out.startswith("all/s: 0.0 MB\n")
    kept = [path for path in (folder / "all/s").glob("trials/*/checkpoint_*")]
    assert kept and len(kept) == study.state.states["completed"]
    assert not [path for path in folder.rglob(".s.*")]


def test_fetch_from_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = run_study(OVERRIDES, folder / "nfs")
    assert main(["fetch", "nfs/s"]) == main(["fetch", "nfs/s", "all", "--all"]) == 0
    assert not list((folder / "outputs/s").glob("trials/*/checkpoint_*"))
    assert len(list((folder / "all/s").glob("trials/*/checkpoint_*"))) == 1
    assert outcomes(load_study(folder / "outputs/s")) == outcomes(study)
    assert load_best("outputs/s").steps == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], ["fetch SOURCE [INTO]"]),
        (["a", "b", "c"], ["fetch SOURCE [INTO]"]),
        (["nfs"], ["fetch nfs: is no study"]),
        (["none"], ["fetch none: is no study, it has no config.yaml"]),
    ],
)
def test_what_cant_be_fetched(
    folder: Path, capsys: pytest.CaptureFixture[str], typed: list[str], words: list[str]
) -> None:
    (folder / "nfs").mkdir()
    assert main(["fetch", *typed]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_what_needs_a_folder_names_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "s3://b/x/s?region=y"]) == 2
    assert "python -m hpo_ray fetch 's3://b/x/s?region=y'" in capsys.readouterr().err
    with pytest.raises(StudyError, match="python -m hpo_ray fetch 's3://b/x/s'"):
        hpo_ray.load_best("s3://b/x/s")


def test_a_study_that_was_fetched_goes_on(folder: Path, store: Location) -> None:
    """In the store that it came from."""
    first = run_study([*OVERRIDES, f"store.root={store}"], folder / "elsewhere")
    shutil.rmtree(first.path)
    assert main(["fetch", str(store.join("s"))]) == 0
    assert len(resume_study(folder / "outputs/s", ["budget.trials=7"]).trials) == 7
    assert store.join("s/events.jsonl").read() == (folder / "outputs/s/events.jsonl").read_bytes()


def test_a_secret_is_not_written_down(folder: Path) -> None:
    with pytest.raises(ConfigError, match="password"):
        run_study([*OVERRIDES, "store.root=s3://KEY:HUSH@b/x"], folder / "outputs")
    assert not (folder / "outputs").exists()
