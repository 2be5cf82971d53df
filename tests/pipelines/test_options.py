"""The command line: what is ours, what is Beam's, and what is a mistake."""

import dataclasses

import pytest

from pipelines.options import CommonOptions, option, parameters, parse
from transforms.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fruit:
    """Fruit: for the tests."""

    apples: int = option(3, "how many")
    sour: bool = option(False, "whether")
    kind: str = option("red", "which", choices=("red", "green"))
    weight: float | None = option(None, "in grams")


def read(*words, classes=(CommonOptions, Fruit)):
    return parse(words, "test", "A test.", classes)


def test_defaults_and_values():
    assert read()[Fruit] == Fruit()
    parsed = read("--apples", "5", "--sour", "--weight=2.5", "--lake", "gs://x/y")
    assert parsed[Fruit] == Fruit(apples=5, sour=True, weight=2.5)
    assert parsed[CommonOptions].lake == "gs://x/y"
    assert parameters(parsed[Fruit], leave_out=["sour"]) == {"apples": 5, "kind": "red", "weight": 2.5}


def test_beams_options_pass_through_untouched():
    words = ["--runner=DataflowRunner", "--project", "my-project-1", "--temp_location=gs://b/t", "--experiments=a"]
    parsed = read("--apples", "1", *words)
    assert parsed.beam == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--aples", "5"], r"unknown option '--aples' \(did you mean 'apples'\?\)"),
        (["--applesauce=1"], "unknown option '--applesauce=1'"),
        (["stray"], "unknown option 'stray'"),
        (["--apples", "many"], "invalid int value: 'many'"),
        (["--kind", "blue"], "invalid choice: 'blue'"),
        (["--apple", "5"], "unknown option '--apple'"),  # no abbreviations: they break when an option is added
    ],
)
def test_mistakes_are_errors(words, message):
    with pytest.raises(UserError, match=message):
        read(*words)


def test_config_file_and_command_line(tmp_path):
    config = tmp_path / "options.toml"
    config.write_text('apples = 7\nsour = true\nkind = "green"\nweight = 2\n')
    assert read("--config", str(config))[Fruit] == Fruit(apples=7, sour=True, kind="green", weight=2.0)
    assert read("--config", str(config), "--apples=1", "--no_sour")[Fruit] == Fruit(1, False, "green", 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pears = 1", "unknown option 'pears'"),
        ("aples = 1", "did you mean 'apples'"),
        ('apples = "x"', "apples is 'x', expected int"),
        ("apples = true", "apples is True, expected int"),
        ('kind = "blue"', "expected one of"),
        ("apples = ", "is not TOML"),
        ("apples = " + "9" * 5000, "is not TOML"),
    ],
)
def test_mistakes_in_the_config_file(tmp_path, text, message):
    config = tmp_path / "options.toml"
    config.write_text(text)
    with pytest.raises(UserError, match=message):
        read("--config", str(config))


def test_a_config_file_that_is_no_file_of_options(tmp_path):
    deep = tmp_path / "deep.toml"
    deep.write_text("apples = " + "[" * 100_000)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'kind = "\xe9"')
    for path, message in (("/dev/zero", "larger than 1,048,576 bytes"), (deep, "nested too deeply"), (latin, "is not TOML")):
        with pytest.raises(UserError, match=message):
            read(f"--config={path}")


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "options.toml").write_bytes(b"\xef\xbb\xbfapples = 7\r\n")
    assert read("--config", str(tmp_path / "options.toml"))[Fruit].apples == 7


def test_a_config_file_that_is_not_there():
    with pytest.raises(UserError, match="cannot read --config"):
        read("--config", "/nowhere.toml")


@dataclasses.dataclass(frozen=True)
class Basket:
    """Several of a kind."""

    pears: tuple[str, ...] = option((), "by name")


def test_an_option_with_several_values(tmp_path):
    assert read(classes=(Basket,))[Basket] == Basket()
    assert read("--pears", "a", "b c", "--pears=d", classes=(Basket,))[Basket] == Basket(("a", "b c", "d"))
    (tmp_path / "a.toml").write_text('pears = ["a", "b"]')
    assert read(f"--config={tmp_path}/a.toml", classes=(Basket,))[Basket] == Basket(("a", "b"))
    for wrong in ('"a"', "[1]"):
        (tmp_path / "a.toml").write_text(f"pears = {wrong}")
        with pytest.raises(UserError, match=r"pears is .*, expected texts"):
            read(f"--config={tmp_path}/a.toml", classes=(Basket,))
