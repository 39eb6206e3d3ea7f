"""Every file of conf/, by glob: headers, the law of names, and composition."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from methods import GRADIENT, METHODS, SCHEDULERS, SEVERAL
from omegaconf import OmegaConf

from hpo_ray.config import load
from hpo_ray.errors import ConfigError
from hpo_ray.study import draft

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.glob("*/*.yaml"))
GIVEN = {"space", "ladder", "cluster"}  # what no configuration can hold


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_header(path: Path) -> None:
    """Line 1 is the package, line 2 a command that uses the file, line 3 what `list` prints."""
    package, command, line = path.read_text().splitlines()[:3]
    assert package in ("# @package _global_", f"# @package {path.parent.name}")
    assert command.startswith("# python -m hpo_ray ")
    assert f"{path.parent.name}={path.stem}" in command or path.stem == "empty"
    assert line.startswith("# ") and line.endswith(".") and len(line) < 130


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_its_command_composes(path: Path) -> None:
    import shlex

    words = shlex.split(path.read_text().splitlines()[1].removeprefix("# python -m hpo_ray"))
    overrides = [word for word in words if "=" in word]
    config = load(overrides)
    needs_a_study = any(word.startswith("scheduler.path=") for word in words)
    if "custom" not in path.stem and path.stem != "empty" and not needs_a_study:
        draft(config)


def targets(path: Path) -> list[dict[str, object]]:
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(node, dict)
    sections = [node, *(section for section in node.get("callbacks", []))]
    return [section for section in sections if "_target_" in section]


@pytest.mark.parametrize("path", [p for p in FILES if targets(p)], ids=ids)
def test_law_keys_are_constructor_parameters(path: Path) -> None:
    """So every knob can be overridden by its name, and none is ignored."""
    for section in targets(path):
        module, _, name = str(section["_target_"]).rpartition(".")
        if module.startswith("ray."):
            continue  # Ray's callbacks are named with the few keys that matter
        parameters = set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        assert set(section) - {"_target_"} == parameters - GIVEN


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "scheduler"], ids=ids)
def test_law_every_scheduler_has_its_algorithm_beside_it(path: Path) -> None:
    """So that a study can be planned without Ray; its parameters are among the scheduler's, with the same defaults."""
    target = targets(path)[0]["_target_"]
    module, _, name = str(target).rpartition(".")
    package = importlib.import_module(module)
    core = inspect.signature(getattr(package, f"{name}Core")).parameters
    adapter = inspect.signature(getattr(package, name)).parameters
    assert all(parameter.default == adapter[key].default for key, parameter in core.items())
    assert "max_resource" in core
    assert OmegaConf.load(path)._get_node("max_resource")._value() == "${task.max_resource}"  # type: ignore[union-attr]


TASKS = sorted(p.stem for p in (CONF / "task").glob("*.yaml"))
PAIRS = [
    # Every method and every task several times; all pairs of them with the slow tests.
    pytest.param(task, method, marks=() if (i + j) % 4 == 0 else pytest.mark.slow)
    for i, task in enumerate(TASKS)
    for j, method in enumerate([*METHODS, *GRADIENT])
]


@pytest.mark.parametrize(("task", "method"), PAIRS)
def test_every_method_plans_every_task(task: str, method: str) -> None:
    """But for `pbt_replay`, which needs a study to replay; those for several metrics say so of a task with one."""
    own = ["task.trainable=mine.train", "space={lr: {low: 0.1, high: 0.2}}"] if task in ("custom", "recorded") else []
    config = load([f"task={task}", f"method={method}", *own])
    if method in SEVERAL and not config.task.tradeoff:
        with pytest.raises(ConfigError, match=rf"method={method}: trades off several metrics, and task={task} names"):
            draft(config)
        return
    drafted = draft(config)
    assert drafted.method == method and drafted.task.name == task and drafted.plan.trials


@pytest.mark.parametrize("fidelity", sorted(p.stem for p in (CONF / "fidelity").glob("*.yaml")))
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in SCHEDULERS.values() else pytest.mark.slow) for m in METHODS]
)
def test_every_method_takes_every_fidelity_and_names_its_unit(fidelity: str, method: str) -> None:
    unit = {"epochs": "epoch", "steps": "block", "data_fraction": "share"}[fidelity]
    for order in (lambda typed: typed, reversed):
        drafted = draft(load(list(order([f"fidelity={fidelity}", f"method={method}", "task=digits_cnn"]))))
        assert drafted.config["fidelity"]["name"] == fidelity and drafted.task.unit == unit
    assert draft(load([f"fidelity={fidelity}", "task.unit=lap"])).task.unit == "lap", "what was typed wins"


