"""HTML elements whose text is escaped, so that no string of a run becomes markup."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from distillens.report.tables.text import visible

_VOID = {"input", "meta"}


class Safe(str):
    """Text that is HTML already. Only this package makes it, from literals and escaped strings."""

    __slots__ = ()


def escape(text: str) -> Safe:
    """Return the text as HTML, valid between tags and inside a quoted attribute."""
    if isinstance(text, Safe):
        return text
    return Safe(html.escape(visible(text), quote=True))


def join(*parts: str) -> Safe:
    """Return the parts one after the other, each escaped unless it is `Safe`."""
    return Safe("".join(escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: str | bool | None) -> Safe:
    """Return an element. Children and attribute values are escaped unless they are `Safe`.

    ``class_`` stands for ``class``, ``data_figure`` for ``data-figure``; None and False leave an
    attribute out, True writes its name alone.
    """
    written = [tag]
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(name)
        elif value is not None and value is not False:
            written.append(f'{name}="{escape(value)}"')
    opening = f"<{' '.join(written)}>"
    if tag in _VOID:
        return Safe(opening)
    return Safe(f"{opening}{join(*children)}</{tag}>")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    strong: Sequence[int] = (),
) -> Safe:
    """Return a table whose first column names the row, inside a box that scrolls sideways.

    Parameters
    ----------
    headings, rows
        Cells, escaped unless they are `Safe`.
    caption
        A paragraph under the table.
    strong
        Indices of the rows that are set in bold.
    """
    head = element("tr", *(element("th", heading, scope="col") for heading in headings))
    body = []
    for index, (first, *rest) in enumerate(rows):
        cells = [element("th", first, scope="row"), *(element("td", cell) for cell in rest)]
        body.append(element("tr", *cells, class_="best" if index in strong else None))
    scrolled = element(
        "div", element("table", element("thead", head), element("tbody", *body)), class_="wide"
    )
    # Not a <caption>: that would scroll away sideways with the table on a narrow screen.
    return join(scrolled, element("p", caption, class_="caption") if caption else "")


def data_block(identity: str, value: str | object) -> Safe:
    """Return JSON as an inert data block. A string is taken to be JSON already.

    ``<``, ``>`` and ``&`` occur only inside JSON strings; written as escapes they cannot close the
    element or open a comment.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Safe(f'<script type="application/json" id="{escape(identity)}">{text}</script>')
