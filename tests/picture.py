"""The README's picture: a run's page as a browser shows it, down to the first row of charts.

    python tests/picture.py RUN PICTURE

RUN is a run's folder, such as ``runs/demo/runs/…``; needs Chromium, as the tests of pages do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from support.browser import PATIENCE, opened_browser

WIDTH = 1440
MARGIN = 16
"""Pixels below the charts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    with opened_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": WIDTH}, color_scheme="light")
        page.goto((options.run / "summary.html").resolve().as_uri(), timeout=PATIENCE)
        chart = page.locator("figure").first.bounding_box()
        assert chart is not None
        height = chart["y"] + chart["height"] + MARGIN
        page.screenshot(path=options.picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


if __name__ == "__main__":
    main()
