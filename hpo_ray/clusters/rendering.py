"""What the texts that are sent to clusters have in common: their YAML, their names, and the sections that say them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from hpo_ray.config import nearest
from hpo_ray.errors import ConfigError


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """YAML in the order given, without anchors, and with texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def to_yaml(document: Mapping[str, Any], comment: str = "") -> str:
    """The document as YAML, below its comment.

    Args:
        document: of mappings, lists, texts, numbers and booleans.
        comment: lines without `#`.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + str(yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=10**9))


def name_of(text: str, longest: int) -> str:
    """A name that Kubernetes and clouds accept (DNS-1035): small letters, digits and `-`; a letter is its first."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"hpo-{name}"
    return name[:longest].rstrip("-")


def section(key: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the configuration: what is given, over its defaults.

    Raises:
        ConfigError: it is no mapping, or has a key that there is not.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key}={given!r}: must be a mapping with {', '.join(defaults)}", key=key)
    if unknown := next((name for name in given if name not in defaults), None):
        raise ConfigError(
            f"{key}.{unknown}={given[unknown]!r}: no such key{nearest(str(unknown), tuple(defaults))}; there are: "
            f"{', '.join(defaults)}",
            key=f"{key}.{unknown}",
        )
    return {**defaults, **given}


def whole(key: str, value: Any, least: int = 0) -> int:
    """A whole number of the configuration, `least` or more."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ConfigError(f"{key}={value!r}: must be a whole number >= {least}", key=key)


def matching(key: str, value: Any, pattern: str, example: str) -> str:
    """A text of the configuration that matches the pattern as a whole."""
    if isinstance(value, str) and re.fullmatch(pattern, value):
        return value
    raise ConfigError(f"{key}={value!r}: must be like {example}", key=key)


def truth(key: str, value: Any) -> bool:
    """A yes or no of the configuration."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{key}={value!r}: must be true or false", key=key)


def version_of(package: str, key: str, given: Any) -> str:
    """The version that a cluster gets: the one given, otherwise the one installed here, without its build (`+cpu`)."""
    if given is not None:
        return matching(key, given, r"\d+\.\d+\.\d+\S*", "2.60.0")
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        raise ConfigError(f"{key}: {package} is not installed here; say its version", key=key) from None
