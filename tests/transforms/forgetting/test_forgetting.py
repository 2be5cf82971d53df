"""Which samples are meant, and whose what was found is: on small tables, planted by hand."""

import dataclasses
import datetime
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import measure
from pipelines.execution import Execution
from pipelines.measure import MeasureOptions
from pipelines.options import Parsed
from tests.fakes import fake_lake
from tests.lakes import workers
from tests.planted import picture
from transforms.attacks.prompts import listed_prompts
from transforms.duplicates import keep_list
from transforms.errors import UserError
from transforms.forgetting import proof
from transforms.forgetting.burial import bury
from transforms.forgetting.removal import remove, remove_what_is_made, retire
from transforms.forgetting.selection import Chosen, Named, read_list
from transforms.kernels.fingerprints import fingerprint
from transforms.results import marts, report
from transforms.store.files import read_parquet
from transforms.store.lake import Lake, part_number
from transforms.store.schema import TABLES
from transforms.store.tombstones import FORGOTTEN, NO_TEXT, Tombstones, plain_url, sha256

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def sample(name, url, content=None, caption="a caption that is long enough"):
    return {
        **dict.fromkeys(TABLES["samples"].schema.names), "sample_id": name, "role": "training", "url": url, "caption": caption,
        "occurrence": 0, "source_file": "m", "source_row": 0, "status": "success", "sha256": content or f"of {name} alone",
        "drift": "unknown", "ingested_at": NOW,
    }  # fmt: skip


def image(name, content):
    return {
        "sample_id": name, "role": "training", "image": content, "encoding": "png", "width": 1, "height": 1, "image_size": 1,
        "resize_mode": "no",
    }  # fmt: skip


@pytest.fixture
def lake(tmp_path):
    made = Lake(str(tmp_path / "lake"))
    made.create()
    return made


def chosen(lake, ids=(), urls=()):
    return Chosen(workers(lake), Named(frozenset(ids), frozenset(urls)))


def test_the_same_url_the_same_bytes_and_the_same_stored_bytes_over_snapshots(lake):
    """In one night a has url u; in another b has it, with other bytes, which c has too; d is stored like c."""
    lake.write("samples", "one", 0, [sample("a", "u"), sample("other", "w")])
    lake.write("samples", "two", 0, [sample("c", "v", "bytes"), sample("d", "x"), sample("b", "u", "bytes")])
    stored = [image("c", b"stored so"), image("d", b"stored so"), image("b", b"stored sp")]
    lake.write("images", "two", 0, stored)
    for ids, urls in ((["a"], []), ([], ["u"]), ([], ["x"])):
        assert chosen(lake, ids, urls).sample_ids == {"a", "b", "c", "d"}
    assert chosen(lake, ["other"]).sample_ids == {"other"}


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("same", [("u", "other bytes"), ("v", "bytes")])
def test_whichever_row_comes_first(names, same, lake):
    """By id: url and bytes of a row are those of rows that were read before it, too."""
    rows = {"a": sample("a", "u", "bytes"), "b": sample("b", *same)}
    lake.write("samples", "one", 0, [rows[name] for name in names])
    assert chosen(lake, ["a"]).sample_ids == {"a", "b"}


@pytest.mark.parametrize("same", [("u", "other bytes"), ("v", "bytes")])
def test_what_is_forgotten_is_known_by_its_tombstones(same, lake):
    """A part that was restored has its url, or its bytes: both are found by the id alone, and the proof sees the bytes."""
    lake.write("samples", "one", 0, [sample("a", "u", "bytes")])
    forget(lake, ["a"])
    lake.write("samples", "two", 0, [sample("b", *same)])
    expected = {("url", "url, row 0")} if same[0] == "u" else {("content", "sha256, row 0")}
    found = {(one.kind, one.place) for one in finds(lake) if one.kind != "caption"}
    assert found == expected
    assert forget(lake, ["a"])["samples"] == 1 and finds(lake) == []
    assert set(Tombstones.read(lake).samples) == {"a", "b"}


SPELLINGS = ("https://Train.example/A b.png", "HTTPS://train.EXAMPLE/A b.png", " https://train.example/A b.png\n")


