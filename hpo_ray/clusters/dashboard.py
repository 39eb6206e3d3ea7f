"""Asking a cluster's dashboard what it is, before anything is sent to it. Needs nothing but Python."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from hpo_ray.errors import ConfigError

_ANSWER_S = 5.0
"""How long the dashboard may take to answer. It is asked twice, so nothing takes longer than ten seconds."""


def is_url(address: str) -> bool:
    """Whether it is the address of a web page, with a port that may be."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def reach(address: str) -> str:
    """The version of Ray that a dashboard runs; asks with the token only where one is asked for.

    Raises:
        ConfigError: nothing answers, or it is no dashboard, or it doesn't take the token.
    """
    key = "cluster.address"
    token = ""
    for _ in range(2):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{address}/api/version", headers=headers), timeout=_ANSWER_S
            ) as reply:
                return str(json.loads(reply.read())["ray_version"])
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 401 and not token:
                token = _token(address)
                os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported, which comes later
                continue
            if error.code in (401, 403):
                raise ConfigError(
                    f"{key}={address}: does not take the token that is set here, in RAY_AUTH_TOKEN, the file "
                    f"RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; set the cluster's",
                    key,
                ) from None
            raise ConfigError(
                f"{key}={address}: answers {error.code} to /api/version; is it a dashboard?", key
            ) from None
        except (ValueError, KeyError, TypeError, http.client.HTTPException):
            raise ConfigError(f"{key}={address}: answers, but is no dashboard of Ray (8265 by default)", key) from None
        except OSError as error:
            why = getattr(error, "reason", error)
            raise ConfigError(
                f"{key}={address}: can't be reached: {getattr(why, 'strerror', None) or why} (tried GET /api/version "
                f"for {_ANSWER_S:g} s). Is the cluster up, and a port forwarded: ssh -L 8265:localhost:8265 HEAD, or "
                f"kubectl port-forward service/HEAD 8265?",
                key,
            ) from None
    raise AssertionError("unreachable")


def _token(address: str) -> str:
    """The token for Ray clusters, from where Ray itself takes it."""
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return text
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    with suppress(OSError):
        text = path.read_text(encoding="utf-8").strip()
    if not text:
        raise ConfigError(
            f"cluster.address={address}: asks for a token, and there is none here; set RAY_AUTH_TOKEN, or put the "
            f"cluster's into {path}",
            key="cluster.address",
        )
    return text
