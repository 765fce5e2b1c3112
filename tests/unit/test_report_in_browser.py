"""Reports in a real browser: nothing in its console, no horizontal scrolling, names and contrast for everybody."""

from itertools import pairwise

import pytest

from pmray.reporting import write_report
from tests.browser import browser, chromium
from tests.made_run import made_run
from tests.unit.test_report_page import SECTIONS, small_reports

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here (PMRAY_CHROMIUM may name one)")

CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color[3] > .99) return color;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest('style, title, [hidden], .skip')) continue;
    const style = getComputedStyle(element);
    const front = parse(element.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(front), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return [...new Set(poor)];
})()"""

UNNAMED = """[...document.querySelectorAll('svg:not([aria-hidden]), img, section, nav, [role=region]')].filter(one => {
  const by = one.getAttribute('aria-labelledby');
  return !(one.getAttribute('aria-label') || one.getAttribute('alt') || by && document.getElementById(by)?.textContent);
}).map(one => one.outerHTML.slice(0, 80))"""

BARE = """[...document.querySelectorAll('section')].filter(one =>
  one.querySelector('svg.plot') && !one.querySelector('table')).map(one => one.id)"""

HEADINGS = "[...document.querySelectorAll('h1, h2, h3')].map(one => one.tagName).join(' ')"


@pytest.fixture(scope="module")
def page():
    with browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    made = {
        task: made_run(tmp_path_factory.mktemp(task.split("-")[0]), task, trials=18)
        for task in ("text-classification", "token-classification", "image-classification")
    }
    return {task: write_report(spec.folder).as_uri() for task, spec in made.items()}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "image-classification"])
def test_a_report_can_be_read_by_everybody(page, reports, task, width, dark):
    page.open(reports[task], width, dark=dark)
    assert page.problems() == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert tuple(page.run("[...document.querySelectorAll('section')].map(one => one.id)")) == SECTIONS
    assert page.run(UNNAMED) == []
    assert page.run(BARE) == []
    assert page.run(CONTRAST) == []


@pytest.mark.parametrize("dark", [False, True])
def test_reports_in_small_can_be_read_by_everybody(page, tmp_path, dark):
    _, *paths = small_reports(tmp_path)
    for path in paths:
        page.open(path.as_uri(), 390, dark=dark)
        assert page.problems() == []
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run(UNNAMED) == []
        assert page.run(CONTRAST) == []


def test_headings_go_down_one_level_at_a_time(page, reports):
    page.open(reports["text-classification"])
    levels = [int(tag[1]) for tag in page.run(HEADINGS).split()]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_below_plots_are_folded_and_open(page, reports):
    page.open(reports["text-classification"], 390)
    assert page.run("[...document.querySelectorAll('details')].every(one => !one.open)")
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run(CONTRAST) == []


def test_print_has_white_paper_whatever_the_screen(page, reports):
    page.open(reports["text-classification"], dark=True)
    page.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.ask("Emulation.setEmulatedMedia", media="")
