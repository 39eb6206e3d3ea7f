"""A study and its store while it runs: down, back again, shared, rebuilt on demand, and read by optuna-dashboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from postgresql import PostgreSQL
from storages import all_of, check_is_the_study, contents, follow, reading

from hpo_ray.__main__ import main
from hpo_ray.events import FILE_NAME
from hpo_ray.executors import loop
from hpo_ray.results import load_study
from hpo_ray.space import Space
from hpo_ray.store.projection import Projection
from hpo_ray.store.recovery import rebuild
from hpo_ray.store.storage import JOURNAL, OpenStore, Store, alone
from hpo_ray.store.urls import without_password
from hpo_ray.testing import run_study

SMALL = ["task=parabola", "task.max_resource=3", "method=random", "budget.trials=3", "executor=inprocess"]
PLAYER = [sys.executable, str(Path(__file__).with_name("storages.py"))]
DATABASES = ["journal", "sqlite", "postgresql"]


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, folder: Path) -> Store:
    """Each kind of store for the studies in outputs/."""
    if request.param == "journal":
        return Store(folder / "outputs")
    if request.param == "sqlite":
        return Store(folder / "outputs", f"sqlite:///{folder}/studies.db")
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return Store(folder / "outputs", server.new_database())


def key(store: Store) -> list[str]:
    """The override that names a store."""
    return [f"store.url={store.url}"] if store.url else []


def test_several_studies_at_once_in_one_store(folder: Path, store: Store) -> None:
    own = ["task=branin", "scheduler.max_resource=9", "executor=inprocess", "store=none"]
    studies = {method: run_study([f"method={method}", *own], folder / "before") for method in ("hyperband", "pbt")}
    running = [
        subprocess.Popen([*PLAYER, str(result.path), str(store.root / method), *([store.url] if store.url else [])])
        for method, result in studies.items()
    ]
    assert [process.wait() for process in running] == [0] * len(studies)
    stored = contents(store)
    assert set(stored) == set(studies)
    for method in studies:
        check_is_the_study(stored[method], load_study(store.root / method))


def test_a_study_that_is_resumed_goes_on_in_the_store(folder: Path, store: Store) -> None:
    typed = ["task=branin", "method=hyperband", "scheduler.max_resource=3", "executor=inprocess", *key(store)]
    first = run_study([*typed, "budget.resource=5"], store.root)
    check_is_the_study(contents(store)[first.path.name], first)
    assert main(["resume", str(first.path), "budget.resource=12", "view=none"]) == 0
    whole = load_study(first.path)
    assert len(whole.records) > len(first.records)
    stored = contents(store)
    assert list(stored) == [first.path.name]
    check_is_the_study(stored[first.path.name], whole)
    rebuild(store)
    assert contents(store) == stored


def test_rebuilt_on_demand(folder: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    results = [run_study([*SMALL, f"seed={seed}", *key(store)], store.root) for seed in range(2)]
    elsewhere = run_study([*SMALL, *key(store), "study.name=elsewhere"], folder / "others")
    before = contents(store)
    with reading(store) as opened:
        opened.delete_study(opened.get_study_id_from_name(results[0].path.name))
        opened.set_study_user_attr(opened.get_study_id_from_name(results[1].path.name), "state", "lost")
    assert main(["report", "outputs", "--rebuild-store", *key(store)]) == 0
    assert capsys.readouterr().out == f"{store}: 2 studies, 6 trials\n"
    assert contents(store) == before
    assert (elsewhere.path.name in before) == (store.url is not None)
    assert main(["report", str(results[0].path), "--rebuild-store", *key(store)]) == 0
    assert contents(store) == before


def test_a_rebuild_leaves_a_study_that_is_running_and_says_so(folder: Path, store: Store) -> None:
    result, other = (run_study([*SMALL, *key(store)], store.root) for _ in range(2))
    (other.path / FILE_NAME).write_text("{}\n")
    with alone(result.path):
        done = rebuild(store)
    assert (done.studies, done.running, len(done.unreadable)) == (0, 1, 1)
    assert "line 1: not an event of a study" in done.unreadable[0]
    assert rebuild(store).studies == 1


def test_a_database_that_is_down_when_a_study_starts_and_back_for_the_next(
    folder: Path, postgresql: PostgreSQL
) -> None:
    store = Store(folder / "outputs", postgresql.new_database())
    postgresql.stop()
    try:
        first = run_study([*SMALL, *key(store)], store.root)
        assert first.state.ended is not None and first.state.ended.state == "finished"
        note = str(first.store_note)
        for part in (str(store), "refused", "the next study in outputs", "report outputs --rebuild-store store.url="):
            assert part in note
        assert "hush" not in note
    finally:
        postgresql.start()
    second = run_study([*SMALL, *key(store), "seed=1"], store.root)
    assert second.store_note is None
    check_is_the_study(contents(store)[second.path.name], second)
    follow(second.path, store)  # the second one may have been over before it came to look for others
    check_is_the_study(contents(store)[first.path.name], first)


def test_a_database_that_goes_away_and_comes_back_while_a_study_runs(folder: Path, postgresql: PostgreSQL) -> None:
    store = Store(folder / "outputs", postgresql.new_database())
    result = run_study([*SMALL, "store=none"], store.root)
    log, data = result.path / FILE_NAME, (result.path / FILE_NAME).read_bytes()
    log.write_bytes(data[: len(data) // 2])
    written, failed = threading.Event(), threading.Event()

    class Watched(Projection):
        def _try(self, closing: bool) -> float | None:
            super()._try(closing)
            (failed if self._error else written).set()
            return 0.01

    projection = Watched(result.path, Space({"x": {"low": -4.0, "high": 4.0}}), store)
    assert written.wait(60)
    postgresql.stop()
    try:
        log.write_bytes(data)
        assert failed.wait(60)
    finally:
        postgresql.start()
        written.clear()
    assert written.wait(60)
    assert projection.close(60) is None
    check_is_the_study(contents(store)[result.path.name], result)


def test_a_store_that_is_down_at_the_end_delays_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hangs is left behind after the time that it is given, which is none here."""
    monkeypatch.setattr(loop, "_STORE_S", 0.0)
    held, opens = threading.Event(), Store.open

    def hangs(self: Store) -> OpenStore:
        held.wait(60)
        return opens(self)

    monkeypatch.setattr(Store, "open", hangs)
    result = run_study(SMALL, folder)
    held.set()
    assert "was not done after 0 s" in str(result.store_note)


