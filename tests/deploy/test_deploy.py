"""The schedules do what they say: their commands are run by what runs them, with a recorder in Eidetic's place.

The DAG's tests need Airflow, which pins other versions than Eidetic: 'make airflow' makes its environment.
"""

import configparser
import datetime
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, SetupOptions, StandardOptions

from pipelines import nightly
from pipelines.options import parse
from tests.servers import ROOT
from transforms.errors import UserError

DEPLOY = ROOT / "deploy"
EIDETIC = "/opt/eidetic/.venv/bin/eidetic"
CONFIG = "/etc/eidetic/nightly.toml"
NIGHT = "2026-02-03"
VERB = "pipelines.nightly"

RECORDER = f"""#!{sys.executable}
import json, os, sys, time
if sys.argv[1:2] == ["-c"]:  # Airflow's hook asks for Beam's version first
    print("2.77.0")
    sys.exit(0)
with open(os.environ["RECORDED"], "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
# The first of several jobs, and then a word of what comes after it.
print("INFO:root:Created job with id: [2026-02-03_02_16_00-1]", file=sys.stderr, flush=True)
time.sleep(0.5)
print("measured after the first job", flush=True)
sys.exit(int(os.environ["EXIT_CODE"]))
"""


@pytest.fixture
def recorder(tmp_path):
    """An executable that writes down its words, line by line, and ends with EXIT_CODE."""
    path = tmp_path / "recorder"
    path.write_text(RECORDER)
    path.chmod(0o755)
    return path


