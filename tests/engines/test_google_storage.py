"""The lock's tests on Google's storage, emulated by fake-gcs-server, which heeds conditional writes as Google does.

``make engines`` installs it; without it they are skipped. The emulator of the other tests heeds no conditions.
"""

import pytest

from tests.engines.install import HERE, is_installed
from tests.pipelines.test_lock import *  # noqa: F403
from tests.servers import google_storage

BUCKET = "eidetic-lock"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    if not is_installed("google_storage"):
        pytest.skip("fake-gcs-server is not installed: make engines")
    log = tmp_path_factory.mktemp("google_storage") / "log"
    with google_storage(BUCKET, HERE / "google_storage" / "fake-gcs-server", log):
        yield f"gs://{BUCKET}"
