"""Tests, and the cells that nbval runs, use the quick profile and none of the user's folders."""

import os
import re
import tempfile
from pathlib import Path

import matplotlib
import pytest

OUTPUT_DIR = tempfile.TemporaryDirectory(prefix="s11-tests-")  # deleted when pytest ends

# Set before utils is imported; the kernels that run the notebook inherit it.
os.environ["S11_PROFILE"] = "quick"
os.environ["S11_OUTPUT_DIR"] = OUTPUT_DIR.name
os.environ.pop("S11_DATA_DIR", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once
os.environ.pop("MPLBACKEND", None)  # in a kernel, it would replace the inline figures
matplotlib.rcdefaults()  # whatever your matplotlibrc says
matplotlib.use("agg")
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # the tests' own servers
COLORS = ("FORCE_COLOR", "PY_COLORS", "PYTEST_ADDOPTS")
GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set where a hook of git runs the tests
for name in COLORS + GIT:
    os.environ.pop(name, None)

# What a cell names that only its author's machine has: a Google Drive, other runs, a photo.
ELSEWHERE = (
    "google.colab",
    "/content/",
    "kaggle_secrets",
    "/kaggle/",
    "plot_comparison(",
    "plot_prediction(",
    "-m benchmarks.",
    "benchmarks/owner.py",
)
# Our weights are of a full run; in the quick profile, a short training takes their place.
TRAINING = "utils.fit_one_cycle(model, train_loader, test_loader, 0.01, config)"


def pytest_configure(config):
    """Compare the outputs of cells with the tag nbval-check-output; others may print anything."""
    config.option.nbval_lax = config.option.nbval


def pytest_itemcollected(item):
    """Run a short quick profile in place of the notebook's parameters, and no cell that can only
    run elsewhere."""
    if not hasattr(item, "cell"):
        return
    if "parameters" in item.cell.metadata.get("tags", []):
        item.cell.source = "config = utils.get_config(epochs=1, train_images=512)"
        return
    if "utils.load_result(" in item.cell.source:
        item.cell.source = re.sub(r"utils\.load_result\([^)]*\)", TRAINING, item.cell.source)
    # Another experiment: its folder is not looked at, wherever it is.
    own = Path(OUTPUT_DIR.name).as_posix()
    folder = r"""(output_dir\s*=\s*[fFrR]*["'])"""
    without_folders = re.sub(folder + r"""[^"']*""", "", item.cell.source)
    if any(name in without_folders for name in ELSEWHERE):
        item.add_marker(pytest.mark.skip(reason="This cell needs its author's machine."))
    item.cell.source = re.sub(folder, lambda match: f"{match[1]}{own}/", item.cell.source)
