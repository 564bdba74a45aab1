"""A copy of the repository, with a run and settings of its own, passes the tests as well."""

import json
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

import utils

ROOT = Path(__file__).parent.parent
OWN = {"epochs": "2", "cutout_size": "8", "optimizer": '"sgd"'}


def run(folder, *command):
    """Run Python in a folder, as its owner would."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "S11_"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *command], **options)
    assert done.returncode == 0, done.stdout + done.stderr


def change_notebook(path, output_dir):
    """Set the parameters."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = (c for c in notebook["cells"] if "utils.get_config(" in "".join(c["source"]))
    source = "".join(cell["source"])
    for name, value in {**OWN, "output_dir": f'"{output_dir}"'}.items():
        source, count = re.subn(rf"(?m)^(    {name}=)[^,\n]*,", rf"\g<1>{value},", source)
        assert count == 1, f"{name} is a line of the parameters cell"
    cell["source"] = source.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_run(folder, **changes):
    """Write what a finished run of some settings leaves behind; 20 epochs, each a bit higher."""
    settings = {f.name: f.default for f in fields(utils.Config) if f.default is not MISSING}
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")
    history = {name: [1 + epoch / 7 for epoch in range(20)] for name in names}
    run = {**settings, "profile": "full", **changes}
    folder.mkdir(parents=True)
    torch.save({"run": run, "history": history, "machine": "M"}, folder / "checkpoint.pt")
    (folder / "history.png").write_text(folder.name)


@pytest.fixture
def copy(tmp_path, request):
    """Return a copy of the repository in another folder, changed in every way that is foreseen."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git repository")
    folder = tmp_path / "my own copy"
    for name in filter(lambda name: (ROOT / name).is_file(), done.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    change_notebook(folder / "S11.ipynb", request.param)
    save_run(folder / "outputs" / "full", seed=4, cutout_size=8, optimizer="sgd")
    run(folder, "benchmarks/owner.py", "ada")
    return folder


@pytest.mark.parametrize("copy", ["outputs/mine", "/content/drive/MyDrive/S11"], indirect=True)
def test_a_copy_passes_the_tests_that_look_at_it(copy):
    run(copy, "benchmarks/report.py", "outputs/full")
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert "with cutout size 8, optimizer sgd (one run)" in readme
    assert "| 20 | 3.714 |" in readme
    assert (copy / "images" / "history.png").read_text() == "full"
    tests = "S11.ipynb", "tests/test_readme.py", "tests/test_notebook.py"
    run(copy, "-m", "pytest", "-q", "--nbval", *tests)
