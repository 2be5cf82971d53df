"""The verb mitigate on a small audited model: what is judged is what was made, as match judges; nothing is made twice."""

import collections
import dataclasses
import json
import math
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from pipelines.query import answer
from tests.fakes import fake_lake
from tests.lakes import differences, workers
from tests.models import save_pixel_pipeline, save_random_pipeline
from tests.planted import picture, write_tiny_clip
from transforms.errors import UserError
from transforms.forgetting.removal import remove
from transforms.kernels import quality
from transforms.kernels.rates import blaker_interval
from transforms.models.base import Wanted
from transforms.models.clip import ClipModel
from transforms.models.diffusion import DiffusersGenerator
from transforms.models.mitigations import MITIGATIONS, MitigatedGenerator
from transforms.store.files import list_files, read_rows
from transforms.store.identity import seed
from transforms.store.lake import Lake
from transforms.store.pictures import decode, encode_png
from transforms.store.scan import ask

CLIP = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"
PICTURES, CONTROLS, IMAGES = 6, 3, 2
TRIED = ("none", "caption_randomisation", "opposite_guidance", "embedding_noise")
OPTIONS = (
    "--prompts_per_class=2", f"--images={IMAGES}", "--mitigations", *TRIED[1:], "--dori_steps=2", "--dori_batch=2",
    "--device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A folder with a lake that is matched. The first picture is what the model makes of anything, so its prompt is copied."""
    folder = tmp_path_factory.mktemp("mitigate")
    save_random_pipeline(str(folder / "model"))
    generator = DiffusersGenerator(str(folder / "model"), 2, 3.0, 4, "cpu", "float32")
    generator.load()
    (made,) = generator.generate([Wanted("picture 0", dict(enumerate(range(100, 108))))])
    usual = np.mean([attempt.image for attempt in made.values()], axis=0).astype(np.uint8)
    for role, first, many in (("training", 0, PICTURES), ("controls", PICTURES, CONTROLS)):
        (folder / role).mkdir()
        for number in range(first, first + many):
            pixels = picture(number, 32, 32) if number else usual
            (folder / role / f"{number}.png").write_bytes(encode_png(pixels))
            (folder / role / f"{number}.txt").write_text(f"picture {number}")
    lake = f"--lake={folder}/lake"
    for words in (
        ["ingest", f"--metadata={folder}/training", "--source=folder", f"--controls={folder}/controls", "--image_size=32"],
        ["embed", f"--clip_model={CLIP}", "--device=cpu"],
        ["deduplicate", "--duplicate_threshold=0.999999"],
        ["generate", f"--model={folder}/model", "--device=cpu", "--images_per_prompt=2", "--steps=2", "--guidance_scale=3",
         "--batch_size=4", "--keep=all"],
        ["match", "--delta=0.3", "--copy_l2=0.3", "--device=cpu"],
    ):  # fmt: skip
        assert cli.main([*words, lake]) == 0
    return folder


def copy_of(folder, target):
    shutil.copytree(folder / "lake", target)
    return Lake(str(target))


def mitigate(lake, *words):
    return cli.main(["mitigate", f"--lake={lake.root}", *OPTIONS, *words])


@pytest.fixture(scope="module")
def made(audited):
    """The same lake, mitigated."""
    lake = copy_of(audited, audited / "mitigated")
    assert mitigate(lake) == 0
    return lake


def rows(lake, table="mitigations"):
    return ask(lake, {table: lake.latest("mitigate").snapshot_id}, f"SELECT * FROM {table}")


def images(lake):
    """sample_id → its picture."""
    stored = {row["sample_id"]: row["image"] for path in lake.every_part("images") for row in read_rows(path)}
    return {sample: np.asarray(decode(content)) for sample, content in stored.items()}


def prompts(lake):
    stored = [row for path in lake.parts("prompts", lake.latest("generate").snapshot_id) for row in read_rows(path)]
    return {row["prompt_id"]: row for row in stored}


def test_every_prompt_has_a_row_under_every_mitigation_asked_in_both_ways(made):
    found = rows(made)
    per_class = collections.Counter((row["class"], row["mitigation"], row["attacked"]) for row in found)
    assert per_class == {
        (name, mitigation, attacked): 1 if name == "copied" else 2
        for name in ("copied", "not_copied", "never_seen")
        for mitigation in TRIED
        for attacked in (False, True)
    }
    assert {row["status"] for row in found} == {"success"} and {row["reason"] for row in found} == {None}
    assert {row["images"] for row in found} == {IMAGES}
    texts = prompts(made)
    assert {texts[row["prompt_id"]]["text"] for row in found if row["class"] == "copied"} == {"picture 0"}
    assert {texts[row["prompt_id"]]["origin"] for row in found if row["class"] == "never_seen"} == {"control"}


def test_without_a_mitigation_the_numbers_are_those_of_the_audits_own_sampler(made):
    generate = made.latest("generate")
    plain = DiffusersGenerator(generate.facts["model"], 2, 3.0, 4, "cpu", "float32")
    plain.load()
    pictures, texts = images(made), prompts(made)
    for row in rows(made):
        if row["mitigation"] == "none" and not row["attacked"]:
            # The numbers after those of the audit.
            seeds = {number: seed(generate.parameters["seed"], row["prompt_id"], 2 + number) for number in range(IMAGES)}
            (attempts,) = plain.generate([Wanted(texts[row["prompt_id"]]["text"], seeds)])
            own = pictures[row["sample_id"]] / 255
            distances = [np.sqrt(np.mean((one.image / 255 - own) ** 2)) for one in attempts.values()]
            assert row["nearest_l2"] == pytest.approx(min(distances), abs=2e-3)
            assert row["extracted"] == (min(distances) <= 0.3)
            assert row["evaluations"] == 4 and row["picture_similarity"] == pytest.approx(1, abs=1e-5)
            assert -1 <= row["prompt_similarity"] <= 1 and row["seconds"] > 0


def test_a_picture_is_judged_as_match_judges_it(made):
    """The stored generations of the audit, brought to the judge, have their rows of ``matches``."""
    from pipelines.mitigate import measure_of
    from transforms.kernels.copies import CopyLimits, is_copy
    from transforms.kernels.distances import Frame
    from transforms.matching.comparison import Group
    from transforms.matching.directory import Directory
    from transforms.matching.judging import Brought, Judge
    from transforms.matching.tasks import Round, Snapshots

    match, generate = made.latest("match"), made.latest("generate")
    embed = made.latest("embed")
    ids = [made.latest(stage).snapshot_id for stage in ("ingest", "embed", "deduplicate", "generate")]
    round = Round(made, Snapshots(*ids), "here", "mitigate", (), Frame(0, 0), match.parameters["neighbours"], 1)
    (row,) = ask(made, {"copy_calibration": match.snapshot_id}, "SELECT * FROM copy_calibration")
    limits = CopyLimits.of(row)
    expected = {
        (one["prompt_id"], one["sample_index"]): one
        for one in ask(made, {"matches": match.snapshot_id}, "SELECT * FROM matches WHERE relation = 'own'")
    }
    texts, directory = prompts(made), Directory(made, ids[2])
    encoder = ClipModel(embed.facts["clip_model"]).load()
    brought, keys = [], []
    for path in made.parts("generations", generate.snapshot_id):
        for one in read_rows(path):
            prompt = texts[one["prompt_id"]]
            control = prompt["origin"] == "control"
            group = prompt["sample_id"] if control else prompt["group_id"]
            stands = directory.representatives([group], "control" if control else "training")[group]
            image = decode(one["image"])
            own = Group(group, stands["code"], stands["sample_id"], stands["size"])
            brought.append(Brought(np.asarray(image), encoder.encode([image])[0], own, control))
            keys.append((one["prompt_id"], one["sample_index"]))
    found = Judge(round, measure_of(match), limits).judge(brought)
    assert len(found) == 2 * (PICTURES + CONTROLS)
    for key, one in zip(keys, found, strict=True):
        assert one.l2 == pytest.approx(expected[key]["l2"], abs=1e-6)
        assert one.copied == is_copy(expected[key], limits)
    assert 0 < sum(one.copied for one in found) < len(found)


def test_pictures_are_compared_with_their_prompts(made, tmp_path):
    import open_clip
    import torch

    encoder, texts = ClipModel(str(CLIP)).load(), ["picture 0", "a logo of somebody else"]
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{CLIP}")
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{CLIP}")(texts), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)
    # Its vocabulary is smaller than the tokenizer's.
    with pytest.raises(UserError, match="makes no vectors of texts"):
        ClipModel(write_tiny_clip(tmp_path / "clip")).load().encode_texts(texts)


def test_the_effects_are_counted_from_the_rows(made):
    by_key = {(row["prompt_id"], row["mitigation"], row["attacked"]): row for row in rows(made)}
    effects = rows(made, "mitigation_effects")
    assert [(row["class"], row["mitigation"]) for row in effects[:2]] == [
        ("copied", "none"),
        ("copied", "caption_randomisation"),
    ]
    assert len(effects) == 3 * len(TRIED)
    for row in effects:
        mine = [one for (_, name, _), one in by_key.items() if name == row["mitigation"] and one["class"] == row["class"]]
        plain = [one for one in mine if not one["attacked"]]
        attacked = [one for one in mine if one["attacked"]]
        before = [by_key[one["prompt_id"], "none", False] for one in plain]
        assert row["prompts"] == len(plain)
        for name, some in (("before", before), ("after", plain), ("dori", attacked)):
            copied = sum(one["copied"] for one in some)
            assert row[name] == copied and row[f"rate_{name}"] == pytest.approx(copied / len(some))
            lower, upper = blaker_interval(copied, len(some))
            assert row[f"rate_{name}_lower"] == pytest.approx(lower) and row[f"rate_{name}_upper"] == pytest.approx(upper)
        assert row["extracted_after"] == sum(one["extracted"] for one in plain)
        assert row["prompt_similarity"] == pytest.approx(np.mean([one["prompt_similarity"] for one in plain]))
        assert row["prompt_similarity_before"] == pytest.approx(np.mean([one["prompt_similarity"] for one in before]))
        assert row["seconds"] == pytest.approx(np.median([one["seconds"] for one in plain]))
        assert row["evaluations"] == 4
        # Three controls, two of which are asked for: too few to say how far pictures lie from them.
        assert (row["cmmd"], row["cmmd_before"]) == (None, None)
        assert (row["cmmd_pictures"], row["cmmd_held_out"]) == (sum(one["images"] for one in plain), 1)
    copied = next(row for row in effects if row["class"] == "copied")
    assert copied["before"] == 1
    assert all(row["before"] == 0 for row in effects if row["class"] == "never_seen")


def test_pictures_are_held_against_held_out_ones_that_nobody_asked_for(made, audited, tmp_path, monkeypatch):
    lake = copy_of(audited, tmp_path / "lake")
    monkeypatch.setattr(quality, "FEWEST", 1)
    seen = []
    monkeypatch.setattr(
        quality, "cmmd", lambda made, real: seen.append((made, real)) or types.SimpleNamespace(distance=len(seen))
    )
    assert mitigate(lake, "--no_dori") == 0
    effects = rows(lake, "mitigation_effects")
    # Once for a class and a mitigation, and found again beside the others.
    assert sorted(row["cmmd"] for row in effects) == list(range(1, len(effects) + 1)) == list(range(1, len(seen) + 1))
    plain = {row["class"]: row["cmmd"] for row in effects if row["mitigation"] == "none"}
    assert all(row["cmmd_before"] == plain[row["class"]] for row in effects)
    asked = {row["sample_id"] for row in rows(lake)}
    vectors = {
        row["sample_id"]: row["vector"] for path in lake.every_part("embeddings") for row in read_rows(path)
        if row["role"] == "control"
    }  # fmt: skip
    (left,) = vectors.keys() - asked
    encoder, pictures = ClipModel(str(CLIP)).load(), images(lake)
    np.testing.assert_allclose(encoder.encode([Image.fromarray(pictures[left])]), [vectors[left]], atol=1e-5)
    for row in effects:
        under, real = seen[int(row["cmmd"]) - 1]
        assert real.tolist() == [vectors[left]] and under.shape == (row["cmmd_pictures"], real.shape[1])
        same = np.array_equal(under, seen[int(row["cmmd_before"]) - 1][0])
        assert same == (row["mitigation"] == "none")


def test_the_database_shows_both_tables(made):
    _, found = answer(made, "SELECT mitigation, count(*) FROM mitigations GROUP BY ALL ORDER BY ALL")
    assert found == [(name, 10) for name in sorted(TRIED)]
    assert answer(made, "SELECT count(*) FROM mitigation_effects")[1] == [(12,)]


def test_the_same_command_does_nothing_again_and_another_one_something_else(made, tmp_path, monkeypatch, capsys):
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(made.root, lake.root)
    done = lake.latest("mitigate")
    assert not list_files(lake.work("mitigate", done.snapshot_id, "prompts"), ".parquet")
    monkeypatch.setattr(MitigatedGenerator, "load", lambda _: pytest.fail("the model is loaded again"))
    capsys.readouterr()
    assert mitigate(lake) == 0
    assert "copied      opposite_guidance" in capsys.readouterr().out
    assert lake.latest("mitigate").finished_at == done.finished_at
    monkeypatch.undo()
    assert mitigate(lake, "--no_dori", "--images=1") == 0
    assert {row["attacked"] for row in rows(lake)} == {False}
    assert {row["dori"] for row in rows(lake, "mitigation_effects")} == {None}
    assert len(lake.manifests("mitigate")) == 2


def test_a_run_that_was_killed_makes_nothing_twice(made, audited, tmp_path, monkeypatch):
    lake = copy_of(audited, tmp_path / "lake")
    attack, asked = MitigatedGenerator.attack, []

    def dying(self, text, *arguments):
        if len({one for one, _ in asked} - {text}) == 2:
            raise SystemError("the power is gone")
        asked.append((text, arguments[-1].name))
        return attack(self, text, *arguments)

    monkeypatch.setattr(MitigatedGenerator, "attack", dying)
    with pytest.raises(SystemError):
        mitigate(lake)
    # The attack on each is looked for twice: once under noise, and once for all the others.
    assert collections.Counter(asked).most_common(1)[0][1] == 1 and len(asked) == 4
    monkeypatch.setattr(
        MitigatedGenerator, "attack", lambda self, text, *rest: asked.append((text, rest[-1].name)) or attack(self, text, *rest)
    )
    assert mitigate(lake) == 0
    assert collections.Counter(asked) == dict.fromkeys(
        [(f"picture {n}", name) for n in _numbers(made) for name in ("none", "embedding_noise")], 1
    )
    # Not times, and the last bits of what was compared in another batch.
    assert differences(lake, made) == []


def _numbers(lake):
    texts = prompts(lake)
    return sorted({int(texts[row["prompt_id"]]["text"].split()[1]) for row in rows(lake)})


def test_what_a_mitigation_cannot_make_is_a_row(audited, tmp_path, monkeypatch):
    lake = copy_of(audited, tmp_path / "lake")
    tried = MitigatedGenerator._sample

    def sample(self, mitigation, text, seeds, embedding):
        if mitigation.name == "opposite_guidance":
            raise RuntimeError("too much for me")
        return tried(self, mitigation, text, seeds, embedding)

    def attack(self, text, *rest):
        return self.embedding(text) * math.nan, []

    monkeypatch.setattr(MitigatedGenerator, "_sample", sample)
    monkeypatch.setattr(MitigatedGenerator, "attack", attack)
    assert mitigate(lake) == 0
    for row in rows(lake):
        bad = row["mitigation"] == "opposite_guidance"
        if row["attacked"]:
            assert (row["status"], row["reason"], row["copied"]) == ("failed", "DoRI's embedding is not finite", None)
        elif bad:
            assert (row["status"], row["reason"], row["images"]) == ("failed", "RuntimeError: too much for me", 0)
        else:
            assert row["status"] == "success"
    # What has no picture in one of the ways isn't compared.
    assert rows(lake, "mitigation_effects") == []


def test_what_is_forgotten_is_asked_no_more_and_numbers_stay(made, tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(made.root, lake.root)
    before = rows(lake)
    gone = next(row["sample_id"] for row in before if row["class"] == "not_copied")
    left = f"{lake.root}/work/mitigate/half/prompts/a.parquet"
    (tmp_path / "lake/work/mitigate/half/prompts").mkdir(parents=True)
    shutil.copy(list_files(lake.folder("prompts", lake.latest("generate").snapshot_id), ".parquet")[0], left)
    lake.write("mitigations", "half", 0, before[:1])
    assert cli.main(["forget", f"--lake={lake.root}", f"--sample_ids={gone}", "--reason=asked for"]) == 0
    assert rows(lake) == before
    assert not list_files(f"{lake.root}/work/mitigate/half/prompts", ".parquet")
    assert all("snapshot_id=half" not in path for path in lake.every_part("mitigations"))
    assert remove(workers(lake)) == {}
    assert mitigate(lake, "--images=1", "--no_dori") == 0
    assert gone not in {row["sample_id"] for row in rows(lake)}


# -- bad input --------------------------------------------------------------------------------------------------------


def refused(capsys, lake, *words):
    capsys.readouterr()
    assert cli.main(["mitigate", f"--lake={lake.root}", "--device=cpu", *words]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("eidetic: ")]
    return line


def test_a_mitigation_that_does_not_exist(audited, capsys):
    line = refused(capsys, Lake(str(audited / "lake")), "--mitigations", "prayer")
    assert f"--mitigations names 'prayer', expected some of {', '.join(MITIGATIONS)}" in line


def test_a_lake_that_was_not_matched(audited, tmp_path, capsys):
    lake = copy_of(audited, tmp_path / "lake")
    shutil.rmtree(f"{lake.root}/manifests/match")
    assert "has no complete 'match' yet; run 'eidetic match' first" in refused(capsys, lake)


def test_an_audit_that_calls_nothing_copied(audited, tmp_path, capsys):
    lake = copy_of(audited, tmp_path / "lake")
    assert cli.main(["match", f"--lake={lake.root}", "--delta=0.3", "--copy_l2=0.001", "--device=cpu"]) == 0
    assert "calls no prompt copied, so there is nothing to mitigate; audit more prompts" in refused(capsys, lake)


def replanned(fake, model, **parameters):
    """A fake lake's audit, said to be of another model."""
    manifest = fake.generate
    values = dataclasses.replace(
        manifest, parameters={**manifest.parameters, **parameters}, facts={"model": model, "batch_size": 2}
    )
    fake.lake._write_manifest(values)
    return fake.lake


def test_finished_generations_have_no_model_to_mitigate(tmp_path, capsys):
    lake = replanned(fake_lake(tmp_path / "lake"), "somewhere", generator="folder")
    assert "is of finished generations, and mitigations need the model; audit one with --model" in refused(capsys, lake)


def test_a_model_of_another_class(tmp_path, capsys):
    from transforms.store.identity import folder_digest

    save_pixel_pipeline(str(tmp_path / "if"))
    lake = replanned(
        fake_lake(tmp_path / "lake"), str(tmp_path / "if"), steps=2, guidance_scale=3.0, dtype="float32",
        model_revision=folder_digest(str(tmp_path / "if")),
    )  # fmt: skip
    assert "is a IFPipeline, and mitigations are known for a StableDiffusionPipeline" in refused(capsys, lake)


def test_the_parameters_of_the_mitigations_are_part_of_the_snapshot(made):
    parameters = made.latest("mitigate").parameters
    assert parameters["mitigations"]["opposite_guidance"] == {"before": -2.0, "until": 0.65}
    assert list(parameters["mitigations"]) == [name for name in MITIGATIONS if name in TRIED]
    assert json.dumps(parameters)
