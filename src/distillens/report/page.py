"""The report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distillens.report import palette
from distillens.report.backends.frame import framed
from distillens.report.backends.html import Safe, element, join
from distillens.report.figures.points import Points
from distillens.report.sections import ranking
from distillens.report.sections.accuracy import accuracy_part
from distillens.report.sections.accuracy_summary import accuracy_summary
from distillens.report.sections.complexity import complexity_part
from distillens.report.sections.complexity_summary import complexity_summary
from distillens.report.sections.confidence import confidence_part
from distillens.report.sections.confidence_summary import confidence_summary
from distillens.report.tables.accuracy import splits
from distillens.report.tables.text import duration, listed, plural
from distillens.results.confidence import Confidence
from distillens.results.training import StudyResult

_PARTS = (
    ("accuracy", "Accuracy"),
    ("complexity", "Supervision complexity"),
    ("confidence", "Student against teacher"),
    ("provenance", "Provenance"),
)


def render(
    result: StudyResult,
    confidence: Confidence | None = None,
    points: Sequence[Mapping[str, Points]] = (),
) -> str:
    """Return the report as one self-contained HTML page.

    Parameters
    ----------
    result
        The result of a run.
    confidence
        The confidence analysis of the run; None if it was not measured.
    points
        For each student of the confidence analysis the plotted points by split. The page names the
        students whose points are missing.

    Returns
    -------
    str
        The page; write it as UTF-8. About 5 MB, most of it plotly.js.

    Raises
    ------
    RunError
        Points are damaged.
    """
    colours = palette.by_name(result)
    chosen = ranking.chosen(result)
    return framed(
        result.name,
        _header(result),
        _says(result, confidence),
        accuracy_part(result, colours),
        complexity_part(result),
        confidence_part(confidence, points, colours, None if chosen is None else chosen.name),
        _provenance(result),
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


def _says(result: StudyResult, confidence: Confidence | None) -> Safe:
    said = accuracy_summary(result) + complexity_summary(result)
    said += confidence_summary(confidence)
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
        *([("Normalisation of inputs", made.normalisation)] if made.normalisation else []),
        ("Data fingerprint", element("code", made.data_fingerprint)),
        ("Teacher digest", element("code", made.teacher_digest)),
        ("Result schema", str(result.schema_version)),
    ]
    pairs = [join(element("dt", subject), element("dd", text)) for subject, text in facts]
    return element("section", element("h2", "Provenance"), element("dl", *pairs), id="provenance")
