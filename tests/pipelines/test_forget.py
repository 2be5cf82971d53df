"""The verb forget, on a lake that the real verbs made: what it removes is looked for by the test itself, in every file."""

import dataclasses
import html
import json
import os
import shutil
from pathlib import Path

import duckdb
import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import deduplicate, embed, forget, generate, ingest, match, measure, nightly
from pipelines.cli import run_verb
from pipelines.deduplicate import DeduplicateOptions
from pipelines.execution import Execution
from pipelines.ingest import IngestOptions
from pipelines.options import Parsed
from tests.lakes import workers
from tests.planted import picture
from tests.servers import object_store
from tests.web import serve
from transforms.data.images import ImageStore
from transforms.forgetting import burial, proof, removal
from transforms.results import marts, report
from transforms.store.files import read_bytes, read_parquet, write_bytes
from transforms.store.lake import Lake
from transforms.store.pictures import decode, encode_png
from transforms.store.schema import TABLES

CLIP = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"
CAPTION = 'a portrait of <somebody> & their "friend" at home'
COPY_CAPTION = "the same portrait, as another site has it"
NEAR_CAPTION = "the portrait, a little darker than the others are"
PLAIN = 5
"""Training pictures that nobody asks to forget."""
CONTROLS = 12


def noisy(pixels: np.ndarray, seed: int, by: int = 3) -> bytes:
    noise = np.random.default_rng(seed).integers(-by, by + 1, pixels.shape)
    return encode_png((pixels.astype(int) + noise).clip(0, 255).astype(np.uint8))


@dataclasses.dataclass
class Site:
    """A web server with the pictures, the metadata of all, and a folder of generations that give some back."""

    web: object
    folder: Path
    metadata: Path
    controls: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with serve() as web:
        portrait = picture(100, 32, 32)
        pages = {
            "/portrait.png": (CAPTION, noisy(portrait, 0)),
            "/copy.png": (COPY_CAPTION, noisy(portrait, 0)),
            "/near.png": (NEAR_CAPTION, noisy(portrait, 1)),
        }
        pages |= {
            f"/plain{n}.png": (f"a plain picture, number {n} of several", noisy(picture(n, 32, 32), 0)) for n in range(PLAIN)
        }
        controls = {f"/control{n}.png": (f"a control, number {n} of several", noisy(picture(200 + n, 32, 32), 0))
                    for n in range(CONTROLS)}  # fmt: skip
        for name, (_, content) in (pages | controls).items():
            web.answer(name, content)
        for name, rows in (("metadata", pages), ("controls", controls)):
            table = pa.Table.from_pylist([{"URL": web.url + path, "TEXT": caption} for path, (caption, _) in rows.items()])
            pq.write_table(table, folder / f"{name}.parquet")
        write_generations(folder / "generations", pages | controls)
        yield Site(web, folder, folder / "metadata.parquet", folder / "controls.parquet")


