"""The benchmarks: what they promise, on a stand-in for CIFAR-10 and with a small network."""

import sys
from functools import partial
from pathlib import Path
from unittest.mock import DEFAULT, Mock, patch

import pytest
import torch
import torchvision
from torch import nn

import utils

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import common
import record
import report
import speed
import sweep
from test_copy import save_run
from test_readme import make_images, make_network

TRAINED = ("epochs=2", "batch_size=45", "max_lr=0.02", "--seeds=2")
BLOCKS = "".join(f"<!-- begin: {key} -->\n<!-- end: {key} -->\n" for key in report.get_blocks({}))


@pytest.fixture(autouse=True)
def call(tmp_path, monkeypatch):
    """Return a function that runs a script in tmp_path, and returns the rows of a part."""
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", partial(make_images, 10))
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for script in (sweep, speed):
        monkeypatch.setattr(script, "ResNet18", make_network)
    for name in ("train", "predict"):
        monkeypatch.setattr(utils, name, Mock(wraps=getattr(utils, name)))
    (tmp_path / "images").mkdir()
    (tmp_path / "README.md").write_text(BLOCKS)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        run.status = script.main()
        return common.read_results().get("record" if script is report else script.__name__, [])

    return run


def count_images(spy):
    """Return the numbers of images in the calls of utils.train or utils.predict."""
    return [len(call.args[1].dataset) for call in spy.call_args_list]


def test_sweep_trains_every_combination_once_and_never_tests(call):
    rows = call(sweep, "momentum=0.8,0.9", *TRAINED)
    expected = [(0.8, 0), (0.9, 0), (0.8, 1), (0.9, 1)]
    assert [(row["settings"]["momentum"], row["seed"]) for row in rows] == expected
    assert call(sweep, *TRAINED[:3], "momentum=0.9,0.8", "--seeds=2") == rows, "in another order"
    assert count_images(utils.train) == 8 * [90], "nothing is trained again"
    assert count_images(utils.predict) == 8 * [10], "never the 30 test images"


@pytest.mark.parametrize("script", [sweep, record])
def test_ctrl_c_appends_nothing_and_a_new_call_goes_on(call, script):
    utils.train.side_effect = [DEFAULT, DEFAULT, DEFAULT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        call(script, *TRAINED)
    assert [row["seed"] for row in common.read_results()[script.__name__]] == [0]
    utils.train.side_effect = None
    assert [row["seed"] for row in call(script, *TRAINED)] == [0, 1]
    assert utils.train.call_count == 5, "the epoch that was missing"
    assert not list(Path().rglob("checkpoint.pt"))


def test_record_tests_once_after_the_end(call):
    (row,) = call(record, *TRAINED[:3], "--seeds=1")
    assert (count_images(utils.train), row["test_images"]) == ([100, 100], 30)
    utils.predict.call_args_list.pop()  # the mirror images, which have no dataset
    assert count_images(utils.predict) == [10, 10, 30], "held out training images, and the test"


def test_scores_count_both_mirror_images_together():
    class Left(nn.Linear):  # answers 1 when the left column is bright, surely 0 for the right one
        def forward(self, images):
            return torch.stack([3 * images[:, 0, 0, -1], images[:, 0, 0, 0]], dim=1)

    images, labels = torch.zeros(4, 3, 32, 32), torch.tensor([1, 1, 1, 0])
    images[:, :, :, 0] = 1
    row = record.test(Left(1, 1), [(images, labels)], "TestID\n3\n")
    assert (row["accuracy"], row["mirrored_accuracy"]) == (75, 25)
    assert row["without_near_duplicates"] == 100


def test_the_split_is_stratified_disjoint_and_always_the_same(make_config):
    loader, _ = utils.get_dataloaders(make_config("full", batch_size=10))
    loader.dataset.images[:, 0, 0, 0] = torch.arange(100)
    (kept, others), (_, again) = (sweep.split(loader, make_config("full")) for _ in range(2))
    numbers = [part.dataset.images[:, 0, 0, 0].tolist() for part in (kept, others)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100))
    assert others.dataset.labels.bincount().tolist() == [1] * 10
    first, second = (torch.cat([images for images, _ in part]) for part in (others, again))
    assert torch.equal(first, second), "the same images, and not augmented"


def test_half_size_and_the_lr_finder_reach_the_training(call):
    (row,) = call(sweep, "half_size=true", "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    assert utils.choose_peak(*row["finder"].values())[0] == row["max_lr"]
    (model, loader, *_), seen = utils.train.call_args.args, []
    model[0].register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[-1]))
    model(next(iter(loader))[0])
    assert seen == [16]


