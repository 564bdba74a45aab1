"""Tests, and the cells that nbval runs, use the quick profile and none of the user's folders."""

import os
import re
import tempfile
from pathlib import Path

import matplotlib

OUTPUT_DIR = tempfile.TemporaryDirectory(prefix="s11-tests-")  # deleted when pytest ends

# Set before utils is imported; the kernels that run the notebook inherit it.
os.environ["S11_PROFILE"] = "quick"
os.environ["S11_OUTPUT_DIR"] = OUTPUT_DIR.name
os.environ.pop("S11_DATA_DIR", None)
os.environ.pop("MPLBACKEND", None)  # in a kernel, it would replace the inline figures
matplotlib.use("agg")


def pytest_configure(config):
    """Give the sanitize file by its full path: pytest may be started in any folder."""
    config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "nbval_sanitize.cfg")


def pytest_itemcollected(item):
    """Leave a notebook's profile, folder and length to the quick profile, whatever it says."""
    if hasattr(item, "cell"):
        own = r"(?m)^(    (?:profile|epochs|batch_size|output_dir)=)[^,\n]*,"
        item.cell.source = re.sub(own, r"\1None,", item.cell.source)
