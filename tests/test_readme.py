"""The README: its links, its commands, its table, and the one command that fills in the owner."""

import json
import re
import subprocess
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from conftest import make_small_model

import utils

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\]\(([^)\s]+)\)", README)
RESULTS = json.loads((ROOT / "results.json").read_text(encoding="utf-8"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("link", [link for link in LINKS if not link.startswith("http")])
def test_linked_files_exist(link):
    assert (ROOT / link.split("#")[0]).exists()


def test_links_to_lines_meet_what_they_name():
    links = re.findall(r"\[(\w+)\]\(([\w/]+\.py)#L(\d+)\)", README)
    assert len(links) > 8
    for name, file, number in links:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        (actual,) = (
            i for i, line in enumerate(lines, 1) if re.match(rf"(def|class) {name}\b", line)
        )
        assert int(number) == actual, f"{name} is in line {actual} of {file}"


def test_every_part_is_linked():
    parts = ["S11.ipynb", "models/resnet.py", "utils.py", "requirements.txt", "images", "tests"]
    assert set(parts) <= {link.split("#")[0] for link in LINKS}


def test_badge_opens_the_notebook():
    address = r"https://colab\.research\.google\.com/github/[\w-]+/TSAI-S11/blob/main/S11\.ipynb"
    assert any(re.fullmatch(address, link) for link in LINKS)


def test_test_command_is_what_ci_runs():
    assert "pytest --nbval\n" in COMMANDS
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "pytest --nbval"


def test_requirements_are_lower_bounds_only():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", line) for line in packages), packages


def test_own_images_can_be_put_in(tmp_path, monkeypatch, shown):
    (code,) = (code for code in SNIPPETS if "DeviceDataset" in code)
    monkeypatch.chdir(tmp_path)
    images, labels = torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8), torch.arange(60) % 3
    names = {"utils": utils, "train_images": images, "train_labels": labels}
    names |= {"test_images": images.numpy(), "test_labels": labels.tolist()}
    names["ResNet18"] = make_small_model
    code = code.replace('"full",', '"full", device="cpu", epochs=1, batch_size=20,')
    exec(code, names)
    config, loaders = names["config"], (names["train_loader"], names["test_loader"])
    utils.plot_samples(loaders[0], config)
    history = utils.fit_one_cycle(names["model"], *loaders, 0.01, config)
    assert len(history["lr"]) == 3
    utils.plot_confusion_matrix(names["model"], loaders[1], config)
    assert not any("CIFAR" in title or "digits" in title for _, title in shown)
    assert (tmp_path / "outputs" / "my-images" / "checkpoint.pt").exists()


def test_model_table_is_the_golden_one():
    golden = (ROOT / "tests" / "golden" / "resnet18_summary.txt").read_text(encoding="utf-8")
    assert golden.strip() in README


def test_one_command_fills_in_the_owner_everywhere(tmp_path):
    (command,) = (command for command in COMMANDS if "OWNER" in command and "perl" in command)
    for name in ("README.md", "S11.ipynb"):
        text = (ROOT / name).read_text(encoding="utf-8")
        owner = re.search(r"github\.com/([\w-]+)/TSAI-S11", text)[1]
        (tmp_path / name).write_text(text.replace(f"/{owner}/TSAI-S11", "/OWNER/TSAI-S11"))
    subprocess.run(command.replace("you/", "ada/"), shell=True, cwd=tmp_path, check=True)
    for name in ("README.md", "S11.ipynb"):
        filled = (tmp_path / name).read_text(encoding="utf-8")
        assert "/OWNER/TSAI-S11" not in filled
        assert "https://colab.research.google.com/github/ada/TSAI-S11/blob/main/" in filled
        assert "https://github.com/ada/TSAI-S11" in filled
    assert '"/OWNER/" not in REPO_URL' in re.sub(r'\\"', '"', filled), "the check stays"


def get_speed(what):
    (row,) = (row for row in RESULTS["speed"] if row["what"].startswith(what))
    return row["plain"], row["ours"], row["ratio"]


def test_top_says_what_was_measured():
    top = README[: README.index("## Results")].replace("\n", " ")
    accuracies = [row["accuracy"] for row in RESULTS["record"]]
    epochs = len(RESULTS["record"][0]["history"]["test_accuracy"])
    assert f"**{mean(accuracies):.2f} %** of the 10,000 test images after epoch {epochs}" in top
    assert f"(n = {len(accuracies)})" in top
    assert f"{get_speed('training step')[2]:.1f} times as fast as the plain way" in top
    assert f"the input pipeline {get_speed('input pipeline')[2]:.0f} times" in top


@pytest.mark.parametrize("run", RESULTS["record"], ids=lambda run: f"seed {run['seed']}")
def test_results_are_those_of_results_json(run):
    assert run["settings"] == {}, "the record is that of the defaults"
    assert run["test_images"] == 10_000
    others = f"{run['without_near_duplicates']:.2f} % of {run['images_without_near_duplicates']:,}"
    assert (
        f"| {run['seed']} | {run['max_lr']:.3f} | {run['loss']:.4f} | **{run['accuracy']:.2f} %** "
        f"| {run['mirrored_accuracy']:.2f} % | {others} |\n"
    ) in README


def test_log_is_that_of_results_json():
    history = RESULTS["record"][0]["history"]
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    columns = [history[name] for name in names]
    for epoch, (loss, accuracy, *test) in enumerate(zip(*columns, strict=True), start=1):
        row = f"| {epoch} | {loss:.4f} | {accuracy:.2f} % | {test[0]:.4f} | {test[1]:.2f} % |\n"
        assert row in README
    assert f"with {accuracy:.0f} % of the augmented training images right in the end" in README
    early = max(history["test_accuracy"][: epoch // 2])
    assert f"rises to {early:.2f} % in the first {epoch // 2} epochs" in README
    assert f"and on to {test[1]:.2f} % as they fall" in README
    seconds = RESULTS["record"][0]["epoch_seconds"]
    assert f"The median epoch took {seconds:.0f} s of training" in README
    assert f"the 98 of the median epoch took {seconds / 98:.2f} s each" in README
    assert f"| this one | {epoch} | {test[1]:.2f} % (n=1) |" in README


def test_sweep_is_that_of_results_json():
    found = {}  # rows by the optimizer and the peak, None being the LR finder's
    for row in RESULTS["sweep"]:
        settings = dict(row["settings"])
        key = settings.pop("sgd", False), settings.pop("max_lr", None)
        assert settings == {"half_size": True, "epochs": 5}
        found.setdefault(key, []).append(row)
    text = README.replace("\n", " ")
    accuracies = {key: [row["accuracy"] for row in rows] for key, rows in found.items()}
    asked = accuracies.pop((False, None))
    best, gains = {}, {}
    for (sgd, lr), values in accuracies.items():
        best[sgd] = max(best.get(sgd, (0, 0)), (mean(values), lr))
        if len(values) > 1:
            gains[sgd] = values[1] - values[0], lr
    (gain, lr), (sgd_gain, sgd_lr) = gains[False], gains[True]
    assert f"{gain:.2f} points (Muon, {lr}) and by {sgd_gain:.2f} (SGD, {sgd_lr})" in text
    (muon, muon_lr), (sgd, sgd_lr) = best[False], best[True]
    counts = [len(accuracies[key]) for key in ((False, muon_lr), (True, sgd_lr))]
    assert f"Muon's best, {muon:.2f} % (n = {counts[0]}), is far above" in text
    assert f"above SGD's best, {sgd:.2f} % (n = {counts[1]})" in text
    assert f"Muon is best at {muon_lr}, SGD at {sgd_lr}, nearly eight points lower" in text
    assert 7.5 < muon - sgd < 8
    peaks = [row["max_lr"] for row in found[False, None]]
    assert f"peaks of {min(peaks):.3f} to {max(peaks):.3f}" in text
    assert f"{mean(asked):.2f} ± {stdev(asked):.2f} % (n = {len(asked)})" in text


def test_speeds_are_those_of_results_json():
    rows = (
        ("input pipeline, images per second", ",.0f", 1),
        ("training step, seconds", ".2f", 1e3),
    )
    for what, form, unit in rows:
        plain, ours, ratio = get_speed(what.split(",")[0])
        row = f"| {what} | {plain / unit:{form}} | {ours / unit:{form}} | **{ratio:.1f} x** |\n"
        assert row in README
