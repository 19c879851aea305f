"""A headless Chromium for the tests of the report page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REQUIRED = os.environ.get("DISTILLENS_BROWSER") == "required"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system; without it the tests are skipped, or fail where it is required."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = "" if executable else "needs Chromium: apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "needs playwright: pip install 'distillens[browser]'"
    if missing:
        if REQUIRED:
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield started
        started.close()


class Opened:
    """A page that was opened from a file, with everything that it requested and reported."""

    def __init__(
        self, browser: Browser, path: Path, *, width: int = 1400, dark: bool = False
    ) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready === 'true'")

    @property
    def foreign_requests(self) -> list[str]:
        """Requests for anything but the file itself and data within it."""
        return [
            url for url in self.requests[1:] if not url.startswith(("data:", "blob:", "about:"))
        ]
