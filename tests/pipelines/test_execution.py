"""A stage runs once, shows progress from what is durable, and passes a user's mistake on from inside a runner."""

import pickle
import time

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
from apache_beam.transforms import userstate
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from pipelines.execution import BeamOptions, Execution, Progress, raise_user_error
from pipelines.stages import Planned
from transforms.errors import Damaged, UserError, fault_of_the_machine
from transforms.store.counters import count
from transforms.store.lake import Lake


class Refuse(beam.DoFn):
    def process(self, element):
        raise UserError(f"got {element}, expected less; mend it")


def execution(tmp_path, *words):
    return Execution(Lake(str(tmp_path / "lake")), list(words))


def test_a_view_of_beams_options_is_made_once_and_is_as_good_as_another():
    options = BeamOptions(["--runner=FnApiRunner", "--streaming"])
    plain = PipelineOptions(["--runner=FnApiRunner", "--streaming"])
    view = options.view_as(StandardOptions)
    assert view is options.view_as(StandardOptions) and (view.runner, view.streaming) == ("FnApiRunner", True)
    # What is said to one is said to all, and to those that come later.
    options.view_as(SetupOptions).save_main_session = plain.view_as(SetupOptions).save_main_session = False
    assert view.view_as(SetupOptions).save_main_session is False
    assert options.get_all_options() == plain.get_all_options()
    again = pickle.loads(pickle.dumps(options))
    assert again.get_all_options() == plain.get_all_options()


class Remembering(beam.DoFn):
    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())

    def process(self, element, count=beam.DoFn.StateParam(COUNT)):  # noqa: B008  (so Beam asks for state)
        yield element


class Wrapped(beam.DoFn):
    """Its method is another's, as that of beam.Map is the function that it is given."""

    def __init__(self, process):
        self.process = process


def test_beam_inspects_the_steps_of_a_class_once_with_what_it_found_itself():
    assert userstate.get_dofn_specs.__module__ == "pipelines.execution"
    for _ in range(2):
        assert userstate.get_dofn_specs(Remembering()) == ({Remembering.COUNT}, set())
        assert userstate.get_dofn_specs(Refuse()) == (set(), set())
        # Of two steps of one class each takes what its own method takes.
        assert userstate.get_dofn_specs(Wrapped(Refuse().process)) == (set(), set())
        assert userstate.get_dofn_specs(Wrapped(Remembering().process)) == ({Remembering.COUNT}, set())


def test_a_complete_stage_is_skipped(tmp_path):
    runs = []
    planned = Planned("deduplicate", {"a": 1}, {"embed": "e"}, "pairs")
    first = execution(tmp_path).stage(planned, lambda: runs.append(1))
    again = execution(tmp_path).stage(planned, lambda: runs.append(2))
    assert runs == [1]
    assert first == again
    other = Planned("deduplicate", {"a": 2}, {"embed": "e"}, "pairs")
    execution(tmp_path).stage(other, lambda: runs.append(3))
    assert runs == [1, 3]


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        (["--runner=PortableRunner"], "a job service that is running, by --job_endpoint"),
        (["--runner", "Flinkrunner", "--flink_job_server_jar=nowhere.jar"], "Java, and Beam's job server"),
        (["--runner=PrismRunner", "--prism_location=nowhere"], "Prism"),
        (["--runner=DataflowRunner"], "--project, --region and --temp_location"),
    ],
)
def test_a_runner_that_does_not_take_the_job(tmp_path, words, needs):
    with pytest.raises(UserError, match=f"did not take the job .*; it needs .*{needs}"):
        execution(tmp_path, *words).run(lambda pipeline: pipeline | beam.Create([1]))


def test_a_stage_that_fails_is_not_complete(tmp_path):
    def work():
        raise RuntimeError("halfway")

    planned = Planned("deduplicate", {}, {}, "pairs")
    with pytest.raises(RuntimeError, match="halfway"):
        execution(tmp_path).stage(planned, work)
    assert Lake(str(tmp_path / "lake")).manifest("deduplicate", planned.snapshot_id) is None


