"""A step in several processes gives what it gives in one; what dies is done again, or said in one line."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from pipelines import match
from pipelines.device import DeviceOptions
from pipelines.execution import Execution, counted
from transforms.errors import Damaged, UserError
from transforms.models.devices import cores, processes_with_room
from transforms.models.processes import Devices, InProcesses, _Process
from transforms.store.counters import count
from transforms.store.lake import Lake


class Write(beam.DoFn):
    """A number → its square, on which device, and a file that says so."""

    def __init__(self, folder, device):
        self.folder, self.device = folder, device

    def setup(self):
        self.ready = True

    def process(self, element):
        assert self.ready
        time.sleep(0.05)  # else one of them may be done before the other has started
        count("numbers")
        Path(self.folder, f"{element}.txt").write_text(f"{os.getpid()} {self.device} {os.environ['OMP_NUM_THREADS']}")
        yield element * element


class Dies(beam.DoFn):
    """Ends its process at the number 3, as often as there are files."""

    def __init__(self, folder):
        self.folder = folder

    def process(self, element):
        for lives in sorted(Path(self.folder).glob("life*")) if element == 3 else []:
            lives.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        yield element


class Refuses(beam.DoFn):
    def __init__(self, error):
        self.error = error

    def process(self, element):
        if element == 3:
            raise self.error
        time.sleep(60)
        yield element


class Collect(beam.DoFn):
    found: ClassVar[list] = []

    def process(self, element):
        Collect.found.append(element)
        yield element


def run(tmp_path, step, numbers):
    Collect.found = []
    Execution(Lake(str(tmp_path / "lake")), []).run(
        lambda pipeline: pipeline | beam.Create(numbers) | beam.Reshuffle() | beam.ParDo(step) | beam.ParDo(Collect())
    )
    return sorted(Collect.found)


@pytest.fixture(scope="module", autouse=True)
def none_is_left():
    """What is kept for the next step can be ended, and beside that there is nothing."""
    yield
    _Process.end_idle()
    assert not multiprocessing.active_children()


def test_several_processes_do_what_one_does(tmp_path):
    step = Devices(("cpu", "cuda:1")).step(lambda device: Write(str(tmp_path), device))
    assert isinstance(step, InProcesses)
    assert run(tmp_path, step, range(40)) == [number**2 for number in range(40)]
    told = [path.read_text().split() for path in tmp_path.glob("*.txt")]
    assert len(told) == 40
    assert {device for _, device, _ in told} == {"cpu", "cuda:1"}
    assert len({process for process, *_ in told}) == 2
    assert {int(threads) for *_, threads in told} == {max(1, cores() // 2)}


def test_one_device_needs_no_process_of_its_own(tmp_path):
    assert isinstance(Devices().step(lambda device: Write(str(tmp_path), device)), Write)


def test_processes_are_kept_for_the_next_step(tmp_path):
    told = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        step = Devices(("cpu", "cpu")).step(lambda device, number=number: Write(str(tmp_path / str(number)), device))
        assert run(tmp_path, step, range(20)) == [each**2 for each in range(20)]
        told.append({path.read_text().split()[0] for path in (tmp_path / str(number)).glob("*.txt")})
    assert told[0] == told[1] == told[2] and len(told[0]) == 2


class Unready(beam.DoFn):
    def setup(self):
        raise UserError("there is no such device")

    def process(self, element):
        yield element


def test_a_step_that_cannot_get_ready_says_why(tmp_path):
    with pytest.raises(UserError, match="there is no such device"):
        run(tmp_path, InProcesses([Unready()] * 2, ["cpu"] * 2), range(4))


def test_a_step_without_a_model_goes_over_the_processes(tmp_path):
    step, lake = Write(str(tmp_path), "-"), Lake(str(tmp_path / "lake"))
    assert Execution(lake, []).spread(step) is step
    spread = Execution(lake, [], processes=3).spread(step)
    assert isinstance(spread, InProcesses) and len(spread.steps) == 3
    assert run(tmp_path, spread, range(9)) == [number**2 for number in range(9)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), 1),
        (("--processes=5",), 5),
        (("--device=cpu,cpu",), processes_with_room()),
        (("--device=all",), processes_with_room()),
        (("--device=cpu",), 1),
        (("--device=all", "--processes=1"), 1),
    ],
)
def test_how_many_processes_share_what_needs_no_model(words, expected):
    execution, _ = match.STAGE.parse(words)
    assert execution.processes == expected


class Where:
    """A model that knows where it is."""

    def __init__(self, device):
        self.device = device


class Doubles(ModelHandler):
    """A handler that says where its model is."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def on(self, device):
        return Doubles(device)

    def load_model(self):
        return Where(self.device)

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(one, (2 * one, model.device)) for one in batch]


