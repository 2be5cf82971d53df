"""The user's own prompts: what files they may stand in."""

import collections
import json
import math
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sql
from tests.fakes import fake_lake, rewrite
from transforms.attacks.prompts import drawn_prompts, read_prompt_list
from transforms.errors import UserError
from transforms.store.scan import connect


def test_a_line_ends_with_a_line_feed(tmp_path):
    """And a byte order mark is no part of the first prompt, which would be nobody's caption with it."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffone \r\ntwo\u2028lines\x85here\n\none\n".encode())
    assert read_prompt_list(str(tmp_path / "prompts.txt")) == ["one", "two\u2028lines\x85here"]
    (tmp_path / "prompts.jsonl").write_bytes('\ufeff{"prompt": "two\u2028lines"}\r\n\n{"prompt": null}\n'.encode())
    assert read_prompt_list(str(tmp_path / "prompts.jsonl")) == ["two\u2028lines"]


@pytest.mark.parametrize(("prompt", "said"), [(5, "has 5 among its prompts"), (["a"], "has .'a'. among its prompts")])
def test_a_prompt_is_text(tmp_path, prompt, said):
    path = str(tmp_path / "prompts.parquet")
    pq.write_table(pa.table({"caption": [prompt]}), path)
    with pytest.raises(UserError, match=f"{said}, expected text; mend its column 'caption'"):
        read_prompt_list(path)


def prompts_in(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompt_list(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["p.txt", "p", "p.csv", "p.jsonl"])
def test_prompts_as_windows_writes_them(tmp_path, encoding, name):
    texts = ["un café au lait", "crème brûlée – “déjà vu”"]
    lines = {"p.csv": ["prompt", *texts], "p.jsonl": [json.dumps({"text": text}, ensure_ascii=False) for text in texts]}
    assert prompts_in(tmp_path, name, "\r\n".join(lines.get(name, texts)).encode(encoding)) == texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'id,Prompt,score\n1,one,0.5\n2,"two, ""quoted""\nlines",high\n3,,\n'),
        ("p.CSV", 'id;caption\n1;one\n2;"two, ""quoted""\nlines"\n'),
        ("p.tsv", 'prompt\tid\none\t1\n"two, ""quoted""\nlines"\t2\n'),
        ("p.ndjson", '{"prompt": "one"}\n{"prompt": "two, \\"quoted\\"\\nlines"}\n'),
        ("p.JSONL", '{"prompt": "one", "score": 1}\n{"text": "two, \\"quoted\\"\\nlines", "score": "high"}\n{"score": [1]}\n'),
        ("p.jsonl", '"one"\nnull\n{"prompt": null, "text": "two, \\"quoted\\"\\nlines"}\n'),
        ("p.csv", 'caption,text\n,one\n"two, ""quoted""\nlines",three\n'),
        ("p.jsonl", '{"caption": " ", "text": "one"}\n{"caption": "", "prompt": "two, \\"quoted\\"\\nlines"}\n'),
        ("p.json", '[\n "one",\n {"caption": "two, \\"quoted\\"\\nlines"}\n]'),
    ],
)
def test_prompts_stand_in_columns(tmp_path, name, content):
    assert prompts_in(tmp_path, name, content) == ["one", 'two, "quoted"\nlines']


def test_prompts_in_parquet_among_columns_of_any_kind(tmp_path):
    table = pa.table({"TEXT": pa.array(["one", None, "two"]).dictionary_encode(), "other": [[1], [], None]})
    for name in ("p.parquet", "p.PARQUET", "p.pq"):
        pq.write_table(table, tmp_path / name)
        assert read_prompt_list(str(tmp_path / name)) == ["one", "two"]
    nothing = pa.table({"prompt": pa.nulls(100_000, pa.string())})
    with pq.ParquetWriter(tmp_path / "null.parquet", nothing.schema) as writer:
        for _ in range(100):
            writer.write_table(nothing)
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompt_list(str(tmp_path / "null.parquet"))


def test_prompts_that_no_table_can_hold_are_mended(tmp_path):
    """As a folder's captions are: then they find their pictures."""
    assert prompts_in(tmp_path, "p.jsonl", '{"prompt": "half \\ud83d of one"}\n') == ["half ? of one"]
    broken = pa.array([b"caf\xe9", b"two"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "p.parquet")
    assert read_prompt_list(str(tmp_path / "p.parquet")) == ["caf\ufffd", "two"]
    pq.write_table(pa.table([broken, broken], ["prompt", "prompt"]), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="among them 'prompt' twice; rename one"):
        read_prompt_list(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.xlsx", b"PK", r"whose ending is '\.xlsx'; expected text with a prompt a line"),
        ("p.csv.gz", b"\x1f\x8b", r"whose ending is '\.gz'"),
        ("p.csv", "id,url\n1,x\n", r"has columns \['id', 'url'\]; expected"),
        ("p.csv", "prompt,id\na cat, sitting,1\n", "line 2: 3 values for 2 columns; put texts that hold ',' between"),
        ("p.csv", 'prompt\n"a cat\na dog\n', "cannot be read as columns .*unexpected end of data"),
        ("p.csv", "prompt,prompt\na,b\n", "among them 'prompt' twice; rename one"),
        ("p.jsonl", '{"id": 1}\n{"url": "x"}\n', r"has columns \['id', 'url'\]; expected"),
        ("p.jsonl", '{"prompt": "one"}\n{"prompt": 5}\n', "line 2: '5' is no text"),
        ("p.jsonl", '{"prompt": "one"}\n[1]\n', r"line 2: '\[1\]' is no text"),
        ("p.jsonl", '{"prompt": "one"}\n{"prompt": "tw\n', r"line 2: '\{\"prompt\": \"tw' is not JSON"),
        ("p.jsonl", "[" * 100_000, "line 1: .*nested too deeply"),
        ("p.json", '[{"a":' * 100_000, "nested too deeply"),
        ("p.txt", " \n", "holds no prompt"),
        ("p.parquet", b"PAR1", "is not a Parquet file"),
    ],
)
def test_lists_that_cannot_be_read_are_one_line(tmp_path, name, content, said):
    with pytest.raises(UserError, match=said) as caught:
        prompts_in(tmp_path, name, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="is a folder, a pipe or a device"):
            read_prompt_list(str(path))
    with pytest.raises(UserError, match="No such file"):
        read_prompt_list(str(tmp_path / "nowhere.txt"))


