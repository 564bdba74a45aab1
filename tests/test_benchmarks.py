"""The benchmarks: what they promise, on a stand-in for CIFAR-10 and with a small network."""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import numpy as np
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

CIFAR10 = torchvision.datasets.CIFAR10
TRAINED = ("epochs=2", "batch_size=45", "max_lr=0.02", "--seeds=2")
NAMES = ("headline", "results", "log", "settings", "speed")
BLOCKS = "".join(f"<!-- begin: {name} -->\n<!-- end: {name} -->\n" for name in NAMES)


def make_network():
    """Return a network for images of 32 x 32 or 16 x 16, which trains in milliseconds."""
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))


def make_cifar10(root, train=True):
    """Return 100 training images or 30 test images, whose colour tells the class."""
    targets = [i % 10 for i in range(100 if train else 30)]
    noise = np.random.default_rng(0).integers(0, 30, (len(targets), 32, 32, 3), np.uint8)
    return SimpleNamespace(
        data=noise + np.uint8(22) * np.uint8(targets)[:, None, None, None], targets=targets
    )


@pytest.fixture
def spies(monkeypatch):
    """Note all calls of utils.train and utils.predict."""
    spies = Mock(train=Mock(wraps=utils.train), predict=Mock(wraps=utils.predict))
    monkeypatch.setattr(utils, "train", spies.train)
    monkeypatch.setattr(utils, "predict", spies.predict)
    return spies


@pytest.fixture(autouse=True)
def call(tmp_path, monkeypatch):
    """Return a function that runs a script in tmp_path, and returns the rows of a part."""
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", make_cifar10)
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for script in (sweep, speed):
        monkeypatch.setattr(script, "ResNet18", make_network)
    (tmp_path / "images").mkdir()
    (tmp_path / "README.md").write_text(BLOCKS)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        run.status = script.main()
        return common.read_results().get("record" if script is report else script.__name__, [])

    return run


def count_images(spy):
    return {len(call.args[1].dataset) for call in spy.call_args_list}


def test_sweep_trains_every_combination_once_and_never_tests(call, spies):
    rows = call(sweep, "momentum=0.8,0.9", *TRAINED)
    expected = [(0.8, 0), (0.9, 0), (0.8, 1), (0.9, 1)]
    assert [(row["settings"]["momentum"], row["seed"]) for row in rows] == expected
    assert (count_images(spies.train), count_images(spies.predict)) == ({90}, {10})
    assert call(sweep, *TRAINED[:3], "momentum=0.9,0.8", "--seeds=2") == rows, "in another order"
    assert spies.train.call_count == 8, "nothing is trained again"


