"""The README: its links, tables and recipes, and the one place for the owner."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader

import utils
from helpers import ROOT, make_images, make_network, make_small_model, save_run
from models.resnet import ResNet18

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if not link.startswith("http")]
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def read_recipes():
    """Return wish and line of each row in the table "I want to ..."."""
    pattern = r"^\|\s*I want[^\n]*\n\|[-| :]+\n((?:\|.*\n)+)"
    (rows,) = re.findall(pattern, README, flags=re.MULTILINE)
    return [row.strip("|\n ").split(" | ", 1) for row in rows.splitlines()]


# Links, marks and tables
@pytest.mark.parametrize("link", dict.fromkeys(LINKS))
def test_a_link_leads_somewhere(link):
    file, _, heading = link.partition("#")
    assert (ROOT / file).exists()
    titles = re.findall(r"^#+ (.*)", README, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title).strip().lower() for title in titles]
    assert file or heading in [anchor.replace(" ", "-") for anchor in anchors]


PARTS = (
    ".ci",
    ".pre-commit-config.yaml",
    "LICENSE",
    "S11.ipynb",
    "benchmarks",
    "conftest.py",
    "images",
    "models",
    "pyproject.toml",
    "requirements.txt",
    "results.json",
    "tests",
    "utils.py",
)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_repository_is_linked(part):
    assert any(link.startswith(part) for link in LINKS)


def test_tables_are_those_of_results_json():
    command = [sys.executable, "-m", "benchmarks.report", "--check"]
    done = subprocess.run(command, cwd=ROOT)
    assert done.returncode == 0, "run python -m benchmarks.report"


def test_every_mark_has_its_end_and_the_needed_blocks_are_there():
    begins = re.findall("<!-- begin: (.*) -->", README)
    ends = re.findall("<!-- end: (.*) -->", README)
    assert begins == ends
    assert {"headline", "results", "log"} <= {*begins}, "the others may be deleted"


def test_the_summary_is_that_of_the_network():
    summary = (ROOT / "tests" / "golden" / "resnet18_summary.txt").read_text(encoding="utf-8")
    assert summary.strip() in README


def test_requirements_are_lower_bounds_only():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    packages = re.findall(r"^[^#\n].*", text, flags=re.MULTILINE)
    assert packages
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", line) for line in packages), packages


# The owner
@pytest.fixture
def copied(tmp_path):
    """A folder with what names the owner, and what changes it."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("README.md", "S11.ipynb", "benchmarks/owner.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change_owner(folder, *arguments):
    command = [sys.executable, "benchmarks/owner.py", *arguments]
    subprocess.run(command, cwd=folder, check=True)


def read_texts(folder):
    """Return the README and the notebook."""
    return [(folder / name).read_text(encoding="utf-8") for name in ("README.md", "S11.ipynb")]


def find_badges(text):
    """Return account/repository of each badge."""
    on_colab = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/", text)
    on_kaggle = re.findall(r"welcome\?src=https://github\.com/([\w.-]+/[\w.-]+)/blob/", text)
    return on_colab + on_kaggle


def test_one_command_fills_in_the_owner_everywhere(copied):
    old = find_badges(read_texts(copied)[0])[0]
    repository = old.split("/")[1]
    change_owner(copied, "ada")
    for text in read_texts(copied):
        assert {*find_badges(text)} == {f"ada/{repository}"}
        assert "begin: owner" not in text
    assert f"https://github.com/ada/{repository}" in read_texts(copied)[1], "REPO_URL"


@pytest.mark.parametrize("second", [("Ada",), ("grace-1",), ("grace-1", "--repository", "my.net")])
def test_the_owner_can_be_changed_twice(copied, second):
    repository = find_badges(README)[0].split("/")[1]
    change_owner(copied, "ada")
    change_owner(copied, *second)
    new = f"{second[0]}/{second[-1] if len(second) > 1 else repository}"
    for text in read_texts(copied):
        assert {*find_badges(text)} == {new}
        assert "github/ada/" not in text
        assert "github.com/ada/" not in text


@pytest.mark.parametrize("of", ["branch 'main' of ", ""])  # without a branch, git asks for HEAD
def test_a_clone_that_only_pulls_from_an_address_knows_its_name(copied, of):
    subprocess.run(["git", "init", "-q"], cwd=copied, check=True)
    pulled = f"{'0' * 40}\t\t{of}https://github.com/Ada/eleven\n"
    (copied / ".git" / "FETCH_HEAD").write_text(pulled)
    change_owner(copied, "ada")
    for text in read_texts(copied):
        assert {*find_badges(text)} == {"ada/eleven"}