@pytest.mark.parametrize("named", SPELLINGS)
@pytest.mark.parametrize("there", SPELLINGS)
def test_a_url_may_be_spelt_otherwise(named, there, lake):
    lake.write("samples", "one", 0, [sample("a", there), sample("b", "https://train.example/a b.png")])
    asked = Named(frozenset(), frozenset([named]))
    assert Chosen(workers(lake), asked).sample_ids == {"a"} and Chosen(workers(lake), asked).unknown(asked) == ([], 0)
    forget(lake, urls=[named])
    # Known by its tombstone, and kept out of later ingests, by each of its spellings.
    assert [Tombstones.read(lake).of("?", url) for url in SPELLINGS] == ["asked for"] * 3
    assert Chosen(workers(lake), asked).unknown(asked) == ([], 0)
    assert finds(lake) == []


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        (" HTTP://Me:Pass@Host.example:80/A?B#C ", "http://redacted@host.example:80/A?B#C"),
        ("HTTPS://Host.example", "https://host.example"),
        ("no/Scheme", "no/Scheme"),
        ("DATA:Text", "DATA:Text"),
    ],
)
def test_plain_urls(url, plain):
    assert plain_url(url) == plain_url(plain) == plain


def test_a_sample_without_url_and_bytes_takes_no_other_with_it(lake):
    lost = {"sha256": None, "url": None, "caption": None, "status": "failed_to_download"}
    lake.write("samples", "one", 0, [sample("a", "u") | lost, sample("b", "u") | lost])
    assert chosen(lake, ["a"]).sample_ids == {"a"}


def test_what_is_unknown_is_told(lake):
    lake.write("samples", "one", 0, [sample("a", "u")])
    named = Named(frozenset({"a", "z", "y"}), frozenset({"u", "nowhere"}))
    assert Chosen(workers(lake), named).unknown(named) == (["y", "z"], 1)


def forget(lake, ids=(), urls=()):
    bury(workers(lake), chosen(lake, ids, urls).sample_ids, urls, "asked for")
    return remove(workers(lake))


def finds(lake):
    return proof.search(workers(lake)).found


def test_a_url_that_begins_another_is_found_in_that_by_nobody(lake):
    url = "https://pictures.example/1"
    lake.write("samples", "one", 0, [sample("a", url), sample("b", f"{url}0", caption="another caption")])
    assert forget(lake, urls=[url]) == {"samples": 1}
    listed = Path(lake.path("list.txt"))
    listed.write_text(f"{url}0\n")
    assert finds(lake) == []
    # The url itself is found; here, too, inside a longer text that no sample has.
    listed.write_text(f"{url}/large.png\n")
    lake.write("samples", "one", 0, [sample("a", url)])
    found = {(one.kind, one.path, one.place.split(",")[0]) for one in finds(lake)}
    table = "samples/snapshot_id=one/part-00000.parquet"
    in_the_footer = {(kind, path, place) for kind, path, place in found if place.startswith("byte") and path == table}
    assert {kind for kind, _, _ in in_the_footer} == {"url", "caption"}
    in_the_table = {(kind, table, column) for kind, column in (("url", "url"), ("caption", "caption"), ("content", "sha256"))}
    assert found - in_the_footer == {("url", "list.txt", "byte 0"), *in_the_table}


def test_a_short_text_is_found_as_a_whole_value(lake):
    lake.write("samples", "one", 0, [sample("a", "a.png", caption="me"), sample("b", "b.png", caption="some")])
    assert forget(lake, ["a"]) == {"samples": 1}
    assert finds(lake) == []
    pq.write_table(pa.table({"words": ["some", " me "], "more": [b"a.png", b""]}), lake.path("list.parquet"))
    assert [(one.kind, one.place) for one in finds(lake)] == [
        ("caption", "words, row 1"),
        ("url", "more, row 0"),
    ]


def test_tombstones_say_why_and_hold_nothing_of_it(lake):
    lake.write("samples", "one", 0, [sample("a", "https://pictures.example/1", "0123")])
    forget(lake, ["a"], ["https://pictures.example/unknown"])
    found = Tombstones.read(lake)
    assert found.of("a", None) == found.of("?", "https://pictures.example/1") == "asked for"
    assert found.of("?", "https://pictures.example/unknown") == "asked for"
    assert found.of("b", "https://pictures.example/2") is found.of("b", None) is None
    assert found.contents == {"0123": "asked for"}
    rows = [row for path in lake.every_part("tombstones") for row in pq.read_table(path).to_pylist()]
    assert "pictures.example" not in str(rows) and "caption that" not in str(rows)


