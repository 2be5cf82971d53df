"""Threads of a worker share what a step reads."""

import concurrent.futures
import threading
import time

import apache_beam as beam
from apache_beam.internal import pickler

from transforms.store.sharing import Shared

MADE = []


class Numbers:
    """What is shared here; notes how often it was made."""

    def __init__(self, offset):
        MADE.append(offset)
        time.sleep(0.05)
        self.offset = offset


class Add(beam.DoFn):
    def __init__(self, offset):
        self._numbers = Shared(lambda: Numbers(offset))

    def process(self, one):
        yield one + self._numbers.get().offset


def test_copies_of_a_step_have_one_and_other_steps_their_own():
    MADE.clear()
    one, other = Add(1), Add(2)
    copies = [pickler.dumps(step) for step in (one, one, other) for _ in range(4)]
    barrier = threading.Barrier(len(copies))

    def run(copy):
        step = pickler.loads(copy)
        barrier.wait()
        return list(step.process(0)), step

    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:
        found = list(pool.map(run, copies))
    assert [result for result, _ in found] == [[1]] * 8 + [[2]] * 4
    assert sorted(MADE) == [1, 2]


def test_a_tuple_can_be_shared_and_is_not_carried_along():
    shared = Shared(lambda: (1, 2))
    assert shared.get() == (1, 2)
    assert b"_Held" not in pickler.dumps(shared)
    assert pickler.loads(pickler.dumps(shared)).get() == (1, 2)
