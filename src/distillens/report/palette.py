"""One colour for each supervision, the same in every table and figure.

The hues are from the Okabe-Ito palette, which stays apart under the usual colour-blindnesses, and
hold on a white and on a dark page.
"""

from __future__ import annotations

import colorsys

from distillens.report.contents import Contents
from distillens.report.sections.ranking import ONE_HOT, TEACHER, ordered

GREY = "#8a8f98"
NUMBERED = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7b6bd6", GREY)
"""Colours of numbered curves; yellow is left out, because it is hard to see on white."""

_BY_KIND = {
    TEACHER: GREY,
    ONE_HOT: "#d55e00",
    "offline": "#1f83c4",
    "online": "#009e73",
    "switched": "#cc79a7",
    "averaged": "#56b4e9",
}
_SPARE = ("#b8860b", "#7b6bd6", "#a0522d", "#4a9a9a")

# Lightness of the second, third ... row of a kind, relative to the first.
_SHADES = (1.0, 0.75, 1.35, 0.6, 1.6)

# What a student of that kind fits: the curve of a target set has the colour of its students.
_TARGET_KIND = {"labels": ONE_HOT, "final teacher": "offline", "online teacher": "online"}

# Who is right; gold against purple is the safest pair that no supervision uses.
WHO = (GREY, "#dd9c00", "#9550cc", "#c2344d")


def by_name(contents: Contents) -> dict[str, str]:
    """Return a colour for every name that the run speaks of: rows, and students of the measures."""
    spare = list(_SPARE)
    hues = dict(_BY_KIND)
    used: dict[str, int] = {}
    colours: dict[str, str] = {}
    kinds = [(row.name, row.kind) for row in ordered(contents.result)]
    kinds += [(curves.student, curves.student) for curves in contents.complexity]
    for name, kind in kinds:
        if name in colours:
            continue
        if kind not in hues:
            hues[kind] = spare[len(hues) % len(spare)]
        colours[name] = _shade(hues[kind], used.get(kind, 0))
        used[kind] = used.get(kind, 0) + 1
    return colours


def colour_of(colour: int | str) -> str:
    """Return the colour of a curve, which may be a number of the palette."""
    return colour if isinstance(colour, str) else NUMBERED[colour % len(NUMBERED)]


def of_targets(targets: str) -> str:
    """Return the colour of a target set's curve."""
    return _BY_KIND.get(_TARGET_KIND.get(targets, ""), GREY)


def _shade(colour: str, step: int) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lightness = min(0.75, max(0.2, lightness * _SHADES[step % len(_SHADES)]))
    shaded = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in shaded)
