"""The mirror by itself: what it copies, when, and what goes then."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo_ray.events import FILE_NAME, CheckpointSaved, Decided, TrialEnded
from hpo_ray.executors.mirror import Mirror, Overtaken
from hpo_ray.executors.outage import StoreDown, insist
from hpo_ray.executors.remote import RemoteStorage
from hpo_ray.executors.saved import LastTwo
from hpo_ray.location import Location


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Location:
    monkeypatch.setattr("hpo_ray.executors.mirror.EVERY_S", 1e6)
    location = Location.of("memory://mirror")
    location.delete()
    return location.join("study")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    files = {
        FILE_NAME: "one\ntwo\nthr",
        "config.yaml": "seed: 0",
        "best/checkpoint/.hidden": "x",
        "best/best.json": "{}",
        "trials/3/output.log": "hello",
        "trials/3/checkpoint_000002/weights": "w",
        "trials/3/.saving-12/weights": "w",
        ".best.12/best.json": "{",
        ".result.json.12": "{",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_what_is_copied(study: Path, there: Location) -> None:
    """Whole lines of the log, and nothing that is being written; a file that goes here goes there."""
    there.join("result.json").write(b"of before")
    there.join("best/checkpoint/of before").write(b"x")
    there.join("trials/3/error.txt").write(b"from elsewhere")
    with Mirror(study, there) as mirror:
        copied = ["best/best.json", "best/checkpoint/.hidden", "config.yaml", FILE_NAME]
        trials = ["trials/3/error.txt", "trials/3/output.log"]
        assert there.files() == [*copied, *trials]
        assert there.join(FILE_NAME).read() == b"one\ntwo\n"
        (study / FILE_NAME).write_text("one\ntwo\nthree\n")
        (study / "best/checkpoint/.hidden").unlink()
        (study / "best/other").write_text("y")
        (study / "trials/3/output.log").write_text("hello again")
        mirror.copy()
        assert there.files() == ["best/best.json", "best/other", "config.yaml", FILE_NAME, *trials]
        assert there.join("trials/3/output.log").read() == b"hello again"
        (study / FILE_NAME).write_text("one\ntwo\nthree\nfour\n")
    assert there.join(FILE_NAME).read() == b"one\ntwo\nthree\nfour\n", "the last copy is at the end"


def test_only_what_has_changed_is_copied(study: Path, there: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with Mirror(study, there) as mirror:
        for name in ("put", "write", "unlink", "delete"):
            monkeypatch.setattr(Location, name, lambda self, *_: pytest.fail(f"{self}"))
        mirror.copy()


def checkpoints(there: Location, number: int, *names: str) -> None:
    for name in names:
        there.join(f"trials/{number}/{name}/weights").write(b"w")


def test_a_removal_waits_for_a_log_that_was_read_after_it(
    study: Path, there: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event, and with it a removal, may come while the log is on its way: it is not in that log."""
    checkpoints(there, 3, "checkpoint_000000", "checkpoint_000001")
    write = Location.write
    with Mirror(study, there) as mirror:

        def write_and_hear(self: Location, content: bytes) -> None:
            write(self, content)
            mirror.replaced("trials/3/checkpoint_000000")

        monkeypatch.setattr(Location, "write", write_and_hear)
        with (study / FILE_NAME).open("a") as log:
            log.write("ee\n")
        mirror.copy()
        assert there.join("trials/3").names() == ["checkpoint_000000", "checkpoint_000001", "output.log"]
        monkeypatch.setattr(Location, "write", write)
        mirror.copy()
        assert there.join("trials/3").names() == ["checkpoint_000001", "output.log"]


@pytest.mark.parametrize("trials", [1, 20])
def test_of_trials_that_have_ended_what_is_kept_stays(study: Path, there: Location, trials: int) -> None:
    """The last word counts; what isn't a checkpoint stays in any case."""
    with Mirror(study, there) as mirror:
        for number in range(trials):
            checkpoints(there, number, "checkpoint_000000", "checkpoint_000001", "checkpoint_best")
            mirror.ended(number, but=("checkpoint_000001",))
        mirror.ended(0, but=())
        before = there.files()
        mirror.copy()
        gone = [f"trials/{number}/checkpoint_00000{n}/weights" for number in range(trials) for n in (0, 1)]
        kept = {f"trials/{number}/checkpoint_000001/weights" for number in range(1, trials)}
        assert set(before) - set(there.files()) == set(gone) - kept


