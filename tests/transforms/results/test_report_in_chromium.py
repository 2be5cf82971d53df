"""The report in a real Chromium: nothing runs but our script, nothing is loaded; eye, keyboard and screen reader get along."""

import io
import itertools
import shlex

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.browser import needs_chromium, opened, serious_violations
from tests.fakes import fake_lake
from tests.hostile import CAPTIONS, copies, hostile_lake
from tests.transforms.results.test_report import NIGHT, SECOND, change, put, render
from transforms.results import report
from transforms.store.files import read_parquet

pytestmark = needs_chromium

MANY = 5000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of 5,000 extractions, every caption and every other URL an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    fake = hostile_lake(folder / "lake", MANY)
    content = render(fake)
    assert len(content) < report.PAGE_BYTES
    (folder / "report.html").write_bytes(content)
    return folder / "report.html"


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A page with everything on it: nights, changes, every verdict, unsafe pictures, and extractions without pictures."""
    folder = tmp_path_factory.mktemp("usual")
    fake = fake_lake(folder / "a  lake", captions=[f"{CAPTIONS[number]} {number}" for number in range(10)])
    render(fake)
    ranks = read_parquet(fake.lake.part("extractions", "measured", 0))["confidence_rank"].to_pylist()
    put(fake, "extractions", punsafe=pa.array([0.9 if rank == 1 else None for rank in ranks], pa.float32()))
    page = report.render(
        fake.lake, fake.match, "measured", 4, nights=[NIGHT, SECOND],
        changes=[change(0, "new", CAPTIONS[7]), change(1, "gone", CAPTIONS[0])],
    )  # fmt: skip
    (folder / "report.html").write_bytes(page)
    return folder / "report.html"


def shown(page):
    """Ranks of what is to be seen, in order."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.extractions > :not([hidden])')].map((each) =>
            Number(each.cells ? each.cells[0].textContent : each.querySelector('dd').textContent))"""
    )


def values(page, name):
    """A term's values of the cards that are to be seen, in order."""
    return page.evaluate(
        """(name) => [...document.querySelectorAll('.pairs > :not([hidden]) dt')]
            .filter((term) => term.textContent === name).map((term) => term.nextElementSibling.textContent)""",
        name,
    )


