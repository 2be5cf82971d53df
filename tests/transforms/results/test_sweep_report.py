"""The report of a sweep as a parser reads it, and in a real Chromium."""

import base64
import datetime
import hashlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.browser import needs_chromium, opened, serious_violations
from tests.sweeps import Planted, fake_sweep, nothing, returns
from tests.transforms.results.test_report import Page
from transforms.kernels.rates import blaker_interval
from transforms.models.configuration import Configuration
from transforms.results import report, sweep_report, sweeps
from transforms.training import members, population

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x07" + "n" * 90


def member(number, pictures):
    return pictures[number % len(pictures)]


def planted():
    """Sizes and widths with seeds, checkpoints, a GAN, canaries, halves, and one that failed."""
    models = [
        Planted(Configuration(images=images, width=width, seed=seed), returns(range(back - (width == 8) * (1 + seed)), 16),
                returns([0], 16, ("l2",)), quality=(images + width / 8, 10.0, 0.5, 0.5), experiments=("size", HOSTILE),
                drawn=member)
        for images, backs in ((4, (4, 3)), (8, (5, 6)), (16, (2, 1))) for seed, back in enumerate(backs) for width in (8, 16)
    ]  # fmt: skip
    models += [Planted(one.configuration, returns([0], 16), step=50, last=False) for one in models[:4]]
    models += [
        Planted(
            Configuration(images=8, family="gan"), returns([1, 2], 16), quality=(9.2, 10.0, None, None), experiments=("gan",)
        ),
        Planted(Configuration(images=8, canaries=3, copied_images=2, copies=4), returns([1, 9], 16), experiments=("copies",)),
        *(Planted(Configuration(images=8, pool=16, side=side), returns([1], 16)) for side in ("in", "out")),
        Planted(Configuration(images=5000), [], status="failed", step=0, experiments=("too many",)),
    ]
    return models


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """(FakeSweep, the page's bytes, Page)."""
    fake = fake_sweep(tmp_path_factory.mktemp("sweep"), planted())
    sweeps.run(fake.lake, fake.taken, "compared")
    content = sweep_report.render(fake.lake, fake.taken, "compared", 200)
    return fake, content, Page(content.decode("utf-8"))


def test_the_page_holds_no_script_and_its_policy_allows_none(rendered):
    page = rendered[2]
    assert not page.faults
    expected = {"html", "head", "body", "meta", "title", "style", "main", "h1", "h2", "p", "strong", "span", "small", "code",
                "nav", "a", "figure", "figcaption", "svg", "line", "polyline", "circle", "rect", "text", "div", "table",
                "caption", "thead", "tbody", "tr", "th", "td", "ul", "li", "dl", "dt", "dd"}  # fmt: skip
    assert set(page.attributes) <= expected
    for found in page.attributes.values():
        for attributes in found:
            assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc", "action")]
            assert re.fullmatch(r"#[a-z0-9]+", attributes.get("href", "#a"))
    (policy,) = [meta["content"] for meta in page.attributes["meta"] if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules) == {"default-src", "img-src", "style-src", "base-uri", "form-action"}
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert (rules["default-src"], rules["style-src"]) == ("'none'", f"'sha256-{digest}'")
    ids = [attributes["id"] for found in page.attributes.values() for attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for attributes in page.attributes["a"]} <= set(ids)


def test_a_hostile_name_is_text_and_is_cut(rendered):
    text = rendered[2].text
    assert report.clean(HOSTILE)[: sweep_report.NAME_LETTERS] in text
    assert "\u202e" not in text and "\x07" not in text and "n" * 70 not in text


