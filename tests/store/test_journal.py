"""A journal file that was left half written, locked or damaged, and one that many write to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from storages import all_of, check_is_the_study, contents, follow

from hpo_ray.results import load_study
from hpo_ray.store.journal import JournalDamaged, JournalFile, JournalReplaced
from hpo_ray.store.recovery import mend, rebuild
from hpo_ray.store.storage import JOURNAL, Store
from hpo_ray.testing import run_study

SMALL = ["task=parabola", "task.max_resource=3", "method=random", "budget.trials=3", "executor=inprocess"]


def logs(number: int) -> list[dict[str, object]]:
    return [{"op_code": 0, "worker_id": "w", "study_name": f"s{number}", "directions": [1]}]


def test_a_torn_tail_is_cut_before_the_next_study_is_written(folder: Path) -> None:
    first = run_study(SMALL, folder)
    whole = (folder / JOURNAL).read_bytes()
    for torn in (b'{"op_code":4,"worker_id":"w","study_id":0,"datet', b"{", b'{"op_code":0}', b"\xff"):
        (folder / JOURNAL).write_bytes(whole + torn)
        second = run_study(SMALL, folder)
        assert second.store_note is None
        stored = all_of(folder)  # by Optuna's own reader
        check_is_the_study(stored[first.path.name], first)
        check_is_the_study(stored[second.path.name], second)
        assert (folder / JOURNAL).read_bytes().startswith(whole), "nothing had to be written again"
    assert not list(folder.glob(f"{JOURNAL}.*"))


def test_a_tail_torn_anywhere_is_made_up_for(folder: Path) -> None:
    """A writer that died, with what it had written of its own study lost from any byte on."""
    first = run_study(SMALL, folder)
    whole = (folder / JOURNAL).read_bytes()
    stored = all_of(folder)
    for cut in range(0, len(whole), 197):
        (folder / JOURNAL).write_bytes(whole[:cut])
        follow(run_study([*SMALL, f"study.name=after{cut}"], folder).path, Store(folder))
        assert all_of(folder)[first.path.name] == stored[first.path.name], f"cut at byte {cut}"
        check_is_the_study(all_of(folder)[first.path.name], first)


def test_what_is_torn_in_the_middle_of_a_file_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(b"{" * 200_000)
    journal = JournalFile(path)
    journal.append_logs(logs(1))
    assert [log["study_name"] for log in journal.read_logs(0)] == ["s1"]


def test_the_lock_of_a_dead_writer_is_broken(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.touch()
    os.symlink(path, f"{path}.lock")
    journal = JournalFile(path, grace_s=0.05)
    journal.append_logs(logs(1))
    with journal.batch():
        journal.append_logs(logs(2))
    assert [log["study_name"] for log in JournalFile(path).read_logs(0)] == ["s1", "s2"]
    assert not os.path.lexists(f"{path}.lock")


def test_a_batch_that_outlived_its_lock_writes_nothing(tmp_path: Path) -> None:
    """Its process was stopped for longer than the grace; who took it for dead has written meanwhile."""
    path = tmp_path / JOURNAL
    slow, quick = JournalFile(path), JournalFile(path, grace_s=0.05)
    with pytest.raises((JournalReplaced, RuntimeError)), slow.batch():
        slow.append_logs(logs(1))
        quick.append_logs(logs(2))
    assert [log["study_name"] for log in JournalFile(path).read_logs(0)] == ["s2"]


def test_an_error_in_a_batch_leaves_nothing_of_it(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / JOURNAL)
    with pytest.raises(ZeroDivisionError), journal.batch():
        journal.append_logs(logs(1))
        raise ZeroDivisionError
    assert list(journal.read_logs(0)) == [] and not os.path.lexists(f"{journal.path}.lock")


def test_a_batch_is_read_back_and_so_is_what_others_write(tmp_path: Path) -> None:
    """Numbers of trials in the journal are given by the order of its lines, whoever wrote them."""
    path = tmp_path / JOURNAL
    journal = JournalFile(path)
    ours, theirs = JournalStorage(journal), JournalStorage(JournalFileBackend(str(path)))
    minimize = [optuna.study.StudyDirection.MINIMIZE]
    for name in ("a", "b", "c"):
        mine = theirs.create_new_study(minimize, name)
        with journal.batch():
            study = ours.create_new_study(minimize, name * 2)
            ids = [ours.create_new_trial(study) for _ in range(3)]
            for trial_id in ids:
                ours.set_trial_intermediate_value(trial_id, 1, float(trial_id))
        theirs.create_new_trial(mine)
        ours.create_new_trial(study)
    for opened in (ours, theirs, JournalStorage(JournalFileBackend(str(path)))):
        for known in opened.get_all_studies():
            trials = opened.get_all_trials(known._study_id)
            assert len(trials) == (4 if len(known.study_name) == 2 else 1)
            for trial in trials[:3] if len(trials) > 1 else []:
                assert trial.intermediate_values == {1: float(trial._trial_id)}


def test_a_file_that_is_replaced_or_shortened_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    for change in ("replace", "shorten", "remove"):
        journal = JournalFile(path)
        journal.append_logs(logs(1))
        assert list(journal.read_logs(0))
        if change == "shorten":
            path.write_bytes(b"")
        else:
            other = tmp_path / "other"
            other.write_bytes(path.read_bytes())
            path.unlink()
            if change == "replace":
                other.rename(path)
        with pytest.raises((JournalReplaced, FileNotFoundError)):
            journal.check()
        with pytest.raises((JournalReplaced, FileNotFoundError)):
            journal.append_logs(logs(2))


def damage(path: Path, kind: str) -> None:
    """What happens to files: a flipped bit, a line that is no journal's, one that lacks what it should have."""
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    if kind == "flipped":
        lines[middle] = lines[middle].replace(b":", b";", 1)
    elif kind == "appended to a torn line":
        lines[middle] = lines[middle][:20] + lines[middle]
    elif kind == "not UTF-8":
        lines[middle] = lines[middle].replace(b'"worker_id":"', b'"worker_id":"\xff', 1)
    else:
        lines[middle] = {
            "no fields": b'{"op_code": 4}\n',
            "unknown operation": b'{"op_code": 77}\n',
            "no object": b"3\n",
            "a study that isn't": b'{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"a": 1, "b": 2}}\n',
        }[kind]
    path.write_bytes(b"".join(lines))


