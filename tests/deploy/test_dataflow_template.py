"""The Flex Template's metadata have every option, as Google's own readers take them; image and commands fit them."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from google.cloud import dataflow_v1beta3
from google.protobuf import json_format

from pipelines import cli, flex_template
from pipelines.options import fields_of, parse
from tests.servers import ROOT
from transforms.errors import UserError

DATAFLOW = ROOT / "deploy/dataflow"
IMAGE = "europe-west4-docker.pkg.dev/project/repository/eidetic:0.1.0"
TEMPLATE = "gs://bucket/eidetic.json"


@pytest.fixture(scope="module")
def parameters():
    return {one["name"]: one for one in json.loads(flex_template.text())["parameters"]}


# -- the metadata -----------------------------------------------------------------------------------------------------


def test_every_verb_is_in_it_or_it_is_said_why_not(parameters):
    offered = {one["value"] for one in parameters["verb"]["enumOptions"]}
    assert offered == set(flex_template.verbs()) and not offered & set(flex_template.NO_JOB)
    assert offered | set(flex_template.NO_JOB) == set(cli.verbs())


def test_every_option_of_every_verb_is_asked_for_where_the_verb_is_chosen(parameters):
    asked = set()
    for verb, classes in flex_template.verbs().items():
        for field, _ in (pair for kind in classes for pair in fields_of(kind)):
            parameter = parameters[field.name]
            asked.add(field.name)
            assert verb in parameter.get("parentTriggerValues", [verb]), f"{verb} --{field.name}"
            assert field.name == "lake" or field.metadata["help"] in parameter["helpText"]
    assert set(parameters) == asked | {"verb"}


def test_googles_message_takes_it_and_its_rules_hold(parameters):
    # Strict: a field or a type that Dataflow doesn't know is an error.
    message = json_format.Parse(flex_template.text(), dataflow_v1beta3.TemplateMetadata.pb(dataflow_v1beta3.TemplateMetadata()))
    assert message.name and len(message.parameters) == len(parameters)
    verbs = {one["value"] for one in parameters["verb"]["enumOptions"]}
    for name, one in parameters.items():
        assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]+", name)
        assert one["label"] and one["helpText"], "both are required"
        assert one.get("parentName", "verb") == "verb" and set(one.get("parentTriggerValues", ())) <= verbs
        assert ("parentName" in one) == ("parentTriggerValues" in one)
        for pattern in one.get("regexes", ()):
            re.compile(pattern)
        default, kind = one.get("defaultValue"), one["paramType"]
        if kind == "ENUM":
            assert default is None or default in [choice["value"] for choice in one["enumOptions"]]
        else:
            assert "enumOptions" not in one
        if kind == "BOOLEAN":
            assert default in ("true", "false")
        if kind == "NUMBER":
            float(default)
    assert not parameters["lake"]["isOptional"] and not re.search(parameters["lake"]["regexes"][0], "/tmp/lake")


def test_gcloud_takes_it(tmp_path):
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not on this machine")
    (tmp_path / "metadata.json").write_text(flex_template.text())
    words = ["dataflow", "flex-template", "build", TEMPLATE, f"--image={IMAGE}", "--sdk-language=PYTHON"]
    done = subprocess.run(
        ["gcloud", *words, f"--metadata-file={tmp_path}/metadata.json", "--print-only"],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
    )  # fmt: skip
    assert '"image": "' + IMAGE in done.stdout and done.stdout.count('"paramType"') == flex_template.text().count('"paramType"')


# -- the launcher's words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", flex_template.verbs())
def test_a_form_that_was_left_alone_means_the_defaults(verb, parameters, monkeypatch):
    monkeypatch.delenv(flex_template.IMAGE, raising=False)
    shown = [one for one in parameters.values() if verb in one.get("parentTriggerValues", [verb]) and one["name"] != "verb"]
    form = [f"--verb={verb}", *(f"--{one['name']}={one.get('defaultValue', '')}" for one in shown)]
    form = ["--lake=lake" if word.startswith("--lake=") else word for word in form]
    name, *words = flex_template.command(form)
    classes = flex_template.verbs()[verb]
    assert name == verb and parse(words, verb, "", classes).options == parse([], verb, "", classes).options


def test_words_of_the_launcher_become_those_of_the_verb(monkeypatch):
    monkeypatch.setenv(flex_template.IMAGE, IMAGE)
    beam = ["--runner=DataflowRunner", "--template_location=gs://b/t", "--experiments", "a"]
    words = [
        "--honour_opt_outs=False",
        "--upscale=true",
        "--metadata=gs://b/m/",
        "--controls=",
        "--lake=gs://b/l",
        "--verb=ingest",
    ]
    assert flex_template.command([*beam, *words]) == [
        "ingest", *beam, "--no_honour_opt_outs", "--upscale", "--metadata=gs://b/m/", "--lake=gs://b/l",
        f"--sdk_container_image={IMAGE}",
    ]  # fmt: skip
    assert flex_template.command(["--verb=infer", "--attacks=loss 'a b'", "--sdk_container_image=other"]) == [
        "infer", "--attacks", "loss", "a b", "--sdk_container_image=other",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the parameter verb is None, expected one of ingest, embed"),
        (["--verb=embbed"], "the parameter verb is 'embbed', expected one of ingest, embed"),
        (["--verb=nightly"], "the parameter verb is 'nightly', which a template can't start: it is many jobs"),
        (["--verb=ingest", "--upscale=maybe"], "the parameter upscale is 'maybe', expected true or false"),
    ],
)
def test_words_that_mean_nothing_are_said(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        flex_template.command(words)


# -- the image and the commands ---------------------------------------------------------------------------------------


def instructions():
    """(instruction, its words) of the Dockerfile."""
    joined = re.sub(r"\\\n(\s*#.*\n)*", " ", (DATAFLOW / "Dockerfile").read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def test_the_image_is_of_the_lock_and_is_both_worker_and_launcher():
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    beam, said = lock["apache-beam"], dict(instructions())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert said["FROM"] == f"apache/beam_python{python}_sdk:{beam}"  # the last one
    runs = " ".join(words for name, words in instructions() if name == "RUN")
    assert f"apache_beam.__version__ == '{beam}'" in runs and "-r requirements.lock" in runs
    assert json.loads(said["ENTRYPOINT"]) == ["/opt/apache/beam/boot"]
    environment = " ".join(words for name, words in instructions() if name == "ENV")
    folder = said["WORKDIR"]
    assert (
        f"FLEX_TEMPLATE_PYTHON_PY_FILE={folder}/launch.py" in environment and f"{flex_template.IMAGE}=${{IMAGE}}" in environment
    )
    copied = " ".join(words for name, words in instructions() if name == "COPY" and "--from" not in words)
    assert set(copied.split()) == {"requirements.lock", "eidetic-*.whl", "launch.py", "./"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the template is made of: it is built inside the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pipelines", "transforms", "sql", "deploy", "demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("setup.py", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >> "$RECORDED"
[ "$1" != info ] || exit $DAEMON
"""


