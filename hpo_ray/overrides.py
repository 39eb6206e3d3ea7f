"""Command-line overrides that are rewritten before Hydra composes, so that they do what they say.

Hydra merges a mapping into the old one, so that `space.lr={low: 1, high: 2}` would keep an old `log: true`;
it cannot put a list where a mapping was, refuses a keyword that a domain did not have yet, and merges
`space={…}` too. So each override becomes one or more of Hydra's own:

| typed                          | rewritten                         | does                                         |
|--------------------------------|-----------------------------------|----------------------------------------------|
| `space.lr=0.01`                | as it is                          | fixes the value                              |
| `space.lr.low=1e-3`            | `space.lr={} ++space.lr.low=1e-3` | sets a keyword; an unknown `lr` is an error  |
| `space.lr.when.optimizer=sgd`  | the same way                      | sets one condition                           |
| `space.lr={…}`, `space.lr=[…]` | `space.lr=null space.lr={…}`      | replaces; an unknown `lr` is an error        |
| `+space.x={…}`, `+space.x=[…]` | `+space.x=null +space.x={…}`      | adds; an `x` that is there is an error       |
| `++space.x={…}`                | `++space.x=null ++space.x={…}`    | adds or replaces                             |
| `+space={x: …}`                | `+space.x=null +space={x: …}`     | adds; an `x` that is there is an error       |
| `space={…}`                    | `~space +space={…}`               | replaces the whole space                     |

The others stay as they are: `space=digits_mlp` (a file of the group `space`), `~space.lr`, and a keyword's value
with a prefix of its own. And `task.args.path=…` becomes `++task.args.path=…`: which constants there are is up to the
trainable. What is by the names of metrics (`task.metrics`, `task.constraints`, `task.tradeoff`, `task.reference`), of
hyperparameters (`searcher.grid_points`), of a sampler's arguments (`searcher.settings`), or of labels, variables and
whatever else a cluster has names for (`resources.labels`, `cluster.runtime_env.env_vars`, …) replaces, too, as in
`task.metrics=null task.metrics={…}`, and takes new names. `store.root` of a URI with options is put in
quotes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from hpo_ray.domains import KEYWORDS
from hpo_ray.errors import ConfigError


def rewrite(overrides: list[str]) -> list[str]:
    """The overrides, those of the search space rewritten, all others as they are.

    The last word on the whole space counts: `space={…}` drops all that came before it for the space, and
    `space=<file>` or `~space` drop a mapping before them. What Hydra cannot parse is left for it to report.

    What a configuration file says under its own key `space:`, rather than by a file of the group, outlives `~space`;
    `without` takes it out by name.

    Args:
        overrides: As typed: `key=value`, `+key=value`, `++key=value` or `~key`.
    """
    parser = OverridesParser.create()
    kept: list[tuple[Override | None, list[str]]] = []
    for line in overrides:
        override = _of_space(parser, line)
        if override is None:
            kept.append((None, _lines_of_task(line)))
            continue
        if _replaces_all(override):
            kept = [(earlier, lines) for earlier, lines in kept if earlier is None]
        elif _chooses_file(override):
            kept = [(earlier, lines) for earlier, lines in kept if earlier is None or not _replaces_all(earlier)]
        kept.append((override, _lines(override, line)))
    return [line for _, lines in kept for line in lines]


def to_text(value: Any) -> str:
    """A value of Python as it is typed after `key=`.

    Args:
        value: what a configuration can hold: None, a number, a text, or a list or mapping of these.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Of Hydra's grammar: a backslash stands for itself, but before a quote or at the end it has to be doubled.
        return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + (found[2] and '\\"'), value) + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key_text(name)}: {to_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple | range):
        return "[" + ", ".join(to_text(item) for item in value) + "]"
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a scalar of numpy or torch
        return to_text(value.item())
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, PurePath):
        return to_text(str(value))
    raise ConfigError(
        f"{value!r}: a configuration can't hold a {type(value).__name__}; give numbers, texts, lists or "
        f"mappings of them"
    )