def test_it_says_in_numbers_what_came_back(rendered):
    fake, _, page = rendered
    ends = [row for row in sweep_report.rows_of(fake.lake, "leakage", "compared") if row["last"] and row["pictures_made"]]
    extracted, pictures = (sum(row[name] for row in ends) for name in ("extracted_by_adaptive_l2", "pictures"))
    text = " ".join(page.text.split())
    some = sum(row["extracted_by_adaptive_l2"] > 0 for row in ends)
    assert some == len(ends) - 1
    assert f"{some} of {len(ends)} models give back training pictures that nobody asked for." in text
    assert f"{extracted} of {pictures} training pictures came back" in text
    controls = sum(row["controls"] for row in ends)
    lower, upper = blaker_interval(12, controls)  # the rule l2 calls one of each of twelve models
    assert f"12 of {controls}{report.percent(12 / controls)}{report.percent(lower)} – {report.percent(upper)}" in text
    effects = sweep_report.rows_of(fake.lake, "leakage_effects", "compared")
    (row,) = [row for row in effects if (row["axis"], row["setting"]) == ("width", "all")
              and row["measure"] == "extracted_by_adaptive_l2_share"]  # fmt: skip
    points = [sweep_report.points(row[f"effect{end}"]) for end in ("", "_lower", "_upper")]
    assert (
        f"width = 16 against 8: the share of training pictures that comes back by the paper's rule differs by {points[0]}"
        in text
    )
    assert row["replicates"] == 2 and f"(95% interval {points[1]} to {points[2]})" in text
    assert "1 of 1 GANs have a diffusion model of like quality" in text
    assert "models: 20 success, 1 failed" in text


def test_charts_stand_where_their_numbers_are():
    rows = [{"extracted_by_l2_share": share, "extracted_by_l2": round(8 * share), "pictures": 8} for share in (0.25, 0.5)]
    found = sweep_report.share_over(rows, "l2")
    assert found.value == 0.375 and found.lower == 0.0 and found.upper == 1.0  # two trainings say little
    assert sweep_report.share_over(rows[:1], "l2") == (0.25, *blaker_interval(2, 8))
    place = sweep_report.scale([64, 128, 256, 1024])
    assert place(64) == pytest.approx(0.06) and place(1024) == pytest.approx(0.94)
    assert place(256) - place(128) == pytest.approx(place(128) - place(64)) == pytest.approx(0.22)
    assert sweep_report.scale(["none", "true"])("true") == pytest.approx(0.94)
    assert [label for _, label in sweep_report.ticks(range(12), sweep_report.scale(range(12)))] == [
        "0",
        "2",
        "4",
        "6",
        "8",
        "10",
    ]
    by_level = {level: [{f"extracted_by_{rule}_share": level / 10, f"extracted_by_{rule}": level, "pictures": 10}
                        | {f"extracted_by_{one}_share": 0.0 for one in sweeps.RULES if one != rule}
                        | {f"extracted_by_{one}": 0 for one in sweeps.RULES if one != rule}]
                for level, rule in ((5, "ratio"), (10, "ratio"))}  # fmt: skip
    panel = sweep_report._panel("", "", by_level, sweep_report.scale([5, 10]))
    ratio = next(series for series in panel.series if series.colour == "copied")
    assert [mark.y for mark in ratio.marks] == [sweep_report._up(0.5), sweep_report._up(1.0)]
    assert all(mark.upper <= mark.y <= mark.lower for mark in ratio.marks)


def decoded(page, name):
    """The two pictures of a card."""
    rule = re.search(rf"#{name}{{--generated:url\(([^)]*)\);--trained:url\(([^)]*)\)}}", page.style)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")) for uri in rule.groups()]