def test_the_addresses_of_others_stay(copied):
    before = {*re.findall(r"https://[^\s)\"\\]+", README)}
    own = {*find_badges(README)}
    others = {link for link in before if not any(pair in link for pair in own)}
    assert len(others) > 5
    change_owner(copied, "ada")
    assert all(link in read_texts(copied)[0] for link in others)


def test_the_notebook_still_finds_out_that_nobody_has_filled_in_the_owner(copied):
    change_owner(copied, "ada")
    notebook = read_texts(copied)[1].replace('\\"', '"')
    assert '"/OWNER/" in REPO_URL' in notebook


# The program, and "I want to ...": each line does what it says, with small stand-ins
@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Return the names that the notebook has defined when a recipe's line is put into it."""
    monkeypatch.chdir(tmp_path)
    for classes in (10, 100):
        monkeypatch.setattr(torchvision.datasets, f"CIFAR{classes}", partial(make_images, classes))
    monkeypatch.setitem(sys.modules, "models.mine", read_my_network())

    short = {"device": "cpu", "epochs": 1, "batch_size": 50, "output_dir": tmp_path}
    get_config = utils.get_config
    monkeypatch.setattr(utils, "get_config", lambda *args, **own: get_config(*args, **own | short))

    Image.new("RGB", (60, 40), "red").save("photo.jpg")
    for folder in re.findall(r'"(outputs/\w+)"', find_recipe("compare two runs")):
        save_run(tmp_path / folder)

    config = utils.get_config("quick", train_images=100)
    train_loader, test_loader = utils.get_dataloaders(config)
    model = make_network()
    return {
        "utils": utils,
        "torch": torch,
        "ResNet18": make_network,
        "config": config,
        "train_loader": train_loader,
        "test_loader": test_loader,
        "model": model,
        "max_lr": 0.01,
        "target_layer": model.layer3[-1],
        "misclassified": utils.get_misclassified(model, test_loader),
    }


def read_my_network():
    """Return the network that the README writes into models/mine.py."""
    module = ModuleType("mine")
    exec(find_block("class MyNetwork"), vars(module))
    return module


def train(names):
    """Run the notebook's training cell."""
    needed = ("model", "train_loader", "test_loader", "max_lr", "config")
    return utils.fit_one_cycle(*(names[name] for name in needed))


def get_code(line):
    """Return the code in a line of the table."""
    return "\n".join(re.findall(r"`([^`]+)`", line))


def find_block(words):
    """Return the one block of code below a heading that has these words."""
    (block,) = (block for block in BLOCKS if words in block)
    return block


FOLDED = re.findall(r"folded below: \*(.+?)\*", README)
RECIPES = {wish: get_code(line) for wish, line in read_recipes() if not line.startswith("folded")}
SETTINGS = [wish for wish in RECIPES if "get_config(" in RECIPES[wish]]


def find_recipe(words):
    """Return the code of the one recipe whose wish has these words."""
    (wish,) = (wish for wish in RECIPES if words in wish)
    return RECIPES[wish]


def test_the_whole_program_runs(notebook, tmp_path):
    exec(find_block("get_config()"), notebook)
    assert len(notebook["history"]["test_loss"]) == 1
    assert (tmp_path / "gradcam.png").exists()


@pytest.mark.parametrize("wish", RECIPES)
def test_a_recipe_runs(wish, notebook):
    exec(RECIPES[wish], notebook)


@pytest.mark.parametrize("wish", SETTINGS)
def test_a_recipe_with_other_settings_trains(wish, notebook):
    exec(RECIPES[wish], notebook)
    train_loader, test_loader = utils.get_dataloaders(notebook["config"])
    notebook.update(train_loader=train_loader, test_loader=test_loader)
    assert len(train(notebook)["test_loss"]) == 1


@pytest.mark.parametrize("title", FOLDED)
def test_a_row_that_names_a_folded_part_finds_it_below_the_table(title):
    below = README.partition("| I want to ... |")[2]
    assert len(re.findall(rf"<summary>{title}", below)) == 1


