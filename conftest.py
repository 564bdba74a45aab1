"""Tests, and the cells that nbval runs, use the quick profile and none of the user's folders."""

import os
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
    """Leave a notebook's profile, folders and length to the quick profile, whatever it says."""
    if hasattr(item, "cell"):
        quick = dict.fromkeys(("device", "data_dir", "output_dir", "epochs", "batch_size"))
        call = f"(lambda *_, profile=None, **own: utils.get_config(**own | {quick}))("
        item.cell.source = item.cell.source.replace("utils.get_config(", call)
