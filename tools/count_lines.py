"""Count lines of code: without blank lines, comments and docstrings.

python tools/count_lines.py            # every package of src/distillens, and the total
python tools/count_lines.py REVISION   # the same of a Git revision
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tarfile
import tokenize
from collections import Counter
from pathlib import Path, PurePosixPath

SOURCE = "src/distillens"
ROOT = Path(__file__).resolve().parent.parent

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """Return how many lines of a module hold code.

    Strings that stand alone as a statement are documentation: docstrings of modules, classes and
    functions, and those that describe an attribute.
    """
    documentation = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documentation)


def modules(revision: str | None) -> dict[str, str]:
    """Return the text of every module, by its path in the repository."""
    if revision is None:
        paths = sorted((ROOT / SOURCE).rglob("*.py"))
        return {
            path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths
        }
    archive = subprocess.run(
        ["git", "archive", revision, SOURCE], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        found = {}
        for member in files:
            stored = files.extractfile(member) if member.name.endswith(".py") else None
            if stored is not None:
                found[member.name] = stored.read().decode("utf-8")
    return found


def main() -> None:
    """Print the lines of every package and their sum."""
    counts: Counter[str] = Counter()
    for path, text in modules(sys.argv[1] if len(sys.argv) > 1 else None).items():
        parts = PurePosixPath(path).relative_to(SOURCE).parts
        counts[parts[0] if len(parts) > 1 else "(top level)"] += code_lines(text)
    for package, lines in sorted(counts.items()):
        print(f"{lines:7,}  {package}")
    print(f"{sum(counts.values()):7,}  total")


if __name__ == "__main__":
    main()
