"""The benchmarks: what they measure, that they go on where they stopped, and every lever."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_small_model
from torch import nn

import utils
from models.resnet import ResNet18

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import collect
import common
import levers
import record
import speed
import sweep


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Return a function that runs a script with the small network, and returns what it printed."""
    monkeypatch.setenv("S11_OUTPUT_DIR", str(tmp_path / "outputs"))

    def run(script, *arguments):
        if hasattr(script, "ResNet18"):
            monkeypatch.setattr(script, "ResNet18", make_small_model)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def read(monkeypatch):
    """Collect the number of images of every pass that predicts."""
    counts, predict = [], utils.predict

    def noting_predict(model, loader):
        logits, labels = predict(model, loader)
        counts.append(len(labels))
        return logits, labels

    monkeypatch.setattr(utils, "predict", noting_predict)
    return counts


def test_sweep_trains_every_combination_with_every_seed_once(call, tmp_path):
    file = tmp_path / "sweep.jsonl"
    settings = ("max_lr=0.01,0.02", "weight_decay=0,5e-4")
    printed = call(sweep, file, *settings, "--seeds", 2, "--smoke")
    rows = common.read_rows(file)
    assert len(rows) == 8
    assert [row["seed"] for row in rows] == [0] * 4 + [1] * 4
    assert rows[3]["settings"] == {"max_lr": 0.02, "weight_decay": 5e-4}
    assert all(row["max_lr"] == row["settings"]["max_lr"] for row in rows)
    assert printed.count("(n=2)") == 8, "two scores for each of four settings"
    before = file.read_bytes()
    assert call(sweep, file, *settings, "--seeds", 2, "--smoke").count(" s: ") == 0
    assert file.read_bytes() == before, "nothing is trained again"


def test_diverged_runs_are_kept_and_ranked_last(call, tmp_path, monkeypatch):
    fit = utils.fit_one_cycle

    def diverging_fit(model, train_loader, test_loader, max_lr, config):
        if (max_lr, config.seed) == (0.02, 1):
            raise FloatingPointError("The loss became nan")
        return fit(model, train_loader, test_loader, max_lr, config)

    monkeypatch.setattr(utils, "fit_one_cycle", diverging_fit)
    arguments = (tmp_path / "sweep.jsonl", "max_lr=0.02,0.01", "--seeds", 2, "--smoke")
    printed = call(sweep, *arguments)
    assert printed.splitlines()[-1].endswith('{"max_lr": 0.02}, diverged 1 times')
    assert len(common.read_rows(tmp_path / "sweep.jsonl")) == 4
    assert call(sweep, *arguments).count(" s: ") == 0


def test_order_of_the_settings_does_not_matter(call, tmp_path):
    file = tmp_path / "sweep.jsonl"
    call(sweep, file, "max_lr=0.01", "momentum=0.8", "--seeds", 1, "--smoke")
    printed = call(sweep, file, "momentum=0.8", "max_lr=0.01", "--seeds", 2, "--smoke")
    assert len(common.read_rows(file)) == 2
    assert printed.count("(n=2)") == 2, "one line, with both scores"


def test_sweep_goes_on_after_a_cut_line(call, tmp_path):
    file = tmp_path / "sweep.jsonl"
    call(sweep, file, "max_lr=0.01", "--seeds", 2, "--smoke")
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:50])
    call(sweep, file, "max_lr=0.01", "--seeds", 2, "--smoke")
    assert [row["seed"] for row in common.read_rows(file)] == [0, 1]


def test_sweep_uses_the_lr_finder_without_a_rate(call, tmp_path):
    call(sweep, tmp_path / "sweep.jsonl", "--seeds", 1, "--smoke")
    (row,) = common.read_rows(tmp_path / "sweep.jsonl")
    assert row["settings"] == {}
    assert row["max_lr"] > 0


