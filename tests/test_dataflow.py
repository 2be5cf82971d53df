"""Every pipeline becomes a Dataflow template without a network; only the steps with a model ask for a GPU.

The staged pipeline is read back from an emulator of Google's storage: what is looked at is what Dataflow would get.
"""

import csv
import json
import urllib.parse
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from pipelines import deduplicate, embed, flex_template, generate, ingest, match, mitigate
from pipelines.cli import run_verb
from pipelines.deduplicate import DeduplicateOptions
from pipelines.device import DeviceOptions
from pipelines.embed import EmbedOptions
from pipelines.execution import Execution
from pipelines.generate import GenerateOptions
from pipelines.match import MatchOptions
from pipelines.options import Parsed
from tests.models import save_random_pipeline
from tests.planted import picture, write_tiny_clip
from tests.servers import object_store
from transforms.attacks.attempts import GeneratorHandler
from transforms.data import survey, text_metadata
from transforms.data.images import ImageStore
from transforms.errors import TemplateWritten
from transforms.forgetting import workers
from transforms.kernels.copies import CopyLimits
from transforms.matching.tasks import Task
from transforms.models.processes import AS_IT_IS
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

ACCELERATOR = "beam:resources:accelerator:v1"
BUCKET = "eidetic-test"
LARGEST_PAYLOAD = 100_000
"""Bytes. A pickled function above this carries data that belongs in the lake."""


@pytest.fixture(scope="module")
def storage():
    """The port of an emulator of Google's storage with one bucket."""
    with object_store(BUCKET) as port:
        yield port


@pytest.fixture
def cloud(storage, tmp_path):
    """Options of a run on Dataflow that stops at the template."""
    return [
        "--runner=DataflowRunner",
        f"--template_location={tmp_path}/template.json",
        "--project=eidetic-test",
        "--region=europe-west4",
        f"--temp_location=gs://{BUCKET}/temp",
        f"--staging_location=gs://{BUCKET}/staging",
        "--job_name=eidetic",
        "--no_auth",
    ]


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A lake with every stage up to match complete, made by the real verbs from twelve pictures in a folder."""
    folder = tmp_path_factory.mktemp("dataflow")
    for role, first, count in (("training", 0, 8), ("controls", 8, 4)):
        (folder / role).mkdir()
        for number in range(first, first + count):
            (folder / role / f"{number}.png").write_bytes(encode_png(picture(number)))
            (folder / role / f"{number}.txt").write_text(f"picture {number}")
    write_tiny_clip(folder / "clip")
    save_random_pipeline(str(folder / "model"))
    made = Lake(str(folder / "lake"))
    words = {
        ingest: [f"--metadata={folder}/training", "--source=folder", f"--controls={folder}/controls", "--image_size=64"],
        embed: [f"--clip_model={folder}/clip", "--device=cpu"],
        deduplicate: [],
        generate: [f"--model={folder}/model", "--device=cpu", *FEW],
    }
    for verb, mine in words.items():
        assert run_verb(verb.main, [f"--lake={made.root}", *mine]) == 0
    return made


FEW = ("--max_prompts=2", "--images_per_prompt=2", "--steps=1", "--keep=all")


@pytest.fixture
def build(lake, cloud, storage, tmp_path):
    """Builds the template of one pipeline and gives the pipeline that was staged for it."""

    def template(make) -> beam_runner_api_pb2.Pipeline:
        with pytest.raises(TemplateWritten):
            Execution(lake, cloud).run(make)
        return staged_pipeline(tmp_path / "template.json", storage)

    return template


def staged_pipeline(template, storage):
    options = json.loads(template.read_text())["environment"]["sdkPipelineOptions"]["options"]
    url = options["pipelineUrl"]
    _, _, path = url.partition(f"gs://{BUCKET}/")
    quoted = urllib.parse.quote(path, safe="")
    address = f"http://127.0.0.1:{storage}/download/storage/v1/b/{BUCKET}/o/{quoted}?alt=media"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return beam_runner_api_pb2.Pipeline.FromString(answer.read())


def steps(pipeline):
    """Full name → transform, of the transforms that do something themselves."""
    transforms = pipeline.components.transforms.values()
    found = {one.unique_name: one for one in transforms if not one.subtransforms and one.spec.urn}
    assert found
    for name, one in pipeline.components.transforms.items():
        assert len(one.spec.payload) <= LARGEST_PAYLOAD, f"{name} carries {len(one.spec.payload):,} bytes"
    return found


def on_gpu(pipeline):
    """The names of the steps that ask for an accelerator, and those that don't."""
    environments = pipeline.components.environments
    asks = {
        name: ACCELERATOR in environments[one.environment_id].resource_hints if one.environment_id else False
        for name, one in steps(pipeline).items()
    }
    return {name for name, wanted in asks.items() if wanted}, {name for name, wanted in asks.items() if not wanted}