def recorded(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_shell(command, recorder, exit_code, folder):
    """(what the command prints, its exit code, the words that Eidetic got)."""
    environment = {**os.environ, "RECORDED": str(folder / "words"), "EXIT_CODE": str(exit_code), "TZ": "Pacific/Auckland"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60, check=False)
    (words,) = recorded(folder / "words")
    return done.stdout + done.stderr, done.returncode, words


def check_words(words):
    """The command is the night of today, in UTC, with the options of the shared file."""
    assert words[:-1] == ["nightly", "--config", CONFIG, "--date"]
    now = datetime.datetime.now(datetime.UTC)
    assert words[-1] in {f"{now:%Y-%m-%d}", f"{now - datetime.timedelta(minutes=5):%Y-%m-%d}"}


# -- the options ----------------------------------------------------------------------------------------------------


def check_parses(words):
    """``nightly`` knows every option of these words, which name the shared file."""
    words = [word.replace(CONFIG, str(DEPLOY / "nightly.toml")) for word in words]
    return parse(words, "nightly", "", nightly.night_options())


def test_the_config_holds_only_options_of_the_verb(tmp_path):
    check_parses([f"--config={CONFIG}", f"--date={NIGHT}"])
    with pytest.raises(UserError, match="unknown option"):
        check_parses([f"--config={CONFIG}", "--nonsense"])


# -- cron -----------------------------------------------------------------------------------------------------------


def crontab():
    """(variables, the five fields of the one entry, its command as cron hands it to the shell)."""
    lines = [line for line in (DEPLOY / "eidetic.crontab").read_text().splitlines() if line and not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    (entry,) = [line for line in lines if not re.match(r"\w+=", line)]
    *fields, command = entry.split(None, 5)
    assert not re.search(r"(?<!\\)%", command), "an unescaped % ends a cron command"
    return variables, fields, command.replace(r"\%", "%")


def test_the_crontab_is_one_entry_every_night_in_utc():
    variables, fields, _ = crontab()
    assert variables["CRON_TZ"] == "UTC" and "@" in variables["MAILTO"]
    minute, hour, *rest = fields
    assert 0 <= int(minute) < 60 and 0 <= int(hour) < 24 and rest == ["*", "*", "*"]


@pytest.mark.parametrize("exit_code", [0, 2, 3])
def test_cron_mails_the_exit_code_and_nothing_else(recorder, tmp_path, exit_code):
    command = crontab()[2].replace(EIDETIC, str(recorder)).replace("/var/log/eidetic", str(tmp_path))
    printed, _, words = run_shell(["/bin/sh", "-c", command], recorder, exit_code, tmp_path)
    check_words(words)
    assert "measured after the first job" in (tmp_path / "nightly.log").read_text()
    assert printed == "" if exit_code == 0 else f"exit code {exit_code} " in printed


# -- systemd --------------------------------------------------------------------------------------------------------


def unit(name):
    parser = configparser.RawConfigParser(strict=True)  # strict: nothing is said twice
    parser.optionxform = str
    parser.read(DEPLOY / name)
    return parser


def systemd_analyze(*words):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine (Debian: apt-get install systemd)")
    return subprocess.run(["systemd-analyze", *words], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_accepts_the_units():
    done = systemd_analyze("verify", "./eidetic.service", "./eidetic-alert.service", "./eidetic.timer")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_shut_in_as_far_as_it_can_be():
    # 2.2 of 10; an empty unit has 9.6. What is left is the network, the GPU and compiled kernels.
    done = systemd_analyze("security", "--offline=yes", "--threshold=25", "./eidetic.service")
    assert done.returncode == 0, done.stdout


def test_the_service_sees_the_gpu_and_cannot_set_the_clock():
    hiding = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"}
    assert not hiding & set(unit("eidetic.service")["Service"])
    done = systemd_analyze("security", "--offline=yes", "./eidetic.service")
    assert "@clock is not included" in done.stdout and "cannot change the system clock" in done.stdout


@pytest.mark.parametrize("exit_code", [0, 2, 3])
def test_the_service_runs_the_night_and_ends_with_its_exit_code(recorder, tmp_path, exit_code):
    # As systemd reads the line: its own quotes, %% for %, $$ for $.
    words = shlex.split(unit("eidetic.service")["Service"]["ExecStart"])
    words = [word.replace("%%", "%").replace("$$", "$").replace(EIDETIC, str(recorder)) for word in words]
    _, code, got = run_shell(words, recorder, exit_code, tmp_path)
    check_words(got)
    assert code == exit_code


def test_a_night_that_is_worse_alerts():
    service = unit("eidetic.service")
    assert not {"SuccessExitStatus", "Restart"} & set(service["Service"])
    assert (DEPLOY / service["Unit"]["OnFailure"]).exists()


def test_the_alert_is_a_mail_with_the_exit_code_and_the_log(tmp_path):
    for name, script in (("journalctl", 'echo "log of $*"'), ("mail", 'echo "$@"; cat')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    words = [word.replace("$$", "$") for word in shlex.split(unit("eidetic-alert.service")["Service"]["ExecStart"])]
    # What systemd.exec(5) promises to a unit that OnFailure= starts.
    monitor = {"MONITOR_UNIT": "eidetic.service", "MONITOR_EXIT_STATUS": "3", "MONITOR_INVOCATION_ID": "4f2a"}
    environment = {**monitor, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
    mailed, log = done.stdout.splitlines()
    assert mailed == "-s eidetic.service: exit code 3 eidetic-alerts@example.org"
    assert log == "log of --no-pager _SYSTEMD_INVOCATION_ID=4f2a"


def test_the_service_can_write_the_lake_of_the_config():
    lake = Path(tomllib.loads((DEPLOY / "nightly.toml").read_text())["lake"])
    assert Path("/var/lib") / unit("eidetic.service")["Service"]["StateDirectory"] in lake.parents


def test_all_three_start_at_the_same_time():
    _, (minute, hour, *_), _ = crontab()
    assert unit("eidetic.timer")["Timer"]["OnCalendar"] == f"*-*-* {int(hour):02}:{int(minute):02}:00 UTC"
    assert f'CronTriggerTimetable("{minute} {hour} * * *", timezone="UTC")' in (DEPLOY / "airflow_dag.py").read_text()


# -- Airflow --------------------------------------------------------------------------------------------------------

ALERT = {"verdict": "worse", "caption": "a cat\n2026-02-03 [error] forged \x1b[2J \u202e"}
"""A caption that would write lines of its own and clear the terminal."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """A function that runs Airflow's command line on the DAG: (its exit code, all that it printed).

    The DAG is the one of ``deploy``, but for its folders, which are the test's, and a second between two tries.
    """
    python = os.environ.get("EIDETIC_AIRFLOW_PYTHON")
    if python is None:
        python = str(ROOT / "build" / "airflow_venv" / "bin" / "python")
        if not Path(python).exists():
            pytest.skip("no environment with Airflow; 'make airflow' makes it, or EIDETIC_AIRFLOW_PYTHON names its python")
    home = tmp_path_factory.mktemp("airflow")
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").write_text(RECORDER)
    (home / ".venv" / "bin" / "python").chmod(0o755)
    (home / "nightly.toml").write_text(f'lake = "{home}/lake"')
    (home / "lake" / "nights" / NIGHT).mkdir(parents=True)
    (home / "lake" / "nights" / NIGHT / "alert.json").write_text(json.dumps(ALERT, ensure_ascii=False))
    dag = (DEPLOY / "airflow_dag.py").read_text()
    for ours, theirs in (("/opt/eidetic", str(home)), (CONFIG, f"{home}/nightly.toml"), ("minutes=15", "seconds=1")):
        assert dag.count(ours) == 1
        dag = dag.replace(ours, theirs)
    (home / "dags").mkdir()
    (home / "dags" / "airflow_dag.py").write_text(dag)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": "google-cloud-platform://",
        "AIRFLOW_VAR_EIDETIC_PROJECT": "eidetic-test",
        "AIRFLOW_VAR_EIDETIC_REGION": "europe-west4",
        "AIRFLOW_VAR_EIDETIC_TEMP": "gs://eidetic-test/temp",
        "RECORDED": str(home / "words"),
    }

    def run(*words, exit_code=0):
        (home / "words").unlink(missing_ok=True)
        done = subprocess.run(
            [python, "-m", "airflow", *words],
            env={**environment, "EXIT_CODE": str(exit_code)},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    run.home = home
    code, printed = run("db", "migrate")
    assert code == 0, printed
    return run


def as_json(printed):
    """What a command of Airflow's printed as JSON, which is its last line."""
    return json.loads(printed.splitlines()[-1])


def test_airflow_takes_the_dag(airflow):
    assert airflow("dags", "reserialize")[0] == 0
    assert as_json(airflow("dags", "list-import-errors", "--output=json")[1]) == []
    (dag,) = as_json(airflow("dags", "details", "eidetic", "--output=json")[1])
    assert (dag["max_active_runs"], dag["timetable_summary"]) == ("1", "15 2 * * *")
    # The night's date is the day on which it runs, and what is long past isn't caught up on.
    assert dag["next_dagrun_logical_date"] == dag["next_dagrun_run_after"]
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(dag["next_dagrun_run_after"])
    assert age < datetime.timedelta(days=1, minutes=5)


@pytest.mark.parametrize(
    ("exit_code", "tries", "state"),
    [
        (0, 1, "success"),
        (2, 3, "failed"),
        (3, 1, "failed"),  # a verdict: the same night again would say the same
    ],
)
def test_airflow_runs_the_night_to_its_end(airflow, tmp_path, exit_code, tries, state):
    code, printed = airflow("dags", "test", "eidetic", f"{NIGHT}T02:15:00+00:00", exit_code=exit_code)
    assert (code == 0) == (state == "success") and f"state={state}," in printed, printed
    # Dataflow's first job is not the end of the night.
    assert printed.count("measured after the first job") == tries
    assert printed.count(f"Process exited with return code: {exit_code}") == tries

    runs = recorded(airflow.home / "words")
    assert len(runs) == tries
    for words in runs:
        assert words[:2] == ["-m", VERB]
        assert re.fullmatch(r"--labels=airflow-version=v[-0-9]+", words[6])
        assert re.fullmatch(r"--job_name=eidetic-nightly-[0-9a-f]{8}", words[3])
        assert words[2:3] + words[4:6] + words[7:] == [
            "--runner=DataflowRunner",
            "--project=eidetic-test",
            "--region=europe-west4",
            f"--config={airflow.home}/nightly.toml",
            f"--date={NIGHT}",
            "--verbose",
            "--temp_location=gs://eidetic-test/temp",
            f"--setup_file={airflow.home}/setup.py",
        ]
    assert len({words[3] for words in runs}) == tries, "Dataflow refuses a second job of the same name"

    beam = PipelineOptions(check_parses([word.replace(f"{airflow.home}/nightly.toml", CONFIG) for word in runs[0][2:]]).beam)
    assert beam.view_as(StandardOptions).runner == "DataflowRunner"
    assert beam.view_as(GoogleCloudOptions).project == "eidetic-test"
    assert beam.view_as(GoogleCloudOptions).region == "europe-west4"
    assert beam.view_as(GoogleCloudOptions).temp_location == "gs://eidetic-test/temp"
    assert beam.view_as(SetupOptions).setup_file == f"{airflow.home}/setup.py"

    alerts = [line for line in printed.splitlines() if f"alert of {NIGHT}" in line]
    assert len(alerts) == (0 if exit_code == 0 else 1)
    for line in alerts:
        assert json.dumps(ALERT) in line
    assert "\x1b[2J" not in printed and "\u202e" not in printed


def test_airflow_says_so_where_a_night_left_no_alert(airflow):
    code, printed = airflow("dags", "test", "eidetic", "2026-02-04T02:15:00+00:00", exit_code=3)
    assert code != 0 and "no alert of 2026-02-04" in printed


def test_a_verb_runs_as_a_module():
    """Airflow's operator names a file after its options: ``-m`` and a module's name take that place."""
    module = VERB if importlib.util.find_spec(VERB) else "pipelines.audit"
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--config" in done.stdout