@pytest.mark.parametrize(
    ("reason", "refused"),
    [
        ("its owner asked: HTTPS://pictures.example/1", True),
        ("a caption that is long enough, they said", True),
        ("not of ftp://x.y, which is named", True),
        ("not even https://pictures.example/other", True),
        ("request 1 of somebody at pictures.example", False),
    ],
)
def test_a_reason_says_nothing_of_what_is_forgotten(reason, refused, lake):
    lake.write("samples", "one", 0, [sample("a", "https://pictures.example/1"), sample("b", "https://pictures.example/other")])
    forget(lake, ["b"])
    if refused:
        with pytest.raises(UserError, match="--reason holds a url or a caption"):
            bury(workers(lake), {"a"}, ["https://pictures.example/1", "ftp://X.y", "o"], reason)
        assert set(Tombstones.read(lake).samples) == {"b"}
    else:
        bury(workers(lake), {"a"}, ["https://pictures.example/1", "ftp://X.y", "o"], reason)
        remove(workers(lake))
        assert finds(lake) == []


def test_a_reason_is_no_short_caption(lake):
    lake.write("samples", "one", 0, [sample("a", "a.png", caption="me")])
    with pytest.raises(UserError, match="--reason holds a url or a caption"):
        bury(workers(lake), {"a"}, [], "me ")


@pytest.mark.parametrize(
    ("name", "content", "ids", "urls"),
    [
        ("list.txt", f"{'0a' * 16}\r\nhttp://x/a,b\n\n FTP://x\n", {"0a" * 16}, {"http://x/a,b", "FTP://x"}),
        ("list.csv", 'URL,sample_id\n"http://x/a,b",\n,7\n', {"7"}, {"http://x/a,b"}),
        ("list.CSV", "\ufeffurl\nhttp://x\n", set(), {"http://x"}),
        ("list.Tsv", "who\turl\nme, or you\thttp://x/a,b\n", set(), {"http://x/a,b"}),
    ],
)
def test_lists(name, content, ids, urls, tmp_path):
    (tmp_path / name).write_text(content)
    assert read_list(str(tmp_path / name)) == Named(frozenset(ids), frozenset(urls))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("list.txt", "http://x/ä\r\nhttp://x/b\r\n"), ("list.csv", "who;Url \r\nme;http://x/ä\r\nyou;http://x/b\r\n")],
)
def test_a_list_is_read_however_it_was_stored(name, content, encoding, tmp_path):
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_list(str(tmp_path / name)) == Named(frozenset(), frozenset({"http://x/ä", "http://x/b"}))


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_list_whose_texts_are_of_another_type(kind, tmp_path):
    pq.write_table(pa.table({"url": pa.array(["http://x/ä", None]).cast(kind), "n": [1, 2]}), tmp_path / "list.parquet")
    assert read_list(str(tmp_path / "list.parquet")) == Named(frozenset(), frozenset({"http://x/ä"}))


