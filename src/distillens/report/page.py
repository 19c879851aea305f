"""The report: one HTML file that opens anywhere and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources

from plotly.offline import get_plotlyjs

from distillens.report import colours as palette
from distillens.report.accuracy_part import accuracy_part
from distillens.report.accuracy_summary import accuracy_summary
from distillens.report.complexity_part import complexity_part
from distillens.report.complexity_summary import complexity_summary
from distillens.report.deviation_part import deviation_part
from distillens.report.deviation_summary import deviation_summary
from distillens.report.html import Safe, element, join
from distillens.report.points import Points
from distillens.report.table import splits
from distillens.report.text import duration, listed, plural
from distillens.results import StudyResult

_PARTS = (
    ("accuracy", "Accuracy"),
    ("complexity", "Supervision complexity"),
    ("deviation", "Student against teacher"),
    ("provenance", "Provenance"),
)


def render(result: StudyResult, points: Mapping[str, Points]) -> str:
    """Return the report as one self-contained HTML page.

    Parameters
    ----------
    result
        What a run found out.
    points
        For each deviation's ``points`` path the arrays x, y and who of its npz. Those that are
        missing are said to be missing on the page.

    Returns
    -------
    str
        The page; write it as UTF-8. About 5 MB, most of it plotly.js.

    Raises
    ------
    RunError
        The arrays of a deviation are damaged.
    """
    colours = palette.by_name(result)
    body = element(
        "main",
        _header(result),
        _says(result),
        accuracy_part(result, colours),
        complexity_part(result),
        deviation_part(result, points, colours),
        _provenance(result),
    )
    scripts = [get_plotlyjs(), _own("page.js")]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{result.name} – distillens"),
        element("style", Safe(_own("page.css"))),
    )
    loaded = [element("script", Safe(script)) for script in scripts]
    page = element("html", head, element("body", body, *loaded), lang="en")
    return f"<!doctype html>\n{page}\n"


def _own(name: str) -> str:
    return resources.files("distillens.report").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Return a policy under which only these scripts run and nothing is fetched.

    Escaping keeps a run's strings out of the markup; this holds even where that failed.
    """
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _header(result: StudyResult) -> Safe:
    facts = [
        plural(result.classes, "class", "classes"),
        splits(result),
        f"loss: {result.loss}",
    ]
    if result.changed_labels:
        facts.append(f"{plural(result.changed_labels, 'training label')} changed on purpose")
    links = [element("a", text, href=f"#{key}") for key, text in _PARTS]
    return element(
        "header",
        element("h1", result.name),
        element("p", result.description, class_="lead") if result.description else "",
        element("p", " · ".join(facts), class_="facts"),
        element("nav", *links),
        element(
            "noscript",
            element("p", "The figures need JavaScript; the tables do not.", class_="missing"),
        ),
    )


def _says(result: StudyResult) -> Safe:
    said = accuracy_summary(result) + complexity_summary(result) + deviation_summary(result)
    if not said:
        said = [("Nothing", "This run holds no measured numbers.")]
    pairs = [join(element("dt", subject), element("dd", text)) for subject, text in said]
    return join(
        element("section", element("h2", "What this says"), element("dl", *pairs), class_="says"),
        *(element("p", note, class_="note") for note in result.notes),
    )


def _provenance(result: StudyResult) -> Safe:
    made = result.provenance
    seeds = sorted({seed for row in result.rows for seed in row.seeds})
    versions = [f"{name} {version}" for name, version in sorted(made.versions.items())]
    facts = [
        ("Command", element("code", made.command)),
        ("Seeds", ", ".join(str(seed) for seed in seeds) or "–"),
        ("Started", made.started),
        ("Finished", made.finished),
        ("Took", duration(made.seconds)),
        ("Machine", made.machine),
        ("Versions", listed(versions) or "–"),
        ("Data fingerprint", element("code", made.data_fingerprint)),
        ("Teacher digest", element("code", made.teacher_digest)),
        ("Result schema", str(result.schema_version)),
    ]
    pairs = [join(element("dt", subject), element("dd", text)) for subject, text in facts]
    return element("section", element("h2", "Provenance"), element("dl", *pairs), id="provenance")