def has_step(names, ending):
    return any(name.endswith(ending) for name in names)


def test_embed_asks_for_a_gpu_where_the_model_is(lake, build):
    from transforms.data.embedding import EmbedImages, OpenClipHandler

    device = DeviceOptions(device="cuda")
    images = lake.latest("ingest")
    clip = EmbedOptions(clip_model=lake.latest("embed").facts["clip_model"]).model(device.resolved())
    transform = EmbedImages(OpenClipHandler(clip, lake, images.snapshot_id), "new", device.devices())
    pipeline = build(lambda pipeline: embed.build(pipeline, [0, 1], transform))
    with_gpu, without = on_gpu(pipeline)
    assert has_step(with_gpu, "BeamML_RunInference") and has_step(with_gpu, "WriteEmbeddings")
    assert has_step(without, "SkipWritten")
    assert all("/EmbedAndWrite/" in name for name in with_gpu)
    assert not any("/EmbedAndWrite/" in name for name in without)
    (hint,) = {
        environment.resource_hints[ACCELERATOR]
        for environment in pipeline.components.environments.values()
        if ACCELERATOR in environment.resource_hints
    }
    assert hint.decode() == DeviceOptions().accelerator


@pytest.fixture
def store(lake):
    return ImageStore(lake, lake.latest("ingest").snapshot_id, lake.latest("embed").snapshot_id)


def test_generate_asks_for_a_gpu_where_the_model_is(lake, build, store):
    device = DeviceOptions(device="cuda")
    done = lake.latest("generate")
    options = GenerateOptions(model=done.facts["model"])
    images = generate.generator(options, device.resolved())
    handler = GeneratorHandler(lake, done.snapshot_id, images, options.filter, options.seed, store)
    with_gpu, without = on_gpu(build(lambda pipeline: generate.build(pipeline, 1, handler, device.devices())))
    assert has_step(with_gpu, "BeamML_RunInference")
    assert has_step(without, "ReadPrompts")
    assert all("/MakeAndWrite/" in name for name in with_gpu)
    assert not any("/MakeAndWrite/" in name for name in without)


def test_without_a_named_gpu_nothing_asks_for_one(lake, build, store):
    device = DeviceOptions(device="cpu")
    done = lake.latest("generate")
    options = GenerateOptions(model=done.facts["model"])
    images = generate.generator(options, "cpu")
    handler = GeneratorHandler(lake, done.snapshot_id, images, options.filter, options.seed, store)
    with_gpu, _ = on_gpu(build(lambda pipeline: generate.build(pipeline, 1, handler, device.devices())))
    assert with_gpu == set()


def test_compaction_needs_no_gpu(lake, build):
    with_gpu, without = on_gpu(build(lambda pipeline: generate.build_compaction(pipeline, lake, "audit", 1)))
    assert with_gpu == set() and has_step(without, "Compact")


