"""Benchmarks run as the commands do."""

import transforms  # noqa: F401  # before torch: it says how threads wait
