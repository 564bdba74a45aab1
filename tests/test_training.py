"""OneCycle, one epoch of training, one pass of testing, and what may go wrong in them."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tqdm
from conftest import make_small_model
from torch import nn
from torch.utils.data import DataLoader

import utils


def make_images(count):
    torch.manual_seed(1)
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


@pytest.fixture
def train_once(config):
    """Return a function that trains a model for one epoch with plain SGD, whose lr is constant."""

    def train_once(model, loader, lr, config=config):
        optimizer = torch.optim.SGD(model.parameters(), lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1)
        scaler = utils.get_scaler(config.device)
        return utils.train(model, loader, optimizer, scheduler, scaler, config), scheduler

    return train_once


# Losses and accuracies


@pytest.mark.parametrize("batch_size", [7, 10, 25])
def test_losses_are_means_over_images_whatever_the_batches(
    model, make_loader, train_once, batch_size, capsys
):
    images, labels = make_images(25)
    loader = make_loader(images, labels, batch_size)
    (loss, accuracy, lrs), scheduler = train_once(model.eval(), loader, 0.0)
    assert model.training
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert lrs == [0.0] * len(loader)
    assert scheduler.last_epoch == len(loader), "stepped after every batch"
    capsys.readouterr()
    loss, accuracy = utils.test(model, loader)
    with torch.no_grad():
        logits = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    correct = (logits.argmax(1) == labels).sum().item()
    assert accuracy == pytest.approx(100 * correct / 25)
    line = f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/25 ({accuracy:.2f}%)\n"
    assert capsys.readouterr().out == line


def test_training_optimises_the_smoothed_loss(model, config, make_loader, train_once):
    images, labels = make_images(16)
    twin = copy.deepcopy(model)
    train_once(model, make_loader(images, labels, 16), 0.1)
    F.cross_entropy(twin(images), labels, label_smoothing=config.label_smoothing).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def test_no_reading_from_the_device_in_the_loop(train_once, config, steps, monkeypatch):
    """On a device that only knows shapes, so that whatever wants a number fails."""
    with torch.device("meta"):
        model = make_small_model()
        batch = torch.empty(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    monkeypatch.setattr(utils, "autocast", lambda _: nullcontext())
    config = replace(config, device=torch.device("meta"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        train_once(model, [batch] * 3, 0.1, config)
    assert len(steps) == 3, "all steps were made before the first reading"


# OneCycle


def test_every_step_follows_one_cycle_at_a_constant_momentum(model, config, loaders, steps):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    used, momenta = zip(*steps, strict=True)
    assert len(used) == config.epochs * len(loaders[0]) == 6
    assert history["lr"] == list(used), "the history shows the learning rates used"
    assert set(momenta) == {0.9}, "momentum is not cycled"
    assert used[0] == pytest.approx(0.05 / 25)
    assert 0 <= used[-1] < used[0] / 100


def test_learning_rate_reaches_its_peak_after_the_warm_up(model, make_config):
    config = make_config(epochs=10, batch_size=32, train_images=64)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    assert max(history["lr"]) == pytest.approx(0.05)
    assert np.argmax(history["lr"]) == 3  # 20 % of 20 steps, counted from 0
    assert (np.diff(history["lr"][:4]) > 0).all()
    assert (np.diff(history["lr"][3:]) < 0).all()


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 0.5])
def test_any_number_of_steps_is_a_cycle(model, make_config, epochs, warmup_fraction):
    settings = {"epochs": epochs, "warmup_fraction": warmup_fraction}
    config = make_config(batch_size=32, train_images=32, **settings)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    assert len(history["lr"]) == epochs
    assert all(0 <= lr <= 0.0501 for lr in history["lr"])


def test_history_is_complete_and_ends_with_the_returned_model(model, config, loaders, capsys):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    printed = capsys.readouterr()
    per_epoch = {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"}
    assert history.keys() == per_epoch | {"lr"}
    assert all(len(history[name]) == 2 for name in per_epoch)
    assert all(type(value) is float for values in history.values() for value in values)
    assert utils.test(model, loaders[1]) == (history["test_loss"][-1], history["test_accuracy"][-1])
    assert printed.out.count("Test set: Average loss: ") == 2
    assert f"({history['test_accuracy'][-1]:.2f}%)" in printed.out.splitlines()[-1]
    assert "Loss=" in printed.out
    assert printed.err == "", "the bars are on stdout"


def test_running_it_twice_just_trains_again(model, config, loaders):
    first = utils.fit_one_cycle(model, *loaders, 0.05, config)
    second = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert second["lr"] == first["lr"]
    assert second["train_loss"][0] < first["train_loss"][0], "it goes on from its weights"


def test_same_seed_is_the_same_run_whatever_comes_before(make_config, model):
    runs = []
    for seed in (0, 0, 1):
        config = make_config(epochs=2, batch_size=32, train_images=80, seed=seed, resume=False)
        twin = copy.deepcopy(model)
        torch.rand(17 * len(runs))
        history = utils.fit_one_cycle(twin, *utils.get_dataloaders(config), 0.05, config)
        runs.append((history["train_loss"], [p.tolist() for p in twin.parameters()]))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


def test_any_dataloader_works(model, config):
    images, labels = make_images(60)
    loader = DataLoader(list(zip(images, labels.tolist(), strict=True)), 20)
    assert utils.find_lr(model, loader, config) > 0
    assert len(utils.fit_one_cycle(model, loader, loader, 0.01, config)["test_loss"]) == 2


def test_batches_that_are_handed_in_are_left_as_they_are(config):
    model = nn.Sequential(nn.ReLU(inplace=True), *make_small_model())
    images, labels = make_images(40)
    batches = list(zip(images.split(20), labels.split(20), strict=True))
    before = images.clone()
    utils.test(model, batches)
    assert torch.equal(images, before)
    utils.fit_one_cycle(model, batches, batches, 0.01, config)
    assert torch.equal(images, before)


# Precision: what a GPU would use, told from its kind alone


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_mixed_precision_by_gpu(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = torch.device("cuda")
    assert utils.get_precision(device) == dtype
    scaler = utils.get_scaler(device)
    assert scaler.is_enabled() == (dtype == torch.float16)
    assert not scaler.is_enabled() or scaler._init_scale <= 4096, "no step is skipped"


@pytest.mark.parametrize(("native", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_cpu_is_as_precise_as_is_fast(make_config, native_bfloat16, native, dtype, capsys):
    native_bfloat16(native)
    config = make_config()
    assert str(dtype).removeprefix("torch.") in capsys.readouterr().out
    with utils.autocast(config.device):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype
    assert not utils.get_scaler(config.device).is_enabled(), "bfloat16 has the range of float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_reaches_every_pass(model, config, loaders, monkeypatch, dtype):
    """With float16 as on a T4, whose loss is scaled, and which a CPU can do slowly."""
    seen = []
    model[0].register_forward_hook(lambda *values: seen.append(values[-1].dtype))
    monkeypatch.setattr(utils, "get_precision", lambda _: dtype)
    assert utils.get_scaler(config.device).is_enabled() == (dtype == torch.float16)
    max_lr = utils.find_lr(model, loaders[0], config)
    history = utils.fit_one_cycle(model, *loaders, max_lr, config)
    assert set(seen) == {dtype}
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


@pytest.mark.parametrize("max_lr", [0, -1.0, None, float("nan"), float("inf"), "0.1"])
def test_bad_peak_is_told_before_anything_is_trained(model, config, loaders, max_lr, steps):
    with pytest.raises(ValueError, match=r"max_lr is .* a number above 0"):
        utils.fit_one_cycle(model, *loaders, max_lr, config)
    assert not steps


WORKS = {
    "find": lambda model, loader, config: utils.find_lr(model, loader, config),
    "fit": lambda model, loader, config: utils.fit_one_cycle(model, loader, loader, 0.05, config),
    "test": lambda model, loader, config: utils.test(model, loader),
}


@pytest.mark.parametrize("work", ["find", "fit"])
@pytest.mark.parametrize("outputs", [3, 20])
def test_model_for_other_classes_is_told(model, config, loaders, work, outputs):
    model[5] = nn.Linear(256, outputs)
    with pytest.raises(ValueError, match=rf"has {outputs} outputs.*num_classes=10"):
        WORKS[work](model, loaders[0], config)


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize(
    "change",
    [lambda labels: labels[:, None], lambda labels: F.one_hot(labels, 10), torch.Tensor.float],
    ids=["(N, 1)", "one-hot", "floats"],
)
def test_labels_of_another_kind_are_told(model, config, make_loader, work, change):
    images, labels = make_images(20)
    with pytest.raises(ValueError, match="labels are .*whole numbers"):
        WORKS[work](model, make_loader(images, change(labels), 10), config)


@pytest.mark.parametrize("work", ["find", "fit"])
def test_too_little_gpu_memory_names_a_batch_size(model, config, loaders, monkeypatch, work):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(nn.Conv2d, "forward", lambda _, images: full(images))
    with pytest.raises(torch.OutOfMemoryError, match=r"batches of 32.*batch_size=16"):
        WORKS[work](model, loaders[0], config)
    assert not list(tqdm.tqdm._instances), "the bars are closed"


def test_progress_bars_are_plain_text_on_stdout(capsys):
    for _ in utils.progress_bar(range(3), desc="Some work"):
        pass
    captured = capsys.readouterr()
    assert type(utils.progress_bar([])) is tqdm.std.tqdm, "not the notebook's widget"
    assert "Some work: 100%" in captured.out
    assert captured.err == ""