def test_five_thousand_attacks_do_nothing(hostile):
    with opened(hostile) as browser:
        page = browser.page
        assert page.locator(".pairs > li").count() == 1000
        assert page.locator("tbody.extractions > tr").count() == MANY - 1000
        assert page.locator("script").count() == 1
        assert page.locator("iframe, img, base, link, object, embed, form, button").count() == 0
        assert page.locator("output").inner_text() == "5,000 of 5,000 shown"
        # All of it is laid out and painted, every whole text is opened, and the pointer goes over what may wait for it.
        page.evaluate("() => document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.evaluate("() => document.getElementById('others').scrollIntoView()")
        page.mouse.move(300, 300)
        page.keyboard.press("Tab")
        page.fill("[name=text]", "onerror=alert")
        assert 0 < len(shown(page)) < MANY
        page.select_option("[name=order]", "text")
        page.fill("[name=text]", "")
        assert sorted(shown(page)) == list(range(1, MANY + 1))
        page.wait_for_timeout(200)
        assert page.title().startswith("Extraction audit")
        assert browser.tried == []


def test_what_axe_finds(usual):
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            with opened(usual, color_scheme=scheme, viewport={"width": width, "height": 900}) as browser:
                assert serious_violations(browser.page) == []
                browser.page.locator(".pictures label").click()
                assert browser.page.locator(".reveal").is_checked() and serious_violations(browser.page) == []
                # Nothing makes the page itself wider than the screen.
                assert browser.page.evaluate("() => document.documentElement.scrollWidth") <= width
                assert browser.tried == []


def test_dark_is_dark(usual):
    brightness = {}
    for scheme in ("light", "dark"):
        with opened(usual, color_scheme=scheme) as browser:
            brightness[scheme] = np.asarray(Image.open(io.BytesIO(browser.page.screenshot())).convert("L")).mean()
    assert brightness["light"] > 200 and brightness["dark"] < 60


def test_without_scripts_everything_is_there(usual):
    with opened(usual, java_script_enabled=False) as browser:
        page = browser.page
        assert page.locator(".pairs > li").count() == 4
        assert page.locator("tbody.extractions > tr").count() > 0
        assert not page.locator("#controls").is_visible()
        assert page.locator(".pairs > li").first.is_visible()
        box = page.locator(".reveal")
        assert not box.is_checked()
        page.locator(".pictures label").click()
        assert box.is_checked() and not page.locator(".pictures label").is_visible()


def test_a_long_text_is_a_click_away(usual):
    with opened(usual) as browser:
        long = [each for each in browser.page.locator("details").all() if "whole text" in each.inner_text()]
        assert long
        whole = long[0].locator(".words")
        assert not whole.is_visible()
        long[0].locator("summary").click()
        assert whole.is_visible() and len(whole.inner_text()) > report.CAPTION_LETTERS


def test_a_command_is_copied_as_it_is(usual):
    with opened(usual) as browser:
        command = browser.page.locator(".pairs code").first
        browser.page.evaluate("(code) => getSelection().selectAllChildren(code)", command.element_handle())
        words = shlex.split(browser.page.evaluate("() => getSelection().toString()"))
        assert words[-1] == f"--lake={usual.parent / 'a  lake'}"


def test_filter_and_sort(usual):
    with opened(usual) as browser:
        page = browser.page
        everything = shown(page)
        assert everything == list(range(1, len(everything) + 1))
        page.select_option("[name=order]", "l2")
        distances = [float(value) for value in values(page, "l2")]
        assert distances == sorted(distances) and shown(page) != everything
        page.select_option("[name=order]", "copies")
        copies = [int(value) for value in values(page, "copies")]
        assert copies == sorted(copies, reverse=True)
        page.select_option("[name=order]", "rank")
        assert shown(page) == everything
        for name in ("copied", "seen", "calibrated", "paper's rule", "adaptive rule", "ratio rule"):
            page.select_option("[name=verdict]", name)
            assert 0 < len(shown(page)) < len(everything), name
            assert set(values(page, name)) == {"yes"}, name
        for names in (("copied", "paper's rule"), ("paper's rule", "copied"), ("copied", "seen")):
            page.select_option("[name=verdict]", f"{names[0]}, not {names[1]}")
            assert 0 < len(shown(page)) < len(everything), names
            assert set(values(page, names[0])) <= {"yes"} and "yes" not in values(page, names[1])
        page.select_option("[name=order]", "verdict")
        page.select_option("[name=verdict]", "")
        called = values(page, "copied")
        assert called == sorted(called, reverse=True)
        page.select_option("[name=order]", "rank")
        page.select_option("[name=verdict]", "")
        page.select_option("[name=distance]", "adaptive l2")
        middle = sorted(float(value) for value in values(page, "adaptive l2"))[1]
        page.fill("[name=most]", str(middle))
        assert 0 < len(shown(page)) < len(everything)
        assert all(float(value) <= middle for value in values(page, "adaptive l2"))
        page.fill("[name=most]", "")
        words = page.locator(".pairs > li .words").first.text_content()[-12:]
        page.fill("[name=text]", words.upper())
        assert len(shown(page)) < len(everything)
        assert page.locator("output").inner_text() == f"{len(shown(page))} of {len(everything)} shown"
        page.fill("[name=text]", "nothing says this")
        assert shown(page) == []
        assert browser.tried == []


@pytest.mark.parametrize("limit", [4, 0])
def test_distances_are_compared_as_they_were_measured(limit, tmp_path):
    """And not as they are rounded: 0.1504 is more than 0.15."""
    fake = copies(tmp_path / "lake", list("abcd"))
    render(fake)
    put(fake, "extractions", l2=pa.array([0.1504, 0.15, 0.1496, 0.1502]))
    (tmp_path / "report.html").write_bytes(report.render(fake.lake, fake.match, "measured", limit))
    with opened(tmp_path / "report.html") as browser:
        browser.page.select_option("[name=order]", "l2")
        browser.page.select_option("[name=distance]", "l2")
        assert shown(browser.page) == [3, 2, 4, 1]
        browser.page.fill("[name=most]", "0.15")
        assert shown(browser.page) == [3, 2]
        assert browser.page.get_by_text("0.150", exact=True).count() == 4


def test_whoever_comes_back_finds_the_page_as_its_controls_say(usual):
    with opened(usual) as browser:
        page = browser.page
        everything = shown(page)
        page.select_option("[name=order]", "l2")
        page.select_option("[name=verdict]", "copied")
        page.fill("[name=most]", "1")
        page.locator("#e1 .pictures").click()
        assert page.locator(".reveal").is_checked() and shown(page) != everything
        page.goto("about:blank")
        page.go_back()
        page.wait_for_timeout(300)
        assert shown(page) == everything
        names = ("order", "verdict", "most")
        assert [page.locator(f"[name={name}]").input_value() for name in names] == ["rank", "", ""]
        assert not page.locator(".reveal").is_checked()


def test_the_labels_of_many_nights_stand_side_by_side(tmp_path):
    nights = [{**SECOND, "date": f"2026-01-{day:02}"} for day in range(1, 32)]
    for count in (8, 9, 12, 31):
        (tmp_path / "report.html").write_bytes(render(copies(tmp_path / str(count), ["a"]), nights=nights[:count]))
        with opened(tmp_path / "report.html") as browser:
            ends = browser.page.evaluate(
                """() => [...document.querySelectorAll('svg[aria-label^="Rates by night"] text[y="234"]')]
                    .filter((label) => label.textContent !== '').map((label) => label.getBoundingClientRect())
                    .map((box) => [box.left, box.right])"""
            )
        assert len(ends) > 3 and all(one[1] < other[0] for one, other in itertools.pairwise(ends))


def test_the_keyboard_gets_everywhere(usual):
    with opened(usual) as browser:
        page = browser.page
        reached = []
        for _ in range(200):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("() => { const at = document.activeElement; return at.name || at.className || at.localName; }")
            )
            if reached[-1] == "reveal":
                page.keyboard.press("Space")
            if reached[-1] == "text":
                page.keyboard.type("script")
            if reached[-1] == "body":
                break
        assert {"text", "verdict", "distance", "most", "order", "reveal", "a", "wide", "summary"} <= set(reached)
        assert page.locator(".reveal").is_checked()
        assert page.locator("[name=text]").input_value() == "script"