def _key_text(name: Any) -> str:
    """A key of a mapping as it is typed: Hydra takes no quotes there, but a backslash before what has a meaning."""
    text = str(name)
    if not re.fullmatch(r"[\w/\-\\+.$%*@?|()\[\]{}:=, ]+", text, re.ASCII) or text != text.strip():
        raise ConfigError(
            f"{text!r}: can't be a name in a configuration that is typed; use letters, digits, spaces and "
            f"_ - . / + $ % * @ ? | ( ) [ ] {{ }} : = ,",
            key=text,
        )
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", text)


def without(overrides: list[str], names: list[str]) -> list[str]:
    """Rewritten overrides that also delete these names of the space where they replace all of it."""
    deleted = [f"~space.{name}" for name in names]
    place = overrides.index("~space") + 1 if "~space" in overrides else len(overrides)
    return [*overrides[:place], *deleted, *overrides[place:]]


def _of_space(parser: OverridesParser, line: str) -> Override | None:
    if not line.lstrip("+~").startswith("space"):
        return None
    try:
        override = parser.parse_override(line)
    except HydraException:
        return None
    key = override.key_or_group
    return override if override.package is None and (key == "space" or key.startswith("space.")) else None


def _replaces_all(override: Override) -> bool:
    return override.key_or_group == "space" and _changes(override) and isinstance(override.value(), dict)


def _chooses_file(override: Override) -> bool:
    is_choice = _changes(override) and not isinstance(override.value(), dict)
    return override.key_or_group == "space" and (is_choice or override.is_delete())


def _changes(override: Override) -> bool:
    return override.type is OverrideType.CHANGE


def _lines(override: Override, line: str) -> list[str]:
    if override.is_delete():
        return [line]
    key, value = override.key_or_group, override.value()
    plus = line[: len(line) - len(line.lstrip("+"))]
    if key == "space":
        if not isinstance(value, dict):
            return [line]
        if not plus:
            return ["~space", f"+{line}"]
        return [*(f"{plus}space.{name}=null" for name in value if _is_plain(name)), line]
    cleared = [f"{key}=null"] if isinstance(value, (dict, list)) else []
    if (name := _owner_of_keyword(key)) and not plus:
        # Merging an empty mapping changes nothing, but it fails on an unknown name, which `++` would create.
        return [f"{name}={{}}", *(f"++{clear}" for clear in cleared), f"++{line}"]
    return [*(f"{plus}{clear}" for clear in cleared), line]


_BY_NAME = (
    "task.metrics",
    "task.constraints",
    "task.tradeoff",
    "task.reference",
    "searcher.grid_points",
    "searcher.settings",
    "resources.labels",
    "cluster.runtime_env.env_vars",
    "cluster.worker.node_selector",
    "cluster.head.node_config",
    "cluster.worker.node_config",
    "cluster.file_mounts",
)


def _lines_of_task(line: str) -> list[str]:
    key, _, value = line.partition("=")
    if key == "task.args" or key.startswith("task.args."):
        return [f"++{line}"]
    if key in _BY_NAME and value.lstrip().startswith(("{", "[")):
        return [f"{key}=null", line]
    if key == "store.root" and "?" in value and not value.startswith(("'", '"')):
        return [f'{key}="{value}"']
    return [f"++{line}"] if key.startswith(tuple(f"{name}." for name in _BY_NAME)) else [line]


def _is_plain(name: object) -> bool:
    """Whether a key of a mapping can be said in a dotted key; Space reports the others."""
    return isinstance(name, str) and name.replace("-", "_").isidentifier()


def _owner_of_keyword(key: str) -> str:
    """The hyperparameter's key, where the rest of the key is a keyword of its domain or a condition; or ""."""
    parts = key.split(".")
    for place in range(2, len(parts)):
        if parts[place] == "when" or (parts[place] in KEYWORDS and place == len(parts) - 1):
            return ".".join(parts[:place])
    return ""
