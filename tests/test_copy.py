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
from models.resnet import ResNet18

ROOT = Path(__file__).parent.parent
OWN = 'config = utils.get_config("full", epochs=40, optimizer="sgd", output_dir="/content/drive/x")'


def run(folder, *command):
    """Run Python in a folder, as its owner would."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "S11_"}
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True)


def change_notebook(path):
    """Set parameters and a network of one's own, and other numbers where nbval compares none."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if "utils.get_config(" in (source := "".join(cell["source"])):
            cell["source"] = OWN
        elif "import utils" in source:
            cell["source"] = f"{source}\nfrom models.another import Another"
        for output in cell.get("outputs", []) if cell["metadata"].get("tags") else []:
            if "text" in output:
                output["text"] = [re.sub(r"\d\.\d\d", "7.77", line) for line in output["text"]]
    assert OWN in [cell["source"] for cell in notebook["cells"]]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_run(folder, **changes):
    """Write what a finished run of some settings leaves behind; 20 epochs, each a bit higher."""
    settings = {f.name: f.default for f in fields(utils.Config) if f.default is not MISSING}
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")
    history = {name: [1 + epoch / 7 for epoch in range(20)] for name in names}
    run = {**settings, "profile": "full", **changes}
    folder.mkdir(parents=True)
    state = {"run": run, "history": history, "machine": "M", "model": ResNet18().state_dict()}
    torch.save(state, folder / "checkpoint.pt")
    (folder / "history.png").write_text(folder.name)


def test_a_copy_with_a_run_of_its_own_passes_the_tests_that_look_at_it(tmp_path):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git repository")
    copy = tmp_path / "my own copy"
    for name in filter(lambda name: (ROOT / name).is_file(), done.stdout.splitlines()):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    change_notebook(copy / "S11.ipynb")
    (copy / "models/another.py").write_text("from models.resnet import ResNet34 as Another\n")
    save_run(copy / "outputs" / "full", seed=4, cutout_size=8, optimizer="sgd")
    run(copy, "benchmarks/owner.py", "ada")
    run(copy, "benchmarks/report.py", "outputs/full")
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert "with cutout size 8, optimizer sgd (10,000 images, one run)" in readme
    assert "| 20 | 3.714 |" in readme
    assert (copy / "images" / "history.png").read_text() == "full"
    looked_at = [f"S11.ipynb::Cell {i}" for i in range(6)]  # the rest does not see the difference
    looked_at += ["tests/test_readme.py", "tests/test_notebook.py"]
    run(copy, "-m", "pytest", "-q", "--nbval", *looked_at)
