"""Measure the report page of a run in a browser: size, time to interactive, screenshots.

    python benchmarks/page.py runs/demo --out screenshots

writes screenshots of the first screen (light and dark, 1400 px and 390 px wide) and of the whole page,
prints size and times as JSON, and exits with 1 if a limit is exceeded: 2 MB (3 MB for a run of at least
60,000 examples), 1 second until the first screen is interactive, no request beyond the file, no error in
the console, and no serious violation that axe-core finds. It needs Chromium, playwright and
axe-playwright-python.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from machine import machine
from playwright.sync_api import Browser, sync_playwright

from distillens.report import write_report
from distillens.runs.open import OpenRun

MEGABYTES, LARGE_MEGABYTES, MANY_EXAMPLES = 2.0, 3.0, 60_000
SECONDS = 1.0
WIDTHS = (1400, 390)
READY = "document.documentElement.dataset.ready === 'true'"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder; its report is written again")
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="(screenshots)")
    parser.add_argument("--repeats", type=int, default=5, help="openings of the page (5)")
    asked = parser.parse_args()
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        sys.exit("Chromium is missing; install it, for instance with apt-get install chromium")
    page = write_report(asked.run)
    asked.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        found = [look(browser, page, width, asked.out) for width in WIDTHS]
        ready = [seconds_until_ready(browser, page) for _ in range(asked.repeats)]
        browser.close()
    result = OpenRun.open(asked.run).result
    examples = result.train_examples + result.test_examples
    limit = LARGE_MEGABYTES if examples >= MANY_EXAMPLES else MEGABYTES
    size = page.stat().st_size / 1e6
    median = sorted(ready)[len(ready) // 2]
    failures = [] if size <= limit else [f"the page has {size:.2f} MB, more than {limit:g} MB"]
    if median > SECONDS:
        failures.append(f"the page is interactive after {median:.2f} s, more than {SECONDS:g} s")
    for one in found:
        failures += [f"{one['width']} px: {error}" for error in one["errors"]]
    shown = {
        "megabytes": round(size, 3),
        "examples": examples,
        "seconds_until_interactive": [round(seconds, 3) for seconds in ready],
        "widths": found,
        "failures": failures,
        "provenance": machine(0) | {"browser": executable},
    }
    print(json.dumps(shown, indent=1))
    return 1 if failures else 0


def look(browser: Browser, page: Path, width: int, out: Path) -> dict[str, Any]:
    """Take screenshots at a width; return errors, requests and violations."""
    errors: list[str] = []
    violations: list[dict[str, Any]] = []
    for scheme in ("light", "dark"):
        context = browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=scheme
        )
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        tab.on("request", lambda request: errors.extend(foreign(request.url)))
        tab.goto(page.resolve().as_uri())
        tab.wait_for_function(READY)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=out / f"first-screen-{width}-{scheme}.png")
        if scheme == "light":
            tab.screenshot(path=out / f"page-{width}.png", full_page=True)
        for one in Axe().run(tab).response["violations"]:
            if one["impact"] in ("serious", "critical"):
                nodes = [node["html"][:160] for node in one["nodes"][:3]]
                violations.append({"id": one["id"], "scheme": scheme, "nodes": nodes})
        context.close()
    errors += [f"{one['id']} ({one['scheme']}): {one['nodes']}" for one in violations]
    return {"width": width, "errors": errors}


def foreign(url: str) -> list[str]:
    """Return a complaint about a request for anything but the file and data within it."""
    inside = url.startswith(("file:", "data:", "blob:", "about:"))
    return [] if inside else [f"the page requested {url}"]


def seconds_until_ready(browser: Browser, page: Path) -> float:
    """Open the page once more; return the seconds until its controls respond."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 1000})
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    tab.wait_for_function(READY)
    seconds = float(tab.evaluate("Number(document.documentElement.dataset.readyAfter)")) / 1000
    context.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
