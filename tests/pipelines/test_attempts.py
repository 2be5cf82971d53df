"""Two attempts at one part of ingest: whichever order their writes come in, samples and images are those of one of them."""

import collections
import itertools
import json
import threading

import pyarrow.parquet as pq
import pytest

from pipelines import ingest
from pipelines.cli import run_verb
from tests.planted import picture
from transforms.data import ingestion
from transforms.store import files
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

PICTURES = 6


@pytest.fixture
def words(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(PICTURES):
        (folder / f"{number}.png").write_bytes(encode_png(picture(number)))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return [f"--lake={tmp_path}/lake", f"--metadata={folder}", "--source=folder", "--image_size=32"]


@pytest.fixture
def attempts(words, monkeypatch):
    """(a bucket's work, its samples, two attempts' outcomes that differ) of an ingest that has spread its rows."""
    caught = {}

    def outcomes(self, samples, source):
        caught.update(bucket=self, samples=samples, found=whole(self, samples, source))
        raise RuntimeError("enough")

    whole = ingestion.IngestBucket.outcomes
    with monkeypatch.context() as patch:
        patch.setattr(ingestion.IngestBucket, "outcomes", outcomes)
        with pytest.raises(RuntimeError, match="enough"):
            ingest.main(words)
    assert len(caught["found"]) == PICTURES and all(one["status"] == "success" for one in caught["found"])
    # What one attempt had, another did not: the first picture of one, the last of the other.
    failed = {"status": "failed_to_download", "reason": "timed out"}
    both = [failed, *caught["found"][1:]], [*caught["found"][:-1], failed]
    return caught["bucket"], caught["samples"], both


def rows(lake, snapshot):
    samples = [row for path in lake.parts("samples", snapshot) for row in pq.read_table(path).to_pylist()]
    images = [row for path in lake.parts("images", snapshot) for row in pq.read_table(path).to_pylist()]
    return samples, images


def agree(lake, snapshot):
    samples, images = rows(lake, snapshot)
    assert len(samples) == PICTURES
    assert collections.Counter(row["status"] for row in samples) == {"success": PICTURES - 1, "failed_to_download": 1}
    return {row["sample_id"] for row in samples if row["status"] == "success"} == {row["sample_id"] for row in images}


STEPS = ("pictures", "samples", "images")
"""What an attempt writes, in this order."""


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AAABBB"))), ids="".join)
def test_in_whichever_order_two_attempts_write(attempts, monkeypatch, order):
    bucket, samples, outcomes = attempts
    turns, ready = list(order), threading.Condition()

    def in_turn(name):
        """Lets the attempt of this thread go on when it is its turn; one that has less to write leaves its turns out."""
        with ready:
            assert ready.wait_for(lambda: not turns or turns[0] == name or name not in turns, timeout=30)
            if turns and turns[0] == name:
                turns.pop(0)
            ready.notify_all()

    def slowly(work):
        def step(*words, **named):
            in_turn(threading.current_thread().name)
            return work(*words, **named)

        return step

    monkeypatch.setattr(ingestion, "write_parquet", slowly(ingestion.write_parquet))
    monkeypatch.setattr(Lake, "write_first", slowly(Lake.write_first))
    monkeypatch.setattr(ingestion, "move", slowly(ingestion.move))
    faults = []

    def attempt(found):
        try:
            bucket.write(0, "training", samples, found)
        except BaseException as error:
            faults.append(error)
        finally:
            with ready:
                turns[:] = [turn for turn in turns if turn != threading.current_thread().name]
                ready.notify_all()

    threads = [threading.Thread(target=attempt, args=(found,), name=name) for name, found in zip("AB", outcomes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert agree(bucket.lake, bucket.snapshot)
    # Nothing of the one that came too late is left.
    assert files.list_files(bucket.lake.work("ingest", bucket.snapshot, "attempts"), ".parquet") == []


@pytest.mark.parametrize("step", STEPS)
def test_an_attempt_that_died_after_a_step_is_brought_to_an_end(attempts, words, monkeypatch, step, capsys):
    bucket, samples, (first, second) = attempts

    def dies(work, after):
        def one(*words, **named):
            if after:
                work(*words, **named)
            raise KeyboardInterrupt

        return one

    with monkeypatch.context() as patch:
        where, name = {
            "pictures": (ingestion, "write_parquet"),
            "samples": (Lake, "write_first"),
            "images": (ingestion, "move"),
        }[step]
        patch.setattr(where, name, dies(getattr(where, name), True))
        with pytest.raises(KeyboardInterrupt):
            bucket.write(0, "training", samples, first)
    # Another one makes it anew, or takes what was done.
    bucket.write(0, "training", samples, second)
    assert agree(bucket.lake, bucket.snapshot)
    failed = next(row for row in rows(bucket.lake, bucket.snapshot)[0] if row["status"] != "success")
    assert failed["sample_id"] == samples[-1 if step == "pictures" else 0]["sample_id"]
    # The command itself finds it complete, and leaves no work behind.
    assert run_verb(ingest.main, words) == 0
    assert agree(bucket.lake, bucket.snapshot)
    assert files.walk(bucket.lake.path("work")) == []


def test_a_worker_never_removes_what_another_may_be_at_work_on(attempts, monkeypatch):
    """Samples whose pictures nobody finds: a worker can't tell whether another is moving them."""
    bucket, samples, (first, _) = attempts
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "move", lambda *_: None)
        bucket.write(0, "training", samples, first)
    files.delete(bucket.lake.path("work"))
    with pytest.raises(RuntimeError, match="the pictures of part 0 are gone"):
        list(bucket.process((0, [])))
    assert list(bucket.lake.own("samples", bucket.snapshot)) == [0]
    # Who has the lake alone does.
    bucket.remove_unfinished()
    assert bucket.lake.own("samples", bucket.snapshot) == {}


def test_what_waits_for_its_pictures_is_left(attempts, monkeypatch):
    bucket, samples, (first, _) = attempts
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "move", lambda *_: None)
        bucket.write(0, "training", samples, first)
    bucket.remove_unfinished()
    assert list(bucket.process((0, []))) == [0]
    assert agree(bucket.lake, bucket.snapshot)
    bucket.remove_unfinished()
    assert agree(bucket.lake, bucket.snapshot)


def test_samples_whose_pictures_are_gone_are_made_again(attempts, words, monkeypatch):
    """A request to forget removes what lies about in work/, whatever it shows."""
    bucket, samples, (first, _) = attempts
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "move", lambda *_: None)
        patch.setattr(ingestion, "delete", lambda *_: None)
        bucket.write(0, "training", samples, first)
    files.delete(bucket.lake.path("work"))
    assert run_verb(ingest.main, words) == 0
    samples, images = rows(bucket.lake, bucket.snapshot)
    assert len(samples) == len(images) == PICTURES
    manifest = json.loads(files.read_bytes(bucket.lake.manifest_path("ingest", bucket.snapshot)))
    assert manifest["facts"]["status"] == {"training/success": PICTURES}
