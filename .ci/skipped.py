"""Ends with 1 where tests were skipped that no list allows: what CI leaves out without a word, nobody looks at.

.ci/skipped.py build/tests.xml .ci/may_skip.toml
"""

import fnmatch
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path


def main(report: str, allowed: str) -> int:
    """Args: JUnit's report of the tests; TOML with ``may_skip``, each with ``why`` and ``tests``."""
    patterns = {name: one["why"] for one in tomllib.loads(Path(allowed).read_text())["may_skip"] for name in one["tests"]}
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    if not cases:
        print(f"{report} holds no test", file=sys.stderr)
        return 1
    wrong = 0
    for case in cases:
        skipped = case.find("skipped")
        if skipped is None:
            continue
        name = f"{case.get('classname')}::{case.get('name')}"
        why = next((why for pattern, why in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
        wrong += why is None
        print(f"skipped, {'as it may be' if why else 'AND MUST NOT BE'}: {name}: {why or skipped.get('message')}")
    if wrong:
        print(
            f"{wrong} skipped tests are not in {allowed}; see that they run, or name them there with a reason", file=sys.stderr
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
