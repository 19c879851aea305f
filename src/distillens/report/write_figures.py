"""Write the complexity figures of a run as SVG and PNG, from its numbers alone."""

from __future__ import annotations

from pathlib import Path

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.report.figures.complexity import complexity_picture
from distillens.report.figures.temperature import temperature_picture
from distillens.runs.folder import find_run
from distillens.runs.read import read_result


def write_figures(folder: str | Path) -> tuple[Path, ...]:
    """Write ``figures/complexity`` and ``figures/temperatures`` (.svg, .png) into a run folder.

    Several sets of curves are numbered from the second on. What has no finite value is left out.

    Raises
    ------
    RunError
        The folder is no run or is damaged, or there is nothing to draw.
    """
    # matplotlib takes a second to import; only who draws should wait for it.
    from distillens.report.backends.draw import png_bytes, svg_bytes

    run = find_run(Path(folder))
    paths = []
    for place, curves in enumerate(read_result(run).complexity):
        pictures = {
            "complexity": complexity_picture(curves),
            "temperatures": temperature_picture(curves),
        }
        for name, picture in pictures.items():
            if picture is None:
                continue
            for ending, content in (("svg", svg_bytes(picture)), ("png", png_bytes(picture))):
                path = run.figure(name, place, ending)
                write_atomically(path, content)
                paths.append(path)
    if not paths:
        raise RunError(
            f"{folder} has no finite complexity to draw; measure it with `distillens complexity "
            f"{folder} examples=512`, with a ridge where the Gram is singular"
        )
    return tuple(paths)
