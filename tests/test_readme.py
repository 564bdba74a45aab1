"""The README: its links, its commands, its tables and recipes, and the one place for the owner."""

import re
import subprocess
import sys
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import utils

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if not link.startswith("http")]
(RECIPES,) = re.findall(r"^\|\s*I want[^\n]*\n\|[-| :]+\n((?:\|.*\n)+)", README, flags=re.M)
RECIPES = [row.strip("|\n ").split(" | ", 1) for row in RECIPES.splitlines()]


@pytest.mark.parametrize("link", LINKS)
def test_linked_files_and_headings_exist(link):
    file, _, heading = link.partition("#")
    assert (ROOT / file).exists()
    headings = re.findall(r"^#+ (.*)", README, flags=re.M)
    anchors = [re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings]
    assert file or heading in anchors


def test_every_part_is_linked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    parts = {name.split("/")[0] for name in tracked.split()} - {"README.md", ".gitignore"}
    linked = {link.split("#")[0] for link in LINKS}
    parts = [part for part in parts if not any(link.startswith(part) for link in linked)]
    assert not [part for part in parts if not part.startswith(".git")]


def test_tables_are_those_of_results_json(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert import_module("report").update_readme(check=True) == 0, "run python benchmarks/report.py"
    assert "<!-- begin: headline -->" in README
    assert README.count("<!-- begin: ") == README.count("<!-- end: ")


def test_requirements_are_lower_bounds_only():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", line) for line in packages), packages


def test_model_table_is_the_golden_one():
    golden = (ROOT / "tests" / "golden" / "resnet18_summary.txt").read_text(encoding="utf-8")
    assert golden.strip() in README


def test_one_command_fills_in_the_owner_everywhere(tmp_path):
    names = ("README.md", "S11.ipynb")
    (tmp_path / "benchmarks").mkdir()
    for name in (*names, "benchmarks/owner.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        owner = re.search(r"github\.com/([\w-]+)/TSAI-S11|$", text)[1]  # in a copy, it is filled in
        text = text.replace(f"/{owner}/TSAI-S11", "/OWNER/TSAI-S11")
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "benchmarks/owner.py", "ada"], cwd=tmp_path, check=True)
    for name in names:
        filled = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search("/OWNER/TSAI-S11|begin: owner", filled)
        assert "https://colab.research.google.com/github/ada/TSAI-S11/blob/main/" in filled
        assert "https://github.com/ada/TSAI-S11" in filled
    assert '"/OWNER/" not in REPO_URL' in filled.replace('\\"', '"'), "the check stays"


# "I want to ...": each line does what it says, with small stand-ins


def make_images(root, train=True, **options):
    """Stand in for any of torchvision's sets of 32 x 32 images, with black ones of 100 classes."""
    data, classes = np.zeros((100, 32, 32, 3), np.uint8), [f"class {i}" for i in range(100)]
    data[:, :16] = 255
    return SimpleNamespace(data=data, targets=list(range(100)), classes=classes)


def make_network(num_classes=10):
    layers = {f"layer{i}": nn.Sequential(nn.Conv2d(8, 8, 1)) for i in (1, 2, 3)}
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(512, num_classes)}
    return nn.Sequential(OrderedDict({"conv1": nn.Conv2d(3, 8, 3, 4), **layers}))


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Return the names that the notebook has defined when a recipe's line is put into it."""
    monkeypatch.chdir(tmp_path)
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, make_images)
    short = {"device": "cpu", "epochs": 1, "batch_size": 50, "output_dir": tmp_path}
    get_config = utils.get_config
    monkeypatch.setattr(utils, "get_config", lambda *args, **own: get_config(*args, **own | short))
    names = {"utils": utils, "torch": torch, "torchvision": torchvision, "max_lr": 0.01}
    mine = SimpleNamespace(MyNetwork=make_network)
    monkeypatch.setitem(sys.modules, "models.mine", mine)
    names["ResNet18"] = make_network
    names |= {"config": utils.get_config("quick", train_images=100), "model": make_network()}
    names["train_loader"], names["test_loader"] = utils.get_dataloaders(names["config"])
    names["misclassified"] = utils.get_misclassified(names["model"], names["test_loader"])
    return names


def run_and_fit(code, names):
    exec(code, names)
    loaders = names["train_loader"], names["test_loader"]
    history = utils.fit_one_cycle(names["model"], *loaders, names["max_lr"], names["config"])
    assert len(history["test_loss"]) == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe[0])
def test_recipe_runs(recipe, notebook):
    run_and_fit("\n".join(re.findall(r"`([^`]+)`", recipe[1])), notebook)


def test_another_dataset_is_trained(notebook):
    (line,) = (code for name, code in RECIPES if "CIFAR-100" in name)
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "CIFAR" in code)
    run_and_fit(line.strip("`") + "\n" + code, notebook)
    assert len(notebook["config"].classes) == notebook["model"].linear.out_features == 100
