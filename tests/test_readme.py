"""The README: its links, its commands, its table, and the one command that fills in the owner."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\]\(([^)\s]+)\)", README)
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


def test_results_are_those_of_results_json():
    results = json.loads((ROOT / "results.json").read_text())
    section = README[README.index("## Results") : README.index("## What is where")]
    run = results["cpu_subset"]
    settings, history = run["settings"], run["history"]
    steps = len(history["lr"])
    assert steps == settings["epochs"] * -(-settings["train_images"] // settings["batch_size"])
    accuracy, loss = history["test_accuracy"][-1], history["test_loss"][-1]
    rows = [
        f"| {settings['train_images']:,} of 50,000 | {settings['epochs']} ({steps} steps) | "
        f"{settings['batch_size']} | {run['max_lr']:.4f} | {loss:.4f} | **{accuracy:.2f} %** |"
    ]
    for what, form, unit in (
        ("input pipeline, images per second", ",.0f", 1),
        ("training step, seconds", ".2f", 1000),
    ):
        (row,) = (row for row in results["speed"] if row["what"].startswith(what.split(",")[0]))
        plain, ours = row["plain"] / unit, row["ours"] / unit
        rows.append(f"| {what} | {plain:{form}} | {ours:{form}} | **{row['ratio']:.1f} x** |")
    step, pipeline = (
        next(row["ratio"] for row in results["speed"] if row["what"].startswith(what))
        for what in ("training step", "input pipeline")
    )
    top = README[: README.index("## Results")]
    assert f"{settings['train_images']:,} of the 50,000 training images" in top
    assert f"{accuracy:.2f} % in {settings['epochs']} epochs" in top
    assert f"{step:.1f} times as fast as the plain way" in top
    assert f"the input pipeline {pipeline:.0f} times" in top
    for row in rows:
        assert row in section, row