def test_a_peak_of_0_is_refused(call, tmp_path):
    with pytest.raises(ValueError, match="max_lr is 0, but must be a number above 0"):
        call(sweep, tmp_path / "sweep.jsonl", "max_lr=0", "--seeds", 1, "--smoke")


def test_sweep_asks_the_lr_finder_with_the_levers_on(call, tmp_path, monkeypatch):
    asked = []

    def find_lr(model, train_loader, config):
        asked.append(type(utils._get_optimizer(model, 0.01, config)))
        return 0.01

    monkeypatch.setattr(utils, "find_lr", find_lr)
    call(sweep, tmp_path / "sweep.jsonl", "sgd=true,false", "--seeds", 1, "--smoke")
    assert asked == [torch.optim.SGD, utils.Muon]


@pytest.mark.parametrize("script", [sweep, record])
def test_images_are_read_once_for_all_runs(call, tmp_path, tiny_cifar10, monkeypatch, script):
    monkeypatch.setenv("S11_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(common, "SMOKE", {"profile": "full", "epochs": 1, "batch_size": 30})
    read, times = utils._load_cifar10, []
    monkeypatch.setattr(utils, "_load_cifar10", lambda config: times.append(1) or read(config))
    monkeypatch.setattr(utils, "find_lr", lambda *_: 0.01)
    call(script, tmp_path / "rows.jsonl", "--seeds", 2, "--smoke")
    assert len(common.read_rows(tmp_path / "rows.jsonl")) == 2
    assert len(times) == 1
    utils.get_dataloaders(utils.get_config("full", batch_size=30))
    assert len(times) == 2, "elsewhere, it is read as always"


def test_sweep_never_sees_the_test_images(call, tmp_path, read):
    call(sweep, tmp_path / "sweep.jsonl", "max_lr=0.01", "--seeds", 1, "--smoke")
    assert set(read) == {20}, "a tenth of the 200 training images"


@pytest.mark.parametrize("script", [sweep, record])
@pytest.mark.parametrize("setting", ["depth=3", "seed=3", "weight_decay", "=3"])
def test_bad_settings_are_told(call, tmp_path, script, setting, capsys):
    with pytest.raises(SystemExit):
        call(script, tmp_path / "rows.jsonl", setting, "--smoke")
    message = capsys.readouterr().err.splitlines()[-1]
    assert "There is no setting" in message or "is not of the form" in message
    assert not (tmp_path / "rows.jsonl").exists()


def test_record_tests_once_per_seed_after_the_end(call, tmp_path, read):
    numbers = tmp_path / "near.csv"
    numbers.write_text("TestID,TrainID\n0,5\n3,5\n3,7\n")
    file = tmp_path / "record.jsonl"
    arguments = (file, "epochs=2", "--seeds", 2, "--smoke", "--near-duplicates", numbers)
    printed = call(record, *arguments)
    assert read == [20, 20, 360, 360] * 2, "the probe per epoch; then as they are, and mirrored"
    rows = common.read_rows(file)
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["test_images"] == 360 for row in rows)
    assert all(row["images_without_near_duplicates"] == 358 for row in rows)
    assert all(len(row["history"]["probe_accuracy"]) == 2 for row in rows)
    assert rows[0]["max_lr"] > 0
    assert "without_near_duplicates" in printed
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt"))
    assert call(record, *arguments).count(" s: ") == 0, "nothing is trained again"


@pytest.fixture
def finished(make_config, tiny_cifar10):
    """Return a function that trains the small network on a small CIFAR-10, and its folder."""

    def train(**settings):
        config = make_config("full", **{"epochs": 2, "batch_size": 50, **settings})
        history = utils.fit_one_cycle(
            make_small_model(), *utils.get_dataloaders(config), 0.01, config
        )
        return config.output_dir, history

    return train