@pytest.mark.parametrize("names", [("cuda:0",), ("cuda:0", "cuda:1")])
def test_a_handler_runs_on_every_device(tmp_path, names):
    Collect.found = []
    devices = Devices(names)
    Execution(Lake(str(tmp_path / "lake")), []).run(
        lambda pipeline: (
            pipeline | beam.Create(range(30)) | beam.Reshuffle() | devices.infer(Doubles("cuda:0")) | beam.ParDo(Collect())
        )
    )
    assert sorted((one.example, one.inference[0]) for one in Collect.found) == [(each, 2 * each) for each in range(30)]
    assert {one.inference[1] for one in Collect.found} == set(names)


def test_what_they_count_is_added_up(tmp_path):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    step = InProcesses([Write(str(tmp_path), "cpu")] * 2, ["cpu"] * 2)
    _ = pipeline | beam.Create(range(7)) | beam.ParDo(step)
    result = pipeline.run()
    result.wait_until_finish()
    assert dict(counted(result)) == {"numbers": 7}


def test_a_process_that_dies_once_is_started_again(tmp_path):
    (tmp_path / "life1").touch()
    assert run(tmp_path, InProcesses([Dies(str(tmp_path))] * 2, ["cpu"] * 2), range(8)) == list(range(8))


def test_a_process_that_dies_again_over_the_same_work_is_one_line(tmp_path):
    for life in range(2):
        (tmp_path / f"life{life}").touch()
    with pytest.raises(UserError, match=r"process for cuda:1 ended 2 times over the same piece of work .*killed.*it goes on"):
        run(tmp_path, InProcesses([Dies(str(tmp_path))], ["cuda:1"]), range(8))


@pytest.mark.parametrize("error", [UserError("got 3, expected less"), Damaged("a/b", "half of it"), ValueError("three")])
def test_an_error_of_the_step_ends_all_at_once(tmp_path, error):
    begun = time.monotonic()
    with pytest.raises(Exception) as found:
        run(tmp_path, InProcesses([Refuses(error)] * 2, ["cpu"] * 2), [1, 3])
    assert str(error) in str(found.value)
    assert isinstance(error, UserError) == isinstance(found.value, UserError)
    assert time.monotonic() - begun < 50


class Waits(beam.DoFn):
    def __init__(self, folder):
        self.folder = folder

    def process(self, element):
        Path(self.folder, f"{os.getpid()}.pid").touch()
        time.sleep(600)
        yield element


def wait_forever(folder):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create([1, 2]) | beam.ParDo(InProcesses([Waits(folder)] * 2, ["cpu"] * 2))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_command(tmp_path, how):
    code = f"from tests.transforms.models.test_processes import wait_forever; wait_forever({str(tmp_path)!r})"
    # A shell has its background jobs ignore Control-C, and they their own.
    command = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {code}"],
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert time.monotonic() < until and command.poll() is None
        time.sleep(0.1)
    command.send_signal(how)
    command.wait(60)
    children = [int(path.stem) for path in tmp_path.glob("*.pid")]
    while any(Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text() for child in children):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("cpu", ["cpu"]), ("cpu,cpu", ["cpu", "cpu"]), ("cuda:0,cuda:2", ["cuda:0", "cuda:2"])],
)
def test_devices_that_are_named(said, meant):
    options = DeviceOptions(device=said)
    assert options.all_of_them() == meant
    assert options.resolved() == meant[0]


def test_all_devices_of_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr("pipelines.device._gpus", lambda: 0)
    assert DeviceOptions(device="all").all_of_them() == ["cpu"] * processes_with_room()
    assert DeviceOptions(device="auto").all_of_them() == ["cpu"]
    monkeypatch.setattr("transforms.models.devices.memory", lambda: 3 << 30)
    assert DeviceOptions(device="all").all_of_them() == ["cpu"]


def test_all_devices_of_a_machine_with_three(monkeypatch):
    monkeypatch.setattr("pipelines.device._gpus", lambda: 3)
    assert DeviceOptions(device="all").all_of_them() == ["cuda:0", "cuda:1", "cuda:2"]
    assert DeviceOptions(device="auto").all_of_them() == ["cuda"]


@pytest.mark.parametrize("said", ["", "gpu", "cpu,", "cpu cpu", "cuda:", "all,cpu", "cpu,auto"])
def test_devices_that_there_are_not(said):
    with pytest.raises(UserError, match=r"--device is .*, expected auto, all, cpu, cuda, one such as cuda:1, or several"):
        DeviceOptions(device=said)
