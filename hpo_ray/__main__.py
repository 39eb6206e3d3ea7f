"""The command line: `python -m hpo_ray [verb] [flags] [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hpo_ray.clusters.base import SEEN
from hpo_ray.commands import python, resume_command, short
from hpo_ray.errors import ConfigError, HpoRayError, StudyError
from hpo_ray.location import is_uri

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hpo_ray.study import Draft

HELP = """\
Tunes hyperparameters with Ray Tune. One command per method, one override to change it.

  python -m hpo_ray [VERB] [FLAGS] [KEY=VALUE ...]

verbs
  run (default)   tune:               python -m hpo_ray method=hyperband task=digits_mlp
  resume          go on:              python -m hpo_ray resume outputs/NAME [budget.trials=100]
                  or s3://bucket/prefix/NAME, on another machine
  plan [--json]   what run would do:  python -m hpo_ray plan method=hyperband scheduler.max_resource=81
  submit          the same on a cluster:  python -m hpo_ray submit cluster=ray_job cluster.address=http://HOST:8265
                  [run|resume|compare], --detach doesn't follow it, --render prints what would be sent
  compare         methods x seeds:    python -m hpo_ray compare methods=[random,asha] seeds=20 executor=simulated
  report [PATH]   report.html, and the summary again:  python -m hpo_ray report outputs/digits_mlp-hyperband-1
                  of several against each other: report PATH PATH ..., --output FILE; of a folder: what lies in it
                  --follow shows one that runs in another process: report --follow outputs/NAME
                  (exit codes: 0 it finished, 1 it failed, was interrupted or died, 130 you looked away)
                  --serve opens them in optuna-dashboard, on this machine only [--port 8080; 0: any]
                  --rebuild-store writes their Optuna storage anew from the logs
                  or of what others have left, which it makes a study of:
                  report ~/ray_results/NAME task.metric=loss task.mode=min, report sqlite:///studies.db
  fetch           bring a study's folder here:  python -m hpo_ray fetch s3://bucket/prefix/NAME [INTO] [--all]
                  --all: with the checkpoints of its trials, and not of the best only
  list            what there is: methods, tasks, searchers, schedulers, studies

your own training code, a function or class of Ray Tune:
  python -m hpo_ray task=custom task.trainable=my_module.train 'space={lr: {low: 1e-5, high: 0.1, log: true}}'

keys (python -m hpo_ray --cfg job prints all of them)
  method= task= searcher= scheduler= fidelity= executor= resources= cluster= space= tracker= experiment=
                                 choices; see list
  seed=0                         same seed, same trials
  space.NAME=0.1                 fix one;  space.NAME.low=1e-4  move a bound;  'space.NAME=[a, b]'  replace it
  '+space.NAME={low: 0, high: 1}' add one; ~space.NAME  take it out
  task.metric= task.mode= task.max_resource= task.args.NAME=
  scheduler.max_resource= scheduler.min_resource= scheduler.eta=
  budget.trials= budget.rounds= budget.time_s= budget.target= budget.concurrency=
  store.root=                    a folder that all nodes see, or an object store: s3://bucket/prefix
  store=none store.url=          no Optuna storage, or a database instead of study.root/hpo_ray.journal
  study.name= study.root=outputs view=auto|live|plain|none (none: prints nothing at all)

flags
  --config-dir DIR    a folder with groups and configurations of your own
  --config-name NAME  the configuration to start from
  --cfg job           print the composed configuration and stop
  --version           print the version
  --hydra-help, --info, --shell-completion: as Hydra has them

