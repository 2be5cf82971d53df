"""A lake in a store belongs to one writer: others wait or hear who has it; of one that was killed it is free after a while."""

import multiprocessing
import subprocess
import sys
import time
import uuid

import pytest

from pipelines import lock
from tests.servers import ROOT, s3_store
from transforms.errors import UserError
from transforms.store import files
from transforms.store.files import list_files, walk, write_bytes
from transforms.store.lake import Lake

BUCKET = "eidetic-lock"


@pytest.fixture(scope="module")
def store():
    """The bucket's URL. ``tests/engines/test_google_storage.py`` has these tests with another one."""
    with s3_store(BUCKET):
        yield f"s3://{BUCKET}"


@pytest.fixture
def lake(store, request):
    made = Lake(f"{store}/{request.node.name}")
    made.create()
    return made


@pytest.fixture
def quick(monkeypatch):
    """Signs of life twice a second, and no more than two seconds without one."""
    monkeypatch.setattr(lock, "BEAT", 0.5)
    monkeypatch.setattr(lock, "STALE", 2.0)


def claims(lake):
    return [path.rpartition("/")[2] for path in list_files(lake.path(lock.CLAIMS), "")]


def test_a_second_writer_hears_who_is_at_work(lake):
    said = pytest.raises(lock.Busy, match=r"'eidetic embed' \(process \d+ on .*\) is at work on the lake")
    with lock.alone(lake, "embed", 0), said, lock.alone(lake, "forget", 0):
        pass
    with lock.alone(lake, "forget", 0):
        pass


def test_a_writer_that_waits_has_the_lake_once_it_is_free(lake, quick):
    with lock.alone(lake, "embed", 0):
        other = multiprocessing.get_context("spawn").Process(target=_write, args=(lake, 30.0))
        other.start()
        # It takes seconds to start; had it not waited it would have ended with another code.
        time.sleep(8)
        assert other.exitcode is None
    other.join(30)
    assert other.exitcode == 0


def _write(lake, wait):
    with lock.alone(lake, "forget", wait):
        pass


def test_a_holder_that_lives_keeps_the_lake_for_as_long_as_it_takes(lake, quick):
    with lock.alone(lake, "embed", 0):
        time.sleep(2 * lock.STALE)
        with pytest.raises(lock.Busy), lock.alone(lake, "forget", 0):
            pass


def test_a_lake_whose_holder_was_killed_may_be_had_after_a_while(lake, quick):
    write_bytes(lake.path(lock.CLAIMS, f"{7:012d}"), b"'eidetic audit' (process 1 on a machine that is gone)")
    with pytest.raises(lock.Busy, match="a machine that is gone"), lock.alone(lake, "forget", 0):
        pass
    time.sleep(lock.STALE + 1)
    with lock.alone(lake, "forget", 0):
        assert claims(lake) == [f"{8:012d}"]
    # Given back, and there: no number comes twice.
    assert claims(lake) == [f"{8:012d}"] and walk(lake.path(lock.CLAIMS))[0].size == 0


def test_a_number_that_was_had_meanwhile_is_not_taken(lake, monkeypatch):
    """Between looking for the newest claim and making the next, one command may have come and gone, and a third be at work."""
    folder = lake.path(lock.CLAIMS)
    write_bytes(f"{folder}/{4:012d}", b"")
    found = lock.list_files
    seen = []

    def stale(path, suffix):
        names = found(path, suffix)
        if not seen:  # what was there a moment ago
            seen.append(names)
            write_bytes(f"{folder}/{6:012d}", b"somebody")
        return names

    monkeypatch.setattr(lock, "list_files", stale)
    with pytest.raises(lock.Busy, match="somebody"), lock.alone(lake, "forget", 0):
        pass
    assert claims(lake) == [f"{4:012d}", f"{6:012d}"]


def test_of_many_at_once_one_has_the_lake(lake):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        held = pool.map(_claim, [lake.path(lock.CLAIMS)] * 12, chunksize=1)
    assert sum(held) == 1


def _claim(folder):
    return lock._claim(folder, uuid.uuid4().bytes) is not None


def test_one_that_was_away_for_too_long_ends_at_once(lake):
    script = f"""
import time
from pipelines import lock
from transforms.store.lake import Lake
lock.BEAT = 0.2
with lock.alone(Lake({lake.root!r}), "embed", 0):
    print("at work", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout.readline() == "at work\n"
    (mine,) = claims(lake)
    write_bytes(lake.path(lock.CLAIMS, f"{int(mine) + 1:012d}"), b"'eidetic forget' (process 9)")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "'eidetic forget' (process 9) has taken the lake" in said


def test_one_that_finds_at_its_end_that_another_has_taken_the_lake_says_so(lake):
    said = pytest.raises(UserError, match=r"'eidetic forget' .* has taken the lake: .*'eidetic verify' says whether")
    with said, lock.alone(lake, "embed", 0):
        write_bytes(lake.path(lock.CLAIMS, f"{9:012d}"), b"'eidetic forget' (process 9)\nand its id")
    assert claims(lake)[-1] == f"{9:012d}" and files.stat(lake.path(lock.CLAIMS, f"{9:012d}")).size > 0


def test_a_claim_that_is_taken_away_while_it_is_looked_at(lake, monkeypatch):
    """Who takes a lake removes older claims: another one that waits may have just listed them."""
    write_bytes(lake.path(lock.CLAIMS, f"{4:012d}"), b"somebody")
    whole = lock.stat

    def gone(path):
        if path.endswith(f"{4:012d}"):
            files.delete(path)
        return whole(path)

    monkeypatch.setattr(lock, "stat", gone)
    with lock.alone(lake, "embed", 5):
        pass


def test_a_claim_whose_maker_failed_over_it_is_given_back(lake, monkeypatch):
    write_bytes(lake.path(lock.CLAIMS, f"{4:012d}"), b"")

    def away(paths):
        raise ConnectionError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(lock, "delete_all", away)
        with pytest.raises(UserError, match="the store is away"), lock.alone(lake, "embed", 0):
            pass
    with lock.alone(lake, "embed", 0):
        pass


def test_a_request_whose_answer_was_lost_is_known_for_our_own(lake, monkeypatch):
    """The client asks again by itself, and hears that there is such an object."""
    whole = type(files._store(lake.root))._pipe_file

    async def twice(self, path, content, mode="overwrite", **words):
        await whole(self, path, content, mode=mode, **words)
        if mode == "create":
            await whole(self, path, content, mode=mode, **words)

    monkeypatch.setattr(type(files._store(lake.root)), "_pipe_file", twice)
    with lock.alone(lake, "embed", 0), pytest.raises(lock.Busy), lock.alone(lake, "forget", 0):
        pass


def test_where_no_lake_came_nothing_is_left(store):
    lake = Lake(f"{store}/a-typo")
    with lock.alone(lake, "nightly", 0):
        assert claims(lake) == [f"{1:012d}"]
    assert walk(lake.root) == []


def test_a_bucket_that_is_not_there_is_one_line(store):
    nowhere = f"{store}-nowhere/lake"
    said = pytest.raises(UserError, match=f"cannot write to the lake '{nowhere}'")
    with said, lock.alone(Lake(nowhere), "nightly", 0):
        pass
