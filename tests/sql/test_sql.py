"""The SQL files as files: shape, headers, declared columns. What they compute is tested in tests/transforms."""

import re

import pytest

import sql
from tests.fakes import fake_lake
from transforms.results import marts
from transforms.store import scan
from transforms.store.files import read_parquet

FILES = [(kind, name) for kind in ("tables", "staging", "marts", "checks") for name in sql.names(kind)]


def code(text):
    """The file without its comments."""
    return "\n".join(line.split("--")[0] for line in text.splitlines())


def test_there_are_files():
    assert sql.names("tables") == ["group_captions", "keep_list", "mitigated_prompts", "mitigation_effects", "prompts"]
    # Of a sweep, not of an audit.
    assert set(sql.names("marts")) == {*marts.MARTS, "membership", "membership_roc"} == set(sql.columns())
    staging = {step.split("/")[1] for step in marts.STEPS} - set(marts.MARTS)
    assert set(sql.names("staging")) == staging == set(sql.columns("staging"))
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


@pytest.mark.parametrize("name", sql.names("functions"))
def test_a_function_is_one_macro_with_a_header(name):
    text = sql.read("functions", name)
    assert text.startswith("-- Takes: ")
    assert re.match(rf"CREATE MACRO {name}\(", code(text).strip())
    assert max(map(len, text.splitlines())) <= 120


def test_a_step_reads_only_the_steps_before_it():
    names = [step.split("/")[1] for step in marts.STEPS]
    for place, step in enumerate(marts.STEPS):
        words = set(re.findall(r"(?:FROM|JOIN)\s+(\w+)", code(sql.read(*step.split("/")))))
        assert not words & set(names[place:])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Table → Arrow table, of one fake lake: the marts as they're stored, staging as it is made on the way."""
    fake = fake_lake(tmp_path_factory.mktemp("lake"))
    marts.run(fake.lake, fake.match, "measured")
    tables = {mart: read_parquet(fake.lake.part(mart, "measured", 0)) for mart in marts.MARTS}
    with scan.connect() as connection:
        marts.make(connection, fake.lake, fake.match)
        return tables | {name: connection.table(name).to_arrow_table() for name in sql.names("staging")}


@pytest.mark.parametrize("step", marts.STEPS)
def test_declared_columns_are_what_comes_out(step, made):
    import duckdb

    kind, name = step.split("/")
    declared = sql.columns(kind)[name]["columns"]
    with duckdb.connect() as connection:
        connection.register("made", made[name])
        actual = {column: type for column, type, *_ in connection.execute("DESCRIBE made").fetchall()}
    assert {column: declaration["type"] for column, declaration in declared.items()} == actual
    assert list(declared) == made[name].column_names


@pytest.mark.parametrize("kind", ["staging", "marts"])
def test_every_declaration_says_what_it_means(kind):
    for table, entry in sql.columns(kind).items():
        assert entry["grain"], table
        assert sql.read(kind, table).splitlines()[0].startswith("-- Grain: ")
        for name, column in entry["columns"].items():
            assert column["meaning"], f"{table}.{name}"
            assert set(column) <= {"type", "unit", "meaning"}, f"{table}.{name}"