@pytest.mark.parametrize("what", ["a folder", "not writable"])
def test_a_journal_that_cant_be_written_costs_the_study_nothing(folder: Path, what: str) -> None:
    if what == "not writable" and os.getuid() == 0:
        pytest.skip("root may write anywhere")
    root = folder / "outputs"
    (root / JOURNAL).mkdir(parents=True)
    if what == "not writable":
        (root / JOURNAL).rmdir()
        (root / JOURNAL).touch(mode=0o444)
    result = run_study(SMALL, root)
    assert result.best is not None and JOURNAL in str(result.store_note)


def test_a_study_whose_process_was_killed_is_caught_up_by_the_next(folder: Path) -> None:
    (folder / "dies.py").write_text(
        "import os\nfrom ray import tune\n"
        "def train(config):\n"
        "    tune.report({'loss': config['x']})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    typed = ["task=custom", "task.trainable=dies.train", "space={x: {low: 0.0, high: 1.0}}", *SMALL[2:], "view=none"]
    done = subprocess.run([sys.executable, "-m", "hpo_ray", *typed, "study.name=killed"], cwd=folder)
    assert done.returncode == -9
    store = Store(folder / "outputs")
    after = run_study(SMALL, store.root)
    follow(after.path, store)
    stored = all_of(store.root)
    check_is_the_study(stored[after.path.name], after)
    killed = stored["killed"]
    assert killed["user_attrs"]["state"] == "running"
    assert [(trial["state"], list(trial["curve"])) for trial in killed["trials"]] == [("RUNNING", [1])]


def test_studies_that_asked_for_no_store_or_another_stay_out(folder: Path) -> None:
    root = folder / "outputs"
    asked = run_study([*SMALL, "store=none"], root)
    other = run_study([*SMALL, f"store.url=sqlite:///{folder}/other.db"], root)
    mine = run_study(SMALL, root)
    follow(mine.path, Store(root))
    assert set(all_of(root)) == {mine.path.name}
    assert set(contents(Store(root, f"sqlite:///{folder}/other.db"))) == {other.path.name}
    assert rebuild(Store(root)).studies == 3 and asked.path.name in all_of(root), "on demand all are"


def test_compare_keeps_its_studies_to_itself(folder: Path) -> None:
    typed = ["methods=[random,hyperband]", "seeds=2", "task=parabola", "executor=simulated", "view=none"]
    assert main(["compare", *typed, "store.url=sqlite:///studies.db"]) == 0
    assert not list(folder.rglob(JOURNAL)) and not (folder / "studies.db").exists()


def test_no_password_is_left_on_the_disk_or_said(
    folder: Path, postgresql: PostgreSQL, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgresql.new_database()
    assert "hush" in url
    for typed in (
        SMALL,
        [*SMALL, "task=custom", "task.trainable=mine.always_raises", "space={lr: {low: 0.1, high: 1.0}}"],
    ):
        main([*typed, "view=plain", f"store.url={url}"])
    main(["report", "outputs", "--rebuild-store", f"store.url={url}"])
    main([*SMALL, "view=plain", f"store.url={url.replace('studies', 'nothing')}"])
    out, err = capsys.readouterr()
    assert "hush" not in out + err and without_password(url) in out
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert b"hush" not in path.read_bytes(), path
    assert f"url: {without_password(url)}" in (folder / "outputs/parabola-random-1/config.yaml").read_text()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:hush@host:5432/d", "postgresql+psycopg://me@host:5432/d"),
        ("postgresql://me:hu%40sh@host/d?sslmode=require", "postgresql://me@host/d?sslmode=require"),
        ("postgresql://host/d?user=me&password=hush", "postgresql://host/d?user=me"),
        ("postgresql://host/d?password=hush&user=me", "postgresql://host/d?user=me"),
        ("mysql://:hush@host/d", "mysql://@host/d"),
        ("said of postgresql://a:hush@h/d and postgresql://b:hush@h/d", "said of postgresql://a@h/d and postgresql://b@h/d"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgresql://me@host/d", "postgresql://me@host/d"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_run_imports_optuna_beside_its_trials_and_without_a_store_not_at_all(folder: Path) -> None:
    program = (
        "import sys, threading\n"
        "from hpo_ray.executors import loop\n"
        "from hpo_ray.__main__ import main\n"
        "assert 'optuna' not in sys.modules\n"
        f"code = main([*{SMALL!r}, 'view=none', 'report=false', *sys.argv[1:]])\n"
        "sys.exit(code or 10 + ('optuna' in sys.modules))"
    )
    for typed, code in ((["store=none"], 10), ([], 11)):
        assert subprocess.run([sys.executable, "-c", program, *typed], cwd=folder).returncode == code


def test_report_says_again_what_a_study_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "view=plain"]) == 0
    said = capsys.readouterr().out
    assert main(["report", "outputs/parabola-random-1"]) == 0
    again = capsys.readouterr().out
    assert again.startswith("finished: all trials are done\n") and "next " not in again
    assert set(again.splitlines()) < set(said.splitlines())
    for typed in (["report"], ["report", "outputs"], ["report", "study.root=outputs"]):
        assert main(typed) == 0
        assert "parabola-random-1  finished: loss" in capsys.readouterr().out
    log = folder / "outputs/parabola-random-1" / FILE_NAME
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["report", "outputs/parabola-random-1"]) == 0
    assert "not finished: it is running, or was killed\n3 trials (3 completed)" in capsys.readouterr().out