def test_what_came_back_stands_beside_its_training_picture(rendered):
    fake, _, page = rendered
    names = [attributes["id"] for attributes in page.attributes["li"]]
    ends = [row for row in sweep_report.rows_of(fake.lake, "leakage", "compared") if row["last"] and row["pictures_made"]]
    # Every rule calls the same here: each picture once a model; l2 calls a control of twelve.
    assert sum(name.startswith("m") for name in names) == sum(row["extracted_by_l2"] + row["canaries_by_l2"] for row in ends)
    assert sum(name.startswith("c") for name in names) == 12
    cards = sweep_report.shown_pictures(fake.lake, fake.taken, ends, "", 200)
    pictures = population.read(fake.lake, fake.lake.latest("deduplicate"), 50_000, 8)
    place = {str(one): at for at, one in enumerate(pictures.sample_ids)}
    for card in cards:
        sample = card.row["sample_id"]
        if sample in place:
            truth = pictures.pixels[place[sample]]
        else:
            _, draw, number = sample.split("-")
            truth = members.canary(int(draw), int(number), 8)
        generated, trained = decoded(page, card.name)
        assert np.array_equal(trained, truth)
        if "size" in card.model["experiments"]:
            assert np.array_equal(generated, truth)
    # Each model has its turn before any has a second one.
    some = [row["model_id"] for row in ends if row["extracted_by_l2"]]
    assert sorted(card.model["model_id"] for card in cards[: len(some)]) == sorted(some)
    assert len(sweep_report.shown_pictures(fake.lake, fake.taken, ends, "", 5)) == 5


