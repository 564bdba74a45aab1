"""The benchmarks: what they promise, on a stand-in for CIFAR-10 and with a small network."""

import sys
from pathlib import Path

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

SHORT = ("epochs=2", "batch_size=45", "lr_finder_steps=20")


def make_network():
    """Return a network for images of 32 x 32 or 16 x 16, which trains in milliseconds."""
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))


class FakeCIFAR10:
    """100 training images and 30 test images, whose colour tells the class."""

    reads = 0

    def __init__(self, root, train=True):
        FakeCIFAR10.reads += train
        n = 100 if train else 30
        self.targets = [i % 10 for i in range(n)]
        noise = torch.randint(0, 30, (n, 32, 32, 3), generator=torch.Generator().manual_seed(n))
        self.data = (noise + 22 * torch.arange(n).view(-1, 1, 1, 1).remainder(10)).byte().numpy()


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A repository of its own for all that the scripts write."""
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setenv("S11_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.delenv("S11_DATA_DIR", raising=False)
    for script in (sweep, report, speed):
        monkeypatch.setattr(script, "ResNet18", make_network)
    (tmp_path / "images").mkdir()
    names = ("headline", "results", "log", "settings", "speed")
    blocks = [f"<!-- begin: {name} -->\n\n<!-- end: {name} -->\n" for name in names]
    (tmp_path / "README.md").write_text("\n".join(blocks))


@pytest.fixture
def cifar10(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR10)


@pytest.fixture
def call(monkeypatch, cifar10):
    """Return a function that runs a script with arguments, and then the rows of a part."""

    def run(script, *arguments, part="sweep"):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        script.main()
        return common.read_results().get(part, [])

    return run


@pytest.fixture
def trained(monkeypatch):
    """Collect the seed of every epoch; the number in interrupt_at ends with Ctrl-C."""
    train, seeds = utils.train, []

    def train_epoch(*args):
        seeds.append(args[-1].seed)
        if len(seeds) == trained.interrupt_at:
            raise KeyboardInterrupt
        return train(*args)

    def trained(number):
        trained.interrupt_at = number
        return seeds

    trained(0)
    monkeypatch.setattr(utils, "train", train_epoch)
    return trained


@pytest.fixture
def predicted(monkeypatch):
    """Collect the number of images of every pass that predicts."""
    counts, predict = [], utils.predict

    def note(model, loader):
        logits, labels = predict(model, loader)
        counts.append(len(labels))
        return logits, labels

    monkeypatch.setattr(utils, "predict", note)
    return counts


def test_sweep_trains_every_combination_once_and_never_tests(call, trained, predicted):
    arguments = (*SHORT, "max_lr=0.01,0.02", "momentum=0.8,0.9", "--seeds", 2)
    FakeCIFAR10.reads = 0
    rows = call(sweep, *arguments)
    assert [row["seed"] for row in rows] == [0] * 4 + [1] * 4
    assert {(row["max_lr"], row["settings"]["momentum"]) for row in rows[:4]} == {
        *((0.01, 0.8), (0.01, 0.9), (0.02, 0.8), (0.02, 0.9))
    }
    assert set(predicted) == {10}, "a tenth of the training images"
    assert FakeCIFAR10.reads == 1, "read once for all runs"
    assert (len(trained(0)), len(rows[0]["history"]["test_loss"])) == (16, 2)
    assert call(sweep, *reversed(arguments[:-2]), "--seeds", 2) == rows, "in another order"
    assert len(trained(0)) == 16, "nothing is trained again"


@pytest.mark.parametrize(("script", "epochs"), [(sweep, [1]), (record, [1])])
def test_ctrl_c_appends_nothing_and_a_new_call_goes_on(call, trained, script, epochs):
    arguments = (*SHORT, "max_lr=0.02", "--seeds", 2)
    trained(4)
    with pytest.raises(KeyboardInterrupt):
        call(script, *arguments)
    part = script.__name__
    assert [row["seed"] for row in common.read_results()[part]] == [0]
    rows = call(script, *arguments, part=part)
    assert [row["seed"] for row in rows] == [0, 1]
    assert trained(0)[4:] == epochs, "from the checkpoint"


def test_a_smoke_test_keeps_nothing(call, capsys):
    call(sweep, "max_lr=0.02", "--seeds", 1, "--smoke")
    assert "SMOKE TEST" in capsys.readouterr().out
    assert not (common.ROOT / "results.json").exists()


def test_the_lr_finder_is_asked_and_its_curve_kept(call, trained):
    (row,) = call(sweep, *SHORT, "--seeds", 1)
    (only,) = call(sweep, *SHORT, "--seeds", 1, "--finder-only", part="finder")
    assert len(trained(0)) == 2, "one of them trains"
    assert row["finder"] == {"lr": only["lr"], "loss": only["loss"]}
    peak, _ = utils.choose_peak(only["lr"], only["loss"])
    assert peak == pytest.approx(only["max_lr"], rel=1e-3) == row["max_lr"]


@pytest.mark.parametrize(("setting", "error"), [("depth=3", TypeError), ("max_lr=0", ValueError)])
@pytest.mark.parametrize("script", [sweep, record])
def test_bad_settings_are_told(call, script, setting, error):
    with pytest.raises(error, match=setting.partition("=")[0]):
        call(script, *SHORT, setting)


def test_diverged_runs_are_kept(call, monkeypatch):
    monkeypatch.setattr(utils, "train", lambda *_: (_ for _ in ()).throw(FloatingPointError("nan")))
    (row,) = call(sweep, *SHORT, "max_lr=0.02", "--seeds", 1)
    assert row["diverged"] == "nan"
    assert "diverged" in report.get_blocks(common.read_results())["settings"]


def test_the_split_is_stratified_disjoint_and_always_the_same(cifar10, make_config):
    config = make_config("full", batch_size=10)
    loader, _ = utils.get_dataloaders(config)
    loader.dataset.images[:, 0, 0, 0] = torch.arange(100)
    (kept, others), (_, again) = (common.split(loader, config) for _ in range(2))
    numbers = [part.dataset.images[:, 0, 0, 0].tolist() for part in (kept, others, again)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100))
    assert numbers[1] == numbers[2]
    assert others.dataset.labels.bincount().tolist() == [1] * 10
    first, second = (torch.cat([images for images, _ in others]) for _ in range(2))
    assert torch.equal(first, second), "not augmented"


# Levers


@pytest.fixture
def dataset(cifar10, make_config):
    """Return a training set that is only flipped, normalised and cut out."""
    config = make_config("full", batch_size=10, crop_padding=0)
    return utils.get_dataloaders(config)[0].dataset


def test_cutout_ends(dataset):
    begin, holes = sweep.pull_levers({"end_cutout": 1}, nn.Flatten(), dataset, 3), []
    for epoch in (1, 2, 3):
        begin(epoch)
        holes.append(dataset.__getitems__(range(100))[0].eq(0).flatten(1).sum(1).min().item())
    assert holes == [768, 768, 0], "3 x 16 x 16 pixels"


def test_flips_alternate_by_image(dataset):
    begin = sweep.pull_levers({"alternating_flip": True, "end_cutout": 3}, nn.Flatten(), dataset, 3)
    plain, epochs = dataset.images.clone(), []
    for epoch in (1, 2, 3):
        begin(epoch)
        epochs.append(dataset.__getitems__(range(100))[0])
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    transform = dataset.transform.transforms[-1]
    original = transform(torch.as_tensor(FakeCIFAR10("").data).permute(0, 3, 1, 2))
    mirrored = [not torch.equal(a, b) for a, b in zip(epochs[0], original, strict=True)]
    assert 20 < sum(mirrored) < 80, "by chance"
    assert len(plain) == 100


def test_the_factor_for_biases_holds_through_the_schedule(dataset, make_config):
    paths = []
    for settings in ({}, {"bias_lr": 4}):
        model = nn.BatchNorm2d(1)
        sweep.pull_levers(settings, model, dataset, 1)
        optimizer = utils.get_optimizer(model, 0.1, make_config())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
        for _ in range(8):
            optimizer.zero_grad()
            (model.weight + model.bias).sum().backward()
            optimizer.step()
            scheduler.step()
            paths.append([model.weight.item() - 1, model.bias.item()])
    before, after = torch.tensor(paths).split(8)
    torch.testing.assert_close(after, before * torch.tensor([1, 4]))


def test_levers_reach_the_training(call, monkeypatch):
    seen, train = [], utils.train

    def note(model, loader, *args):
        steps = [type(step).__name__ for step in loader.dataset.transform.transforms]
        model[0].register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[-1]))
        loss, accuracy, lrs = train(model, loader, *args)
        seen.append((steps, lrs))
        return loss, accuracy, lrs

    monkeypatch.setattr(utils, "train", note)
    levers = ("half_size=true", "end_cutout=1", "anneal=linear", "alternating_flip=true")
    call(sweep, *levers, "epochs=2", "batch_size=10", "max_lr=0.1", "--seeds", 1)
    (first, low), (second, high) = [item for item in seen if isinstance(item, tuple)]
    assert first == ["RandomCrop", "Normalize", "CutOut"]
    assert second == ["RandomCrop", "Normalize"]
    assert {item for item in seen if isinstance(item, int)} == {16}
    falls = torch.tensor([*low, *high]).diff()[5:]
    torch.testing.assert_close(falls, falls[:1].expand_as(falls), rtol=1e-3, atol=1e-6)


# Record and report


def test_record_tests_once_after_the_end(call, predicted, tmp_path):
    (tmp_path / "near.csv").write_text("TestID,TrainID\n0,5\n3,5\n3,7\n")
    near = ("--near-duplicates", tmp_path / "near.csv")
    (row,) = call(record, *SHORT, "max_lr=0.02", "--seeds", 1, *near, part="record")
    assert predicted == [10, 10, 30, 30], "training images per epoch; then both mirror images"
    assert row["images_without_near_duplicates"] == 28
    assert set(row["history"]) >= {"probe_accuracy", "train_loss"}
    assert not list(tmp_path.rglob("checkpoint.pt"))
    report.update_readme(check=False)
    assert "unaugmented training accuracy" in (tmp_path / "README.md").read_text()


def test_scores_count_both_mirror_images_together():
    class Left(nn.Linear):
        """Answer 1 when the left column is bright, and surely 0 when the right one is."""

        def forward(self, images):
            left, right = images[:, 0, 0, 0], images[:, 0, 0, -1]
            return torch.stack([3 * right, left], dim=1)

    images, labels = torch.zeros(4, 3, 32, 32), torch.tensor([1, 1, 1, 0])
    images[:, :, :, 0] = 1
    row = common.evaluate(Left(1, 1), [(images, labels)], {3})
    assert (row["accuracy"], row["mirrored_accuracy"]) == (75, 25)
    assert row["without_near_duplicates"] == 100


@pytest.fixture
def finish(cifar10, make_config, tmp_path):
    """Return a function that trains in a folder, as the notebook does, and returns the history."""

    def train(folder, **settings):
        settings = {"epochs": 2, "batch_size": 50, "output_dir": tmp_path / folder, **settings}
        config = make_config("full", **settings)
        loaders = utils.get_dataloaders(config)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "history.png").write_text(folder)
        return utils.fit_one_cycle(make_network(), *loaders, 0.02, config)

    return train


def test_a_run_replaces_the_record_or_is_added(call, finish, tmp_path, capsys):
    histories = [finish("first"), finish("second", seed=1), finish("third", seed=1)]
    common.add_row("record", {"settings": {"epochs": 9}, "seed": 5, "accuracy": 9.5})
    (row,) = call(report, tmp_path / "first", part="record")
    assert row["accuracy"] == histories[0]["test_accuracy"][-1]
    assert row["settings"] == {"epochs": 2, "batch_size": 50}
    assert "seed 5 with 9.50 %" in capsys.readouterr().out
    assert (tmp_path / "images" / "history.png").read_text() == "first"
    assert "(one run)" in (tmp_path / "README.md").read_text()
    for folder in ("second", "third"):
        rows = call(report, tmp_path / folder, "--add", part="record")
        assert [row["seed"] for row in rows] == [0, 1]
    assert rows[1]["loss"] == histories[2]["test_loss"][-1]
    assert (tmp_path / "images" / "history.png").read_text() == "first"
    text = (tmp_path / "README.md").read_text()
    assert "standard deviation of 2 seeds" in text
    assert "with epochs 2, batch size 50" in text
    assert f"{rows[0]['mirrored_accuracy']:.2f} % |" in text, "the images were there"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["settings"].update(epochs=3), "not finished: 2 of 3"),
        (lambda state: state["settings"].update(profile="quick"), "not of a run on all"),
        (lambda state: state["settings"].update(dataset="mine"), "not of a run on all"),
        (lambda state: state["settings"].update(train_images=60), "not of a run on all"),
        (lambda state: state.pop("history"), "damaged"),
        (None, "does not exist"),
    ],
)
def test_report_refuses_what_is_no_result(finish, tmp_path, capsys, monkeypatch, change, words):
    finish("run")
    path = tmp_path / "run" / "checkpoint.pt"
    if change:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
    else:
        path.unlink()
    before = (tmp_path / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "run")])
    capsys.readouterr()
    assert report.main() == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert not list((tmp_path / "images").iterdir())
    assert (tmp_path / "README.md").read_text() == before


def test_a_run_of_other_settings_is_not_added(call, finish, tmp_path, monkeypatch, capsys):
    finish("first")
    finish("second", momentum=0.8)
    rows = call(report, tmp_path / "first", part="record")
    assert call(report, tmp_path / "second", "--add", part="record") == rows
    assert "other settings" in capsys.readouterr().err


def test_check_finds_a_changed_number(call, finish, tmp_path, monkeypatch, capsys):
    finish("run")
    call(report, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("| 2 |", "| 3 |", 1))
    capsys.readouterr()
    assert report.main() == 1
    assert capsys.readouterr().out == "README.md: log differs from results.json.\n"


def test_the_sweep_is_drawn_with_its_best_peaks_as_title(call, tmp_path, monkeypatch):
    rows = {0.01: 70, 0.02: 75, 0.04: 72}
    for lr, accuracy in rows.items():
        settings = {"epochs": 5, "max_lr": lr}
        common.add_row("sweep", {"settings": settings, "max_lr": lr, "accuracy": accuracy})
    titles, set_title = [], report.plt.Axes.set_title
    monkeypatch.setattr(
        report.plt.Axes,
        "set_title",
        lambda self, text: titles.append(text) or set_title(self, text),
    )
    call(report)
    assert titles == ["Muon is best at a peak of 0.02: 75.0 %\n(epochs 5)"]
    assert (tmp_path / "images" / "lr_sweep.png").stat().st_size > 10_000


# Speed


def test_speed_measures_both_ways_and_replaces_rows_of_the_same_machine(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--smoke"])
    speed.main()
    printed = capsys.readouterr().out
    assert printed.count("ours") == 6, "three measurements, each with its row"
    assert "of our training step" in printed
    monkeypatch.setattr(sys, "argv", ["speed.py"])
    for ours in (6000.0, 7000.0):
        monkeypatch.setattr(speed, "measure", lambda _, o=ours: [("what", "images/s", 1000.0, o)])
        speed.main()
    (row,) = common.read_results()["speed"]
    assert (row["plain"], row["ours"], row["ratio"]) == (1000, 7000, 7)


def test_both_ways_augment_alike(make_config):
    config = make_config("full", batch_size=20)
    for loader in speed.get_loaders(60, config):
        pixels = torch.cat([images for images, _ in loader])
        assert pixels.shape == (60, 3, 32, 32)
        assert (pixels == 0).all(dim=1).float().mean() == pytest.approx(0.25, abs=0.01), "cut out"


def test_memory_is_kept_by_a_new_start_only(monkeypatch):
    starts = []
    monkeypatch.setattr("os.execve", lambda *args: starts.append(args[2]))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    common.keep_memory()
    (environment,) = starts
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, environment[name])
    common.keep_memory()
    assert len(starts) == 1
