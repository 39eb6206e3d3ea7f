"""Texts that were looked at once, and that what is rendered is compared with."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
REWRITE = "HPO_RAY_REWRITE_GOLDEN"


def check_golden(name: str, text: str) -> None:
    """The text is, byte by byte, the one in `golden/NAME`; with REWRITE in the environment it is put there."""
    path = GOLDEN / name
    if os.environ.get(REWRITE):
        path.write_bytes(text.encode())
    assert text.encode() == path.read_bytes(), f"golden/{name} is another text; if that is meant: {REWRITE}=1 pytest"
