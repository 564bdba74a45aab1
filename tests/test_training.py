"""OneCycle, one epoch of training, one pass of testing, and what may go wrong in them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tqdm
from torch import nn

import utils
from conftest import make_small_model


def make_images(count):
    torch.manual_seed(1)
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def train_once(model, loader, lr, config):
    """Train for one epoch with plain SGD, whose learning rate is constant."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1)
    scaler = utils.get_scaler(config.device)
    return *utils.train(model, loader, optimizer, scheduler, scaler, config), scheduler.last_epoch


# Losses and accuracies
@pytest.mark.parametrize("batch_size", [7, 10, 25])
def test_losses_are_means_over_images_whatever_the_batches(
    model, config, make_loader, batch_size, capsys
):
    images, labels = make_images(25)
    loader = make_loader(images, labels, batch_size)
    loss, accuracy, lrs, scheduled = train_once(model.eval(), loader, 0.0, config)
    assert model.training
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert (lrs, scheduled) == ([0.0] * len(loader), len(loader)), "stepped after every batch"
    capsys.readouterr()
    loss, accuracy = utils.test(model, loader)
    with torch.no_grad():
        logits = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    correct = (logits.argmax(1) == labels).sum().item()
    assert accuracy == pytest.approx(100 * correct / 25)
    line = f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/25 ({accuracy:.2f}%)\n"
    assert capsys.readouterr().out == line


