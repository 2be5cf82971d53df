"""The SQL files as files: shape, headers, declared columns. What they compute is tested in tests/transforms."""

import re

import pytest

import sql
from tests.fakes import fake_lake
from transforms import measurement
from transforms.lake import read_parquet

FILES = [(kind, name) for kind in ("tables", "marts", "checks") for name in sql.names(kind)]


def code(text):
    """The file without its comments."""
    return "\n".join(line.split("--")[0] for line in text.splitlines())


def test_there_are_files():
    assert sql.names("tables") == ["keep_list", "prompts"]
    assert set(sql.names("marts")) == set(measurement.MARTS) == set(sql.columns())
    assert len(sql.names("checks")) >= 10


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_is_one_select_with_a_header(kind, name):
    text = sql.read(kind, name)
    assert text.startswith("-- "), "a comment says first what it is"
    assert max(map(len, text.splitlines())) <= 120
    statement = code(text).strip()
    assert re.match(r"(SELECT|WITH( RECURSIVE)?)\b", statement)
    assert ";" not in statement
    if kind != "checks":
        assert text.startswith("-- Grain: ")
        assert "-- Source: " in text
        assert "final AS (" in statement
        assert re.search(r"\nSELECT \* FROM final\b", statement)


def test_a_mart_reads_only_the_marts_before_it():
    for place, mart in enumerate(measurement.MARTS):
        words = set(re.findall(r"(?:FROM|JOIN)\s+(\w+)", code(sql.read("marts", mart))))
        assert not words & set(measurement.MARTS[place:])


@pytest.fixture(scope="module")
def marts(tmp_path_factory):
    """mart → Arrow table, of one fake lake; and a connection to its database."""
    fake = fake_lake(tmp_path_factory.mktemp("lake"))
    measurement.run(fake.lake, fake.match, "measured")
    return {mart: read_parquet(fake.lake.part(mart, "measured", 0)) for mart in measurement.MARTS}


@pytest.mark.parametrize("mart", measurement.MARTS)
def test_declared_columns_are_what_comes_out(mart, marts):
    import duckdb

    declared = sql.columns()[mart]["columns"]
    with duckdb.connect() as connection:
        connection.register("mart", marts[mart])
        actual = {name: kind for name, kind, *_ in connection.execute("DESCRIBE mart").fetchall()}
    assert {name: column["type"] for name, column in declared.items()} == actual
    assert list(declared) == marts[mart].column_names


def test_every_declaration_says_what_it_means():
    for mart, entry in sql.columns().items():
        assert entry["grain"], mart
        assert sql.read("marts", mart).splitlines()[0].startswith("-- Grain: ")
        for name, column in entry["columns"].items():
            assert column["meaning"], f"{mart}.{name}"
            assert set(column) <= {"type", "unit", "meaning"}, f"{mart}.{name}"