exit codes: 0 done, 1 the study failed, 2 the command or configuration can't be, 130 and 143 interrupted
"""

BESIDE = ("hpo_ray.journal", "mlflow.db", "report.html", ".")
"""What the names of files begin with that lie beside studies."""
HYDRA_FLAGS = ("--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, and gives the exit code.

    Args:
        arguments: what was typed after the program's name; by default those of the process.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    # `python -m` has the current folder on the path, the console script has not: a user's own code lies there.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return _dispatch(typed)
    except HpoRayError as error:
        from hpo_ray.store.urls import without_password

        print(f"hpo_ray: {without_password(str(error))}", file=sys.stderr)
        if isinstance(error, StudyError) and error.report is not None:
            print(f"report     {short(error.report)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while code is imported: a study that runs handles it itself
        print("hpo_ray: interrupted before anything was started", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(typed: list[str]) -> int:
    verb = "run"
    if typed and not typed[0].startswith(("-", "+", "~")) and "=" not in typed[0]:
        verb = typed.pop(0)
        if verb not in VERBS:
            from hpo_ray.config import nearest

            raise ConfigError(f"{verb}: no such verb{nearest(verb, VERBS)}; there are: {', '.join(VERBS)}")
    flags = {argument.split("=")[0] for argument in typed}
    if flags & {"--help", "-h"}:
        print(HELP, end="")
        return 0
    if "--version" in flags:
        print(f"hpo_ray {version('hpo_ray')}")
        return 0
    if flags & {"-m", "--multirun"}:
        raise ConfigError(
            "-m: not taken, since a sweep is what a method does. To compare methods or settings: "
            "python -m hpo_ray compare 'methods=[random, asha, asha scheduler.eta=4]' seeds=10",
            key="-m",
        )
    if flags & set(HYDRA_FLAGS):
        return _hydra(typed)
    if SEEN in os.environ:
        from hpo_ray.clusters.ray_job import check_mark

        check_mark()
    return VERBS[verb](typed)


def _run(typed: list[str]) -> int:
    draft = replace(_draft(_parser("run").parse_intermixed_args(typed)), command=_command(typed))
    draft.free_name()  # a name that is taken is better known before Ray is imported
    return _carry_out(draft, lambda: _next(draft, typed))


def _resume(typed: list[str]) -> int:
    parser = _parser("resume")
    options = parser.parse_intermixed_args(typed)
    first = options.overrides[0] if options.overrides else "="
    path = options.overrides.pop(0) if is_uri(first) or "=" not in first else None
    if path is None:
        raise ConfigError("resume: which study? `python -m hpo_ray resume outputs/NAME`; `list` tells the names")
    _check_overrides(options.overrides)
    from hpo_ray.resume import reopen
    from hpo_ray.view import spent

    roots = [word for word in options.overrides if word.startswith("study.root=") and is_uri(path)]
    changes = [word for word in options.overrides if word not in roots]
    root = roots[-1].partition("=")[2] if roots else "outputs"
    study = reopen(path, changes, options.config_dir, root)
    quiet = study.draft.config["view"] == "none"
    if study.done:
        from hpo_ray.executors.loop import complete

        note = complete(study.folder, study.draft).tracker_note
        if note is not None and not quiet:
            print(f"tracker    {note}")
        if not quiet:
            print(f"{study.folder.name} has finished: {study.done}. To go on give it more, for example budget.trials=")
        return 0
    if not quiet:
        states = study.state.states
        known = [f"{states[name]} {name}" for name in ("completed", "stopped", "failed", "paused") if states[name]]
        going = [f"{states['running']} cut off in training"] if states["running"] else []
        so_far = ", ".join([*known, *going]) or "no trials yet"
        print(f"resumes {study.folder.name}: {so_far}; {spent(study.state.trained, study.draft)}", flush=True)
        if study.draft.virtual_workers:
            print("a simulated study keeps no checkpoints, so it is simulated again from its start", flush=True)
        for name, before, now in study.changed:
            print(f"note: {name} was {before} and is {now}, so what comes may not be what would have come", flush=True)
    return _carry_out(replace(study.draft, command=_command(["resume", *typed])), lambda: "", study.folder)


def _carry_out(draft: Draft, next_command: Callable[[], str], folder: Path | None = None) -> int:
    """Builds a study and runs it, or the rest of the one in a folder; the exit code."""
    from hpo_ray.study import build
    from hpo_ray.view import make_view

    view = make_view(draft.config["view"])
    view.prepare(draft)
    try:
        study = build(draft)
        from hpo_ray.executors.loop import run

        result = run(study, view, folder)
    finally:
        view.stop()
    ended = result.state.ended
    interrupted = ended is not None and ended.state == "interrupted"
    if draft.config["view"] != "none":
        from hpo_ray.report.summary import summary

        print(summary(result, draft, "" if interrupted else next_command()))
    if interrupted:
        assert ended is not None
        return 143 if ended.reason.startswith("SIGTERM") else 130
    return 0


def _submit(typed: list[str]) -> int:
    parser = _parser("submit")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--detach", action="store_true")
    options = parser.parse_intermixed_args(typed)
    from hpo_ray.clusters.submission import submission_of

    cluster, submission = submission_of(options.overrides, options.config_dir, options.config_name)
    if options.render:
        print(cluster.render(submission), end="")
        return 0
    return cluster.submit(submission, options.detach)


def _plan(typed: list[str]) -> int:
    parser = _parser("plan")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args(typed)
    draft = _draft(options)
    plan = draft.plan
    if options.json:
        full = plan.full_trainings
        content = {
            "method": draft.method,
            "trials": plan.trials,
            "total_resource": plan.total_resource,
            "total_resource_restarting": plan.total_resource_restarting,
            "full_trainings": None if full is None else round(full, 4),
            "rounds": plan.rounds,
            "exact": plan.exact,
            "at_most": plan.at_most,
            "total_resource_spread": plan.spread,
            "grid_points": draft.grid_size,
            "brackets": [
                {"s": bracket.s, "rungs": [{"n": rung.n, "r": rung.r} for rung in bracket.rungs]}
                for bracket in plan.brackets
            ],
        }
        print(json.dumps(content))
        return 0
    from hpo_ray.view import clock, count, headline

    unit = draft.task.unit
    print(headline(draft))
    if plan.full_trainings is not None:
        trainings = f"{plan.full_trainings:.4g} full training{'' if plan.full_trainings == 1 else 's'}"
        trainings += f" of {count(plan.max_resource, unit)}"
        print(f"{'at most ' if plan.at_most else ''}as many {unit}s as {trainings}")
    if plan.total_resource_restarting != plan.total_resource:
        print(f"({plan.total_resource_restarting} {unit}s if trials that move up had to start again)")
    if plan.at_most:
        print("at most: how many trials end early depends on what they report")
    elif not plan.exact:
        low, high = plan.spread or (None, None)
        often = f": {low} to {high} {unit}s in nine of ten orders" if plan.spread else ""
        why = "how many trials move up depends on the order in which they report"
        print(f"about: {why if plan.brackets else 'what trials report decides who copies whom, and from where'}{often}")
    if draft.budget.time_s is not None:
        print(f"ends after {clock(draft.budget.time_s)}")
    if draft.budget.resource is not None:
        print(f"ends after {count(draft.budget.resource, unit)}")
    if plan.brackets:
        rungs = max(len(bracket.rungs) for bracket in plan.brackets)
        rows = [["bracket", *(f"rung {i}" for i in range(rungs)), f"{unit}s"]]
        for bracket in plan.brackets:
            cells = [f"{rung.n} to {rung.r}" for rung in bracket.rungs]
            rows.append([f"s={bracket.s}", *cells, *[""] * (rungs - len(cells)), str(bracket.resource)])
        _print_table(rows)
        if plan.rounds != 1:
            print("again and again" if plan.rounds is None else f"{plan.rounds} rounds of these brackets")
    return 0


def _compare(typed: list[str]) -> int:
    options = _parser("compare").parse_intermixed_args(typed)
    _check_overrides(options.overrides)
    from hpo_ray.compare import FIGURE, TABLE, parse, run_all
    from hpo_ray.report.comparison import table
    from hpo_ray.results import REPORT_FILE

    comparison = parse(options.overrides, options.config_dir, options.config_name)
    quiet = comparison.first.config["view"] == "none"
    outcome = run_all(comparison, (lambda line: None) if quiet else (lambda line: print(line, flush=True)))
    scale, again = comparison.scale, "type the same command again: it goes on where it was"
    if not quiet:
        print()
        if outcome.rows:
            _print_table(table(outcome.rows, scale))
            whose, loss = outcome.target
            full = f"full resource ({comparison.first.max_resource})"
            if math.isfinite(loss):
                print(f"target     {scale.name} {scale.shown(loss):.4g}: the median of {whose}, at {full}")
            else:
                print(f"target     none: too few of {whose}'s studies reached {full}; give a larger budget.resource=")
        budget, unit = comparison.first.budget.resource, comparison.first.task.unit
        for row in outcome.rows:
            if budget is not None and row.spent < 0.95 * budget:
                print(
                    f"note       {row.method} ended by itself after {row.spent:g} of {budget} {unit}s: a smaller budget"
                )
        for study, reason in outcome.failed:
            print(f"failed     {study}: {reason}")
        print(f"all of it  {short(outcome.folder.resolve())}" + (f" ({TABLE}, {FIGURE})" if outcome.rows else ""))
        if (report := outcome.folder / REPORT_FILE).is_file() or outcome.report_note:
            print(f"report     {outcome.report_note or short(report.resolve())}")
        if outcome.interrupted:
            print(f"interrupted after {outcome.done} of {outcome.total} studies; {again}")
    if outcome.interrupted:
        return 143 if outcome.interrupted.startswith("SIGTERM") else 130
    return 1 if outcome.failed else 0


def _list(typed: list[str]) -> int:
    parser = _parser("list")
    options = parser.parse_intermixed_args(typed)
    from hpo_ray.config import choices, load

    for group in (
        "method",
        "task",
        "searcher",
        "scheduler",
        "trainable",
        "fidelity",
        "executor",
        "resources",
        "cluster",
        "store",
        "tracker",
        "experiment",
    ):
        print(f"{group}=")
        rows = [["", name, _one_liner(path)] for name, path in choices(group, options.config_dir).items()]
        _print_table(rows)
    root = Path(load(options.overrides, options.config_dir, options.config_name).study.root)
    _print_studies(root)
    return 0


def _report(typed: list[str]) -> int:
    parser = _parser("report")
    flags = ("--follow", "--serve", "--rebuild-store")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    for flag in ("--port", "--output"):
        parser.add_argument(flag)
    options = parser.parse_intermixed_args(typed)
    if len(given := [flag for flag in flags if flag in typed]) > 1:
        raise ConfigError(f"report {' '.join(given)}: one at a time")
    if options.port is not None and not options.serve:
        raise ConfigError("report --port: is the port of --serve; add that, or leave it out")
    paths = [w for w in options.overrides if is_uri(w) or ("=" not in w and not w.startswith("~"))]
    overrides = [word for word in options.overrides if word not in paths]
    if len(paths) > 1 and given:
        raise ConfigError(f"report {given[0]} {' '.join(paths)}: takes one study's folder, or one with studies in it")
    from hpo_ray.config import load
    from hpo_ray.events import FILE_NAME
    from hpo_ray.importers import is_foreign

    config = load(overrides, options.config_dir, options.config_name)
    if len(paths) > 1:  # of `outputs/*`, what lies beside the studies
        paths = [word for word in paths if not Path(word).name.startswith(BESIDE)]
    if options.output is not None and given:
        raise ConfigError(f"report --output: is where the page goes; {given[0]} writes none", key="--output")
    ours = ("study.root", "store", "store.url", "view")
    imports = ("task.metric", "task.mode", "scheduler.time_attr", "study.name") if any(map(is_foreign, paths)) else ()
    for word in overrides:
        if (key := word.lstrip("+~").partition("=")[0]) not in (*ours, *imports):
            raise ConfigError(f"{word}: report shows what is there; it takes {', '.join((*ours, *imports))}", key=key)
    if not (options.follow or options.serve):
        paths = [str(_import(path, config, overrides)) if is_foreign(path) else path for path in paths]
    if remote := next((path for path in paths if is_uri(path)), None):
        raise ConfigError(f"report {remote}: bring it here first: python -m hpo_ray fetch {shlex.quote(remote)}")
    path = Path(paths[0] if paths else config.study.root)
    if options.follow:
        from hpo_ray.report.following import follow, study_folder
        from hpo_ray.view import make_view

        return follow(study_folder(path), make_view(config.view))
    for folder in (Path(word) for word in (paths or [str(path)])):
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "no such folder"
            raise ConfigError(f"report {folder}: {what}", key="study.root")
    if options.serve or options.rebuild_store:
        root = path.parent if (path / FILE_NAME).is_file() else path
        if not config.store.project:
            raise ConfigError(
                f"store=none: there is no store to {'serve' if options.serve else 'rebuild'}; leave it out", key="store"
            )
        if options.serve:
            from hpo_ray.report.serving import serve

            return serve(root.absolute(), config.store.url, options.port)
        _rebuild_store(root, config.store.url)
    elif len(paths) > 1 or _is_study(path):
        from hpo_ray.report.writing import report

        print(report([Path(word) for word in paths], Path(options.output) if options.output else None))
    elif options.output is not None:
        raise ConfigError(f"report {path} --output: say of which studies, for example {path}/*", key="--output")
    else:
        _print_studies(path)
    return 0


def _fetch(typed: list[str]) -> int:
    parser = _parser("fetch")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_intermixed_args(typed)
    words = options.overrides
    if not 1 <= len(words) <= 2:
        raise ConfigError("fetch: takes a study's URI or folder, and the folder to put it in: fetch SOURCE [INTO]")
    from hpo_ray.best import CHECKPOINT_FOLDER
    from hpo_ray.fetching import fetch
    from hpo_ray.results import BEST_FOLDER

    folder, size = fetch(words[0], Path(words[1] if len(words) > 1 else "outputs"), options.all)
    left = "" if options.all else ", without the checkpoints of trials (--all)"
    print(f"{short(folder)}: {size / 1e6:.1f} MB{left}")
    if (folder / BEST_FOLDER / CHECKPOINT_FOLDER).is_dir():
        from hpo_ray.report.summary import load_command

        print(f"load it    {load_command(folder)}")
    return 0


def _import(source: str, config: DictConfig, overrides: Sequence[str]) -> Path:
    """Makes a study of what another program has left; its folder."""
    from hpo_ray.importers import import_study

    typed = {word.lstrip("+").partition("=")[0] for word in overrides}
    given = {
        name: getattr(section, name) if f"{key}.{name}" in typed else None
        for key, section, name in (
            ("task", config.task, "metric"),
            ("task", config.task, "mode"),
            ("scheduler", config.scheduler, "time_attr"),
        )
    }
    # Of a storage it is which study, too; that one's name is then the folder's.
    called = "name" if Path(source).is_dir() else "study_name"
    return import_study(source, root=config.study.root, **{called: config.study.name}, **given)


def _rebuild_store(root: Path, url: str | None) -> None:
    from hpo_ray.store.urls import check_driver, check_url

    if url is not None:
        check_url(url)
        check_driver(url)
    from hpo_ray.store.recovery import rebuild
    from hpo_ray.store.storage import Store
    from hpo_ray.view import count

    store = Store(root.absolute(), url)
    done = rebuild(store)
    studies = "1 study" if done.studies == 1 else f"{done.studies} studies"
    print(f"{store}: {studies}, {count(done.trials, 'trial')}")
    if done.running:
        print(f"left       {done.running} that are running: they go on by themselves")
    for reason in done.unreadable:
        print(f"left out   {reason}")


def _print_studies(root: Path) -> None:
    print(f"studies in {root}/")
    studies = [["", folder.name, _study_line(folder)] for folder in sorted(root.glob("*")) if _is_study(folder)]
    _print_table(studies or [["", "none yet", ""]])


VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "plan": _plan,
    "resume": _resume,
    "submit": _submit,
    "compare": _compare,
    "report": _report,
    "fetch": _fetch,
    "list": _list,
}


class _Parser(argparse.ArgumentParser):
    """argparse whose errors look like all our others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `python -m hpo_ray --help` tells what there is")


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"hpo_ray {verb}", allow_abbrev=False, add_help=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("overrides", nargs="*")
    return parser


