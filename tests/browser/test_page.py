"""The report page in a browser: every section, from runs of pictures, text and language models."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from conftest import command

from distillens.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

REQUIRED = os.environ.get("DISTILLENS_BROWSER") == "required"

BASELINE = [{"kind": "one-hot"}, {"kind": "offline", "temperature": 4}]
TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}
SECTIONS = (
    "overview", "accuracy", "examples", "confidence", "complexity", "training", "provenance", "glossary",
)  # fmt: skip
READY = "document.documentElement.dataset.ready === 'true'"


def recipe(
    name: str, data: dict[str, Any], teacher: Any, student: Any, **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "seeds": [0, 1],
        "data": data,
        "teacher": {"model": teacher, "training": TRAINING},
        "student": {"model": student, "training": TRAINING},
        "supervisions": BASELINE,
        **more,
    }


def digits(shared: Path) -> dict[str, Any]:
    data = {
        "source": "digits", "test_size": 200, "validation_size": 100, "train_size": 300,
        "label_noise": 0.2,
    }  # fmt: skip
    complexity = {"examples": 32, "epochs": [0, 1, 2], "ridge": 1e-6}
    student = {"name": "mlp", "hidden": [16]}
    return recipe("digits", data, {"name": "resnet8"}, student, complexity=complexity)


def fashion(shared: Path) -> dict[str, Any]:
    data = {
        "source": "idx", "path": str(shared / "fashion-mnist"), "train_size": 300,
        "validation_size": 100, "test_size": 200,
    }  # fmt: skip
    student = {"name": "lenet5"}
    return recipe("fashion-mnist", data, {"name": "lenet5"}, student, complexity=None)


def text(shared: Path) -> dict[str, Any]:
    data = {
        "source": "text", "path": str(shared / "sst2"), "train_size": 200, "validation_size": 50,
        "test_size": 100, "tokenizers": [{"vocabulary": 300, "length": 16}],
    }  # fmt: skip
    small = {"name": "encoder", "layers": 1, "width": 16, "heads": 2}
    return recipe("text", data, small, small, complexity=None)


def language(shared: Path) -> dict[str, Any]:
    data = {
        "source": "text", "path": str(shared / "sst2"), "train_size": 100, "test_size": 40,
        "tokenizers": [{"vocabulary": 300, "length": 16}],
    }  # fmt: skip
    small = {"layers": 1, "width": 16, "heads": 2}
    more = {"kind": "language", "seeds": [0], "audited_tokens": 200}
    return recipe("language", data, small, small, **more)


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "digits": digits, "fashion-mnist": fashion, "text": text, "language": language,
}  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system; without it the tests are skipped, or fail where it is required."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = "" if executable else "needs Chromium: apt-get install chromium"
    if importlib.util.find_spec("playwright") is None:
        missing = "needs playwright: pip install 'distillens[browser]'"
    if missing:
        if REQUIRED:
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> dict[str, Path]:
    """The page of one small run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, made in RUNS.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made(shared_data)), encoding="utf-8")
        assert command("run", path, "--out", folder / name) == 0
        found[name] = folder / name / "report.html"
    return found