def test_a_list_of_bytes_that_are_no_text(tmp_path):
    pq.write_table(pa.table({"url": [b"http://x/\xff"]}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match="cannot read"):
        read_list(str(tmp_path / "list.parquet"))


def test_a_lake_of_which_no_file_is_listed_is_not_proved_empty(lake, monkeypatch):
    monkeypatch.setattr(Lake, "files", lambda self: [])
    with pytest.raises(UserError, match="can't be listed, so nothing was searched"):
        proof.search(workers(lake))


def test_what_a_killed_client_wrote_beside_the_database_goes(lake):
    for name in ("audit.duckdb", "audit.duckdb.wal"):
        Path(lake.path(name)).write_text("")
    remove_what_is_made(lake)
    assert [lake.inside(path) for path in lake.files()] == ["lake.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"\n \n", "names nothing"),
        ("list.txt", b"\xff\xfe", "names nothing"),
        ("list.txt", b"http://x\n\nhttp://x/\xd0\x9f\xd1\x80\xff", "line 3 holds bytes that are no text"),
        ("list.csv", b"url\nhttp://x/a,b\n", "line 2: 2 values for 1 columns"),
        ("list.csv", b"", r"has columns \[\]; expected sample_id or url"),
        ("list.txt", b"http://x\n\n0A0a\n", r"line 3: '0A0a' is neither a sample_id \(32 .*\) nor a url"),
        ("list.csv", b"link\nhttp://x\n", r"has columns \['link'\]; expected sample_id or url"),
        ("list.csv", b"url\n", "names nothing"),
        ("list.parquet", b"url", "is not a Parquet file"),
    ],
)
def test_lists_that_are_none(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_list(str(tmp_path / name))


@pytest.mark.parametrize("name", [*(f"train.example/{number}" for number in (0, 1, 3, 4, 9)), "control.example/5"])
def test_the_verdicts_of_all_other_prompts_are_what_they_were(name, tmp_path):
    """On planted verdicts of every kind: whichever group is forgotten, its prompts move and no other's verdict changes."""
    fake = fake_lake(tmp_path, listed=["nobody's caption", "group 1"])
    lake, execution = fake.lake, Execution(fake.lake, [])
    tell_apart(fake)
    before = measure.STAGE.run(execution, Parsed.of(MeasureOptions()))
    verdicts, rates = (marts.read_mart(lake, name, before) for name in ("verdicts", "extraction_rate"))
    duplication = marts.read_mart(lake, "duplication", before)
    forget(lake, urls=[f"https://{name}.png"])
    remove_what_is_made(lake)
    after = measure.STAGE.run(execution, Parsed.of(MeasureOptions()))
    touched = {row["prompt_id"] for row in fake.rows("prompts") if row["stratum"] == FORGOTTEN}
    changed = {row["prompt_id"]: row for row in marts.read_mart(lake, "verdicts", after)}
    assert changed.keys() == {row["prompt_id"] for row in verdicts}
    # A control that is forgotten is none to be ranked among any more: p-values are among those that are left.
    left = {"seen_p_value"} if name.startswith("control") else set()
    for row in verdicts:
        if row["prompt_id"] not in touched:
            assert {key: changed[row["prompt_id"]][key] for key in row if key not in left} == {
                key: value for key, value in row.items() if key not in left
            }
    # Of the group itself nothing is said any more; its prompts are counted, each once, and under no other stratum.
    rates, now = (
        [row for row in some if row["dimension"] == "duplicates"]
        for some in (rates, marts.read_mart(lake, "extraction_rate", after))
    )
    told = {row["bucket"]: row for row in now}
    for row in rates:
        mine = [one for one in verdicts if one["stratum"] == row["bucket"] and one["prompt_id"] not in touched]
        tried, extracted = (told[row["bucket"]][name] if mine else 0 for name in ("prompts_tried", "prompts_extracted"))
        assert (tried, extracted) == (len(mine), sum(one["extracted"] for one in mine))
    assert sum(row["prompts_tried"] for row in told.values()) == len(verdicts)
    gone = set(Tombstones.read(lake).samples)
    assert gone and not gone & {row["sample_id"] for row in marts.read_mart(lake, "extractions", after)}
    assert marts.read_mart(lake, "duplication", after) == duplication
    assert finds(lake) == []


def test_a_report_between_the_tombstones_and_the_removal_shows_nothing_of_it(tmp_path):
    """As after a request that was killed: crossed squares for both pictures, no url, no caption, in the list of changes too."""
    captions = [f"a caption of group {number}" for number in range(10)]
    fake = fake_lake(tmp_path, captions=captions)
    lake = fake.lake
    tell_apart(fake)
    (url,) = {row["url"] for row in fake.rows("samples") if row["caption"] == captions[0]}
    bury(workers(lake), chosen(lake, urls=[url]).sample_ids, [url], "asked for")
    made = measure.STAGE.run(Execution(lake, []), Parsed.of(MeasureOptions()), fake.match)
    extraction = next(row for row in marts.read_mart(lake, "extractions", made) if row["url"] == url)
    names = ("prompt_id", "sample_id", "group_id", "url", "caption", "prompt")
    change = {"kind": "new", **{name: extraction[name] for name in names}}
    page = report.render(lake, fake.match, made.snapshot_id, 99, changes=[change]).decode()
    assert url not in page and captions[0] not in page and NO_TEXT in page
    crossed = next(report.shown_forms(report._shown(None)))
    assert f"#e{extraction['confidence_rank']}{{--generated:url({crossed});--trained:url({crossed})" in page
    assert page.count(crossed) == 2 and captions[5] in page


def pictures(lake):
    """How many generations have one, in tables and work files."""
    paths = [*lake.every_part("generations"), *map(str, Path(lake.root).glob("work/generate/*/prompts/*.parquet"))]
    return sum(row["image"] is not None for path in paths for row in read_parquet(path).to_pylist())


@pytest.mark.parametrize("matches", ["none", "one", "another one today"])
def test_pictures_are_as_old_as_what_made_them(matches, tmp_path):
    fake = fake_lake(tmp_path)
    now = datetime.datetime.now(datetime.UTC)
    old = (now - datetime.timedelta(days=91)).isoformat()
    fake.lake._write_manifest(dataclasses.replace(fake.generate, finished_at=old))
    if matches == "none":
        Path(fake.lake.path("manifests", "match", f"{fake.match.snapshot_id}.json")).unlink()
    elif matches == "one":
        fake.lake._write_manifest(dataclasses.replace(fake.match, finished_at=old))
    kept = pictures(fake.lake)
    assert kept and retire(workers(fake.lake), 92, now) == 0 and pictures(fake.lake) == kept
    assert retire(workers(fake.lake), 90, now) == kept and pictures(fake.lake) == 0


def test_unfinished_prompts_are_as_old_as_their_files(tmp_path):
    """And no table is left that would say that they were made."""
    fake = fake_lake(tmp_path)
    audit = fake.generate.snapshot_id
    rows = {row["prompt_id"]: row for row in fake.rows("generations") if row["image"] is not None}
    for prompt, row in list(rows.items())[:2]:
        path = Path(fake.lake.work("generate", audit, "prompts", f"{prompt}.parquet"))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row], TABLES["generations"].schema), path)
    os.utime(path, (0, 0))
    Path(fake.lake.path("manifests", "generate", f"{audit}.json")).unlink()
    assert retire(workers(fake.lake), 1, datetime.datetime.now(datetime.UTC)) == 1
    assert pictures(fake.lake) == 1 and not path.exists() and fake.lake.every_part("cliques") == []