def _draft(options: argparse.Namespace) -> Draft:
    _check_overrides(options.overrides)
    from hpo_ray.config import load
    from hpo_ray.study import draft

    return draft(load(options.overrides, options.config_dir, options.config_name))


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override in VERBS:
            raise ConfigError(f"{override}: the verb comes first, `python -m hpo_ray {override} ...`", key=override)
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"{override}: not an override; write key=value", key=override)


def _hydra(typed: list[str]) -> int:
    """What prints and exits is Hydra's own: --cfg, --info, --hydra-help, shell completion."""
    import hydra

    from hpo_ray.config import conf_dir, final_overrides, load

    parser = _parser("run")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--info", "-i", nargs="?")
    parser.add_argument("--package", "-p")
    for flags in (("--resolve",), ("--hydra-help",), ("--shell-completion", "-sc")):
        parser.add_argument(*flags, action="store_true")
    options = parser.parse_intermixed_args(typed)
    if not options.shell_completion:
        where = (options.config_dir, options.config_name)
        load(options.overrides, *where)  # its errors are ours, not Hydra's
        flags_only = [argument for argument in typed if argument not in options.overrides]
        typed = [*flags_only, *final_overrides(options.overrides, *where)]
    sys.argv = ["hpo_ray", *typed]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(lambda _: None)()
    return 0