class Opened:
    """A page that was opened from a file, with everything that it requested and reported."""

    def __init__(
        self,
        browser: Browser,
        path: Path,
        *,
        width: int = 1400,
        dark: bool = False,
        script: bool = True,
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        self.page.goto(path.resolve().as_uri())
        if script:
            self.page.wait_for_function(READY)

    def foreign_requests(self) -> list[str]:
        """Return requests for anything but the file and data within it."""
        inside = ("file:", "data:", "blob:", "about:")
        return [url for url in self.requests if not url.startswith(inside)]

    def draw_everything(self) -> None:
        """Scroll past every visible figure and wait until each is drawn."""
        for plot in self.page.locator(".plot:visible").all():
            plot.scroll_into_view_if_needed()
            plot.locator("canvas").wait_for()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Open pages; their contexts are closed after the test."""
    found: list[Opened] = []

    def open_page(path: Path, **more: Any) -> Opened:
        found.append(Opened(browser, path, **more))
        return found[-1]

    yield open_page
    for one in found:
        one.context.close()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [1400, 390])
def test_every_page_is_complete_quiet_and_accessible(
    pages: dict[str, Path], opened: Callable[..., Opened], name: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    shown = opened(pages[name], width=width)
    for section in SECTIONS:
        assert shown.page.locator(f"section#{section} h2").count() == 1, section
    shown.draw_everything()
    assert shown.errors == []
    assert shown.foreign_requests() == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert shown.page.evaluate(overflow) <= 0
    violations = Axe().run(shown.page).response["violations"]
    serious = [one["id"] for one in violations if one["impact"] in ("serious", "critical")]
    assert serious == []
    assert pages[name].stat().st_size <= 2e6


def test_the_first_screen_holds_the_verdict_and_the_chart(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"]).page
    verdict = page.locator(".verdict").bounding_box()
    chart = page.locator(".chart-row").first.bounding_box()
    assert verdict is not None
    assert chart is not None
    assert verdict["y"] < chart["y"] < 900


def test_filters_of_the_gallery_keep_the_examples_that_they_name(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"]).page
    cards = page.locator("#gallery > li")
    total = cards.count()
    page.locator(".filters select[name=split]").select_option("test")
    test = page.locator("#gallery > li:visible").count()
    assert 0 < test < total
    assert page.locator(".filters output").inner_text() == f"{test} of {total} examples"
    page.locator(".filters select[name=split]").select_option("train")
    assert page.locator("#gallery > li:visible").count() == total - test
    page.locator(".filters input[name=mislabelled]").check()
    marked = page.locator("#gallery > li[data-mislabelled][data-split=train]").count()
    assert page.locator("#gallery > li:visible").count() == marked


def test_pictures_and_sentences_are_in_the_gallery(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    pictures = opened(pages["fashion-mnist"]).page.locator("#gallery img")
    assert pictures.count() > 0
    assert pictures.first.evaluate("image => image.naturalWidth") == 28
    sentences = opened(pages["text"]).page.locator("#gallery .sentence")
    assert sentences.count() > 0
    assert len(sentences.first.inner_text().split()) > 1


PLACE = """(plot, [x, y]) => {
  const view = plot.view, origin = view.origin(), padding = view.padding();
  const box = plot.querySelector("canvas").getBoundingClientRect();
  return [box.left + padding.left + origin[0] + view.scale("x")(x),
          box.top + padding.top + origin[1] + view.scale("y")(y)];
}"""


def test_a_click_on_a_point_shows_its_example(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"]).page
    plot = page.locator("#confidence .plot:visible[data-split=test]").first
    plot.scroll_into_view_if_needed()
    plot.locator("canvas").wait_for()
    plot.evaluate("element => element.scrollIntoView({ block: 'center' })")
    name = plot.get_attribute("data-supervision")
    card = page.locator(f"#gallery > li[data-supervision='{name}'][data-split=test]").first
    x, y = map(float, (card.get_attribute("data-place") or "").split(","))
    page.mouse.click(*plot.evaluate(PLACE, [x, y]))
    page.locator(".card.found").wait_for()
    assert page.locator(".card.found").get_attribute("data-place") == f"{x:.4g},{y:.4g}"


def test_the_chooser_shows_one_student_at_a_time(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"]).page
    chooser = page.locator("#confidence select.chooser")
    chooser.select_option(index=1)
    blocks = page.locator("#confidence [data-choice]:visible")
    assert blocks.count() == 1
    assert blocks.get_attribute("data-choice") == "1"


def test_rows_of_the_chart_and_commands_are_reached_by_keyboard(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"]).page
    focused = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        focused.add(
            page.evaluate("document.activeElement.className || document.activeElement.tagName")
        )
    assert {"A", "chart-row", "copy"} <= focused


def test_light_and_dark_pages_differ_and_both_draw(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    colours = []
    for dark in (False, True):
        shown = opened(pages["digits"], dark=dark)
        colours.append(shown.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        shown.draw_everything()
        assert shown.errors == []
    assert colours[0] != colours[1]


def test_nothing_is_hidden_in_print_but_buttons(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"]).page
    page.emulate_media(media="print")
    assert page.locator("button.copy:visible").count() == 0
    cards = page.locator("#gallery")
    assert cards.evaluate("list => list.scrollHeight - list.clientHeight") == 0
    assert len(page.pdf(format="A4")) > 10_000


def test_without_javascript_verdict_tables_and_examples_remain(
    pages: dict[str, Path], opened: Callable[..., Opened]
) -> None:
    page = opened(pages["digits"], script=False).page
    assert page.locator(".verdict .word").is_visible()
    assert page.locator("#gallery > li:visible").count() > 0
    assert page.locator("#accuracy table").first.is_visible()


def test_hostile_names_run_nothing(
    tmp_path: Path, opened: Callable[..., Opened], browser: Browser
) -> None:
    from report_cases import ATTACK

    made = digits(tmp_path)
    made["supervisions"][1] = {"kind": "offline", "temperature": 4, "name": ATTACK[:60]}
    made |= {"seeds": [0], "complexity": None, "description": ATTACK}
    path = tmp_path / "hostile.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    assert command("run", path, "--out", tmp_path / "run") == 0
    shown = opened(write_report(tmp_path / "run"))
    shown.page.on("dialog", lambda dialog: shown.errors.append(dialog.message))
    shown.draw_everything()
    assert shown.errors == []
    assert shown.page.locator("img[onerror]").count() == 0
