"""A study of language models as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from distillens.report.tables.text import estimate, printable
from distillens.results.language import LanguageStudy


def language_table(result: LanguageStudy) -> Group:
    """Return the accuracy of each model on the test tokens, and the audit of each student."""
    models = Table(box=box.SIMPLE)
    for heading in ("model", "seed", "parameters", "nats a token", "accuracy %", "seconds"):
        models.add_column(heading, justify="left" if heading == "model" else "right")
    for row in result.models:
        models.add_row(
            printable(row.name),
            str(row.seed),
            f"{row.parameters:,}",
            estimate(row.test_loss, 3),
            estimate(row.test_accuracy, 2, 100),
            f"{row.seconds:.0f}",
        )
    audits = Table(box=box.SIMPLE)
    columns = ("student", "seed", "split", "slope, low", "slope, all", "agreement %", "net gain")
    for heading in columns:
        audits.add_column(heading, justify="left" if heading == "student" else "right")
    for each in result.audits:
        for split in each.audit.splits:
            audits.add_row(
                printable(each.name),
                str(each.seed),
                printable(split.split),
                estimate(split.exaggeration.slope_low.ordinary, 2),
                estimate(split.exaggeration.slope_all.ordinary, 2),
                estimate(split.fidelity.agreement, 1, 100),
                estimate(split.ledger.all.net_gain, 2),
            )
    counted = (
        f"{result.train_sentences:,} training sentences ({result.train_tokens:,} tokens), "
        f"{result.test_sentences:,} test sentences ({result.test_tokens:,} tokens), vocabulary of "
        f"{result.vocabulary:,}. Losses and accuracies are of the test tokens at the last epoch, "
        "intervals over sentences. Audits take tokens for examples; their intervals take tokens for "
        "independent, which those of a sentence are not. Net gain over the teacher in points."
    )
    return Group(Text(printable(result.name), style="bold"), models, audits, Text(counted))