def test_record_takes_a_finished_run(call, tmp_path, finished, monkeypatch):
    folder, history = finished(seed=3)
    monkeypatch.setenv("S11_DATA_DIR", str(tmp_path / "data"))
    file = tmp_path / "record.jsonl"
    for _ in range(2):
        printed = call(record, file, "--finished", folder)
        (row,) = common.read_rows(file)
        assert (row["settings"], row["seed"]) == ({"epochs": 2, "batch_size": 50}, 3)
        assert row["test_images"] == 20
        assert row["accuracy"] == row["history"]["test_accuracy"][-1]
        assert row["history"]["train_loss"] == history["train_loss"]
        assert row["max_lr"] == max(history["lr"])
        assert f"accuracy                {row['accuracy']:.2f} (n=1)" in printed


@pytest.mark.parametrize(("interrupted", "settings"), [(3, {}), (0, {"train_images": 60})])
def test_record_takes_no_partial_run(
    call, tmp_path, finished, interrupt_step, capsys, interrupted, settings
):
    interrupt_step(interrupted)
    folder, _ = finished(**settings)
    with pytest.raises(SystemExit):
        call(record, tmp_path / "record.jsonl", "--finished", folder)
    assert "has no finished run on all training images" in capsys.readouterr().err


def test_near_duplicates_are_left_out():
    right = torch.tensor([True, False, True, False, False])
    assert record.leave_out(right, [0, 3]).tolist() == [False, True, False]


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n", "TestID\nfirst\n"])
def test_bad_file_of_near_duplicates_is_told(call, tmp_path, capsys, content):
    path = tmp_path / "near.csv"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        call(record, tmp_path / "record.jsonl", "--smoke", "--near-duplicates", path)
    assert "near.csv has no column TestID" in capsys.readouterr().err