def test_what_a_report_shows_of_another_picture_is_no_find(tmp_path):
    """Two that differ as they are stored may be the same in a report: the one that remains is shown there by right."""
    fake = fake_lake(tmp_path)
    lake = fake.lake
    tell_apart(fake)
    forget(lake, urls=["https://train.example/0.png"])
    remove_what_is_made(lake)
    made = measure.STAGE.run(Execution(lake, []), Parsed.of(MeasureOptions()), fake.match)
    (pair, *_) = report.pairs(lake, fake.match, marts.read_mart(lake, "extractions", made))
    forms = [next(report.shown_forms(np.asarray(one))) for one in (pair.generated, pair.trained)]
    forms.append(next(report.shown_forms(picture(4321, 16, 16))))
    lake.write("tombstones", "more", 0, [
        {"kind": "shown", "sample_id": None, **fingerprint(form.encode())._asdict(), "reason": "alike", "forgotten_at": NOW}
        for form in forms
    ])  # fmt: skip
    assert all(form in Path(lake.path("report.html")).read_text() for form in forms[:2])
    assert finds(lake) == []
    Path(lake.path("old.html")).write_text(" ".join(forms))
    assert {(one.path, one.sha256) for one in finds(lake)} == {("old.html", sha256(forms[2]))}


def test_a_prompt_that_quotes_a_caption_goes_and_is_found(tmp_path):
    """What a remaining sample says too is left to it, and texts side by side are no quotation."""
    captions = ["a wedding of Anna and Bert", "a picture that two have", "so: a picture that two have"]
    captions += [f"group {number}" for number in range(3, 10)]
    quotes = [f"oil painting: {captions[0]}", "as on https://train.example/0.png, in oil", "two a picture that two have"]
    fake = fake_lake(tmp_path, captions=captions, listed=["aaa", *quotes, "a wedding of Anna", " and Bert"])
    lake = fake.lake
    tell_apart(fake)
    path = lake.part("prompts", fake.generate.snapshot_id, 0)
    before = read_parquet(path)
    forget(lake, urls=["https://train.example/0.png", "https://train.example/1.png"])
    after = {row["prompt_id"]: row["text"] for row in fake.rows("prompts")}
    gone = {row["text"] for row in before.to_pylist() if after[row["prompt_id"]] == NO_TEXT}
    assert gone == {captions[0], captions[1], *quotes[:2]}
    assert finds(lake) == []
    # Nor does the same list bring them back.
    listed = listed_prompts(lake, fake.deduplicate, ["aaa", *quotes, captions[1], captions[2]], lambda _: 1)
    assert [row["text"] for row in listed] == ["aaa", quotes[2], captions[2]]
    lake.write("prompts", fake.generate.snapshot_id, 0, before)
    rows = {row["text"]: number for number, row in enumerate(before.to_pylist())}
    found = {(one.kind, one.place) for one in finds(lake) if not one.whole and one.place.startswith("text")}
    assert found == {("caption", f"text, row {rows[quotes[0]]}"), ("url", f"text, row {rows[quotes[1]]}")}