def test_training_optimises_the_smoothed_loss(model, config, make_loader):
    images, labels = make_images(16)
    twin = copy.deepcopy(model)
    train_once(model, make_loader(images, labels, 16), 0.1, config)
    F.cross_entropy(twin(images), labels, label_smoothing=config.label_smoothing).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def test_no_reading_from_the_device_in_the_loop(config, steps, monkeypatch):
    """On a device that only knows shapes, so that whatever wants a number fails."""
    with torch.device("meta"):
        model = make_small_model()
        batch = torch.empty(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    plain = utils.get_autocast(config.device)
    monkeypatch.setattr(utils, "get_autocast", lambda _: plain)
    config = replace(config, device=torch.device("meta"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        train_once(model, [batch] * 3, 0.1, config)
    assert len(steps) == 3, "all steps were made before the first reading"


# OneCycle
def test_every_step_follows_one_cycle_at_a_constant_momentum(model, make_config, steps):
    config = make_config(epochs=10, batch_size=32, train_images=64)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    used, momenta = zip(*steps, strict=True)
    assert history["lr"] == list(used), "the history shows the learning rates used"
    assert set(momenta) == {0.9}, "momentum is not cycled"
    assert (len(used), np.argmax(used)) == (20, 3)  # after 20 % of 20 steps, counted from 0
    expected = {0: 0.05 / 25, 3: 0.05}
    assert {i: used[i] for i in expected} == pytest.approx(expected)
    assert (np.diff(used[:4]) > 0).all()
    assert (np.diff(used[3:]) < 0).all()
    assert 0 <= used[-1] < used[0] / 100


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 0.5])
def test_any_number_of_steps_is_a_cycle(model, make_config, epochs, warmup_fraction):
    settings = {"epochs": epochs, "warmup_fraction": warmup_fraction, "train_images": 32}
    config = make_config(**settings)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    assert len(history["lr"]) == epochs
    assert all(0 <= lr <= 0.0501 for lr in history["lr"])


def test_history_is_complete_and_ends_with_the_returned_model(model, config, loaders, capsys):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    printed = capsys.readouterr()
    per_epoch = {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"}
    assert {name: len(values) for name, values in history.items()} == {
        **dict.fromkeys(per_epoch, 2),
        "lr": 6,
    }
    assert all(type(value) is float for values in history.values() for value in values)
    assert utils.test(model, loaders[1]) == (history["test_loss"][-1], history["test_accuracy"][-1])
    assert printed.out.count("Test set: Average loss: ") == 2
    assert f"({history['test_accuracy'][-1]:.2f}%)" in printed.out.splitlines()[-1]
    assert "Loss=" in printed.out
    assert "3/3" in printed.out
    assert printed.err == "", "the bars are on stdout"
    assert type(utils.progress_bar([])) is tqdm.std.tqdm, "not the notebook's widget"
    again = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert again["lr"] == history["lr"], "running the cell again just trains again"
    assert again["train_loss"][0] < history["train_loss"][0], "from the weights that it has"


def test_same_seed_is_the_same_run_whatever_comes_before(make_config, model):
    runs = []
    for seed in (0, 0, 1):
        config = make_config(epochs=2, batch_size=32, train_images=80, seed=seed, resume=False)
        twin, loaders = copy.deepcopy(model), utils.get_dataloaders(config)
        torch.rand(17 * len(runs))
        history = utils.fit_one_cycle(twin, *loaders, 0.05, config)
        runs.append((history["train_loss"], [p.tolist() for p in twin.parameters()]))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


def test_any_loader_or_list_works_and_is_left_as_it_is(config, make_loader):
    model = nn.Sequential(nn.ReLU(inplace=True), *make_small_model())
    images, labels = make_images(60)
    before, loader = images.clone(), make_loader(images, labels.tolist(), 20)
    assert utils.find_lr(model, loader, config) > 0
    batches = list(zip(images.split(20), labels.split(20), strict=True))
    for data in (loader, batches):
        history = utils.fit_one_cycle(model, data, data, 0.01, config)
        assert len(history["test_loss"]) == 2
        assert torch.equal(images, before)


# Precision: what a GPU would use, told from its kind alone
GPUS = [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]


@pytest.mark.parametrize(("capability", "dtype"), GPUS)
def test_gpus_without_bfloat16_scale_the_loss(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.get_autocast(torch.device("cuda"))["dtype"] == dtype
    scaler = utils.get_scaler(torch.device("cuda"))
    assert scaler.is_enabled() == (dtype == torch.float16)
    assert not scaler.is_enabled() or scaler._init_scale <= 4096, "no step is skipped"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_precision_reaches_every_pass(
    model, make_config, native_bfloat16, monkeypatch, capsys, dtype
):
    """With float16 as on a T4, whose loss is scaled, and which a CPU can do slowly."""
    native_bfloat16(dtype == torch.bfloat16)
    if dtype == torch.float16:
        half = {"device_type": "cpu", "dtype": dtype, "enabled": True}
        monkeypatch.setattr(utils, "get_autocast", lambda _: half)
    config, seen = make_config(epochs=2, train_images=80, lr_finder_steps=40), []
    assert f"{dtype} ".removeprefix("torch.") in capsys.readouterr().out
    loaders = utils.get_dataloaders(config)
    model[0].register_forward_hook(lambda *values: seen.append(values[-1].dtype))
    max_lr = utils.find_lr(model, loaders[0], config)
    history = utils.fit_one_cycle(model, *loaders, max_lr, config)
    assert set(seen) == {dtype}
    assert utils.get_scaler(config.device).is_enabled() == (dtype == torch.float16)
    assert utils.predict(model, loaders[1])[0].dtype == torch.float32, "for exact losses"
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert history["train_loss"][-1] < history["train_loss"][0]


# Trouble is told in a sentence that says what to do
def test_first_infinite_loss_is_named_by_its_step(model, config, make_loader):
    images, labels = make_images(40)
    images[25] = float("nan")
    loader = make_loader(images, labels, 10)
    with pytest.raises(FloatingPointError, match=r"nan in step 3 .*smaller max_lr"):
        utils.fit_one_cycle(model, loader, loader, 0.05, config)
    assert not config.output_dir.exists(), "no checkpoint of a broken run"


@pytest.mark.parametrize("max_lr", [0, -1.0, None, float("nan"), float("inf")])
def test_bad_peak_is_told_before_anything_is_trained(model, config, loaders, max_lr, steps):
    with pytest.raises(ValueError, match=r"max_lr is .* a number above 0"):
        utils.fit_one_cycle(model, *loaders, max_lr, config)
    assert not steps


WORKS = {
    "find": lambda model, loader, config: utils.find_lr(model, loader, config),
    "fit": lambda model, loader, config: utils.fit_one_cycle(model, loader, loader, 0.05, config),
    "test": lambda model, loader, config: utils.test(model, loader),
}
CHANGES = {
    "(N, 1)": lambda labels: labels[:, None],
    "one-hot": lambda labels: F.one_hot(labels, 10),
    "floats": lambda labels: labels.float(),
    "soft": lambda labels: F.one_hot(labels, 10).float(),
}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("change", CHANGES)
def test_labels_of_another_kind_are_told(model, config, make_loader, work, change):
    images, labels = make_images(20)
    with pytest.raises(ValueError, match=r"abels .*whole numbers"):
        WORKS[work](model, make_loader(images, CHANGES[change](labels), 10), config)


@pytest.mark.parametrize("work", ["find", "fit"])
@pytest.mark.parametrize("outputs", [3, 20])
def test_model_for_other_classes_is_told(model, config, loaders, work, outputs):
    model[5] = nn.Linear(256, outputs)
    with pytest.raises(ValueError, match=rf"has {outputs} outputs.*num_classes=10"):
        WORKS[work](model, loaders[0], config)