@pytest.mark.parametrize("script", [sweep, record])
def test_ctrl_c_appends_nothing_and_a_new_call_goes_on(call, spies, script):
    spies.train.side_effect = [DEFAULT, DEFAULT, DEFAULT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        call(script, *TRAINED)
    assert [row["seed"] for row in common.read_results()[script.__name__]] == [0]
    spies.train.side_effect = None
    assert [row["seed"] for row in call(script, *TRAINED)] == [0, 1]
    assert spies.train.call_count == 5, "the epoch that was missing"


def test_record_tests_once_after_the_end(call, spies, tmp_path):
    (row, _) = call(record, *TRAINED)
    order = "train predict train predict predict predict "
    assert [name for name, *_ in spies.mock_calls] == (2 * order).split()
    assert (count_images(spies.train), row["test_images"]) == ({100}, 30)
    sizes = [len(call.args[1].dataset) for call in spies.predict.call_args_list[:3]]
    assert sizes == [10, 10, 30], "training images that were held out, and the test images"
    assert not list(tmp_path.rglob("checkpoint.pt"))
    assert "| probe accuracy |" in report.get_blocks(common.read_results())["log"]


def test_scores_count_both_mirror_images_together(tmp_path):
    class Left(nn.Linear):  # answers 1 when the left column is bright, surely 0 for the right one
        def forward(self, images):
            return torch.stack([3 * images[:, 0, 0, -1], images[:, 0, 0, 0]], dim=1)

    images, labels = torch.zeros(4, 3, 32, 32), torch.tensor([1, 1, 1, 0])
    images[:, :, :, 0] = 1
    (tmp_path / "near.csv").write_text("TestID\n3\n")
    row = record.test(Left(1, 1), [(images, labels)], tmp_path / "near.csv")
    assert (row["accuracy"], row["mirrored_accuracy"]) == (75, 25)
    assert row["without_near_duplicates"] == 100


def test_the_lr_finder_is_asked_and_its_curve_kept(call):
    (row,) = call(sweep, "epochs=1", "batch_size=45", "lr_finder_steps=20", "--seeds=1")
    assert utils.choose_peak(*row["finder"].values())[0] == row["max_lr"]


@pytest.mark.parametrize("setting", ["depth=3", "seed=3", "max_lr=0", "weight_decay"])
def test_bad_settings_are_told(call, setting, capsys):
    with pytest.raises((TypeError, ValueError, SystemExit)) as told:
        call(record, *TRAINED[:2], setting)
    assert setting.partition("=")[0] in str(told.value) + capsys.readouterr().err


def test_diverged_runs_are_kept_by_the_sweep_only(call, monkeypatch):
    monkeypatch.setattr(utils, "fit_one_cycle", Mock(side_effect=FloatingPointError("nan")))
    assert call(sweep, *TRAINED)[0]["diverged"] == "nan"
    with pytest.raises(FloatingPointError):
        call(record, *TRAINED)


@pytest.fixture
def loader(make_config):
    """Return a loader of images that are only flipped, normalised and cut out."""
    return utils.get_dataloaders(make_config("full", batch_size=10, crop_padding=0))[0]


def test_the_split_is_stratified_disjoint_and_always_the_same(loader, make_config):
    loader.dataset.images[:, 0, 0, 0] = torch.arange(100)
    (kept, others), (_, again) = (sweep.split(loader, make_config("full")) for _ in range(2))
    numbers = [part.dataset.images[:, 0, 0, 0].tolist() for part in (kept, others, again)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100))
    assert numbers[1] == numbers[2]
    assert others.dataset.labels.bincount().tolist() == [1] * 10
    first, second = (torch.cat([images for images, _ in others]) for _ in range(2))
    assert torch.equal(first, second), "not augmented"


def test_cutout_ends_and_flips_alternate_by_image(loader, monkeypatch):
    dataset, levers, epochs = loader.dataset, {"alternating_flip": True, "end_cutout": 3}, []
    original = dataset.transform.transforms[2](dataset.images.permute(0, 3, 1, 2))
    note = Mock(side_effect=lambda *_: epochs.append(dataset.__getitems__(range(100))[0]))
    monkeypatch.setattr(utils, "train", note)
    train = sweep.pull_levers(levers, nn.Flatten(), dataset, 4)
    for epoch in range(4):
        train(None, loader, None, Mock(last_epoch=10 * epoch))
    assert [int(images.eq(0).sum()) for images in epochs] == [100 * 3 * 16 * 16, 0, 0, 0]
    assert torch.equal(epochs[2], epochs[1].flip(3))
    assert torch.equal(epochs[3], epochs[1])
    mirrored = [not torch.equal(a, b) for a, b in zip(epochs[2], original, strict=True)]
    assert 20 < sum(mirrored) < 80, "by chance"


def test_biases_learn_faster(loader, make_config):
    moved = []
    for levers in ({}, {"bias_lr": 4}):
        model = nn.BatchNorm2d(1)
        sweep.pull_levers(levers, model, loader.dataset, 1)
        optimizer = utils.get_optimizer(model, 0.1, make_config())
        (model.weight + model.bias).sum().backward()
        optimizer.step()
        moved.append([model.weight.item() - 1, model.bias.item()])
    assert moved[1] == pytest.approx([moved[0][0], 4 * moved[0][1]])


