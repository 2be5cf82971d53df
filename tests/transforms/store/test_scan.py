"""Questions are asked of one DuckDB a process, and see nothing of one another."""

import subprocess
import sys
import threading

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.store.remote import readable
from transforms.store.scan import connect


def test_what_a_question_makes_is_its_own_and_ends_with_it():
    with connect() as one, connect() as other:
        for number, connection in enumerate((one, other)):
            connection.register("rows", pa.table({"number": [number]}))
            connection.execute("SET VARIABLE mine = $number", {"number": number})
            connection.execute("CREATE TEMP TABLE made AS SELECT number FROM rows")
            connection.execute("CREATE TEMP VIEW seen AS SELECT number FROM made")
        for number, connection in enumerate((one, other)):
            assert connection.sql("SELECT number, getvariable('mine') FROM seen").fetchall() == [(number, number)]
    with connect() as later:
        assert later.sql("SELECT getvariable('mine')").fetchall() == [(None,)]
        for name in ("rows", "made", "seen"):
            with pytest.raises(duckdb.CatalogException):
                later.sql(f"SELECT * FROM {name}")


def test_threads_ask_at_once():
    found = []

    def ask():
        for _ in range(20):
            with connect() as connection:
                connection.register("rows", pa.table({"number": list(range(1000))}))
                found.append(connection.sql("SELECT sum(number), wilson_interval(0, 1)[1] FROM rows").fetchall())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(499500, 0.0)]] * 80


def test_a_process_that_asked_ends_without_a_word():
    """DuckDB's binding says that it leaks where a connection outlives Python; a process that was forked has its own."""
    code = """
import os
from transforms.store.remote import readable
from transforms.store.scan import connect
with connect() as connection:
    connection.sql("SELECT 1").fetchall()
if (child := os.fork()) == 0:
    with connect() as connection:
        os._exit(connection.sql("SELECT 7").fetchall()[0][0])
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


def test_a_question_sees_what_was_written_to_a_store_since_the_one_before():
    """Listings of folders, which hold sizes, are kept for one question alone."""
    for number in (1, 1000):
        table = pa.table({"number": list(range(number))})
        with fsspec.open("memory:///scan/part.parquet", "wb") as file:
            pq.write_table(table, file)
        with connect() as connection:
            found = connection.sql(
                "SELECT count(*) FROM read_parquet($path)", params={"path": readable("memory:///scan/part.parquet")}
            )
            assert found.fetchall() == [(number,)]