def test_a_run_replaces_the_record_or_is_added(call, tmp_path, capsys):
    common.add_row("record", {"settings": {"epochs": 9}, "seed": 5, "accuracy": 9.5})
    for i, changes in enumerate(({}, {"seed": 1}, {"seed": 1}, {"momentum": 0.7})):
        save_run(tmp_path / f"run{i}", mean=(0.5, 0.5, 0.5), **changes)
    (row,) = call(report, "run0")
    assert (row["accuracy"], row["settings"], row["seed"]) == (1 + 19 / 7, {"mean": [0.5] * 3}, 0)
    assert "seed 5 with 9.50 %" in capsys.readouterr().out
    common.add_row("record", {**row, "settings": {"momentum": 0.8}, "seed": 1})
    logs = [{**row, "history": {"seconds": [1]}}, row], [row]  # the first is without tests
    assert len({report.get_blocks({"record": rows})["log"] for rows in logs}) == 1
    blocks = report.get_blocks({"record": [{**logs[0][0], "settings": {}}, row]})
    assert "default settings" in blocks["headline"]
    assert "| 20 |" not in blocks["log"], "it is not that of other settings"
    rows = [call(report, f"run{i}", "--add") for i in (1, 2)][-1]
    assert [(row["seed"], "mean" in row["settings"]) for row in rows] == [(0, 1), (1, 0), (1, 1)]
    with pytest.raises(SystemExit, match="other settings"):
        call(report, "run3", "--add")
    call(report, "run3", "--check")
    assert common.read_results()["record"] == rows, "it only compares"
    capsys.readouterr()
    assert Path("images", "history.png").read_text() == "run0"
    text = Path("README.md").read_text()
    assert "standard deviation of 2 seeds" in text
    for own, status in ((text, 0), (text.replace("| 2 |", "| 3 |", 1), 1)):
        Path("README.md").write_text(own)
        call(report, "--check")
        assert call.status == capsys.readouterr().out.count("README.md: log differs") == status
    torch.save({**torch.load("run0/checkpoint.pt"), "model": {}}, "run0/checkpoint.pt")
    assert call(report, "run0")[0]["settings"] == {"mean": [0.5] * 3, "network": "not ResNet18"}


def test_report_refuses_what_is_no_result(call, tmp_path, capsys):
    partial_runs = {"profile": "quick"}, {"dataset": "mine"}, {"train_images": 60}
    cases = [(changes, "not of a run on all") for changes in partial_runs]
    cases += [(None, "missing"), ({"epochs": 30}, "10 of 30"), ({"train_images": "all"}, "damaged")]
    for i, (changes, words) in enumerate(cases):
        if changes:
            save_run(tmp_path / f"run{i}", **changes)
        with pytest.raises(SystemExit, match=rf"^[^\n]*{words}[^\n]*$"):
            call(report, f"run{i}")
        told = capsys.readouterr()
        assert (told.out, told.err, common.read_results()) == ("", "", {})
    assert not list(Path("images").iterdir())
    assert Path("README.md").read_text() == BLOCKS


def test_the_sweep_is_drawn_and_tabled_with_its_best_peaks(call):
    short = {"half_size": True, "epochs": 5, "cutout_free_fraction": 0, "anneal_strategy": "cos"}
    for lr, accuracy in {0.01: 70, 0.02: 75, 0.04: 72}.items():
        row = {"max_lr": lr, "accuracy": accuracy}
        for own in (short, {**short, "optimizer": "sgd"}, {"profile": "quick"}):
            common.add_row("sweep", {**row, "settings": {**own, "max_lr": lr}})
    common.add_row("finder", {"settings": short, "max_lr": 0.03})
    with patch.object(report.plt, "close", wraps=report.plt.close) as close:
        call(report)
    (axis,) = close.call_args.args[0].axes
    assert "Muon is best with a peak of 0.02 (75.0 %), SGD is best" in axis.get_title()
    drawn = [list(line.get_data()[i]) for i, line in zip((1, 0, 1), axis.lines, strict=True)]
    assert drawn == [[70, 75, 72], [0.03, 0.03], [70, 75, 72]], "Muon, the finder's peak, and SGD"
    assert Path("images", "lr_sweep.png").stat().st_size > 10_000
    name = "anneal strategy cos, cutout free fraction 0, epochs 5, half size"
    assert f"| {name} | 0.02 (best of 3) | 75.00 % | 1 |" in Path("README.md").read_text()


def test_speed_replaces_its_rows(call, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", torchvision.datasets.cifar.CIFAR10)
    monkeypatch.setattr(speed, "main", partial(speed.main, 100, 8))
    rows = [call(speed) for _ in range(2)][-1]
    assert ["step" in row["what"] for row in rows] == [False, True]
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in rows)
