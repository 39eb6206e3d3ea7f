"""The pictures of a report in the README: runs Hyperband on digits, opens its report.html, and takes them.

python experiments/report/screenshot.py

Needs Chromium and `pip install playwright`.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

import hpo_ray

HERE = Path(__file__).parent
WIDTH = 1000
PICTURES = {"report.png": ("h1", "#winner"), "rungs.png": ("#curves", "#rungs")}
"""Which file shows the page from where to where, both included."""


def main() -> None:
    """Writes the pictures beside this file."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        study = hpo_ray.tune_study(
            "digits_mlp", method="hyperband", executor="inprocess", view="none", study={"root": folder}
        )
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto((study.path / "report.html").as_uri())
        page.evaluate("report.drawAll()")
        page.wait_for_function("report.ready() === report.plots")
        page.evaluate("document.querySelector('nav').style.position = 'static'")  # or it covers what is below
        for name, (first, last) in PICTURES.items():
            top, bottom = page.locator(first).bounding_box(), page.locator(last).bounding_box()
            clip = {
                "x": 0,
                "y": top["y"] - 12,
                "width": WIDTH,
                "height": bottom["y"] + bottom["height"] - top["y"] + 12,
            }
            taken = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
            taken.convert("RGB").quantize(128).save(HERE / name, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
