"""Colab, played: an empty folder with nothing but the notebook, and a module google.colab."""

import copy
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
SETUP = ("fetch", "imports", "config", "loaders")


@pytest.fixture
def repository(tmp_path):
    """A Git repository with what the notebook fetches; its path ends as the address does."""
    folder = tmp_path / "ada" / "TSAI-S11"
    shutil.copytree(ROOT / "models", folder / "models")
    shutil.copy(ROOT / "utils.py", folder)
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "All")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """Return a function that runs the cells in an empty folder, with the address given."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    module = 'import sys, types\nsys.modules["google.colab"] = types.ModuleType("google.colab")\n'
    (startup / "colab.py").write_text(module)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # Colab without its GPU
    monkeypatch.delenv("S11_PROFILE")
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(address, times=1):
        notebook = nbformat.read(ROOT / "S11.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.get("id") in SETUP]
        cells[0].source = "\n".join(
            f'REPO_URL = "{address}"' if line.startswith("REPO_URL") else line
            for line in cells[0].source.splitlines()
        )
        notebook.cells = [copy.deepcopy(cell) for _ in range(times) for cell in cells]
        folder = {"metadata": {"path": str(empty)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
        texts = ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]
        return texts, empty

    return run


def test_run_all_and_run_all_again(run_all, repository):
    texts, folder = run_all(repository, times=2)
    assert [path.name for path in folder.iterdir()] == ["TSAI-S11"]
    for config, loaders in (texts[2:4], texts[6:8]):
        assert "This Colab has no GPU: Runtime > Change runtime type > T4 GPU" in config
        assert "QUICK PROFILE" in config
        assert "1,024 training images" in loaders
    assert texts[4] == "", "the second time, there is nothing to fetch"


def test_owner_that_is_not_filled_in_is_told(run_all):
    with pytest.raises(CellExecutionError, match="Put the repository's owner into REPO_URL"):
        run_all("https://github.com/OWNER/TSAI-S11")


def test_address_that_cannot_be_cloned_is_told(run_all, tmp_path):
    with pytest.raises(CellExecutionError, match="cannot be cloned: check the address"):
        run_all(tmp_path / "nowhere" / "TSAI-S11")
