"""Every night at 02:15 UTC, Eidetic's audit on Dataflow.

A worker of Airflow has Eidetic in a virtual environment of its own (HOME) and its options in CONFIG, with a lake in a bucket.
Airflow has the connection google_cloud_default and the variables eidetic_project, eidetic_region and eidetic_temp, a folder
in a bucket. More in docs/scheduling.md.
"""

import datetime
import json
import logging
import tomllib
from pathlib import Path

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.sdk import DAG, CronTriggerTimetable, ObjectStoragePath
from airflow.sdk.exceptions import AirflowException, AirflowFailException

HOME = "/opt/eidetic"
CONFIG = "/etc/eidetic/nightly.toml"


class NightlyOperator(BeamRunPythonPipelineOperator):
    """Waits for the command to end. Beam's own operator leaves it with the first Dataflow job that it starts; a night has
    many, and its verdict is the exit code."""

    operator_extra_links = ()  # to that first job; the log names them all

    def execute_on_dataflow(self, context):
        try:
            self.beam_hook.start_python_pipeline(
                variables=self.snake_case_pipeline_options,
                py_file=self.py_file,
                py_options=self.py_options,
                py_interpreter=self.py_interpreter,
                process_line_callback=self.process_line_callback,  # finds the job that on_kill cancels
            )
        except AirflowException as error:
            # The hook tells the exit code in its message alone.
            if str(error).endswith("return code 3"):
                raise AirflowFailException(
                    "significantly more prompts return their image: a verdict, no fault to retry"
                ) from error
            raise


def log_alert(context):
    """Writes the night's alert.json to the task's log. Your notifier goes beside it in ``on_failure_callback``."""
    lake = tomllib.loads(Path(CONFIG).read_text())["lake"]
    alert = ObjectStoragePath(f"{lake}/nights/{context['ds']}/alert.json", conn_id="google_cloud_default")
    if alert.exists():
        # It quotes captions, which are hostile text: JSON in ASCII keeps them on one line.
        logging.error("alert of %s: %s", context["ds"], json.dumps(json.loads(alert.read_text())))
    else:
        logging.error("no alert of %s: the night could not run, and the log above says why", context["ds"])


with DAG(
    "eidetic",
    schedule=CronTriggerTimetable("15 2 * * *", timezone="UTC"),  # ds is the day on which it runs, as in the crontab
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    tags=["eidetic"],
):
    NightlyOperator(
        task_id="nightly",
        py_interpreter=f"{HOME}/.venv/bin/python",
        py_options=["-m"],
        py_file="pipelines.nightly",
        runner="DataflowRunner",
        # A dict, since all its values are rendered; of a DataflowConfiguration not the project.
        dataflow_config={
            "job_name": "eidetic-nightly",
            "project_id": "{{ var.value.eidetic_project }}",
            "location": "{{ var.value.eidetic_region }}",
        },
        pipeline_options={
            "config": CONFIG,
            "date": "{{ ds }}",
            "verbose": True,  # Beam's log, which names the jobs
            "temp_location": "{{ var.value.eidetic_temp }}",
            "setup_file": f"{HOME}/setup.py",
        },
        retries=2,
        retry_delay=datetime.timedelta(minutes=15),
        on_failure_callback=[log_alert],
    )