@pytest.mark.parametrize("verbose", [False, True])
def test_a_users_mistake_comes_out_of_the_runner_as_one_line(tmp_path, caplog, verbose):
    loud = Execution(Lake(str(tmp_path / "lake")), [], verbose)
    with pytest.raises(UserError) as caught:
        loud.run(lambda pipeline: pipeline | beam.Create([7]) | "Refuse" >> beam.ParDo(Refuse()))
    assert str(caught.value) == "got 7, expected less; mend it"
    # Its traceback is Beam's log, which --verbose shows.
    assert any("mend it" in record.getMessage() for record in caplog.records) == verbose


class Find(beam.DoFn):
    def process(self, element):
        raise Damaged("/lake/part", "it is missing") if element else OSError(28, "No space left on device", "/lake/part")


@pytest.mark.parametrize(("element", "kind"), [(1, UserError), (0, Exception)])
def test_what_is_damaged_and_what_the_machine_refuses_comes_out_as_one_line(element, kind, tmp_path, caplog):
    with pytest.raises(kind) as caught:
        execution(tmp_path).run(lambda pipeline: pipeline | beam.Create([element]) | "Find" >> beam.ParDo(Find()))
    if element:
        assert str(caught.value).startswith("'/lake/part' is damaged: it is missing; restore it")
    else:
        assert fault_of_the_machine(caught.value).startswith("No space left on device ('/lake/part'): the disk is full")
    assert caplog.records == []


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, caplog):
    with pytest.raises(ZeroDivisionError):
        execution(tmp_path).run(lambda pipeline: pipeline | beam.Create([0]) | "Divide" >> beam.Map(lambda number: 1 / number))
    assert any(record.exc_info for record in caplog.records)


def test_a_mistake_inside_a_remote_traceback():
    text = (
        "Traceback (most recent call last):\n  File x\n"
        "transforms.errors.UserError: got 7, expected less [while running 'Refuse']\n\nmore"
    )
    with pytest.raises(UserError, match=r"^got 7, expected less$"):
        raise_user_error(RuntimeError(text))
    raise_user_error(RuntimeError("something else"))  # stays what it is


def test_the_progress_line():
    progress = Progress("generate", lambda: 20, 100, "prompts", silent=True)
    progress._first = 20
    assert progress.line(60, 10.0) == "generate     60 of 100 prompts (60%), 4.0/s, 10 s left"
    assert progress.line(20, 10.0).endswith("time left unknown")


def test_a_total_that_is_not_known_yet_is_not_made_up():
    total = None
    progress = Progress("s", lambda: 3, lambda: total, "things")
    progress._first = 0
    assert "getting ready" in progress.line(3, 1.0)
    total = 6
    assert "3 of 6 things (50%)" in progress.line(3, 1.0)


class Counting(beam.DoFn):
    def process(self, element):
        count("numbers seen")
        count("sum of numbers", element)
        yield element


def test_what_steps_count_is_shown_with_verbose(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("pipelines.execution.say", lambda text: said.append(text.split()))
    for verbose in (False, True):
        shown = Execution(Lake(str(tmp_path / "lake")), [], verbose)
        shown.run(lambda pipeline: pipeline | beam.Create([3, 4, 5]) | "Counting" >> beam.ParDo(Counting()))
        assert said == ([["numbers", "seen", "3"], ["sum", "of", "numbers", "12"]] if verbose else [])


def test_looking_at_the_progress_takes_a_small_share_of_the_time():
    looks = []

    def slow():
        looks.append(time.monotonic())
        time.sleep(0.05)
        return len(looks)

    with Progress("test", slow, 100, "things", every=0.01):
        time.sleep(1.0)
    assert len(looks) <= 3