def test_the_recipe_for_resnet34_makes_a_larger_network(notebook):
    exec(find_recipe("ResNet34"), notebook)
    convolutions = [m for m in notebook["model"].modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 36, "three of them are in shortcuts"
    images = torch.zeros(2, 3, 32, 32)
    assert notebook["model"].eval()(images).shape == (2, 10)


def test_the_recipe_for_my_own_network_trains_it(notebook):
    notebook["model"] = None
    exec(find_recipe("my own network"), notebook)
    assert len(train(notebook)["test_loss"]) == 1


def test_the_recipe_for_another_layer_is_what_gradcam_takes(notebook, tmp_path):
    exec(find_recipe("another layer"), notebook)
    model = notebook["model"]
    layer = notebook["target_layer"]
    utils.plot_gradcam(model, notebook["misclassified"], notebook["config"], target_layer=layer)
    assert (tmp_path / "gradcam.png").exists()


def test_the_recipe_for_cifar100_trains_with_100_classes(notebook):
    exec(find_recipe("CIFAR-100"), notebook)
    exec(find_block("CIFAR-100"), notebook)
    assert len(train(notebook)["test_loss"]) == 1
    assert len(notebook["config"].classes) == 100
    assert notebook["model"].linear.out_features == 100


def test_the_network_next_week_answers_as_the_notebook_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = ResNet18()
    torch.save(model.state_dict(), "model.pt")
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the phone was held upright
    turned = np.ascontiguousarray(np.rot90(pixels.numpy()))
    Image.fromarray(turned).save("photo.jpg", format="PNG", exif=exif)  # without loss

    names = {}
    exec(find_block("photo.jpg"), names)
    config = utils.get_config("full", device="cpu", output_dir=tmp_path)
    _, normalize = utils.get_transforms(config)
    images = normalize(pixels.permute(2, 0, 1)[None])
    logits, _ = utils.predict(model, [(images, torch.zeros(1, dtype=torch.int64))])
    torch.testing.assert_close(names["probabilities"], logits.softmax(1)[0], atol=1e-4, rtol=1e-3)
    assert tuple(names["classes"]) == config.classes

    gradio = Mock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    exec(find_block("import gradio"), names)
    answer = gradio.Interface.call_args.args[0]
    upright = ImageOps.exif_transpose(Image.open("photo.jpg"))
    expected = dict(zip(names["classes"], names["probabilities"].tolist(), strict=True))
    assert answer(upright) == pytest.approx(expected)


def test_a_folder_of_photos_is_trained_on(notebook, tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            image = Image.new("RGB", (90 + i, 70), (8 * i, 250 - 8 * i, 4 * i))
            image.save(tmp_path / f"photos/{name}/{i}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 3  # the phone was upside down
    halves = Image.fromarray(np.repeat(np.uint8([[[0] * 3], [[255] * 3]]), 64, 0).repeat(128, 1))
    halves.save(tmp_path / "photos/cats/0.jpg", exif=exif)
    exec(find_block("ImageFolder"), notebook)
    assert notebook["data"].shape == (60, 64, 64, 3)
    assert notebook["data"][0, 5].mean() > 250, "the lower half is the upper one now"
    assert notebook["data"][0, 58].mean() < 5
    notebook["test"] = notebook["train"]
    block = find_block("CIFAR-100")
    for old, new in (
        ('"CIFAR-100"', '"photos"'),
        ("image_size=32", "image_size=64, batch_size=32"),
    ):
        assert old in block
        block = block.replace(old, new)
    exec(block, notebook)
    assert notebook["config"].classes == ("cats", "dogs")
    notebook["model"] = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(256, 2))
    assert len(train(notebook)["test_loss"]) == 1


def test_the_figures_alone_draw_what_another_loop_has_trained(notebook, tmp_path):
    layer = nn.Conv2d(3, 4, 8, 8)
    images = torch.randn(20, 3, 64, 64)
    notebook.update(
        classes=["cat", "dog"],
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        model=nn.Sequential(layer, nn.Flatten(), nn.Linear(256, 2)),
        target_layer=layer,
        test_loader=DataLoader([(image, i % 2) for i, image in enumerate(images)], 8),
    )
    exec(find_block("mine"), notebook)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert {"history", "confusion_matrix", "misclassified", "gradcam"} <= drawn


def test_a_fourth_optimizer_takes_the_lines_that_the_readme_names(tmp_path, monkeypatch):
    (text,) = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)
    entry, code = text.split("\n\n")
    source = Path(utils.__file__).read_text(encoding="utf-8")
    head = "OPTIMIZERS = {\n"
    (adamw,) = re.findall(r" +return torch\.optim\.AdamW\(.*\n", source)
    source = source.replace(head, f"{head}{entry}\n").replace(adamw, adamw + code)
    module = ModuleType("with_a_fourth")
    monkeypatch.setitem(sys.modules, "with_a_fourth", module)
    exec(source, vars(module))

    config = module.get_config("quick", optimizer="adam", epochs=2, output_dir=tmp_path)
    train_loader, test_loader = module.get_dataloaders(config)
    model = make_small_model()
    max_lr = module.find_lr(model, train_loader, config)
    history = module.fit_one_cycle(model, train_loader, test_loader, max_lr, config)
    assert history["train_loss"][1] < history["train_loss"][0]
    assert type(module.get_optimizer(model, max_lr, config)) is torch.optim.Adam