def test_unsafe_pictures_are_blurred_until_clicked(usual):
    with opened(usual) as browser:
        page = browser.page
        picture = page.locator("#e1 .generated")
        blurred = contrast(picture)
        assert "blur" in picture.evaluate("(each) => getComputedStyle(each).filter")
        assert page.locator("#e2 .generated").evaluate("(each) => getComputedStyle(each).filter") == "none"
        page.locator("#e1 .pictures").click()
        assert picture.evaluate("(each) => getComputedStyle(each).filter") == "none"
        assert contrast(picture) > 2 * blurred


SCREEN = 96
"""Side to which pictures are brought before they are compared: on the screen they are a little larger."""


def resized(picture):
    return np.asarray(Image.fromarray(np.asarray(picture, np.uint8)).resize((SCREEN, SCREEN)), float)


def pixels(locator):
    """What the screen shows of an element, without its border."""
    return resized(np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))[1:-1, 1:-1])


def contrast(locator):
    """Of the upper eighth of a picture, which no words lie over: how its columns differ."""
    return pixels(locator)[: SCREEN // 8].mean(axis=0).std(axis=0).mean()


def test_the_difference_is_the_difference(tmp_path, monkeypatch):
    """Of two pictures on the screen, in either theme; the training image is wide, and the generated one lies at its end."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8)
    trained = coarse.repeat(32, 0).repeat(32, 1)
    generated = np.clip(trained[:, 128:].astype(int) + np.linspace(-90, 90, 128).astype(int)[:, None, None], 0, 255)
    pair = report.Pair.of(1, generated.astype(np.uint8), trained)
    monkeypatch.setattr(report, "pairs", lambda *_: [pair])
    (tmp_path / "report.html").write_bytes(render(copies(tmp_path / "lake", ["a"])))
    for scheme in ("light", "dark"):
        with opened(tmp_path / "report.html", color_scheme=scheme) as browser:
            expected = np.abs(resized(generated) - resized(trained[:, 128:]))
            assert expected.mean() > 20
            # WebP and scaling blur the edges of the patches; inside them the difference is exact to a few grey levels.
            for name, picture in (("difference", expected), ("generated", resized(generated))):
                assert np.median(np.abs(pixels(browser.page.locator(f".{name}")) - picture)) < 6, name