def test_fidelities_of_the_configuration_are_those_of_the_code() -> None:
    from hpo_ray.trainables.context import FIDELITIES

    assert sorted(FIDELITIES) == sorted(p.stem for p in (CONF / "fidelity").glob("*.yaml"))


def test_spaces_come_from_files_of_their_group() -> None:
    """A space that a task or method held itself would be merged with what a user gives instead of replaced."""
    for path in FILES:
        if path.parent.name != "space":
            assert not re.search(r"^space:", path.read_text(), re.MULTILINE)


def test_the_command_line_wins_over_tasks_methods_and_experiments() -> None:
    config = load(["experiment=digits_hyperband_81", "scheduler.max_resource=9", "task=parabola", "space=branin"])
    assert config.scheduler.max_resource == 9
    assert config.task.name == "parabola"
    assert set(config.space) == {"x1", "x2"}
    assert load(["method=hyperband", "scheduler=fifo"]).scheduler._target_.endswith("FIFO")


def test_a_users_own_groups_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "space").mkdir()
    (tmp_path / "task/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /space: mine\ntask: {name: mine, trainable: mine.train}\n"
    )
    (tmp_path / "space/mine.yaml").write_text("lr: {low: 0.1, high: 1.0}\n")
    (tmp_path / "start.yaml").write_text(
        "defaults: [config, {override task: mine}, {override method: random}, _self_]\nseed: 7\nspace: {inline: 3}\n"
    )
    config = load(["task=mine"], config_dir=str(tmp_path))
    assert config.task.trainable == "mine.train" and list(config.space) == ["lr"]
    assert config.method.name == "hyperband"
    started = load(["budget.trials=3"], config_dir=str(tmp_path), config_name="start")
    assert (started.seed, started.method.name, started.budget.trials) == (7, "random", 3)
    assert dict(started.space) == {"lr": {"low": 0.1, "high": 1.0}, "inline": 3}
    replaced = load(["space={a: [1, 2]}"], config_dir=str(tmp_path), config_name="start")
    assert dict(replaced.space) == {"a": [1, 2]}, "also what the file holds itself is replaced"


def test_a_choice_of_the_users_may_not_hide_ours(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task/parabola.yaml").write_text("# @package _global_\ntask: {name: mine}\n")
    with pytest.raises(ConfigError, match=r"parabola\.yaml is the name of one of ours; rename it"):
        load(["task=parabola"], config_dir=str(tmp_path))


def test_constants_for_the_trainable_need_no_plus() -> None:
    assert load(["task.args.path=/data", "task=parabola"]).task.args == {"path": "/data"}


def test_draft_is_what_was_typed() -> None:
    drafted = draft(load(["task=parabola", "method=random", "budget.trials=3", "seed=5", "study.name=mine"]))
    assert (drafted.name, drafted.seed, drafted.plan.trials, drafted.max_resource) == ("mine", 5, 3, 27)
    assert drafted.space.names == ("x",)
    assert drafted.config["scheduler"]["metric"] == "loss", "interpolations are resolved"


def test_a_tradeoff_is_replaced_as_a_whole_and_changed_by_name() -> None:
    known = draft(load(["task=digits_mlp"])).task
    assert known.tradeoff == {"accuracy": "max", "parameters": "min"}
    assert known.reference == {"accuracy": 0.1, "parameters": 150794.0}
    typed = ["task=digits_mlp", "task.tradeoff={accuracy: max, loss: min}", "task.reference={accuracy: 0, loss: 3}"]
    replaced = draft(load(typed)).task
    assert replaced.tradeoff == {"accuracy": "max", "loss": "min"} and replaced.reference == {"accuracy": 0, "loss": 3}
    changed = draft(load(["task=digits_mlp", "task.tradeoff.loss=min", "task.reference.parameters=1000"])).task
    assert list(changed.tradeoff) == ["accuracy", "parameters", "loss"] and changed.reference["parameters"] == 1000
    assert draft(load(["task=digits_mlp", "task.tradeoff=null"])).task.tradeoff == {}
    assert draft(load(["task=parabola"])).task.reference == {}
