"""Pages in a real browser: the system's Chromium, driven by Playwright, with axe's rules of accessibility.

Chromium is a Debian package (``apt-get install chromium``); where there is none, what needs it is skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
PATIENCE = 60_000
"""Milliseconds that a busy machine may take for anything."""
SIZES = ((1600, "light"), (390, "dark"))
"""Widths in pixels, and colour schemes, in which every page is looked at."""
ATTACK = '</pre></script><img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
"""A text that sets ``hacked`` where it is more than a text."""
_BARE_CHARTS = """() => [...document.querySelectorAll("figure")].filter((figure) => {
  const drawn = [...figure.querySelectorAll('[style*="--series-"]')], size = (m) => m.getBBox();
  return !drawn.some((m) => !m.closest('[id*="legend"]') && (size(m).width > 0 || size(m).height > 0));
}).map((figure) => figure.innerText)"""


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        # Containers have no user namespaces for its sandbox; it opens pages of these tests alone.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE
        )
        try:
            yield browser
        finally:
            browser.close()


def faults_of(browser: Browser, address: str) -> list[str]:
    """What is wrong with the page at ``address``, in both of :data:`SIZES`."""
    return [fault for width, scheme in SIZES for fault in _faults(browser, address, width, scheme)]


def _faults(browser: Browser, address: str, width: int, scheme: str) -> Iterator[str]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: seen.append(f"request: {request.url}"))
    page.goto(address, timeout=PATIENCE)
    for fault in [*seen[1:], *_looks(page), *_rules(page)]:
        yield f"{address} at {width} px, {scheme}: {fault}"
    page.close()


def _looks(page: Page) -> Iterator[str]:
    over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    if over > 0:
        yield f"{over} px too wide"
    for chart in page.evaluate(_BARE_CHARTS):
        yield f"no marks in the chart {chart}"
    if page.evaluate("window.hacked") is not None:
        yield "a text became a script"


def _rules(page: Page) -> Iterator[str]:
    for violation in Axe().run(page).response["violations"]:
        places = [node["html"][:150] for node in violation["nodes"][:3]]
        yield f"axe: {violation['id']}: {violation['help']}: {places}"
