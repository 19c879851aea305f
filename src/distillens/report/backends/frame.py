"""The frame of a page: one self-contained HTML file that makes no network requests."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from plotly.offline import get_plotlyjs

from distillens.report.backends.html import Safe, element


def framed(title: str, *parts: str) -> str:
    """Return a self-contained page with plotly.js and our script; write it as UTF-8."""
    body = element("main", *parts)
    scripts = [get_plotlyjs(), _own("page.js")]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} – distillens"),
        element("style", Safe(_own("page.css"))),
    )
    loaded = [element("script", Safe(script)) for script in scripts]
    page = element("html", head, element("body", body, *loaded), lang="en")
    return f"<!doctype html>\n{page}\n"


def _own(name: str) -> str:
    return resources.files("distillens.report").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Return a content security policy that allows these scripts only, and no requests.

    Strings of a run are also escaped; the policy is a second safeguard.
    """
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