def test_what_was_forgotten_is_not_shown(tmp_path):
    fake = fake_sweep(tmp_path, [Planted(Configuration(images=4), returns(range(4), 8))])
    sweeps.run(fake.lake, fake.taken, "compared")
    gone = fake.members[next(iter(fake.members))][2]
    fake.lake.write("tombstones", "forgotten", 0, [{
        "kind": "sample", "sample_id": gone, "sha256": "0" * 64, "length": None, "ending": None, "reason": "asked for",
        "forgotten_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}])  # fmt: skip
    text = sweep_report.render(fake.lake, fake.taken, "compared", 200).decode()
    shown = re.findall(r"<dt>sample</dt><dd>(\w+)</dd>", text)
    assert len(shown) == 3 and gone[:12] not in shown


def test_the_page_stays_small(tmp_path, monkeypatch):
    """Large pictures of noise: as many as there is room for."""
    noise = np.random.default_rng(3)
    one = Planted(Configuration(images=32, pixels=64), returns(range(32), 32),
                  drawn=lambda *_: noise.integers(0, 256, (64, 64, 3), np.uint8))  # fmt: skip
    fake = fake_sweep(tmp_path, [one])
    sweeps.run(fake.lake, fake.taken, "compared")
    whole = sweep_report.render(fake.lake, fake.taken, "compared", 200)
    monkeypatch.setattr(sweep_report, "PAGE_BYTES", 200_000)
    small = sweep_report.render(fake.lake, fake.taken, "compared", 200)
    assert len(small) < 200_000 < len(whole) < report.PAGE_BYTES
    assert 3 < small.count(b'<li id="m') < whole.count(b'<li id="m') == 32
    assert b"pictures" in sweep_report.render(fake.lake, fake.taken, "compared", 0)


def test_a_sweep_in_which_nothing_comes_back_has_a_page(tmp_path):
    models = [Planted(Configuration(images=4, seed=seed), nothing(4), quality=(None,) * 4) for seed in (0, 1)]
    models.append(Planted(Configuration(images=4, width=8), [None, None], quality=(None,) * 4))
    fake = fake_sweep(tmp_path, models)
    sweeps.run(fake.lake, fake.taken, "compared")
    page = Page(sweep_report.render(fake.lake, fake.taken, "compared", 200).decode())
    assert not page.faults and "0 of 2 models give back" in " ".join(page.text.split())


def test_membership_has_its_curves_where_it_was_asked():
    common = {"cohort": "a", "step": 10, "family": "diffusion", "models": 4, "selection": "chosen", "timestep": 100}
    curves = [
        {**common, "attack": attack, "draws": draws, "flips": flips, "corner": corner + 1, "false_positive_rate": false,
         "true_positive_rate": true}
        for attack in ("loss", "lira_online") for draws, flips in ((1, False), (4, True))
        for corner, (false, true) in enumerate([(0.0, 0.0), (0.001, 0.1), (0.01, 0.1 * draws), (1.0, 1.0)])
    ]  # fmt: skip
    curves.append({**curves[0], "cohort": "b", "models": 2, "attack": "secmi"})
    known = {f"true_positives_at_{name}{end}": value for name in ("1_percent", "tenth_percent")
             for end, value in (("", 0.4), ("_lower", 0.3), ("_upper", 0.5))}  # fmt: skip
    rates = [{**common, "scope": "cohort", "attack": "loss", "draws": 4, "flips": True, "refused_at_1_percent": None} | known
             | {"true_positives_at_tenth_percent": None}]  # fmt: skip
    figure = sweep_report.roc_figure(curves, rates)
    assert [panel.title for panel in figure.panels] == ["lira_online", "loss"]
    most, fewest = figure.panels[0].series
    up, along = sweep_report._up, sweep_report._along
    # 1% and 40% in decades from 0.1%: a third of the way, and 2.6 of three.
    assert most.line.split()[2] == f"{along(1 / 3)},{up(1 + np.log10(0.4) / 3)}"
    assert fewest.line.split()[1] == f"{along(0.0)},{up(2 / 3)}"
    said = "loss (4 draws, with flips): 40.0% (95% interval 30.0% to 50.0%) of the members at a false positive rate of 1%."
    assert figure.words == [said]
    assert sweep_report.roc_figure([], []).panels == []


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_and_loads_nothing(rendered, tmp_path, scheme):
    path = tmp_path / "sweep.html"
    path.write_bytes(rendered[1])
    with opened(path, color_scheme=scheme, viewport={"width": 1000, "height": 800}) as found:
        assert found.tried == []
        assert serious_violations(found.page) == []
        assert found.page.evaluate("document.documentElement.scrollWidth") <= 1000
        found.page.locator("#m1").scroll_into_view_if_needed()
        box = found.page.locator("#m1 .trained").bounding_box()
        assert box["width"] == pytest.approx(box["height"], abs=1) and box["width"] > 50
        assert "data:image/webp" in found.page.locator("#m1 .generated").evaluate(
            "one => getComputedStyle(one).backgroundImage"
        )


def test_who_is_memorised_first_is_asked_of_each_training_once():
    def row(run, extracted, odds, rule="ratio"):
        return {"rule": rule, "run_id": run, "extracted": extracted, "pictures": 100, "log_odds": odds,
                "log_odds_lower": odds - 0.5, "log_odds_upper": odds + 0.5}  # fmt: skip

    rows = [row("a", 90, -3.0), row("a", 45, 1.0), row("b", 60, 1.2), row("c", 50, 1.1), row("c", 50, -9.0, "l2"),
            row("d", 3, 0.0) | dict.fromkeys(("log_odds", "log_odds_lower", "log_odds_upper"))]  # fmt: skip
    (said,) = sweep_report.first_words(rows, "ratio")
    assert said.startswith("Over 3 trainings outliers come back first: ") and "by +1.10 (95% interval +0.85 to +1.35)" in said
    (alone,) = sweep_report.first_words(rows[2:3], "ratio")
    assert alone.startswith("Over 1 training outliers come back first: ") and "+1.20 (95% interval +0.70 to +1.70)" in alone
    assert sweep_report.first_words(rows[-1:], "ratio") == []


def test_words_go_by_a_rule_that_calls_few_controls():
    def model(**calls):
        """Of 100 pictures and as many controls: (called, falsely) by each rule."""
        row = {"pictures": 100, "controls": 100}
        for rule, (called, false) in calls.items():
            row |= {f"extracted_by_{rule}": called, f"controls_by_{rule}": false}
        return row

    assert sweep_report.trusted([model(adaptive_l2=(50, 20), ratio=(30, 1), l2=(10, 0))]) == "ratio"
    assert sweep_report.trusted([model(adaptive_l2=(30, 1), ratio=(30, 0), l2=(10, 0))]) == "adaptive_l2"
    assert sweep_report.trusted([model(adaptive_l2=(50, 20), ratio=(60, 30), l2=(40, 10))]) == "l2"
    assert sweep_report.trusted([]) == "adaptive_l2"
