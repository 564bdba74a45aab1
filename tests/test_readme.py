"""The README: its links, its commands, its tables and recipes, and the one place for the owner."""

import html
import re
import shlex
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import models.resnet
import utils

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import report

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if not link.startswith("http")]
COMMANDS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
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


def test_tables_are_those_of_results_json():
    assert report.update_readme(check=True) == 0, "run python benchmarks/report.py"
    assert "<!-- begin: headline -->" in README
    assert README.count("<!-- begin: ") == README.count("<!-- end: ")


def test_test_line_is_what_ci_runs():
    (line,) = (command for command in COMMANDS if "pytest --nbval" in command)
    assert line.strip() in (ROOT / ".ci" / "run").read_text()


def test_requirements_are_lower_bounds_only():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", line) for line in packages), packages


def test_model_table_is_the_golden_one():
    golden = (ROOT / "tests" / "golden" / "resnet18_summary.txt").read_text(encoding="utf-8")
    assert golden.strip() in README


def fill_in_owner(folder):
    """Run the README's command in a folder, for the account "ada"."""
    (command,) = (command for command in COMMANDS if "OWNER" in command and "clone" not in command)
    python = re.sub(r"\bpython3?\b", lambda _: shlex.quote(sys.executable), command)
    subprocess.run(re.sub("you(?!r)", "ada", python), shell=True, cwd=folder, check=True)


def test_one_command_fills_in_the_owner_everywhere(tmp_path):
    for name in ("README.md", "S11.ipynb"):
        text = (ROOT / name).read_text(encoding="utf-8")
        owner = re.search(r"github\.com/([\w-]+)/TSAI-S11", text)[1]  # in a copy, it is filled in
        text = text.replace(f"/{owner}/TSAI-S11", "/OWNER/TSAI-S11")
        (tmp_path / name).write_text(text, encoding="utf-8")
    fill_in_owner(tmp_path)
    for name in ("README.md", "S11.ipynb"):
        filled = (tmp_path / name).read_text(encoding="utf-8")
        assert "/OWNER/TSAI-S11" not in filled
        assert "https://colab.research.google.com/github/ada/TSAI-S11/blob/main/" in filled
        assert "https://github.com/ada/TSAI-S11" in filled
    assert '"/OWNER/" not in REPO_URL' in filled.replace('\\"', '"'), "the check stays"


# The recipes: each line of the table does what it says


class FakeImages:
    """Stand in for any of torchvision's sets of 32 x 32 images, with random ones of 100 classes."""

    def __init__(self, root, train=True, **options):
        self.classes = [f"class {i}" for i in range(100)]
        generator = torch.Generator().manual_seed(0)
        shape = (100, 32, 32, 3)
        self.data = torch.randint(256, shape, dtype=torch.uint8, generator=generator).numpy()
        self.targets = list(range(100))


@pytest.mark.parametrize("code", [code for _, code in RECIPES], ids=[name for name, _ in RECIPES])
def test_recipe_runs(code, tmp_path, monkeypatch):
    def make_network(num_classes=10):
        layers = {"layer3": nn.Sequential(nn.Conv2d(3, 8, 3, 4)), "flatten": nn.Flatten()}
        return nn.Sequential(OrderedDict(layers, linear=nn.Linear(512, num_classes)))

    for name in ("ResNet18", "ResNet34"):
        monkeypatch.setattr(models.resnet, name, make_network)
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, FakeImages)
    short = {"device": "cpu", "epochs": 1, "batch_size": 50, "output_dir": tmp_path}
    get_config = utils.get_config
    monkeypatch.setattr(utils, "get_config", lambda *args, **own: get_config(*args, **own | short))
    config = utils.get_config("quick", train_images=100)
    names = {"utils": utils, "torch": torch, "torchvision": torchvision, "config": config}
    names |= {"models": models, "ResNet18": make_network, "ResNet34": make_network}
    names |= {"model": make_network(), "max_lr": 0.01}
    names["train_loader"], names["test_loader"] = utils.get_dataloaders(config)
    monkeypatch.chdir(tmp_path)
    cells = re.findall(r"`([^`]+)`", code)
    assert cells
    for cell in cells:
        exec(html.unescape(cell).replace(r"\|", "|"), names)
    config, loaders = names["config"], (names["train_loader"], names["test_loader"])
    history = utils.fit_one_cycle(names["model"], *loaders, names["max_lr"], config)
    assert len(history["test_loss"]) == 1