class _Silent(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def dashboard(store: Store) -> Iterator[str]:
    """The address of an optuna-dashboard that shows a store."""
    optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    with (
        reading(store) as opened,
        make_server("127.0.0.1", 0, optuna_dashboard.wsgi(opened), handler_class=_Silent) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def get(address: str) -> Any:
    with urllib.request.urlopen(address) as answer:
        return json.loads(answer.read())


def test_optuna_dashboard_shows_it(folder: Path, store: Store) -> None:
    overrides = ["method=hyperband", "task=branin", "scheduler.max_resource=9", "executor=inprocess", *key(store)]
    result = run_study(overrides, store.root)
    with dashboard(store) as address:
        (study,) = get(f"{address}/api/studies")["study_summaries"]
        assert study["study_name"] == result.path.name
        attrs = {entry["key"]: entry["value"] for entry in study["user_attrs"]}
        assert attrs["method"] in ("hyperband", '"hyperband"')
        detail = get(f"{address}/api/studies/{study['study_id']}?after=0")
    assert detail["objective_names"] == ["loss"]
    assert len(detail["trials"]) == len(result.records)
    states = {"completed": "Complete", "stopped": "Pruned"}
    for shown, trial in zip(detail["trials"], result.records, strict=True):
        assert shown["number"] == trial.number and shown["state"] == states[trial.state]
        assert shown["values"] == [trial.value]
        assert {(e["step"], e["value"]) for e in shown["intermediate_values"]} == set(trial.history)
        assert {e["name"]: float(e["param_external_value"]) for e in shown["params"]} == trial.config
        attrs = {entry["key"]: str(entry["value"]) for entry in shown["user_attrs"]}
        for name in ("bracket", "rung"):
            assert attrs[name] == str(trial.tags[name])
        assert attrs["resource"] == str(trial.resource) and float(attrs["seconds"]) == round(trial.seconds, 6)