def test_validation_images_are_stratified_fixed_and_left_out(make_config):
    config = make_config(train_images=1000)
    loader, _ = utils.get_dataloaders(config)
    for image, index in zip(loader.dataset.images, range(1000), strict=True):
        image.view(-1)[:2] = torch.tensor([index // 256, index % 256], dtype=torch.uint8)

    def get_numbers(loader):
        first = loader.dataset.images.view(-1, 3072)[:, :2].int()
        return (256 * first[:, 0] + first[:, 1]).tolist()

    train_loader, validation_loader = common.split(loader, config, 0.1)
    kept, taken = get_numbers(train_loader), get_numbers(validation_loader)
    assert sorted(kept + taken) == list(range(1000))
    assert len(taken) == 100
    shares = torch.bincount(validation_loader.dataset.labels) * 10
    assert (shares - torch.bincount(loader.dataset.labels)).abs().max() <= 10
    torch.manual_seed(7)
    assert get_numbers(common.split(loader, config, 0.1)[1]) == taken
    first, second = (next(iter(validation_loader))[0] for _ in range(2))
    assert torch.equal(first, second), "not augmented"


def test_scores_with_mirror_images(make_loader):
    class Left(nn.Module):
        """Answer 1 when the left column is bright, and surely 0 when the right one is."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            left, right = images[:, 0, 0, 0], images[:, 0, 0, -1]
            return torch.stack([3 * right, left], dim=1) + self.weight

    images = torch.zeros(4, 3, 32, 32)
    images[:, :, :, 0] = 1
    scores, right = common.evaluate(Left(), make_loader(images, torch.tensor([1, 1, 1, 0]), 3))
    assert right.tolist() == [True, True, True, False]
    assert scores["accuracy"] == 75
    assert scores["mirrored_accuracy"] == 25, "both together say 0"


def test_rows_are_appended_to_a_file_without_a_last_newline(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2')
    common.append_row(file, {"a": 3})
    assert [row["a"] for row in common.read_rows(file)] == [1, 3]


@pytest.mark.parametrize(
    ("values", "text"), [([95.0], "95.00 (n=1)"), ([94.0, 96.0], "95.00 ± 1.41 (n=2)")]
)
def test_spread_is_that_of_a_sample(values, text):
    assert common.describe(values) == text


@pytest.mark.parametrize("ours", [False, True])
def test_pipelines_deliver_the_same_batches(ours, config):
    images, labels = speed.get_images(40)
    if ours:
        loader = speed.get_our_loader(images, labels, speed.get_config(speed.CPU, 16))
    else:
        loader = speed.get_plain_loader(images, labels, 16)
    batches = list(loader)
    assert [tuple(batch.shape) for batch, _ in batches] == [(16, 3, 32, 32)] * 2 + [(8, 3, 32, 32)]
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted(labels)
    pixels = torch.cat([batch for batch, _ in batches])
    assert (pixels == 0).all(dim=1).float().mean() == pytest.approx(0.25, abs=0.01), "cut out"


def test_both_ways_are_timed_and_trained(monkeypatch):
    monkeypatch.setattr(speed, "ResNet18", make_small_model)
    plain, ours = speed.measure_epoch(speed.CPU, 64, 16, rounds=1, warmup_steps=1)
    assert plain > 0 < ours
    assert all(speed.time_step(ours, 8, 1) > 0 for ours in (False, True))
    assert speed.time_pipeline(True, 64, 16, 1) > 0


def test_speeds_are_printed_and_appended(call, tmp_path, monkeypatch):
    measured = [("a pipeline", "images/s", 1000.0, 6000.0, 6.0)]
    monkeypatch.setattr(speed, "measure_all", lambda smoke: measured)
    printed = call(speed, "--output", tmp_path / "speed.jsonl")
    assert "6.00x" in printed
    (row,) = common.read_rows(tmp_path / "speed.jsonl")
    assert (row["plain"], row["ours"], row["ratio"]) == (1000, 6000, 6)
    assert row["torch"] == torch.__version__


# Levers


@pytest.fixture
def fit(config, loaders):
    """Return a function that trains the small network with a lever, and its history."""

    def run(name, value, model=None):
        model = model or make_small_model()
        with levers.LEVERS[name](value, model, loaders[0], config):
            return utils.fit_one_cycle(model, *loaders, 0.05, config), model

    return run


@pytest.mark.parametrize("floor", [0, 0.1])
def test_lr_floor(fit, floor):
    history, _ = fit("lr_floor", floor)
    assert history["lr"][-1] == pytest.approx(0.05 * floor)


def test_anneal(fit):
    history, _ = fit("anneal", "linear")
    falls = -np.diff(history["lr"])[1:]  # the peak is between the first two steps
    assert falls == pytest.approx([falls[0]] * 4)


def test_bias_lr(fit, before_steps):
    used = []
    before_steps(lambda sgd: used.append([group["lr"] for group in sgd.param_groups]))
    fit("bias_lr", 4)
    assert all(lrs[2] == pytest.approx(4 * lrs[0]) for lrs in used)
    assert all(lrs[0] == lrs[1] for lrs in used)
    assert len(used) == 6


def test_ema_is_the_average_of_the_last_epochs(config, loaders, monkeypatch):
    model = make_small_model()
    utils.Muon([{"params": list(model.parameters())}], 0.1, 0.9)  # the first one hooks step
    weights, step = [], utils.Muon.step

    def noting_step(self, *args, **kwargs):
        answer = step(self, *args, **kwargs)
        weights.append(model[0].weight.detach().clone())
        return answer

    noting_step.hooked = True
    monkeypatch.setattr(utils.Muon, "step", noting_step)
    with levers.LEVERS["ema"](0.5, model, loaders[0], config):
        utils.find_lr(model, loaders[0], config)
        weights.clear()  # the LR finder's
        utils.fit_one_cycle(model, *loaders, 0.05, config)
    expected = weights[0]
    for later in weights[1:]:
        expected = 0.5 * expected + 0.5 * later
    torch.testing.assert_close(model[0].weight.detach(), expected)
    assert not torch.equal(expected, weights[-1])


def test_zero_gamma_and_dirac():
    model = ResNet18()
    images = torch.randn(2, 64, 8, 8).relu()
    with levers.LEVERS["zero_gamma"](True, model):
        torch.testing.assert_close(model.layer1(images), images)
    with levers.LEVERS["dirac"](True, model):
        torch.testing.assert_close(model.layer1[0].conv1(images), images)


def test_alternating_flip_mirrors_every_second_epoch(make_config):
    config = make_config(train_images=64, crop_padding=0, cutout_size=0, epochs=3)
    loader, test_loader = utils.get_dataloaders(config)
    dataset, model, seen = loader.dataset, make_small_model(), []
    loader = torch.utils.data.DataLoader(dataset, 32, collate_fn=tuple)

    def note(_, images):
        if model.training:
            seen.extend(images)

    with levers.LEVERS["alternating_flip"](True, model, loader, config):
        utils.find_lr(model, loader, config)  # its steps belong to no epoch
        model.register_forward_pre_hook(note)
        utils.fit_one_cycle(model, loader, test_loader, 0.01, config)
    epochs = torch.cat(seen).chunk(3)
    torch.testing.assert_close(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    plain = utils.get_transforms(config)[1](dataset.images.permute(0, 3, 1, 2))
    mirrored = [not torch.equal(a, b) for a, b in zip(epochs[0], plain, strict=True)]
    assert 10 < sum(mirrored) < 54, "about half of them"


@pytest.fixture
def holes():
    """Return the small network, and the number of images with a square cut out, batch by batch."""
    counts, model = [], make_small_model()

    def note(_, images):
        if model.training:
            counts.append(int((images[0] == 0).all(1).any((1, 2)).sum()))

    model.register_forward_pre_hook(note)
    return model, counts


def test_cutout_ends_before_training_does(fit, holes, loaders):
    model, counts = holes
    fit("end_cutout", 1, model)
    assert counts == [32, 32, 16, 0, 0, 0]
    assert next(iter(loaders[0]))[0].eq(0).any(), "the loader cuts out again"


def test_cutout_ends_with_the_alternating_flip_too(holes, config, loaders):
    model, counts = holes
    with (
        levers.LEVERS["alternating_flip"](True, model, loaders[0], config),
        levers.LEVERS["end_cutout"](1, model, loaders[0], config),
    ):
        utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert counts == [32, 32, 16, 0, 0, 0]


def test_half_size_trains_and_tests_on_16_x_16_pixels(fit):
    model, shapes = make_small_model(), []
    model[0].register_forward_pre_hook(lambda _, images: shapes.append(tuple(images[0].shape[2:])))
    model[5] = nn.Linear(64, 10)
    fit("half_size", True, model)
    assert set(shapes) == {(16, 16)}


def test_sgd_trains_filters_as_everything_else(config):
    model, twin = make_small_model(), make_small_model()
    with levers.LEVERS["sgd"](True):
        optimizer = utils._get_optimizer(model, 0.1, config)
    decays = [config.weight_decay if p.ndim > 1 else 0 for p in twin.parameters()]
    groups = [
        {"params": p, "weight_decay": decay}
        for p, decay in zip(twin.parameters(), decays, strict=True)
    ]
    expected = torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)
    for step in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.full_like(p, 1.0 + step)
            q.grad = p.grad.clone()
        optimizer.step()
        expected.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_sgd_can_be_left_out(fit, config, loaders):
    expected = utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)["train_loss"]
    assert fit("sgd", False)[0]["train_loss"] == expected
    assert fit("sgd", True)[0]["train_loss"] != expected


def test_cudnn_may_choose_while_it_trains(monkeypatch, fit):
    train, seen = utils.train, []

    def noting_train(*args, **kwargs):
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark))
        return train(*args, **kwargs)

    monkeypatch.setattr(utils, "train", noting_train)
    fit("cudnn_benchmark", True)
    assert seen == [(True, True)] * 2
    assert not torch.backends.cudnn.benchmark


def test_levers_leave_nothing_behind(fit, config, loaders):
    before = utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)["train_loss"]
    values = {"ema": 0.5, "lr_floor": 0.1, "bias_lr": 4, "alternating_flip": True, "sgd": True}
    values |= {"anneal": "linear", "end_cutout": 1}
    for name, value in values.items():
        fit(name, value)
    assert utils.fit_one_cycle(make_small_model(), *loaders, 0.05, config)["train_loss"] == before


# results.json


def make_row(max_lr, accuracy, smoke=False, **settings):
    return {
        "settings": {"max_lr": max_lr, **settings},
        "max_lr": max_lr,
        "accuracy": accuracy,
        "smoke": smoke,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_collect_replaces_its_parts_and_keeps_the_others(call, tmp_path):
    (tmp_path / "results.json").write_text('{"cpu": [1], "sweep": []}')
    rows = [make_row(lr, 90 + lr, weight_decay=wd) for lr in (0.1, 0.2, 0.4) for wd in (0, 5e-4)]
    sweep_file = write(tmp_path / "sweep.jsonl", rows)
    record_file = write(tmp_path / "record.jsonl", [make_row(0.3, 95), make_row(0.32, 95.1)])
    call(collect, "--sweep", sweep_file, "--record", record_file, "--into", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cpu"] == [1]
    assert results["sweep"] == rows
    assert len(results["record"]) == 2
    assert (tmp_path / "images" / "lr_sweep.png").stat().st_size > 10_000


@pytest.mark.parametrize("rows", [[], [make_row(0.1, 90, smoke=True)]])
def test_collect_refuses_what_is_no_result(call, tmp_path, rows):
    (tmp_path / "results.json").write_text("{}")
    file = write(tmp_path / "sweep.jsonl", rows)
    with pytest.raises(SystemExit):
        call(collect, "--sweep", file, "--into", tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_accuracies_by_learning_rate():
    rows = [make_row(0.1, 90), make_row(0.1, 92), make_row(0.2, 93), make_row(0.2, 94, ema=0.9)]
    groups = {"as it is": {0.1: [90, 92], 0.2: [93]}, "ema 0.9": {0.2: [94]}}
    assert collect.group_by_lr(rows) == ({}, groups)


def test_what_all_of_a_sweep_have_in_common_is_said_once():
    half = {"half_size": True, "epochs": 5}
    rows = [make_row(0.1, 77, **half), make_row(0.2, 70, sgd=True, **half)]
    assert collect.group_by_lr(rows) == (half, {"as it is": {0.1: [77]}, "sgd": {0.2: [70]}})
    assert collect.describe(half) == "half size, epochs 5"


def test_sweep_is_drawn_with_the_answers_of_the_lr_finder(tmp_path, monkeypatch):
    drawn, close = [], collect.plt.close
    monkeypatch.setattr(collect.plt, "close", lambda figure: drawn.append(figure) or close(figure))
    half = {"half_size": True}
    rows = [make_row(lr, 70 + lr, **half) for lr in (0.1, 0.2)]
    asked = {**make_row(0.3, 73), "settings": half}
    other = {**make_row(0.4, 73), "settings": {**half, "sgd": True}}
    collect.draw_lr_sweep([*rows, asked, other], tmp_path / "sweep.png")
    (axis,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["as it is, peak from the LR finder (1 seed)"] == [[0.3, 73]]
    assert lines["as it is"] == [[0.1, 70.1], [0.2, 70.2]]
    assert "half size" in axis.get_title()
    drawn[0].canvas.draw()
    low, high = axis.get_xlim()
    ticks = {t.get_text() for t in axis.get_xticklabels() if low <= t.get_position()[0] <= high}
    assert ticks == {"0.1", "0.2"}
