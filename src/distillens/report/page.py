"""The report of a run."""

from __future__ import annotations

from distillens.report import palette
from distillens.report.backends.frame import framed
from distillens.report.backends.html import Safe, element, join
from distillens.report.contents import Contents
from distillens.report.sections import ranking
from distillens.report.sections.accuracy import accuracy_part
from distillens.report.sections.accuracy_summary import accuracy_summary
from distillens.report.sections.complexity import complexity_part
from distillens.report.sections.complexity_summary import complexity_summary
from distillens.report.sections.confidence import confidence_part
from distillens.report.sections.confidence_summary import confidence_summary
from distillens.report.tables.accuracy import splits
from distillens.report.tables.text import duration, listed, plural
from distillens.results.training import StudyResult

_PARTS = (
    ("accuracy", "Accuracy"),
    ("complexity", "Supervision complexity"),
    ("confidence", "Student against teacher"),
    ("provenance", "Provenance"),
)


def render(contents: Contents) -> str:
    """Return the report as one self-contained HTML page.

    Parameters
    ----------
    contents
        Contents of the report. The page names the students whose points are missing.

    Returns
    -------
    str
        The page; write it as UTF-8. About 5 MB, most of it plotly.js.

    Raises
    ------
    RunError
        Points are damaged.
    """
    chosen = ranking.chosen(contents.result)
    result = contents.result
    colours = palette.by_name(contents)
    return framed(
        result.name,
        _header(result),
        _summary(contents),
        accuracy_part(result, colours),
        complexity_part(contents.complexity),
        confidence_part(contents, colours, None if chosen is None else chosen.name),
        _provenance(contents),
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


def _summary(contents: Contents) -> Safe:
    result = contents.result
    summaries = accuracy_summary(result) + complexity_summary(contents.complexity)
    summaries += confidence_summary(contents.confidence)
    if not summaries:
        summaries = [("Nothing", "This run has no measurements.")]
    pairs = [join(element("dt", subject), element("dd", text)) for subject, text in summaries]
    return join(
        element("section", element("h2", "Summary"), element("dl", *pairs), class_="says"),
        *(element("p", note, class_="note") for note in contents.notes()),
    )


def _provenance(contents: Contents) -> Safe:
    result = contents.result
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
        ("Records", listed(list(contents.records)) or "–"),
    ]
    pairs = [join(element("dt", subject), element("dd", text)) for subject, text in facts]
    return element("section", element("h2", "Provenance"), element("dl", *pairs), id="provenance")
