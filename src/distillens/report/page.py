"""Pages as self-contained HTML that makes no network requests: the report of a run, and an audit."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distillens.report import palette
from distillens.report.contents import Contents
from distillens.report.figures.points import Points
from distillens.report.sections import ranking
from distillens.report.sections.accuracy import accuracy_part
from distillens.report.sections.accuracy_summary import accuracy_summary
from distillens.report.sections.complexity import complexity_parts
from distillens.report.sections.complexity_summary import complexity_summary
from distillens.report.sections.confidence import overviews, student_parts, verdicts
from distillens.report.sections.confidence_summary import confidence_summary
from distillens.report.sections.examples import examples_part
from distillens.report.sections.findings import findings
from distillens.report.sections.overview import overview_part
from distillens.report.sections.training import training_part
from distillens.report.tables import text
from distillens.report.tables.accuracy import splits
from distillens.report.verdict import judge
from distillens.results.confidence import Confidence


def render(contents: Contents) -> str:
    """Return the report as one self-contained HTML page.

    Parameters
    ----------
    contents
        Contents of the report. The page names the students whose points are missing.

    Returns
    -------
    str
        The page; write it as UTF-8. Below 2 MB for a small run, 0.9 MB of it for drawing the figures.

    Raises
    ------
    RunError
        Points are damaged.
    """
    result = contents.result
    chosen = ranking.chosen(result)
    found = judge(result)
    colours = palette.by_name(contents)
    summaries = accuracy_summary(result) + complexity_summary(contents.complexity)
    summaries += confidence_summary(contents.confidence)
    return _page(
        "report.html",
        title=result.name,
        result=result,
        splits=splits(result),
        overview=overview_part(contents, found),
        examples=examples_part(contents, found),
        findings=findings(contents, found),
        summaries=summaries or [("Nothing", "This run has no measurements.")],
        notes=contents.notes(),
        accuracy=accuracy_part(result),
        colours=colours,
        training=training_part(contents, colours),
        complexity=complexity_parts(contents.complexity),
        confidence=contents.confidence,
        overviews=overviews(contents.confidence),
        students=student_parts(
            contents.confidence,
            contents.points,
            colours,
            contents.over_training,
            contents.kernels,
        ),
        first=None if chosen is None else chosen.name,
        seeds=sorted({seed for row in result.rows for seed in row.seeds}),
        records=contents.records,
    )


def audit_page(title: str, confidence: Confidence, points: Sequence[Mapping[str, Points]]) -> str:
    """Return the page of an audit as self-contained HTML; write it as UTF-8.

    Parameters
    ----------
    title
        Name of the audited arrays or run.
    confidence
        The audits of one or more students; a drop-down selects one.
    points
        For each student the arrays x, y, who, and mislabelled if it is known, by split.

    Raises
    ------
    RunError
        Points do not fit each other.
    """
    return _page(
        "audit.html",
        title=title,
        summaries=verdicts(confidence),
        notes=confidence.notes,
        students=student_parts(confidence, points, {}),
        first=None,
    )


def _page(template: str, **content: Any) -> str:
    scripts = [_own("vega.js"), _own("page.js")]
    # Strings of a run are escaped; a policy that allows these scripts only is a second safeguard.
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    page = _environment().get_template(template)
    return page.render(style=_own("page.css"), scripts=scripts, digests=digests, **content)


@cache
def _own(name: str) -> str:
    return resources.files("distillens.report.templates").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distillens.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters become visible; what is marked as safe has another type.
        finalize=lambda value: text.visible(value) if type(value) is str else value,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    names = ("duration", "estimate", "listed", "number", "percent", "plural", "seconds")
    environment.globals.update({name: getattr(text, name) for name in names})
    return environment