def test_what_could_not_be_removed_goes_the_next_time(
    study: Path, there: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints(there, 3, "checkpoint_000000")
    delete = Location.delete
    with Mirror(study, there) as mirror:
        mirror.replaced("trials/3/checkpoint_000000")

        def refuse(self: Location) -> None:
            raise OSError("no answer")

        monkeypatch.setattr(Location, "delete", refuse)
        with pytest.raises(OSError, match="no answer"):
            mirror.copy()
        monkeypatch.setattr(Location, "delete", delete)
        mirror.copy()
        assert there.join("trials/3").names() == ["output.log"]


def test_before_trials_run_what_no_one_needs_goes_at_once(study: Path, there: Location) -> None:
    """A trial that goes on may soon write a checkpoint of the same name."""
    checkpoints(there, 3, "checkpoint_000000", "checkpoint_000001", "checkpoint_000002")
    with Mirror(study, there) as mirror:
        assert mirror.has("trials/3/checkpoint_000001") and not mirror.has("trials/3/checkpoint_000004")
        assert not mirror.has("trials/4/checkpoint_000001")
        mirror.clear(3, but=["checkpoint_000001"])
        assert there.join("trials/3").names() == ["checkpoint_000001", "output.log"]


def test_a_process_that_dies_copies_nothing_more(study: Path, there: Location) -> None:
    with pytest.raises(SystemExit), Mirror(study, there):
        (study / FILE_NAME).write_text("one\ntwo\nthree\n")
        raise SystemExit
    assert there.join(FILE_NAME).read() == b"one\ntwo\n"


def test_a_study_that_has_failed_says_why_it_has_and_not_that_the_store_is_down(
    study: Path, there: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no answer")

    monkeypatch.setattr("hpo_ray.executors.mirror.PATIENCE_S", 0.0)
    with pytest.raises(ValueError, match="of the study"), Mirror(study, there):
        monkeypatch.setattr(Mirror, "copy", refuse)
        raise ValueError("of the study")
    monkeypatch.undo()
    monkeypatch.setattr("hpo_ray.executors.mirror.PATIENCE_S", 0.0)
    with pytest.raises(StoreDown, match="study is whole: go on with"), Mirror(study, there):
        monkeypatch.setattr(Mirror, "copy", refuse)


def test_a_checkpoint_takes_the_place_of_one_of_the_same_name(tmp_path: Path, there: Location) -> None:
    """A retried trial may write fewer files."""
    storage = RemoteStorage(there, tmp_path / "study")
    storage.trial_dir_name, storage.current_checkpoint_index = "trials/3", 0
    for names in (["a", "b"], ["c"]):
        aside = storage.aside()
        aside.mkdir(parents=True)
        for name in names:
            (aside / name).write_text(name)
        from ray.tune import Checkpoint

        saved = storage.persist_current_checkpoint(Checkpoint(str(aside)))
        assert there.join("trials/3/checkpoint_000000").names() == names and not aside.exists()
    copy = RemoteStorage(there, tmp_path / "study")
    copy.trial_dir_name, copy.current_checkpoint_index = "trials/4", 7
    copied = copy.persist_current_checkpoint(saved)
    assert there.join("trials/4/checkpoint_000007").names() == ["c"]
    local = copy.bring(copied)
    assert [path.name for path in Path(local.path).iterdir()] == ["c"]
    copy.leave()
    assert not Path(local.path).exists()


def test_what_is_insisted_on(monkeypatch: pytest.MonkeyPatch, there: Location) -> None:
    """Longer and longer pauses, up to a limit; what isn't there is not waited for."""
    now, pauses = [0.0], []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def fail() -> None:
        raise OSError("no answer")

    def gone() -> None:
        raise FileNotFoundError("gone")

    monkeypatch.setattr("hpo_ray.executors.outage.monotonic", lambda: now[0])
    monkeypatch.setattr("hpo_ray.executors.outage.sleep", wait)
    with pytest.raises(StoreDown, match=r"^store.root=memory://mirror: can't be reached: no answer$"):
        insist(fail, there)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    with pytest.raises(FileNotFoundError):
        insist(gone, there)
    assert len(pauses) == 10


def test_which_checkpoints_a_log_needs() -> None:
    last = LastTwo()

    def saved(path: str | None) -> list[str]:
        return last.observe(CheckpointSaved("7", 1, path, 0.0))

    def decided(action: str, config: dict[str, float] | None = None, checkpoint: str | None = None) -> list[str]:
        return last.observe(Decided("7", action, "", {}, 0.0, config, 1, None, checkpoint))

    assert [saved("a"), saved("b"), saved("c"), saved("c"), saved(None)] == [[], [], ["a"], [], []]
    assert last.paths == {"7": ["b", "c"]}
    assert saved("b") == ["c"], "the last one could not be read"
    assert saved("d") == [] and decided("pause") == [] and last.paths == {"7": ["b", "d"]}
    assert decided("replay", {"lr": 1.0}) == ["b"] and saved("e") == []
    assert decided("exploit", {"lr": 1.0}, "f") == ["d", "e"] and last.paths == {"7": ["f"]}
    assert last.observe(TrialEnded("7", "stopped", "", None, 0.0)) == [] and last.paths == {}


def test_of_two_processes_that_go_on_with_a_study_the_first_hears_of_it(study: Path, there: Location) -> None:
    """What it would write over is the log of the other."""
    with pytest.raises(Overtaken, match="another process goes on with this study"):
        with Mirror(study, there) as mirror:
            there.join(FILE_NAME).write(b"one\ntwo\nby another\n")
            mirror.copy()  # nothing is new here
            (study / FILE_NAME).write_text("one\ntwo\nthree\n")
            mirror.copy()
    assert there.join(FILE_NAME).read() == b"one\ntwo\nby another\n"


def test_a_log_that_came_without_an_answer_is_no_other_process(
    study: Path, there: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Location.write

    def cut_off(self: Location, content: bytes) -> None:
        write(self, content)
        raise OSError("connection reset")

    with Mirror(study, there) as mirror:
        (study / FILE_NAME).write_text("one\ntwo\nthree\n")
        monkeypatch.setattr(Location, "write", cut_off)
        with pytest.raises(OSError, match="reset"):
            mirror.copy()
        monkeypatch.setattr(Location, "write", write)
        (study / FILE_NAME).write_text("one\ntwo\nthree\nfour\n")
    assert there.join(FILE_NAME).read() == b"one\ntwo\nthree\nfour\n"


def test_folders_of_a_users_own_are_copied_and_taken_up_again(study: Path, there: Location) -> None:
    (study / "notes/of").mkdir(parents=True)
    (study / "notes/of/mine.txt").write_text("x")
    for _ in range(2):
        with Mirror(study, there):
            assert "notes/of/mine.txt" in there.files()
    (study / "notes/of/mine.txt").unlink()
    with Mirror(study, there):
        assert "notes/of/mine.txt" not in there.files()