KINDS = ["flipped", "appended to a torn line", "not UTF-8", "no fields", "unknown operation", "no object"]


@pytest.mark.parametrize("kind", [*KINDS, "a study that isn't"])
def test_a_damaged_journal_is_written_anew_from_all_logs(folder: Path, kind: str) -> None:
    results = [run_study([*SMALL, f"seed={seed}"], folder) for seed in range(3)]
    other = run_study([*SMALL, "store=none", "study.name=unasked"], folder)
    damage(folder / JOURNAL, kind)
    damaged = (folder / JOURNAL).read_bytes()
    with pytest.raises(JournalDamaged):
        Store(folder).open()
    results.append(run_study(SMALL, folder))
    assert results[-1].store_note is None
    stored = all_of(folder)
    assert set(stored) == {result.path.name for result in results} and other.path.name not in stored
    for result in results:
        check_is_the_study(stored[result.path.name], result)
    assert (folder / f"{JOURNAL}.damaged-1").read_bytes() == damaged
    damage(folder / JOURNAL, kind)
    mend(Store(folder))
    mend(Store(folder))
    assert all_of(folder) == stored and sorted(path.name for path in folder.glob(f"{JOURNAL}*")) == [
        JOURNAL,
        f"{JOURNAL}.damaged-1",
        f"{JOURNAL}.damaged-2",
    ]


def test_what_is_changed_in_the_store_is_put_right_when_the_study_is_written_again(folder: Path) -> None:
    """A digit that flipped leaves valid JSON: only the log can tell."""
    result = run_study(SMALL, folder)
    before = all_of(folder)
    lines = (folder / JOURNAL).read_text().splitlines()
    lines = [line for line in lines if "log_bytes" not in line]
    place = next(i for i, line in enumerate(lines) if '"op_code":4' in line)
    trial = json.loads(lines[place])
    trial["value"] += 1.0
    lines[place] = json.dumps(trial)
    (folder / JOURNAL).write_text("".join(f"{line}\n" for line in lines))
    assert all_of(folder) != before
    rebuild(Store(folder))
    check_is_the_study(all_of(folder)[result.path.name], result)
    assert all_of(folder) == before


def test_the_journal_is_removed_while_a_study_runs(folder: Path) -> None:
    (folder / "removes.py").write_text(
        "from pathlib import Path\n"
        "from ray import tune\n"
        "def train(config):\n"
        f"    Path({str(folder / JOURNAL)!r}).unlink(missing_ok=True)\n"
        "    for step in range(3):\n"
        "        tune.report({'loss': config['lr']})\n"
    )
    overrides = ["task=custom", "task.trainable=removes.train", "space={lr: {low: 0.0, high: 1.0}}", *SMALL[2:]]
    sys.path.insert(0, str(folder))
    try:
        result = run_study(overrides, folder)
    finally:
        sys.path.remove(str(folder))
    assert result.store_note is None
    check_is_the_study(all_of(folder)[result.path.name], result)


def test_two_processes_in_one_journal_and_one_that_rebuilds_it_meanwhile(folder: Path) -> None:
    own = ["task=branin", "method=hyperband", "executor=inprocess", "store=none"]
    result = run_study(own, folder / "before")
    player, root = [sys.executable, str(Path(__file__).with_name("storages.py"))], folder / "outputs"
    running = [subprocess.Popen([*player, str(result.path), str(root / name)]) for name in ("a", "b")]
    while any(process.poll() is None for process in running):
        if root.is_dir():
            rebuild(Store(root))
    assert [process.returncode for process in running] == [0, 0]
    stored = contents(Store(root))
    assert set(stored) == {"a", "b"}
    for name, found in stored.items():
        check_is_the_study(found, load_study(root / name))