def write_generations(folder: Path, pages: dict) -> None:
    """Three generations of each caption: of a training picture near copies, of a control something else.

    One prompt of the user's own gives back the first plain picture.
    """
    folder.mkdir()
    prompts = {**dict(pages.values()), "a prompt that is nobody's caption": pages["/plain0.png"][1]}
    lines = []
    for number, (prompt, content) in enumerate(prompts.items()):
        pixels = np.asarray(decode(content)) if "control" not in prompt else picture(300 + number, 32, 32)
        for index in range(3):
            name = f"{number}-{index}.png"
            (folder / name).write_bytes(noisy(pixels, 10 + index))
            lines.append(json.dumps({"file_name": name, "prompt": prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def audited(site):
    """The lake after the whole audit, once: tests work on copies."""
    lake = Lake(str(site.folder / "lake"))
    take_in(lake, site)
    words = {
        embed: [f"--clip_model={CLIP}", "--device=cpu"],
        deduplicate: ["--duplicate_threshold=0.97"],
        generate: [f"--generations={site.folder}/generations", "--keep=all", "--clique_size=3", "--device=cpu"],
        match: ["--max_false_positive_rate=0.3", "--device=cpu"],
        measure: [],
    }
    for verb, mine in words.items():
        assert run_verb(verb.main, [f"--lake={lake.root}", *mine]) == 0
    return lake


def take_in(lake, site, metadata=None):
    options = IngestOptions(
        metadata=str(metadata or site.metadata), controls=str(site.controls), image_size=32, encode_format="png",
        allow_private_hosts=True, timeout=5.0, rows_per_part=4,
    )  # fmt: skip
    return ingest.STAGE.run(Execution(lake, []), Parsed.of(options))


@pytest.fixture
def lake(audited, tmp_path):
    return Lake(shutil.copytree(audited.root, tmp_path / "lake").as_posix())


def samples(lake):
    """The samples of the newest ingest, by the end of their url, or by their id where that is gone."""
    rows = lake.read("samples", lake.latest("ingest").snapshot_id).to_pylist()
    return {row["url"].rsplit("/", 1)[1] if row["url"] else row["sample_id"]: row for row in rows}


def remains(lake, names=("portrait.png", "copy.png")) -> dict[str, bytes]:
    """What must be gone of some samples, by name: taken from the lake before it is."""
    found = {}
    rows = {name: row for name, row in samples(lake).items() if name in names}
    store = ImageStore(lake, lake.latest("ingest").snapshot_id, lake.latest("embed").snapshot_id)
    vectors = {row["sample_id"]: row for row in lake.read("embeddings", lake.latest("embed").snapshot_id).to_pylist()}
    for name, row in rows.items():
        found[f"url of {name}"] = row["url"].encode()
        found[f"caption of {name}"] = row["caption"].encode()
        found[f"picture of {name}"] = store.encoded(row["sample_id"])
        found[f"shown {name}"] = next(report.shown_forms(store.get(row["sample_id"]))).encode()
        found[f"vector of {name}"] = np.asarray(vectors[row["sample_id"]]["vector"], np.float32).tobytes()
        found[f"thumbnail of {name}"] = vectors[row["sample_id"]]["thumbnail"]
    prompts = {row["prompt_id"]: row for row in lake.read("prompts", lake.latest("generate").snapshot_id).to_pylist()}
    captions = {row["caption"] for row in rows.values()}
    for row in lake.read("generations", lake.latest("generate").snapshot_id).to_pylist():
        if prompts[row["prompt_id"]]["text"] in captions and row["image"] is not None:
            name = f"{prompts[row['prompt_id']]['text'][:10]} {row['sample_index']}"
            found[f"generation {name}"] = row["image"]
            found[f"shown generation {name}"] = next(report.shown_forms(np.asarray(decode(row["image"])))).encode()
    return found


def everything(lake) -> dict[str, bytes]:
    """Every file of the lake as one string of bytes: Parquet and its tables decoded, all others as they are and unescaped."""
    found = {}
    for path in Path(lake.root).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += b"\n".join(
                    plain_bytes(value) for row in read_parquet(str(path)).to_pylist() for value in row.values()
                )
            if path.suffix == ".html":
                content += html.unescape(content.decode()).encode()
            found[str(path.relative_to(lake.root))] = content
    return found


def plain_bytes(value) -> bytes:
    if isinstance(value, bytes):
        return value
    return np.asarray(value, np.float32).tobytes() if isinstance(value, list) else str(value).encode()


def places(lake, wanted: dict[str, bytes]) -> set[tuple[str, str]]:
    """(what, file) of all that is found."""
    return {(name, path) for path, content in everything(lake).items() for name, one in wanted.items() if one in content}


def run(lake, *words):
    return run_verb(forget.main, [f"--lake={lake.root}", *words])


def mart(lake, name):
    return marts.read_mart(lake, name, lake.latest("measure"))


def test_the_lake_that_is_planted_holds_what_is_looked_for(lake):
    """Else the tests below would find nothing in any case."""
    wanted = remains(lake, ("portrait.png", "copy.png", "near.png"))
    found = places(lake, wanted)
    assert {name for name, _ in found} >= set(wanted) - {name for name in wanted if name.startswith("shown")}
    assert any(name.startswith("shown") and path == "report.html" for name, path in found)
    assert any(path.startswith("work/deduplicate") and name.startswith("vector") for name, path in found)
    groups = lake.read("duplicate_groups", lake.latest("deduplicate").snapshot_id).to_pylist()
    portrait = samples(lake)["portrait.png"]["sample_id"]
    group = next(row["group_id"] for row in groups if row["sample_id"] == portrait)
    named = {row["sample_id"] for row in groups if row["group_id"] == group}
    assert named == {samples(lake)[name]["sample_id"] for name in ("portrait.png", "copy.png", "near.png")}
    assert max(row["size"] for row in groups) == 3


def test_nothing_of_it_is_left_in_any_file(lake, site, capsys):
    wanted, before = remains(lake), samples(lake)
    gone = {before["portrait.png"]["sample_id"], before["copy.png"]["sample_id"]}
    rates, counts = mart(lake, "extraction_rate"), {t: lake.every_part(t) for t in TABLES}
    assert run(lake, f"--urls={site.web.url}/portrait.png", "--reason=asked for") == 0
    said = capsys.readouterr().out
    assert "forgot 2 samples" in said and "found nothing" in said
    assert places(lake, wanted) == set()

    rows = {row["sample_id"]: row for row in samples(lake).values()}
    assert len(rows) == len(before)
    assert {sample for sample, row in rows.items() if row["status"] == "forgotten"} == gone
    for sample in gone:
        row = rows[sample]
        assert (row["url"], row["caption"], row["sha256"], row["reason"]) == (None, None, None, "asked for")
    # Every other sample is as it was.
    assert all(rows[row["sample_id"]] == row for row in before.values() if row["sample_id"] not in gone)
    for table, column in (("images", "image"), ("embeddings", "vector"), ("embeddings", "thumbnail")):
        for row in lake.read(table, lake.latest("ingest" if table == "images" else "embed").snapshot_id).to_pylist():
            assert (row[column] is None) == (row["sample_id"] in gone)
    for table in ("matches", "eidetic_counts"):
        assert not gone & {row["sample_id"] for row in lake.read(table, lake.latest("match").snapshot_id).to_pylist()}
    # The report was made again, for which it was looked up again where the rows of embeddings lie.
    worked = [lake.inside(path) for path in lake.files() if lake.inside(path).startswith("work/")]
    assert {path.split("/")[1] for path in worked} == {"index"} and all("/places/" in path for path in worked)
    # Parts are rewritten, none is added or gone.
    assert {t: lake.every_part(t) for t in TABLES if t != "tombstones"} == {t: counts[t] for t in TABLES if t != "tombstones"}
    for stage in ("ingest", "embed", "deduplicate", "generate", "match"):
        manifest = lake.latest(stage)
        assert manifest.rows == {table: lake.count(table, manifest.snapshot_id) for table in manifest.rows}
    check_rates(lake, rates)


def check_rates(lake, before):
    """Prompts that are touched are counted under their own name, and nowhere else: the rest of the rates are what they were."""
    prompts = lake.read("prompts", lake.latest("generate").snapshot_id).to_pylist()
    # Its caption, its copy's, and near.png's: all three stand for the group of which two are forgotten.
    touched = [row for row in prompts if row["stratum"] == "forgotten"]
    assert sorted(row["text"] for row in touched) == ["[forgotten]", "[forgotten]", NEAR_CAPTION]
    before, now = (
        [row for row in rows if row["dimension"] == "duplicates"] for rows in (before, mart(lake, "extraction_rate"))
    )
    after = {row["bucket"]: row for row in now}
    assert after["forgotten"]["prompts_tried"] == 3
    assert sum(row["prompts_tried"] for row in after.values()) == sum(row["prompts_tried"] for row in before)
    ids = {row["prompt_id"] for row in touched}
    listed = [row for row in mart(lake, "verdicts") if row["prompt_id"] not in ids]
    assert len(listed) == after["list"]["prompts_tried"] == PLAIN + 1
    assert after["list"]["prompts_extracted"] == PLAIN + 1 and after["list"]["rate"] == 1


def test_with_duplicates_and_by_id_the_whole_group_goes(lake, capsys):
    names = ("portrait.png", "copy.png", "near.png")
    wanted, before = remains(lake, names), samples(lake)
    assert run(lake, f"--sample_ids={before['near.png']['sample_id']}", "--with_duplicates") == 0
    assert "forgot 3 samples" in capsys.readouterr().out
    assert places(lake, wanted) == set()
    keep = lake.read("keep_list", lake.latest("deduplicate").snapshot_id).to_pylist()
    assert {row["sample_id"] for row in keep} == {before[f"plain{n}.png"]["sample_id"] for n in range(PLAIN)}
    assert {row["sample_id"] for row in mart(lake, "extractions")} == {row["sample_id"] for row in keep}


def test_another_member_of_the_group_is_kept(lake, site):
    """Whichever is kept before, near.png is the only one that is left."""
    assert run(lake, f"--urls={site.web.url}/copy.png") == 0
    keep = lake.read("keep_list", lake.latest("deduplicate").snapshot_id).to_pylist()
    near = samples(lake)["near.png"]
    assert [(row["sample_id"], row["url"]) for row in keep if row["size"] == 3] == [(near["sample_id"], near["url"])]


def test_the_rest_of_the_lake_can_be_measured_matched_and_reported(lake, site):
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    assert run_verb(measure.main, [f"--lake={lake.root}"]) == 0
    # Matched again with another delta: the groups have forgotten members, whose vectors are gone.
    assert run_verb(match.main, [f"--lake={lake.root}", "--delta=0.2", "--max_false_positive_rate=0.3", "--device=cpu"]) == 0
    assert run_verb(measure.main, [f"--lake={lake.root}"]) == 0
    rates = {row["bucket"]: row for row in mart(lake, "extraction_rate") if row["dimension"] == "duplicates"}
    assert (rates["forgotten"]["prompts_tried"], rates["list"]["rate"]) == (3, 1)
    with duckdb.connect(os.path.join(lake.root, "audit.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM samples WHERE status = 'forgotten'").fetchall() == [(2,)]
        assert connection.execute("SELECT count(*) FROM images WHERE image IS NULL").fetchall() == [(2,)]
        question = "SELECT count(DISTINCT sample_id) FROM tombstones WHERE kind = 'sample'"
        assert connection.execute(question).fetchall() == [(2,)]


def test_a_control_is_forgotten_and_no_rate_moves(lake, site):
    before = {name: mart(lake, name) for name in marts.MARTS}
    wanted = remains(lake, ("control3.png",))
    assert run(lake, f"--urls={site.web.url}/control3.png") == 0
    assert places(lake, wanted) == set()
    after = {name: mart(lake, name) for name in marts.MARTS}
    assert [row["status"] for row in after["yield"]].count("forgotten") == 1
    # What controls say is what they said, but for those that are counted anew: one less.
    for row, old in zip(after["delta_sweep"], before["delta_sweep"], strict=True):
        assert old["n_controls"] - row["n_controls"] == 1 and 0 <= old["controls_called"] - row["controls_called"] <= 1
        for name in ("n_controls", "controls_called"):
            del row[name], old[name]
    assert after["precision_curve"]
    for row, old in zip(after["precision_curve"], before["precision_curve"], strict=True):
        assert old["n_held_out"] - row["n_held_out"] == 1 and 0 <= old["held_out_called"] - row["held_out_called"] <= 1
        assert (row["rank"], row["group_id"], row["copied"]) == (old["rank"], old["group_id"], old["copied"])
    # Its picture was a decoy as well, and its distance had a rank among the controls'.
    for row, old in zip(after["false_positives"], before["false_positives"], strict=True):
        gone = old.pop("pictures") - row.pop("pictures")
        assert gone == (row["tried_on"] == "held_out") and 0 <= (old.pop("called") or 0) - (row.pop("called") or 0) <= gone
        for name in ("rate", "upper_bound"):
            del row[name], old[name]
    for row in (*after["verdicts"], *before["verdicts"]):
        del row["seen_p_value"]
    # "cost" counts the pictures of a control as well.
    same = after.keys() - {"yield", "cost", "precision_curve"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    prompts = lake.read("prompts", lake.latest("generate").snapshot_id).to_pylist()
    assert [(row["text"], row["origin"]) for row in prompts if row["stratum"] == "forgotten"] == [("[forgotten]", "control")]


def test_a_later_ingest_leaves_it_alone(lake, site, tmp_path):
    """By its url, by its id, and by its bytes under a url that nobody knows yet."""
    assert run(lake, f"--urls={site.web.url}/portrait.png", f"--urls={site.web.url}/not_yet.png") == 0
    wanted = {"url": f"{site.web.url}/portrait.png".encode(), "not yet": f"{site.web.url}/not_yet.png".encode()}
    portrait = noisy(picture(100, 32, 32), 0)
    wanted |= {"picture": portrait, "caption": CAPTION.encode()}
    for name in ("/not_yet.png", "/elsewhere.png"):
        site.web.answer(name, portrait)
    rows = pq.read_table(site.metadata).to_pylist()
    rows += [{"URL": site.web.url + name, "TEXT": f"found at {name}"} for name in ("/not_yet.png", "/elsewhere.png")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "more.parquet")
    site.web.hits.clear()
    taken = take_in(lake, site, tmp_path / "more.parquet")
    assert not {"/portrait.png", "/copy.png", "/not_yet.png"} & set(site.web.hits)
    assert site.web.hits["/elsewhere.png"] == 1
    found = lake.read("samples", taken.snapshot_id).to_pylist()
    assert len(found) == len(rows) + CONTROLS
    forgotten = [row for row in found if row["status"] == "forgotten"]
    assert len(forgotten) == 4
    assert all((row["url"], row["caption"], row["sha256"]) == (None, None, None) for row in forgotten)
    images = {row["sample_id"] for row in lake.read("images", taken.snapshot_id, ["sample_id"]).to_pylist()}
    assert not images & {row["sample_id"] for row in forgotten}
    assert places(lake, wanted) == set()
    assert run(lake, "--verify_only") == 0


def test_tonights_search_begins_anew_and_finds_it_no_more(lake, site):
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    gone = {row["sample_id"] for row in samples(lake).values() if row["status"] == "forgotten"}
    taken = take_in(lake, site)
    assert taken.snapshot_id == lake.latest("ingest").snapshot_id  # complete, and left alone
    manifest = deduplicate.STAGE.run(Execution(lake, []), Parsed.of(DeduplicateOptions(duplicate_threshold=0.95)))
    groups = lake.read("duplicate_groups", manifest.snapshot_id).to_pylist()
    assert len(groups) == PLAIN + 1 and not gone & {row["sample_id"] for row in groups}
    assert manifest.facts["built_on"] == []


STEPS = (
    "_remove_leftovers",
    "_remove_searches",
    "_remove_finished_prompts",
    "_lone_texts",
    "_keep_others",
    "remove_what_is_made",
)


@pytest.mark.parametrize("step", [*STEPS, *range(6)])
def test_a_killed_run_goes_on(step, lake, site, monkeypatch):
    """Killed before a step, or after some parts were rewritten: the same command ends as if nothing had been."""
    wanted, rates = remains(lake), mart(lake, "extraction_rate")
    if isinstance(step, str):
        monkeypatch.setattr(removal, step, kill)
    else:
        written = []
        rewrite = Lake.rewrite

        def some(lake, path, rows):
            if len(written) == step:
                kill()
            written.append(path)
            rewrite(lake, path, rows)

        monkeypatch.setattr(Lake, "rewrite", some)
    words = [f"--urls={site.web.url}/portrait.png"]
    assert run(lake, *words) == 130
    # From the tombstones on nobody sees the picture, whether it is still there or not.
    store = ImageStore(lake, lake.latest("ingest").snapshot_id, lake.latest("embed").snapshot_id)
    gone = {row["sample_id"] for row in tombstones(lake) if row["kind"] == "sample"}
    assert len(gone) == 2
    for sample in gone:
        with pytest.raises(ValueError, match="was forgotten"):
            store.get(sample)
    monkeypatch.undo()
    assert run(lake, *words) == 0
    assert places(lake, wanted) == set()
    assert tombstones(lake) and {row["sample_id"] for row in tombstones(lake) if row["kind"] == "sample"} == gone
    check_rates(lake, rates)


def kill(*_):
    raise KeyboardInterrupt


def tombstones(lake):
    return [row for path in lake.every_part("tombstones") for row in read_parquet(path).to_pylist()]


def test_a_second_run_changes_nothing(lake, site, capsys):
    words = [f"--urls={site.web.url}/portrait.png"]
    assert run(lake, *words) == 0
    tables = {path: Path(path).stat().st_mtime_ns for table in TABLES for path in lake.every_part(table)}
    capsys.readouterr()
    assert run(lake, *words) == 0
    assert "not in the lake" not in capsys.readouterr().err  # it is known by its tombstone
    assert {path: Path(path).stat().st_mtime_ns for table in TABLES for path in lake.every_part(table)} == tables


@pytest.mark.parametrize(
    "kind",
    ["url of portrait.png", "caption of portrait.png", "picture of copy.png", "vector of copy.png", "shown portrait.png"],
)
def test_the_proof_finds_what_was_left(kind, lake, site, capsys):
    """In a file of no known kind, and in a table; and it doesn't say it again."""
    wanted = remains(lake)[kind]
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    (Path(lake.root) / "notes.bin").write_bytes(os.urandom(3_000_000) + wanted + b"more")
    capsys.readouterr()
    assert run(lake, "--verify_only") == 1
    said = capsys.readouterr().out
    assert "found 1\n" in said and "in notes.bin, byte 3,000,000" in said and CAPTION not in said
    os.remove(Path(lake.root) / "notes.bin")
    if kind == "caption of portrait.png":
        (Path(lake.root) / "reports" / "old.html").write_text(f"<p>{html.escape(CAPTION)}</p>")
        assert run(lake, "--verify_only") == 1
        assert "caption in reports/old.html" in capsys.readouterr().out
        # The same command again takes the report away.
        assert run(lake, f"--urls={site.web.url}/portrait.png") == 0


def test_a_table_that_was_restored_is_found_and_shown_to_nobody(lake, site, audited, capsys):
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    gone = {row["sample_id"] for row in samples(lake).values() if row["status"] == "forgotten"}
    part = next(p for p in audited.every_part("images") if gone & set(pq.read_table(p)["sample_id"].to_pylist()))
    shutil.copy(part, Path(lake.root) / audited.inside(part))
    assert run(lake, "--verify_only") == 1
    assert "picture in images/" in capsys.readouterr().out
    store = ImageStore(lake, lake.latest("ingest").snapshot_id, lake.latest("embed").snapshot_id)
    with pytest.raises(ValueError, match="was forgotten"):
        store.get(min(gone))


def test_a_caption_that_others_have_too_stays_theirs(lake, site, tmp_path):
    rows = [{"URL": f"{site.web.url}/{name}.png", "TEXT": "what many pictures are called"} for name in ("plain0", "plain1")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "alike.parquet")
    take_in(lake, site, tmp_path / "alike.parquet")
    assert run(lake, f"--urls={site.web.url}/plain0.png") == 0
    assert {row["caption"] for row in samples(lake).values() if row["role"] == "training"} == {None, rows[0]["TEXT"]}


def test_retention_takes_the_pictures_and_leaves_the_numbers(lake, capsys):
    before = {name: mart(lake, name) for name in marts.MARTS}
    audit = lake.latest("generate").snapshot_id
    assert run(lake, "--generations_older_than=1") == 0
    assert "removed 0 pictures" in capsys.readouterr().out
    kept = sum(row["image"] is not None for row in lake.read("generations", audit).to_pylist())
    pictures = {"generation": next(row["image"] for row in lake.read("generations", audit).to_pylist() if row["image"])}
    assert kept and run(lake, "--generations_older_than=0") == 0
    assert f"removed {kept} pictures" in capsys.readouterr().out
    rows = lake.read("generations", audit).to_pylist()
    assert all(row["image"] is None and "older than 0 days" in row["reason"] for row in rows if row["status"] == "success")
    assert places(lake, pictures) == set()
    after = {name: mart(lake, name) for name in marts.MARTS}
    (cost,), (old,) = after.pop("cost"), before.pop("cost")
    assert (cost["images_stored"], old["images_stored"]) == (0, kept) and cost["images_copied"] == old["images_copied"]
    assert after == before
    page = (Path(lake.root) / "report.html").read_text()
    assert page.count(next(report.shown_forms(report._shown(None)))) == len(before["extractions"])
    # Another match would find nothing, and say that nothing was extracted.
    assert run_verb(match.main, [f"--lake={lake.root}", "--delta=0.2", "--device=cpu"]) == 2
    assert "were removed by 'eidetic forget" in capsys.readouterr().err


def test_a_list_of_requests(lake, site, tmp_path):
    before = samples(lake)
    ids = {name: row["sample_id"] for name, row in before.items()}
    lines = [f"{site.web.url}/plain0.png", "", ids["plain1.png"]]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "list.CSV").write_text(f"asked_by,url\nsomebody,{site.web.url.upper()}/plain2.png \n")
    pq.write_table(pa.table({"sample_id": [ids["plain3.png"]]}), tmp_path / "list.parquet")
    for ending in ("txt", "CSV", "parquet"):
        assert run(lake, f"--file={tmp_path}/list.{ending}") == 0
    forgotten = {row["sample_id"] for row in samples(lake).values() if row["status"] == "forgotten"}
    assert forgotten == {ids[f"plain{number}.png"] for number in range(4)}


def files(lake):
    found = {path: path.stat().st_mtime_ns for path in Path(lake.root).rglob("*") if path.is_file()}
    return {path: time for path, time in found.items() if path.name != "writer.lock"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to forget: name it with --sample_ids, --urls or --file"),
        (["--sample_ids", "x,y", "z"], "has no sample x, y, z; mend the ids, or leave tombstones for them"),
        (["--file=not_there.txt"], "cannot read --file 'not_there.txt'"),
        (["--file=README.md", "--verify_only"], "--verify_only changes nothing"),
        (["--generations_older_than=-1"], "--generations_older_than is -1, expected 0 to 100,000"),
        (["--generations_older_than=99999999999"], "--generations_older_than is 99999999999, expected 0 to 100,000"),
        (["--urls=u", "--reason= "], "--reason is empty"),
        (["--urls=u", "--wait=-1"], "--wait is -1.0, expected 0 or more"),
    ],
)
def test_mistakes_are_one_line(words, message, lake, capsys):
    before = files(lake)
    assert run(lake, *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]
    assert files(lake) == before


def test_ids_and_urls_that_the_lake_never_had(lake, site, capsys):
    assert (
        run(lake, "--sample_ids", "x", "--allow_unknown", "--urls", "http://nowhere.example/a", "http://nowhere.example/b") == 0
    )
    assert "2 urls are not in the lake" in capsys.readouterr().err
    assert {(row["kind"], row["sample_id"]) for row in tombstones(lake)} == {("sample", "x"), ("url", None)}
    assert all(row["status"] != "forgotten" for row in samples(lake).values())


def test_a_night_at_the_same_time_keeps_it_off(lake, capsys):
    """The proof alone reads, and need not wait."""
    before = files(lake)
    with filelock.FileLock(lake.path("writer.lock"), is_singleton=False):
        assert run(lake, "--urls=u") == 2
        assert f"is at work on the lake {lake.root!r}; wait until it is done" in capsys.readouterr().err
        assert run(lake, "--verify_only") == 0
    assert files(lake) == before


def test_a_night_is_kept_off_meanwhile(lake, monkeypatch, capsys):
    def at_once(*_):
        assert run_verb(nightly.main, [f"--lake={lake.root}", "--metadata=m", "--model=m"]) == 2
        said = capsys.readouterr().err
        assert "'eidetic forget' (process " in said and "wait until it is done, or give it time with --wait SECONDS" in said
        kill()

    monkeypatch.setattr(burial, "bury", at_once)
    assert run(lake, "--urls=u") == 130


def test_a_folder_that_is_no_lake(tmp_path, capsys):
    assert run(Lake(str(tmp_path)), "--urls=u") == 2
    assert "is not a lake" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- what was not complete --------------------------------------------------------------------------------------------


def without(lake, *stages):
    """Takes these stages away: their tables, manifests and work files, and what was made of them."""
    removal.remove_what_is_made(lake)
    for stage in stages:
        for table in (table.name for table in TABLES.values() if table.stage == stage):
            shutil.rmtree(Path(lake.root) / table, ignore_errors=True)
        for folder in ("manifests", "work"):
            shutil.rmtree(Path(lake.root) / folder / stage, ignore_errors=True)


def interrupt(lake, verb, step, words, monkeypatch):
    """Runs a verb that is killed at a step, a function of its module."""
    with monkeypatch.context() as patched:
        patched.setattr(verb, step, kill)
        assert run_verb(verb.main, [f"--lake={lake.root}", *words]) == 130


def test_a_generate_that_was_killed_before_its_end(lake, site, monkeypatch):
    wanted = remains(lake)
    without(lake, "generate", "match")
    words = [f"--generations={site.folder}/generations", "--keep=all", "--clique_size=3", "--device=cpu"]
    interrupt(lake, generate, "build_compaction", words, monkeypatch)
    finished = {path.name for path in Path(lake.root).glob("work/generate/*/prompts/*.parquet")}
    assert finished and {path.split("/")[0] for name, path in places(lake, wanted) if name.startswith("gener")} == {"work"}
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    assert places(lake, wanted) == set()
    # Its caption, its copy's, and near.png's.
    left = {path.name for path in Path(lake.root).glob("work/generate/*/prompts/*.parquet")}
    assert left < finished and len(finished - left) == 3
    assert run_verb(generate.main, [f"--lake={lake.root}", *words]) == 0
    assert places(lake, wanted) == set()
    texts = [row["text"] for row in lake.read("prompts", lake.latest("generate").snapshot_id).to_pylist()]
    assert len(texts) == len(finished) - 2 and NEAR_CAPTION in texts
    assert run_verb(match.main, [f"--lake={lake.root}", "--max_false_positive_rate=0.3", "--device=cpu"]) == 0
    assert run_verb(measure.main, [f"--lake={lake.root}"]) == 0
    assert places(lake, wanted) == set()


@pytest.mark.parametrize("at", ["write_keep_list", "tidy"])
def test_a_deduplicate_that_was_killed_before_its_end(at, lake, site, monkeypatch):
    wanted = remains(lake)
    without(lake, "deduplicate", "generate", "match")
    interrupt(lake, deduplicate, at, ["--duplicate_threshold=0.97"], monkeypatch)
    assert any(path.startswith("work/deduplicate") for name, path in places(lake, wanted) if name.startswith("vector"))
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    assert places(lake, wanted) == set()
    assert run_verb(deduplicate.main, [f"--lake={lake.root}", "--duplicate_threshold=0.97"]) == 0
    assert places(lake, wanted) == set()
    assert len(lake.read("keep_list", lake.latest("deduplicate").snapshot_id)) == PLAIN + 1


def test_a_match_that_was_killed_before_its_end(lake, site, monkeypatch):
    wanted = remains(lake)
    crops = {"crop": np.asarray(decode(wanted["picture of portrait.png"])).tobytes()}
    without(lake, "match")
    words = ["--max_false_positive_rate=0.3", "--device=cpu"]
    interrupt(lake, match, "build_counts", words, monkeypatch)
    # A killed run's crops of training pictures; and a file that a killed writer left.
    assert list(Path(lake.root).glob("work/match/*/targets/*.parquet"))
    part = Path(lake.every_part("images")[0])
    shutil.copy(part, part.with_name(f".{part.name}.{'0a' * 16}"))
    assert run(lake, f"--urls={site.web.url}/portrait.png") == 0
    assert places(lake, wanted | crops) == set() and not list(part.parent.glob(".*"))
    assert run_verb(match.main, [f"--lake={lake.root}", *words]) == 0
    assert places(lake, wanted | crops) == set()
    assert run_verb(measure.main, [f"--lake={lake.root}"]) == 0
    told = [row for row in mart(lake, "extraction_rate") if row["dimension"] == "duplicates"]
    rates = {row["bucket"]: row["prompts_tried"] for row in told}
    assert rates == {"forgotten": 3, "list": PLAIN + 1}


def test_an_ingest_that_was_killed_before_its_end(lake, site):
    """Pictures whose samples aren't written yet belong to nobody that is known."""
    wanted = remains(lake)
    without(lake, "embed", "deduplicate", "generate", "match")
    os.remove(lake.path("manifests", "ingest", f"{(snapshot := lake.latest('ingest').snapshot_id)}.json"))
    part = next(
        p for p in lake.parts("samples", snapshot) if f"{site.web.url}/portrait.png" in pq.read_table(p)["url"].to_pylist()
    )
    os.remove(part)
    assert run(lake, f"--urls={site.web.url}/portrait.png", f"--urls={site.web.url}/copy.png") == 0
    assert places(lake, wanted) == set()
    site.web.hits.clear()
    assert take_in(lake, site).snapshot_id == snapshot
    assert not {"/portrait.png", "/copy.png"} & set(site.web.hits)
    assert places(lake, wanted) == set()
    assert sorted(row["status"] for row in samples(lake).values()).count("forgotten") == 2


# -- a lake that is no folder ------------------------------------------------------------------------------------------


def test_a_lake_in_an_object_store(lake, site, capsys):
    """There audit.duckdb holds copies of the tables, captions and urls among them."""
    wanted = remains(lake)
    with object_store("eidetic-forget"):
        remote = Lake("gs://eidetic-forget/lake")
        removal.remove_what_is_made(lake)
        for path in lake.files():
            write_bytes(remote.path(*lake.inside(path).split("/")), Path(path).read_bytes())
        assert run_verb(measure.main, ["--lake=gs://eidetic-forget/lake"]) == 0
        before = read_bytes(remote.path("audit.duckdb"))
        assert run(remote, f"--urls={site.web.url}/portrait.png") == 0
        assert "found nothing" in capsys.readouterr().out
        copied = Lake(f"{lake.root}-copied")
        for path in remote.files():
            write_bytes(copied.path(*remote.inside(path).split("/")), read_bytes(path))
        assert places(copied, wanted) == set()
        # The old database holds the texts compressed or not; it is read as what it says.
        write_bytes(remote.path("old.duckdb"), before)
        assert run(remote, "--verify_only") == 1
        found = {(one.kind, one.path) for one in proof.search(workers(remote)).found}
        assert found >= {(kind, "old.duckdb, table samples") for kind in ("url", "caption")}