@pytest.fixture
def template(checkout, tmp_path):
    """Runs template.sh with recorders for these programs, and without the others; (exit code, what it said, their commands)."""

    def run(*programs, daemon=0, python=None, **variables):
        path = tmp_path / "bin"
        path.mkdir()
        for name in ("sh", "dirname", "basename", "rm", "mkdir", "cp", "cmp", "touch", "cat"):
            (path / name).symlink_to(shutil.which(name))
        for name in programs:
            (path / name).write_text(RECORDER)
            (path / name).chmod(0o755)
        done = subprocess.run(
            [checkout / "deploy/dataflow/template.sh"], capture_output=True, text=True, timeout=180, check=False,
            env={
                **{name: value for name, value in os.environ.items() if name not in ("IMAGE", "TEMPLATE")},
                "PATH": str(path), "PYTHON": python or str(tmp_path / "python"), "PYTHONPATH": str(checkout),
                "RECORDED": str(tmp_path / "recorded"), "DAEMON": str(daemon), **variables,
            },
        )  # fmt: skip
        recorded = tmp_path / "recorded"
        return done.returncode, done.stdout + done.stderr, recorded.read_text().splitlines() if recorded.exists() else []

    # Wheel and metadata take seconds, and are really made in one test.
    (tmp_path / "options.json").write_text(flex_template.text())
    wheel = "build/dataflow/eidetic-0.1.0-py3-none-any.whl"
    (tmp_path / "python").write_text(f"#!/bin/sh\n[ $2 != pip ] || exec touch {wheel}\nexec cat {tmp_path}/options.json\n")
    (tmp_path / "python").chmod(0o755)
    return run


BUILD = f"docker build --build-arg IMAGE={IMAGE} --tag {IMAGE} build/dataflow"
SPEC = (
    f"gcloud dataflow flex-template build {TEMPLATE} --image={IMAGE} --sdk-language=PYTHON "
    "--metadata-file=build/dataflow/metadata.json"
)


def test_the_wheel_has_every_module_and_the_folder_all_that_the_image_copies(template, checkout):
    code, said, _ = template(python=sys.executable)
    assert code == 0, said
    made = checkout / "build/dataflow"
    (wheel,) = made.glob("eidetic-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for room in ("pipelines", "transforms") for path in (ROOT / room).rglob("*.py")}
    assert modules | {"pipelines/rates.json"} <= inside and any(name.endswith(".sql") for name in inside)
    assert {path.name for path in made.iterdir()} == {
        "Dockerfile", "launch.py", "metadata.json", "requirements.lock", wheel.name,
    }  # fmt: skip
    assert (made / "metadata.json").read_text() == flex_template.text()
    # Neither program is here, and nobody said where to.
    assert "gcloud is not on this machine" in said and "name IMAGE and TEMPLATE, or:\n  docker build" in said


def test_image_and_template_are_built_where_the_programs_are(template):
    code, said, commands = template("docker", "gcloud", IMAGE=IMAGE, TEMPLATE=TEMPLATE)
    assert code == 0, said
    assert commands == [f"{SPEC} --print-only", "docker info", BUILD, f"docker push {IMAGE}", SPEC]


@pytest.mark.parametrize(
    ("programs", "daemon", "variables", "said"),
    [
        ((), 0, {"IMAGE": IMAGE, "TEMPLATE": TEMPLATE}, f"docker is not on this machine; where it is: {BUILD}"),
        (
            ("docker",),
            1,
            {"IMAGE": IMAGE, "TEMPLATE": TEMPLATE},
            f"docker's daemon does not answer; start it, and then: {BUILD}",
        ),
        (("docker",), 0, {"IMAGE": IMAGE, "TEMPLATE": TEMPLATE}, f"gcloud is not on this machine; where it is: {SPEC}"),
        ((), 0, {"TEMPLATE": TEMPLATE}, "TEMPLATE says where the template goes, but not of which image: name IMAGE too"),
        ((), 0, {"IMAGE": IMAGE, "TEMPLATE": "x.json"}, "TEMPLATE is 'x.json', expected gs://BUCKET/FILE.json"),
    ],
)
def test_what_is_missing_is_one_line(template, programs, daemon, variables, said):
    code, output, _ = template(*programs, daemon=daemon, **variables)
    assert code == 2 and output.splitlines()[-1].startswith(said)