def test_ingest_needs_no_gpu(lake, build):
    options = ingest.IngestOptions(metadata=str(lake.root).removesuffix("lake") + "training", source="folder")
    with_gpu, without = on_gpu(build(lambda pipeline: ingest.build(pipeline, lake, "new", options)))
    assert with_gpu == set() and has_step(without, "IngestBucket")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_large_file_goes_to_the_workers_in_ranges(lake, build, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(survey, "RANGE_BYTES", 1)
    monkeypatch.setattr(text_metadata, "BLOCK_BYTES", 1000)
    rows = [{"URL": f"http://h/{n}.png", "TEXT": f"a, {n}", "split": "test" if n % 5 == 0 else "train"} for n in range(1000)]
    path = tmp_path / f"m.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=25)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    options = ingest.IngestOptions(metadata=str(path), controls_split="test", rows_per_part=100)
    assert {role: one.rows for role, one in options.surveys.items()} == {"training": 800, "control": 200}
    pieces = [piece for one in options.surveys.values() for partition in one.partitions for piece in partition.pieces()]
    assert len(pieces) > 50
    with_gpu, without = on_gpu(build(lambda pipeline: ingest.build(pipeline, lake, "new", options)))
    assert with_gpu == set() and has_step(without, "SpreadRows") and has_step(without, "IngestBucket")
    # An element each, which are shuffled: whichever worker is free takes one.
    assert has_step(without, "Partitions/MaybeReshuffle/Reshuffle/ReshufflePerKey/GroupByKey")


def test_deduplicate_needs_no_gpu(lake, build):
    from transforms.duplicates import FindDuplicates, blocks

    embedded, options = lake.latest("embed"), DeduplicateOptions(duplicate_threshold=0.8)
    planned = deduplicate.plan(lake, Parsed.of(options), embedded.snapshot_id)
    job = deduplicate.search(lake, options, embedded, planned)
    with_gpu, without = on_gpu(build(lambda pipeline: deduplicate.build(pipeline, blocks(job), FindDuplicates(job))))
    steps = ("CheckBlock", "QueryBlock", "SpillBlock", "ComparePieces", "CarryOver", "GatherBlock", "WriteBatch")
    assert with_gpu == set() and all(has_step(without, step) for step in steps)


@pytest.fixture
def job(lake):
    done, options = lake.latest("generate"), MatchOptions()
    return match.Matching(lake, options, done, match.plan(lake, Parsed.of(options), done.snapshot_id))


TASKS = [Task("generations", 0), Task("regenerations", 0), Task("decoys", 0)]


@pytest.fixture
def matched(job):
    job.directory.write(job.snapshots.ingest, job.snapshots.embed)
    return job.round("stored", TASKS)


def test_the_vectors_of_what_is_judged_are_made_where_the_gpu_is(build, job, matched, lake):
    device = DeviceOptions(device="cuda")
    clip = embed.encoder(lake.latest("embed"), device)
    with_gpu, without = on_gpu(build(lambda pipeline: match.build_embedding(pipeline, job, matched, clip, device.devices())))
    assert has_step(with_gpu, "BeamML_RunInference") and has_step(with_gpu, "WriteTask")
    assert has_step(without, "SkipEmbedded")
    on_cpu, _ = on_gpu(build(lambda pipeline: match.build_embedding(pipeline, job, matched, clip, AS_IT_IS)))
    assert on_cpu == set()


def test_matching_needs_no_gpu_and_carries_no_data(build, job, matched):
    steps = {
        "SearchChunk": lambda pipeline: match.build_search(pipeline, matched, 1000),
        "GatherPart": lambda pipeline: match.build_gathering(pipeline, matched, [0]),
        "MatchTask": lambda pipeline: match.build(pipeline, job, matched),
        "ThumbnailsOfAttempts": lambda pipeline: match.build_thumbnails(pipeline, matched),
    }
    for step, made in steps.items():
        with_gpu, without = on_gpu(build(made))
        assert with_gpu == set() and has_step(without, step)


def test_looking_for_what_to_make_again_needs_no_gpu(build, job, matched):
    limits = CopyLimits(0.15, 0.5, None)
    with_gpu, without = on_gpu(build(lambda pipeline: match.build_pointing(pipeline, matched, limits, "counts.parquet")))
    assert with_gpu == set() and has_step(without, "Point") and has_step(without, "WriteCounts")


def test_making_again_asks_for_a_gpu_where_the_model_is(lake, build, job):
    device = DeviceOptions(device="cuda")
    model = generate.generator_again(lake.latest("generate"), None, device.resolved())
    with_gpu, without = on_gpu(
        build(lambda pipeline: match.build_regeneration(pipeline, job, [0, 1000], model, device.devices()))
    )
    assert has_step(with_gpu, "BeamML_RunInference") and has_step(with_gpu, "WriteRegenerations")
    assert has_step(without, "SkipWritten")
    assert all("/MakeAndWrite/" in name for name in with_gpu)
    assert not any("/MakeAndWrite/" in name for name in without)
    on_cpu, _ = on_gpu(build(lambda pipeline: match.build_regeneration(pipeline, job, [0], model, AS_IT_IS)))
    assert on_cpu == set()


def test_mitigations_ask_for_a_gpu_where_the_models_are(lake, build, job, store):
    from transforms.attacks.mitigating import MitigateHandler
    from transforms.matching.mitigated import JudgeHandler, Mitigated
    from transforms.models.mitigations import MITIGATIONS, DoRI, MitigatedGenerator

    device = DeviceOptions(device="cuda")
    model = MitigatedGenerator.of(generate.generator_again(lake.latest("generate"), None, device.resolved()))
    handler = MitigateHandler(model, lake, "new", store, list(MITIGATIONS.values()), 4, 0, DoRI())
    with_gpu, without = on_gpu(build(lambda pipeline: mitigate.build(pipeline, 100, handler, device.devices())))
    assert has_step(with_gpu, "BeamML_RunInference") and has_step(without, "SkipFinished")
    assert all("/MakeAndWrite/" in name for name in with_gpu)
    audit = dict.fromkeys(("audit_id", "model_revision", "parameters_digest"), "-")
    judged = Mitigated(
        job.round("new", []), job.measure, CopyLimits(0.15, 0.5, None), "drawn.parquet", "made", "vectors", audit
    )
    judge = JudgeHandler(embed.encoder(lake.latest("embed"), device), judged)
    with_gpu, without = on_gpu(build(lambda pipeline: mitigate.build_judging(pipeline, 100, judge, device.devices())))
    assert has_step(with_gpu, "BeamML_RunInference") and has_step(with_gpu, "WriteMitigations")
    assert has_step(without, "SkipWritten")


def test_counting_needs_no_gpu(build, job, matched, tmp_path):
    targets = tmp_path / "targets.parquet"
    pq.write_table(pa.table({"sample_id": ["a"], "code": [0], "offset": [0], "height": [8], "width": [8]}), targets)
    with_gpu, without = on_gpu(build(lambda pipeline: match.build_counts(pipeline, job, str(targets), 0)))
    assert with_gpu == set() and has_step(without, "CountWithin")
    with_gpu, without = on_gpu(build(lambda pipeline: match.build_recall(pipeline, job, "nearest.parquet")))
    assert with_gpu == set() and has_step(without, "NearestByBruteForce")


def test_forgetting_needs_no_gpu_and_carries_neither_names_nor_digests(lake, build):
    with_gpu, without = on_gpu(build(lambda pipeline: workers.build(pipeline, lake.work("forget", "run", "00001"), 1000)))
    assert with_gpu == set() and has_step(without, "EachFile")


def test_the_command_line_builds_the_template(lake, cloud, tmp_path, capsys):
    # Other weights, so that the snapshot is one that isn't there yet.
    other = write_tiny_clip(tmp_path / "other", seed=1)
    before = sorted(Path(lake.root).rglob("*.parquet")), lake.manifests("embed")
    assert run_verb(embed.main, [f"--lake={lake.root}", f"--clip_model={other}", "--device=cuda", *cloud]) == 0
    assert "the template is at" in capsys.readouterr().out
    assert (tmp_path / "template.json").is_file()
    # Nothing ran: no part, no manifest.
    assert (sorted(Path(lake.root).rglob("*.parquet")), lake.manifests("embed")) == before


def test_a_launch_of_the_flex_template_builds_the_job(lake, cloud, tmp_path, capsys):
    other = write_tiny_clip(tmp_path / "other", seed=2)
    form = ["--verb=embed", f"--lake={lake.root}", f"--clip_model={other}", "--device=cuda", "--verbose=false", "--wait="]
    assert run_verb(flex_template.launch, [*form, *cloud]) == 0
    assert "the template is at" in capsys.readouterr().out
    assert json.loads((tmp_path / "template.json").read_text())["type"] == "JOB_TYPE_BATCH"


def test_a_launch_with_nothing_left_to_do_is_one_line(lake, cloud, tmp_path, capsys):
    form = ["--verb=embed", f"--lake={lake.root}", f"--clip_model={lake.latest('embed').facts['clip_model']}", "--device=cpu"]
    assert run_verb(flex_template.launch, [*form, *cloud]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "eidetic: 'eidetic embed' with these options has no job left to run; go on with the verb after it"
    )
    assert not (tmp_path / "template.json").exists()