def _command(typed: Sequence[str]) -> str:
    """What was typed, without passwords."""
    from hpo_ray.store.urls import without_password

    return shlex.join([python(), "-m", "hpo_ray", *(without_password(word) for word in typed)])


def _next(draft: Draft, typed: Sequence[str]) -> str:
    """The same command with three times the resource; of a simulation, with twice the workers."""
    from hpo_ray.store.urls import without_password

    key, value = "scheduler.max_resource", 3 * draft.max_resource
    if draft.virtual_workers:
        key, value = "executor.workers", 2 * draft.virtual_workers
    kept = [without_password(a) for a in typed if not a.startswith((f"{key}=", "study.name="))]
    return shlex.join([python(), "-m", "hpo_ray", *kept, f"{key}={value}"])


def _one_liner(path: Path) -> str:
    """The third line of a configuration file, which says what the choice is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[2].lstrip("# ") if len(lines) > 2 and lines[2].startswith("#") else ""


def _is_study(folder: Path) -> bool:
    from hpo_ray.compare import FILE
    from hpo_ray.events import FILE_NAME

    return (folder / FILE_NAME).is_file() or (folder / FILE).is_file()


def _study_line(folder: Path) -> str:
    """A study in one line, from its result.json; a comparison, from its own file."""
    from hpo_ray.compare import FILE
    from hpo_ray.events import FILE_NAME, StudyEnded, is_running, last_event
    from hpo_ray.results import RESULT_FILE

    try:
        if (folder / FILE).is_file():
            compared = json.loads((folder / FILE).read_text(encoding="utf-8"))
            state = "finished" if compared["finished"] else "not finished"
            failed = f", {compared['failed']} studies failed" if compared.get("failed") else ""
            return f"{state}: {', '.join(compared['command']['methods'])} compared{failed}"
        if is_running(folder / FILE_NAME):
            return "running"
        if not isinstance(last_event(folder / FILE_NAME), StudyEnded):
            return f"cut off: {resume_command(folder)}"
        result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        best, totals = result["best"], result["totals"]
        value = f"{result['metric']['name']} {best['value']:.6g}, " if best else ""
        return f"{result['state']}: {value}{totals['trials']} trials, seed {result['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"cut off: {resume_command(folder)}"


def _print_table(rows: list[list[str]]) -> None:
    from hpo_ray.view import table

    for line in table(rows):
        print(line)


def entry() -> NoReturn:
    """Runs the command line as a process."""
    code = main()
    if code > 128:  # interrupted: all is written, and tearing Python down may take longer than who waits will wait
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