def drawn(fake, **options):
    """Group → the caption by which it is asked for, and how many groups can't be."""
    found = drawn_prompts(fake.lake, fake.deduplicate, max_prompts=100, images_per_prompt=1, base_seed=0, **options)
    return {row["group_id"]: row["text"] for row in found.rows}, found.groups_without_caption


def test_captions_of_pictures_that_changed_are_left_out_where_that_is_asked_for(tmp_path):
    fake = fake_lake(tmp_path, sizes=(3, 2, 1, 1), controls=0)
    groups = {}
    for row in fake.rows("duplicate_groups"):
        groups.setdefault(row["group_id"], row["representative"])
    by_size = {row["group_id"]: row["size"] for row in fake.rows("duplicate_groups")}
    of = {row["sample_id"]: row["group_id"] for row in fake.rows("duplicate_groups")}
    # Of the three the representative alone changed, of the two both did, and of one of the singles it is unknown.
    single = next(group for group, size in by_size.items() if size == 1)

    def drift(row):
        group = of.get(row["sample_id"])
        if by_size.get(group) == 3:
            return "changed" if row["sample_id"] == groups[group] else "unchanged"
        return "changed" if by_size.get(group) == 2 else "unknown" if group == single else "unchanged"

    rewrite(fake, "samples", lambda rows: [
        row | {"drift": drift(row), "caption": f"{row['caption']}, {drift(row)}"} for row in rows
    ])  # fmt: skip
    every, without = drawn(fake)
    assert len(every) == 4 and without == 0
    some, without = drawn(fake, skip_changed=True)
    assert without == 1 and len(some) == 3
    assert {by_size[group] for group in every.keys() - some.keys()} == {2}
    assert some[next(group for group in some if by_size[group] == 3)].endswith(", unchanged")
    assert some[single].endswith(", unknown")


def test_a_placeholder_is_known_by_captions_of_pictures_that_changed(tmp_path):
    """Where a picture isn't found any more, all of its captions are those of pictures that changed."""
    chance = random.Random(0)
    fake = fake_lake(tmp_path, sizes=(12, 2, *[1] * 40), controls=0)
    of = {row["sample_id"]: row for row in fake.rows("duplicate_groups")}
    numbers = {sample: number for number, sample in enumerate(sorted(of))}
    rewrite(fake, "samples", lambda rows: [
        row | {"caption": unlike(chance), "drift": "changed" if of[row["sample_id"]]["size"] == 12 else "unknown",
               "url": f"https://host{numbers[row['sample_id']]}.example/x.png"}
        for row in rows if row["sample_id"] in of
    ])  # fmt: skip
    placeholder = next(row["group_id"] for row in of.values() if row["size"] == 12)
    every, _ = drawn(fake, skip_placeholders=False)
    assert placeholder in every
    without, groups_without_caption = drawn(fake, skip_changed=True)
    assert groups_without_caption == 0
    assert without.keys() == every.keys() - {placeholder}


# -- placeholders -----------------------------------------------------------------------------------------------------

NOUNS = ("house", "river", "summer", "engine", "garden", "winter", "station", "bottle", "mountain", "window", "forest")
LITTLE = ("the", "of", "in", "and", "for", "a", "with", "by", "to", "on")


def unlike(chance):
    """A caption as of any picture: words by chance out of many, and the little ones that all have."""
    words = [f"{chance.choice(NOUNS)}{chance.randrange(400)}" for _ in range(chance.randint(5, 11))]
    return " ".join([*words, chance.choice(LITTLE)])


