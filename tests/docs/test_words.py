"""Private words stay out of names and texts: every sentence and identifier uses the field's terms.

Each table maps a pattern to its replacement. A pattern is listed only if it is never right English of
the field, so a match is always a fault.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "distillens"

NAMES = {
    "scene": "StudyContext",
    "carry_out": "run",
    "elsewhere": "worker",
    "shipped": "export_inputs, packaged",
    "beside": "uncertified, or what the value is",
    "ways": "parallel_passes",
    "late": "fallback, overdue",
    "leftovers": "what is left, by name",
    "drawn": "sampled, Materialised, Factored, Streamed",
    "sure_share": "share_estimate",
    "look_once": "per_example_statistics",
    "lone": "one_hot, baseline",
    "said": "message, lines, notes",
    "says": "what is returned",
    "whoever": "the caller",
}
"""Words that are no part of an identifier, and what to write instead."""

TEXTS = {
    r"scene": "context of a study",
    r"(carry|carries|carried|carrying) (it |this |them )?out": "run",
    r"shipped": "packaged, exported",
    r"beside": "in addition to, compared with, in the same folder",
    r"leftovers?": "what is left, by name",
    r"sure share": "estimate of the share",
    r"look once": "per-example statistics",
    r"lone": "trained on labels alone",
    r"whoever": "the code or process that",
    r"telling (example|departure)s?": "informative departures",
    r"the way there": "the checkpoints",
    r"the row of the paper": "the setting of the paper",
    r"(is|are|be|and) said": "is reported",
    r"(tak(e|es|en|ing)|took) up (again|where|a state|its state)": "resume, load",
    r"(of|with|to|in|for|than) so many": "of this number of",
    r"of an own": "its own",
    r"looked at": "inspected, used",
    r"how far (it|each) is": "progress",
    r"what it takes": "its cost",
    r"one of its kinds": "a subclass of it",
    r"bottoms are drawn": "bottom eigenvectors are sampled",
    r"^of the bootstrap": "number of bootstrap resamples",
}
"""Phrases that no docstring, comment or message has, and what to write instead."""

ANY_TEXT = re.compile(rf"\b({'|'.join(TEXTS)})\b", re.IGNORECASE)


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the identifiers that a module defines, with their lines."""
    yield 1, path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ClassDef(name=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings, comments and messages of a module, or the lines of another file."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, " ".join(node.value.split())
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def parts(name: str) -> str:
    """Return an identifier as lower-case words between underscores: ``_sure_share_``."""
    return f"_{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower().strip('_')}_"


def private(path: Path) -> list[str]:
    """Return the private words of a file, each with its line and its replacement."""
    found = []
    if path.suffix == ".py":
        for line, name in names(path):
            found += [
                f"{path.name}:{line}: name {name}: use {instead}"
                for word, instead in NAMES.items()
                if f"_{word}_" in parts(name)
            ]
    for line, text in texts(path):
        found += [
            f"{path.name}:{line}: {word.group()!r}: use {instead}"
            for pattern, instead in TEXTS.items()
            if ANY_TEXT.search(text)
            and (word := re.search(rf"\b({pattern})\b", text, re.IGNORECASE))
        ]
    return found


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def packages() -> list[str]:
    return sorted(
        path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))
    )


@pytest.mark.parametrize("package", packages())
def test_a_package_uses_the_words_of_the_field(package: str) -> None:
    assert not [one for path in modules(PACKAGE / package) for one in private(path)]


def test_the_modules_outside_packages_use_the_words_of_the_field() -> None:
    assert not [one for path in sorted(PACKAGE.glob("*.py")) for one in private(path)]


def documents() -> list[str]:
    found = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.yaml"),
    ]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@pytest.mark.parametrize("document", documents())
def test_a_document_uses_the_words_of_the_field(document: str) -> None:
    assert not private(ROOT / document)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class Scene: ...", ["Scene"]),
        ("def f(sure_share): ...", ["sure_share"]),
        ('"""Carry out a recipe."""', ["Carry out"]),
        ("x = 1  # what is held\n# beside it", ["beside"]),
        ('f = f"{x} is\tsaid twice"', ["is said"]),
        ('"""A translated text on ways to sample, later."""\ntranslate = besides = 1', []),
    ],
)
def test_private_words_are_found_in_names_and_texts(
    tmp_path: Path, source: str, words: list[str]
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    found = private(path)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))
