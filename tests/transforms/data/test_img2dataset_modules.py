"""img2dataset's modules are had without what its package imports, and the package itself as ever."""

import subprocess
import sys

from tests.servers import ROOT
from transforms.data.img2dataset_modules import img2dataset_module


def test_the_modules_come_without_torch_and_the_package_is_left_alone():
    script = """
import sys
from transforms.data.img2dataset_modules import img2dataset_module
found = img2dataset_module("downloader"), img2dataset_module("resizer")
print(*(name for name in ("torch", "pandas", "webdataset", "img2dataset") if name in sys.modules))
import img2dataset.downloader
assert img2dataset.downloader.Downloader is not found[0].Downloader
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_module_is_loaded_once():
    assert img2dataset_module("downloader") is img2dataset_module("downloader")