def like(chance, name):
    """A caption of one picture, as shops and pages write it, each its own way."""
    words = [name, f"{name}b", "poster", *chance.sample(["print", "official", "sale", "new", "framed", "buy", "large"], 3)]
    chance.shuffle(words)
    return " ".join([*words, chance.choice(NOUNS)])


def placeholders_among(groups):
    """Numbers of the groups that ``sql/marts/placeholders.sql`` finds, of groups of one picture each: (hosts, captions)."""
    members = [
        {"sample_id": f"{number}-{place}", "group_id": f"{number}", "size": len(captions), "representative": f"{number}-0",
         "caption": caption, "url": f"https://host{place % hosts}.example/{place}.png", "sha256": f"{place % 2}"}
        for number, (hosts, captions) in enumerate(groups) for place, caption in enumerate(captions)
    ]  # fmt: skip
    with connect() as connection:
        table = pa.Table.from_pylist(members)
        connection.register("duplicate_groups", table.drop_columns(["caption", "url", "sha256"]))
        connection.register("samples", table.select(["sample_id", "caption", "url", "sha256"]))
        found = connection.sql(sql.read("marts", "placeholders")).to_arrow_table().to_pylist()
    return {int(row["group_id"]): row for row in found}


def test_placeholders_are_found_and_pictures_that_are_repeated_are_none():
    chance = random.Random(0)
    sizes = [10, 12, 16, 40, 150]
    kinds = {
        "placeholder": [(size, [unlike(chance) for _ in range(size)]) for size in sizes for _ in range(10)],
        "memorised": [(size, [like(chance, f"name{n}") for _ in range(size)]) for n, size in enumerate(sizes * 10)],
        "same caption": [(size, ["the very same words"] * size) for size in sizes],
        # Three tenths under captions like one another are enough to have learned it by them.
        "partly": [
            (size, [like(chance, f"part{size}") if place % 10 < 3 else unlike(chance) for place in range(size)])
            for size in sizes
        ],
        # What else a lake has.
        "once": [(1, [unlike(chance)]) for _ in range(500)],
        "four hosts": [(4, [unlike(chance) for _ in range(size)]) for size in sizes],
        "few": [(9, [unlike(chance) for _ in range(9)])],
        "no captions": [(40, [unlike(chance) if place < 9 else [None, " ", "..."][place % 3] for place in range(40)])],
        # Scripts without spaces between words.
        "signs": [(20, [f"{chr(0x4E00 + place)}富士山の写真{chr(0x5E00 + place)}" for place in range(20)])],
    }
    kind_of = [kind for kind, groups in kinds.items() for _ in groups]
    found = placeholders_among([group for groups in kinds.values() for group in groups])
    assert collections.Counter(kind_of[number] for number in found) == {"placeholder": len(kinds["placeholder"])}
    # The signs are words of their own, and no other caption has one of them.
    representatives = [captions[0] for groups in kinds.values() for _, captions in groups]
    for number, row in found.items():
        hosts, captions = kinds["placeholder"][number]
        number = len(captions)
        assert (row["images"], row["captions"], row["domains"], row["identical"]) == (number, number, hosts, number // 2)
        assert row["likeness"] == pytest.approx(likeness(captions, representatives))


def likeness(captions, representatives):
    """By the words of the header of placeholders.sql."""
    texts = [set((text or "").replace(".", " ").split()) for text in representatives]
    rarity = collections.defaultdict(lambda: math.log(len(texts) + 1))
    for word, number in collections.Counter(word for text in texts for word in text).items():
        rarity[word] = math.log((len(texts) + 1) / number)
    words = [set(caption.split()) for caption in captions]
    supports = [
        sum(rarity[word] * (sum(word in other for other in words) - 1) for word in mine)
        / sum(rarity[word] for word in mine)
        / (len(words) - 1)
        for mine in words
    ]
    return np.quantile(supports, 0.9)


def test_placeholders_are_not_asked_for(tmp_path):
    chance = random.Random(1)
    fake = fake_lake(tmp_path, sizes=(12, 11, 1), controls=0, images_per_prompt=1)
    of = {row["sample_id"]: row["size"] for row in fake.rows("duplicate_groups")}
    captions = {12: lambda: unlike(chance), 11: lambda: like(chance, "name"), 1: lambda: "a caption"}
    rewrite(fake, "samples", lambda rows: [
        row | {"caption": captions[of.get(row["sample_id"], 1)](), "url": f"https://h{place}.example/"}
        for place, row in enumerate(rows)
    ])  # fmt: skip
    for skip, sizes in ((True, [11, 1]), (False, [12, 11, 1])):
        found = drawn_prompts(
            fake.lake, fake.deduplicate, max_prompts=9, images_per_prompt=1, base_seed=0, skip_placeholders=skip
        )
        assert [row["n_duplicates"] for row in found.rows] == sizes
        assert found.placeholders == skip and found.groups_without_caption == 0