def test_until_the_removal_a_forgotten_caption_is_no_prompt_of_another_image(tmp_path):
    """Each caption gives back the next image; two images have the same one, and one of them is forgotten too."""
    captions = ["a caption that is forgotten", "another one", "what two have", "what two have"]
    fake = fake_lake(tmp_path, captions=captions, behaviours=("neighbour",), sizes=(1, 1, 1, 1), controls=0)
    tell_apart(fake)
    made = measure.STAGE.run(Execution(fake.lake, []), Parsed.of(MeasureOptions()), fake.match)
    rows = marts.read_mart(fake.lake, "extractions", made)
    bury(
        workers(fake.lake),
        chosen(fake.lake, urls=["https://train.example/0.png", "https://train.example/2.png"]).sample_ids,
        [],
        "x",
    )
    page = report.render(fake.lake, fake.match, made.snapshot_id, 1000).decode()
    assert any(row["prompt"] == captions[0] != row["caption"] for row in rows) and captions[0] not in page
    # An image that remains keeps what it has of its own.
    own = {**rows[0], "sample_id": "remains", "prompt": captions[2], "caption": captions[2]}
    assert report.without_forgotten([own], Tombstones.read(fake.lake)) == [own]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("parts", range(3))
def test_a_keep_list_of_many_parts_is_whole_after_a_kill(parts, place, tmp_path, monkeypatch):
    """Killed after some parts were written, with the forgotten image in any of them."""
    fake = fake_lake(tmp_path, sizes=(3, 1, 1, 1, 1, 1, 1, 1))
    lake, snapshot = fake.lake, fake.deduplicate.snapshot_id
    tell_apart(fake)
    monkeypatch.setattr(keep_list, "ROWS_PER_PART", 2)
    keep_list.write_keep_list(lake, fake.ingest.snapshot_id, snapshot, "first")
    lake.settle(fake.deduplicate)
    assert len(lake.parts("keep_list", snapshot)) == 4
    gone = lake.read("keep_list", snapshot)["sample_id"].to_pylist()[2 * place]
    write = Lake.write

    def some(self, table, snapshot, number, rows):
        if table == "keep_list" and number == parts:
            raise KeyboardInterrupt
        return write(self, table, snapshot, number, rows)

    monkeypatch.setattr(Lake, "write", some)
    with pytest.raises(KeyboardInterrupt):
        forget(lake, [gone])
    monkeypatch.setattr(Lake, "write", write)
    forget(lake, [gone])
    kept = lake.read("keep_list", snapshot).to_pylist()
    forgotten = Tombstones.read(lake).samples
    left = {row["group_id"] for row in fake.rows("duplicate_groups") if row["sample_id"] not in forgotten}
    assert sorted(row["group_id"] for row in kept) == sorted(left) and not forgotten.keys() & {row["sample_id"] for row in kept}
    assert lake.manifest("deduplicate", snapshot).rows["keep_list"] == len(kept)


BLANK = "\x1f\x0b a picture of somebody\u00a0\x1f"


def test_a_prompt_is_stripped_of_blanks_of_every_kind(tmp_path):
    """So are those that were drawn by another rule."""
    fake = fake_lake(tmp_path, captions=[BLANK, *(f"group {number}" for number in range(1, 10))])
    lake = fake.lake
    tell_apart(fake)
    path = lake.part("prompts", fake.generate.snapshot_id, 0)
    rows = read_parquet(path).to_pylist()
    drawn = [row | {"text": BLANK[:-1]} for row in rows if row["text"] == BLANK.strip()]
    lake.write("prompts", fake.generate.snapshot_id, 0, [*rows, *(row | {"prompt_id": "older"} for row in drawn)])
    before = read_parquet(path)
    forget(lake, urls=["https://train.example/0.png"])
    assert [row["prompt_id"] for row in fake.rows("prompts") if row["text"] == "[forgotten]"] == [
        drawn[0]["prompt_id"],
        "older",
    ]
    assert finds(lake) == []
    lake.write("prompts", fake.generate.snapshot_id, 0, before)
    whole = [one.place for one in finds(lake) if one.whole]
    assert whole == ["text, row 0", f"text, row {len(rows)}"]


def tell_apart(fake):
    """Gives each picture of the fake lake bytes of its own, as downloads have."""
    for path in fake.lake.every_part("samples"):
        rows = [row | {"sha256": sha256(row["url"])} for row in read_parquet(path).to_pylist()]
        fake.lake.write("samples", fake.ingest.snapshot_id, part_number(path), rows)