def test_levers_reach_the_training(call, monkeypatch):
    sizes, all_lrs, steps, train = set(), [], [], utils.train

    def note(model, loader, *args):
        steps.append(len(loader.dataset.transform.transforms))
        model[0].register_forward_pre_hook(lambda _, images: sizes.add(images[0].shape[-1]))
        loss, accuracy, lrs = train(model, loader, *args)
        all_lrs.extend(lrs)
        return loss, accuracy, lrs

    monkeypatch.setattr(utils, "train", note)
    levers = ("half_size=true", "end_cutout=1", "anneal=linear", "alternating_flip=true")
    call(sweep, *levers, "batch_size=10", "epochs=2", "max_lr=0.1", "--seeds=1")
    assert (sizes, steps) == ({16}, [3, 2]), "without the flip, and then without CutOut"
    falls = torch.tensor(all_lrs).diff()[5:]
    torch.testing.assert_close(falls, falls[:1].expand_as(falls), rtol=1e-3, atol=1e-6)


def test_a_run_replaces_the_record_or_is_added(call, tmp_path, capsys):
    common.add_row("record", {"settings": {"epochs": 9}, "seed": 5, "accuracy": 9.5})
    for i, changes in enumerate(({}, {"seed": 1}, {"seed": 1}, {"momentum": 0.8})):
        save_run(tmp_path / f"run{i}", **changes)
    (row,) = call(report, "run0")
    assert (row["accuracy"], row["settings"], row["seed"]) == (1 + 19 / 7, {}, 0)
    assert "seed 5 with 9.50 %" in capsys.readouterr().out
    assert "20 epochs with default settings (one run)" in (tmp_path / "README.md").read_text()
    for i in (1, 2, 3):
        rows = call(report, f"run{i}", "--add")
    assert "other settings" in capsys.readouterr().err
    assert [row["seed"] for row in rows] == [0, 1]
    assert (tmp_path / "images" / "history.png").read_text() == "run0"
    text = (tmp_path / "README.md").read_text()
    assert "standard deviation of 2 seeds" in text
    call(report, "--check")
    assert call.status == 0
    (tmp_path / "README.md").write_text(text.replace("| 2 |", "| 3 |", 1))
    call(report, "--check")
    assert (call.status, capsys.readouterr().out.count("README.md: log differs")) == (1, 1)


PARTIAL = ({"profile": "quick"}, {"dataset": "mine"}, {"train_images": 60})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *((changes, "not of a run on all") for changes in PARTIAL),
        *(({"epochs": 30}, "10 of 30 epochs to go"), ({"train_images": "all"}, "damaged")),
        (None, "missing"),
    ],
)
def test_report_refuses_what_is_no_result(call, tmp_path, capsys, changes, words):
    if changes:
        save_run(tmp_path / "run", **changes)
    assert (call(report, "run"), call.status) == ([], 2)
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n"), words in told.err) == ("", 1, True)
    assert not list((tmp_path / "images").iterdir())
    assert (tmp_path / "README.md").read_text() == BLOCKS


def test_the_sweep_is_drawn_and_tabled_with_its_best_peaks(call, tmp_path, monkeypatch):
    for lr, accuracy in {0.01: 70, 0.02: 75, 0.04: 72}.items():
        for own in ({"epochs": 5}, {"epochs": 5, "end_cutout": 1}, {"profile": "quick"}):
            settings = {**own, "max_lr": lr}
            common.add_row("sweep", {"settings": settings, "max_lr": lr, "accuracy": accuracy})
    titles = Mock()
    monkeypatch.setattr(report.plt.Axes, "set_title", titles)
    call(report)
    assert "Muon is best with a peak of 0.02 (75.0 %)" in titles.call_args.args[0]
    assert (tmp_path / "images" / "lr_sweep.png").stat().st_size > 10_000
    readme = (tmp_path / "README.md").read_text()
    assert "| epochs 5 | end cutout 1 | 0.02 (best of 3) | 75.00 % | 1 |" in readme


def test_speed_measures_both_ways_and_replaces_rows(call, monkeypatch, capsys, make_config):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR10)  # which hands out PIL images
    for loader in speed.get_loaders(60, make_config("full", batch_size=20)):
        pixels = torch.cat([images for images, _ in loader])
        assert (pixels == 0).all(dim=1).float().mean() == pytest.approx(0.25, abs=0.01), "cut out"
    assert call(speed, "--smoke") == [], "nothing is kept"
    assert "of our training step" in capsys.readouterr().out
    for _ in range(2):
        speed.compare("this", [len, len], [[], []], make_config(), smoke=False)
    assert len(common.read_results()["speed"]) == 1
