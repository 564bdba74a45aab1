"""The README: its links, tables and recipes, and the one place for the owner."""

import re
import subprocess
import sys
from collections import OrderedDict
from functools import partial
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


def test_links_lead_somewhere_and_to_every_part():
    headings = re.findall(r"^#+ (.*)", README, flags=re.M)
    anchors = [re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings]
    for file, _, heading in (link.partition("#") for link in LINKS):
        assert (ROOT / file).exists(), file
        assert file or heading in anchors, heading
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    parts = {name.split("/")[0] for name in tracked.split() if not name.startswith(".git")}
    linked = {part for part in parts if any(link.startswith(part) for link in LINKS)}
    assert parts - linked <= {"README.md"}


def test_tables_are_up_to_date_and_requirements_are_lower_bounds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert not import_module("report").update_readme(check=True), "run python benchmarks/report.py"
    begins, ends = (re.findall(f"<!-- {word}: (.*) -->", README) for word in ("begin", "end"))
    assert begins == ends
    assert {"headline", "results", "log"} <= {*begins}, "the others may be deleted"
    assert (ROOT / "tests/golden/resnet18_summary.txt").read_text("utf-8").strip() in README
    packages = re.findall(r"^[^#\n].*", (ROOT / "requirements.txt").read_text(), flags=re.M)
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", line) for line in packages), packages


def test_one_command_fills_in_the_owner_everywhere(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    for name in ("README.md", "S11.ipynb", "benchmarks/owner.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        owner = re.search(r"github\.com/([\w-]+)/TSAI-S11|$", text)[1]  # in a copy, it is filled in
        (tmp_path / name).write_text(text.replace(f"/{owner}/TSAI-S11", "/OWNER/TSAI-S11"), "utf-8")
    subprocess.run([sys.executable, "benchmarks/owner.py", "ada"], cwd=tmp_path, check=True)
    for name in ("README.md", "S11.ipynb"):
        filled = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search("/OWNER/TSAI-S11|begin: owner", filled)
        assert "https://colab.research.google.com/github/ada/TSAI-S11/blob/main/" in filled
        assert "https://github.com/ada/TSAI-S11" in filled
    assert '"/OWNER/" not in REPO_URL' in filled.replace('\\"', '"'), "the check stays"


# "I want to ...": each line does what it says, with small stand-ins


def make_images(classes, root, train=True, **options):
    """Stand in for CIFAR-10 or CIFAR-100: 100 training or 30 test images, brighter by class."""
    targets = np.arange(100 if train else 30, dtype=np.uint8) % classes
    data = np.tile(targets[:, None, None, None] * np.uint8(250 // classes), (1, 32, 32, 3))
    return SimpleNamespace(data=data, targets=targets.tolist(), classes=[*map(str, range(classes))])


def make_network(num_classes=10):
    """Return a network with the names of ResNet18, for images of 32 x 32 or 16 x 16."""
    layers = {f"layer{i}": nn.Sequential(nn.Conv2d(8, 8, 1)) for i in (1, 2, 3)}
    layers = {"conv1": nn.Conv2d(3, 8, 3, 4), **layers, "pool": nn.AdaptiveAvgPool2d(4)}
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(128, num_classes)}
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Return the names that the notebook has defined when a recipe's line is put into it."""
    monkeypatch.chdir(tmp_path)
    for classes in (10, 100):
        monkeypatch.setattr(torchvision.datasets, f"CIFAR{classes}", partial(make_images, classes))
    short = {"device": "cpu", "epochs": 1, "batch_size": 50, "output_dir": tmp_path}
    get_config = utils.get_config
    monkeypatch.setattr(utils, "get_config", lambda *args, **own: get_config(*args, **own | short))
    monkeypatch.setitem(sys.modules, "models.mine", SimpleNamespace(MyNetwork=make_network))
    names = {"utils": utils, "torch": torch, "max_lr": 0.01, "ResNet18": make_network}
    names |= {"config": utils.get_config("quick", train_images=100), "model": make_network()}
    names["train_loader"], names["test_loader"] = utils.get_dataloaders(names["config"])
    names["misclassified"] = utils.get_misclassified(names["model"], names["test_loader"])
    return names


@pytest.mark.parametrize(("wish", "lines"), RECIPES, ids=[wish for wish, _ in RECIPES])
def test_recipe_runs(wish, lines, notebook):
    code, classes = re.findall(r"`([^`]+)`", lines), 10
    if "CIFAR-100" in wish:  # the rest is further down
        blocks = re.findall(r"```python\n(.*?)```", README, re.S)
        code, classes = [*code, *(block for block in blocks if "CIFAR" in block)], 100
    exec("\n".join(code), notebook)
    names = ("model", "train_loader", "test_loader", "max_lr", "config")
    utils.fit_one_cycle(*(notebook[name] for name in names))
    assert len(notebook["config"].classes) == notebook["model"].linear.out_features == classes
