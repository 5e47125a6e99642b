"""A headless Chromium for tests of pages: Debian's, or the one that playwright has brought."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test where there is no browser, but not in CI, which installs one."""
    with sync_playwright() as playwright:
        executable = _executable(playwright)
        if executable is None:
            assert "CI" not in os.environ, "CI has to install chromium"
            pytest.skip("no chromium: apt-get install chromium, or playwright install chromium")
        # As root there is no sandbox; without the rest it looks for its maker's hosts.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        started = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield started
        finally:
            started.close()


def _executable(playwright: Playwright) -> str | None:
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    brought = playwright.chromium.executable_path
    return installed or (brought if Path(brought).exists() else None)


class Watched:
    """A page, and what went wrong on it: errors, warnings, and anything that it asked of a network."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("dialog", lambda dialog: self._dialog(dialog))
        page.on("request", lambda request: self._request(request.url))

    def open(self, file: Path, view: str = "") -> Page:
        self.page.goto(file.resolve().as_uri() + view)
        return self.page

    def until(self, expression: str, seconds: float = 20.0) -> None:
        """Until it is true on the page. The page's own policy forbids what playwright waits with."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def _dialog(self, dialog: object) -> None:
        self.complaints.append(f"dialog: {dialog}")
        dialog.dismiss()  # type: ignore[attr-defined]

    def _request(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.complaints.append(f"request: {url}")
