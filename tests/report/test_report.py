"""Reports of real studies: one for every method, and what a browser says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import methods
import pytest
import yaml
from browser import Browser

from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError
from hpo_ray.report.sections import sections
from hpo_ray.report.subject import Subject
from hpo_ray.report.writing import write_report
from hpo_ray.results import REPORT_FILE, StudyResult, load_study

pytestmark = pytest.mark.reports

MOST_BYTES = 6_000_000
# Those that a study of this method must have, beside what all have.
OF_METHOD = {
    "hyperband": {"curves", "rungs"},
    "pbt": {"population"},
    "nsga2": {"front"},
    "hypergradient": {"trajectories"},
}


def typed(method: str) -> list[str]:
    """A small study of a method, which takes a fraction of a second."""
    if method in methods.GRADIENT:
        own = methods.differentiable(method)
    elif method in methods.SEVERAL:
        own = ["task=branin_currin", *methods.small(method)]
    else:
        own = ["task=parabola", *methods.small(method)]
    return [f"method={method}", *own, "executor=inprocess", "view=none", "study.name=it"]


def anchors(path: Path) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", [*methods.METHODS, *methods.GRADIENT])
def test_every_method_has_its_report(folder: Path, method: str) -> None:
    assert main(typed(method)) == 0
    path = folder / "outputs/it" / REPORT_FILE
    assert 1_000_000 < path.stat().st_size < MOST_BYTES
    found = anchors(path)
    assert found[0] == "winner" and found[-1] == "provenance" and "incumbent" in found
    assert OF_METHOD.get(method, set()) <= set(found)
    assert len(found) == len(set(found))


def study(folder: Path, *words: str) -> Path:
    assert main([*words, "executor=inprocess", "view=none", "study.name=it"]) == 0
    return folder / "outputs/it" / REPORT_FILE


LOOKED_AT = {
    "hyperband": ["method=hyperband", "task=custom", "task.trainable=mine.train", "task.max_resource=9"],
    "pbt": typed("pbt")[:-3],
    "nsga2": typed("nsga2")[:-3],
    "hypergradient": typed("hypergradient")[:-3],
}
LOOKED_AT["hyperband"].append("space={lr: {low: 0.1, high: 1.0, log: true}, act: [a, b], width: {low: 2, high: 64}}")


@pytest.mark.parametrize("method", LOOKED_AT)
def test_in_a_browser(folder: Path, browser: Browser, method: str) -> None:
    """Narrow and wide, light and dark: nothing is asked of a network, nothing complains, every plot has its marks."""
    path = study(folder, *LOOKED_AT[method])
    for width, scheme in ((380, "dark"), (1100, "light")):
        with browser.open(path, width, scheme) as opened:
            opened.draw_all()
            assert opened.problems == [] and opened.requests == [path.resolve().as_uri()]
            wide, window = opened.overflow()
            assert wide <= window == width
            marks = opened.marks()
            assert len(marks) >= 5 and all(marks.values()), marks
            assert opened.page.locator("section").count() == len(anchors(path))


HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"


def hostile(folder: Path) -> Path:
    """A study whose names, values and errors are markup."""
    (folder / "theirs.py").write_text(
        "from ray import tune\n"
        "def train(config):\n"
        "    for step in range(1, 10):\n"
        "        if config['<b>lr</b>'] > 0.6:\n"
        f"            raise ValueError({HOSTILE!r})\n"
        "        tune.report({'<i>loss</i>': config['<b>lr</b>'] + 1 / step})\n"
    )
    group = folder / "conf"
    group.mkdir()
    own = {"task": {"metric": "<i>loss</i>", "trainable": "theirs.train", "max_resource": 9}}
    own |= {"space": {"<b>lr</b>": {"low": 0.1, "high": 1.0}, "kind": [HOSTILE, "</script>"]}}
    defaults = ["config", {"override task": "custom"}, "_self_"]
    (group / "theirs.yaml").write_text(yaml.safe_dump({"defaults": defaults, **own}))
    own_study = ["--config-dir", "conf", "--config-name", "theirs", "method=hyperband"]
    return study(folder, *own_study, "scheduler.on_missing_checkpoint=restart")


def test_what_is_markup_is_shown_and_not_run(folder: Path, browser: Browser) -> None:
    path = hostile(folder)
    with browser.open(path) as opened:
        opened.draw_all()
        assert opened.problems == [] and opened.page.evaluate("window.hacked") is None
        assert opened.requests == [path.resolve().as_uri()]
        said = opened.page.evaluate("document.body.innerText")
        drawn = opened.page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.textContent).join(' ')")
        assert HOSTILE in said, "in the table of failures"
        assert "<b>lr</b>" in drawn and "<i>loss</i>" in drawn and "</script>" in drawn


def many(folder: Path, trials: int, reports: int) -> StudyResult:
    """A study of so many trials by a log that was written by hand."""
    import random

    from hpo_ray.best import save_config
    from hpo_ray.config import load, to_plain
    from hpo_ray.events import Reported, StudyEnded, StudyStarted, TrialAdded, TrialEnded, to_line

    names = ", ".join(f"x{i}: {{low: 0.0, high: 1.0}}" for i in range(8))
    space = f"{{{names}, act: [a, b, c], w: {{low: 1, high: 99}}}}"
    place = folder / "many"
    place.mkdir()
    save_config(place, to_plain(load(["method=random", "task=custom", "task.trainable=mine.train", f"space={space}"])))
    draw, time = random.Random(0), 0.0
    with (place / "events.jsonl").open("w") as log:
        log.write(to_line(StudyStarted("many", "random", "custom", "loss", "min", 0, reports, 0.0, workers=8)))
        for number in range(trials):
            config: dict[str, Any] = {f"x{i}": draw.random() for i in range(8)}
            config |= {"act": draw.choice("abc"), "w": draw.randint(1, 99)}
            name = f"{number:05d}"
            log.write(to_line(TrialAdded(name, number, config, {}, time)))
            for step in range(1, reports + 1):
                time += 0.01
                loss = config["x0"] + 0.1 * config["x1"] + 1 / step
                log.write(to_line(Reported(name, step, 1, {"loss": loss}, 0.08, time)))
            log.write(to_line(TrialEnded(name, "completed", "done", None, time)))
        log.write(to_line(StudyEnded("finished", "all trials are done", time)))
    return load_study(place)


@pytest.mark.parametrize(("trials", "reports"), [(1000, 5), pytest.param(5000, 20, marks=pytest.mark.slow)])
def test_a_large_study_is_thinned_and_says_so(folder: Path, browser: Browser, trials: int, reports: int) -> None:
    path = write_report(many(folder, trials, reports))
    assert path.stat().st_size < MOST_BYTES
    said = path.read_text(encoding="utf-8")
    assert re.search(rf"of {trials}\b", said), "the page says what it leaves out"
    with browser.open(path) as opened:
        opened.draw_all()
        assert opened.problems == [] and all(opened.marks().values())
        points = opened.page.evaluate("document.querySelectorAll('.plot .point, .plot .js-line').length")
        assert points < 25_000


# Studies of which there is little to tell.


@pytest.fixture
def finished(folder: Path) -> Path:
    study(folder, "method=random", "task=parabola", "budget.trials=3")
    return folder / "outputs/it"


def test_a_study_without_a_finished_trial(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=custom", "task.trainable=mine.always_raises", "space={lr: {low: 0.1, high: 1.0}}", "budget.trials=2"]
    assert main(["method=random", *words, "executor=inprocess", "view=plain", "study.name=it"]) == 1
    assert "report     outputs/it/report.html" in capsys.readouterr().err
    found = anchors(folder / "outputs/it" / REPORT_FILE)
    assert "failures" in found and "winner" not in found and "incumbent" not in found


def test_a_study_cut_at_any_event(finished: Path) -> None:
    lines = (finished / "events.jsonl").read_bytes().splitlines(keepends=True)
    for end in (1, 2, 3, len(lines) // 2, len(lines) - 2):
        (finished / "events.jsonl").write_bytes(b"".join(lines[:end]))
        (finished / "result.json").unlink(missing_ok=True)
        found = [section.key for section in sections(Subject.of(finished))]
        assert found[-1] == "provenance", end


def test_without_its_configuration(finished: Path) -> None:
    (finished / "config.yaml").unlink()
    path = write_report(load_study(finished))
    assert "can&#x27;t be read by this version" in path.read_text() and "incumbent" in anchors(path)


def test_a_report_that_cannot_be_written_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no figures today")

    monkeypatch.setattr("hpo_ray.report.incumbent.incumbent", broken)
    words = ["method=random", "task=parabola", "budget.trials=2", "executor=inprocess", "view=plain", "study.name=it"]
    assert main(words) == 0
    assert "report     could not be written: RuntimeError: no figures today" in capsys.readouterr().out
    assert not (folder / "outputs/it" / REPORT_FILE).exists() and (folder / "outputs/it/result.json").exists()


def test_only_if_it_is_wanted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method=random", "task=parabola", "budget.trials=2", "executor=inprocess", "study.name=it", "report=false"]
    assert main([*words, "view=plain"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("-m hpo_ray report outputs/it")
    assert not (folder / "outputs/it" / REPORT_FILE).exists()


def test_the_command_line_that_ran_it_and_runs_it_again(finished: Path) -> None:
    page = (finished / REPORT_FILE).read_text()
    again = re.search(r"Run it again</summary>\n<pre>(.*?)</pre>", page)
    assert again is not None
    words = again[1].split()
    assert words[1:4] == ["-m", "hpo_ray", "method=random"] and "study.name=it" not in words
    assert main([*words[3:], "study.name=again"]) == 0
    one, other = (load_study(finished.with_name(name)).records for name in ("it", "again"))
    assert [trial.config for trial in one] == [trial.config for trial in other]


# What can't be, and what is damaged.


def test_mistakes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed, says in (
        (["task.mode=max"], "task.mode=max: report shows what is there; it takes study.root, store, store.url, view"),
        (["seed=9"], "seed=9: report shows what is there"),
        (["--output", "nowhere/it.html"], "report: nowhere/it.html: can't be written: No such file or directory; say"),
        (["--output", "it.html", "--follow"], "report --output: is where the page goes; --follow writes none"),
    ):
        assert main(["report", str(finished), *typed]) == 2
        assert says in capsys.readouterr().err
    assert main(["report", "outputs", "--output", "it.html"]) == 2
    assert "say of which studies, for example outputs/*" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="along=foo: must be resource or time"):
        load_study(finished).plot.incumbent("foo")
    with pytest.raises(ConfigError, match=r"name: .* is a study of ours, nothing is imported; leave it out"):
        load_study(finished, name="other")


@pytest.mark.parametrize("content", ["", "null", "{}", "[1, 2", '{"best": 3}'])
def test_results_that_are_damaged_are_read_from_the_log(finished: Path, content: str) -> None:
    whole = load_study(finished)
    (finished / "result.json").write_text(content)
    assert load_study(finished).records == whole.records


def test_a_study_without_trials_has_an_empty_table(finished: Path) -> None:
    first = (finished / "events.jsonl").read_bytes().splitlines(keepends=True)[0]
    (finished / "events.jsonl").write_bytes(first)
    table = load_study(finished).trials
    assert len(table) == 0 and {"number", "state", "value", "resource"} <= set(table.columns)


def test_what_is_on_several_studies(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another metric is a group of its own; files beside the studies are left out."""
    words = ["executor=inprocess", "view=none", "report=false", "budget.trials=4", "method=random"]
    assert main(["task=parabola", "study.name=again", "seed=1", *words]) == 0
    assert main(["task=digits_mlp", "study.name=other", "scheduler.max_resource=1", *words]) == 0
    paths = [str(path) for path in sorted(finished.parent.iterdir())]
    assert "outputs/hpo_ray.journal" in [Path(path).relative_to(Path.cwd()).as_posix() for path in paths]
    capsys.readouterr()
    assert main(["report", *paths]) == 0
    out = capsys.readouterr().out
    assert "parabola, loss (min)\n" in out and "digits_mlp, accuracy (max)\n" in out
    assert out.endswith("report     outputs/report.html\n")
    page = (finished.parent / REPORT_FILE).read_text()
    assert "3 studies: random on parabola, digits_mlp" in page and page.count("<section id=") >= 2


def test_the_report_of_before_goes_with_an_interruption(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody may have asked for one while the study ran: it would say so for ever."""
    words = ["task=custom", "task.trainable=mine.interrupts_itself", "space={lr: {low: 0.1, high: 1.0}}"]
    main(["method=random", *words, "budget.trials=3", "executor=inprocess", "view=plain", "study.name=it"])
    out = capsys.readouterr().out.splitlines()
    assert (
        out[-1].startswith("resume     ")
        and out[-2].startswith("report     ")
        and out[-2].endswith("report outputs/it")
    )
    assert not (folder / "outputs/it" / REPORT_FILE).exists()
