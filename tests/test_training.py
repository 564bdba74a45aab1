"""The optimizers, OneCycle, one epoch of training, one pass of testing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import utils
from conftest import interrupt_step, make_small_model
from models.resnet import ResNet18


def make_images(count):
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def train_once(model, loader, lr, config):
    """Train for one epoch with plain SGD, whose learning rate is constant."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1)
    scaler = utils.get_scaler(config.device)
    return *utils.train(model, loader, optimizer, scheduler, scaler, config), scheduler.last_epoch


def test_losses_are_means_over_images_whatever_the_batches(model, config, make_loader):
    images, labels = make_images(25)
    loader, twin = make_loader(images, labels, 7), copy.deepcopy(model)
    *trained, lrs, scheduled = train_once(model.eval(), loader, 0.0, config)
    assert (lrs, scheduled) == ([0.0] * 4, 4), "after every batch"
    for mode, (loss, accuracy) in ((True, trained), (False, utils.test(model, loader))):
        with torch.no_grad():
            logits = torch.cat([twin.train(mode)(batch) for batch in images.split(7)])
        assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


def test_training_optimises_the_smoothed_loss(model, config, make_loader):
    images, labels = make_images(16)
    twin = copy.deepcopy(model)
    train_once(model, make_loader(images, labels, 16), 0.1, config)
    F.cross_entropy(twin(images), labels, label_smoothing=config.label_smoothing).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


def test_the_last_epochs_are_without_cutout_which_then_is_back(model, config, loaders):
    config, areas = replace(config, epochs=10, cutout_free_fraction=0.7), []  # 1 - 0.7 is above 0.3

    def look(*_):
        areas.append(int(utils.CutOut(16)(torch.ones(1, 1, 32, 32)).eq(0).sum()))

    looks = register_optimizer_step_pre_hook(look)
    with looks, interrupt_step(12), pytest.raises(KeyboardInterrupt):
        utils.fit_one_cycle(model, *loaders, 0.05, config)
    look()
    assert areas == 9 * [256] + 3 * [0] + [256]


def test_no_reading_from_the_device_in_the_loop(config, steps, monkeypatch):
    """On a device that only knows shapes, so that whatever wants a number fails."""
    with torch.device("meta"):
        model = make_small_model()
        batch = torch.empty(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    plain = utils.get_autocast(config.device)
    monkeypatch.setattr(utils, "get_autocast", lambda _: plain)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        train_once(model, [batch] * 3, 0.1, replace(config, device=torch.device("meta")))
    assert len(steps) == 3, "all steps were made before the first reading"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_filters_keep_their_norm_and_all_else_trains_by_sgd(make_config, momentum, name):
    filters = nn.Conv1d(3, 8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv3d(3, 8, 3)
    others = nn.ConvTranspose1d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)
    model = nn.Sequential(*filters, nn.Conv1d(1, 1, 1), *others, nn.Linear(8, 10))
    model.tokens = nn.Parameter(torch.randn(1, 4, 5, 6))  # four dimensions, but no filters
    nn.init.zeros_(model[3].weight)
    start, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    config = make_config(momentum=momentum, weight_decay=0.1, optimizer=name)
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in twin.parameters()]
    plain = torch.optim.SGD(groups, 0.1, momentum=momentum, nesterov=momentum > 0)
    for trained, optimizer in (model, utils.get_optimizer(model, 0.1, config)), (twin, plain):
        torch.manual_seed(1)
        for _ in range(3):
            for p in trained.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
    for key, value in model.state_dict().items():
        if name == "sgd" or key not in ("0.weight", "1.weight", "2.weight", "3.weight"):
            torch.testing.assert_close(value, twin.state_dict()[key])
        else:
            assert not torch.allclose(value, start[key], rtol=0.05), "even what begins at zero"
            assert key == "3.weight" or torch.allclose(value.norm(), start[key].norm())


def test_steps_are_orthogonal_and_lr_is_their_relative_size(config):
    model, lr = ResNet18(), 0.01
    before = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)  # the size of a gradient does not count
    utils.get_optimizer(model, lr, config).step()
    for name, p in model.named_parameters():
        if p.ndim == 4:
            change = (before[name] - p.detach()).flatten(1) / before[name].norm()
            u, _, v = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
            singular = torch.einsum("ij,ik,kj->k", change, u, v) * (len(p) ** 0.5 / lr)
            assert 0.5 < singular.min() <= singular.max() < 1.4, name


def test_every_step_follows_one_cycle_at_a_constant_momentum(model, make_config, steps):
    config = make_config(epochs=10, batch_size=32, train_images=64)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    used, momenta = zip(*steps, strict=True)
    assert history["lr"] == list(used), "the history shows the learning rates used"
    assert set(momenta) == {0.9}, "momentum is not cycled"
    assert used == pytest.approx(np.interp(range(20), [0, 3, 19], [2e-3, 0.05, 2e-7]), abs=1e-8)
    for epochs in (1, 2, 5):  # a step each: a warm-up of less than one, or of exactly one
        config = make_config(epochs=epochs, train_images=32, anneal_strategy="cos", resume=False)
        lrs = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)["lr"]
        assert len([lr for lr in lrs if 0 <= lr <= 0.0501]) == epochs
    assert lrs[1] == pytest.approx(0.05 * (1 + 0.5**0.5) / 2), "a cosine, not a straight line"


def test_history_is_complete_and_ends_with_the_returned_model(model, config, loaders, capsys):
    frozen = model[1].eval().running_mean.clone()
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert torch.equal(model[1].running_mean, frozen), "frozen layers stay so, in every epoch"
    assert not any(module.training for module in model.modules()), "ready to be used"
    printed = capsys.readouterr()
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")
    assert [len(history[name]) for name in names] == [2, 2, 2, 2, 2, 6]
    assert utils.test(model, loaders[1]) == (history["test_loss"][-1], history["test_accuracy"][-1])
    assert f"({history['test_accuracy'][-1]:.2f}%)" in printed.out.splitlines()[-1]
    assert all(word in printed.out for word in ("Loss=", "3/3", "Test set: Average loss: "))
    assert printed.err == "", "the bars are on stdout"


def test_any_loader_or_list_works_and_is_left_as_it_is(config, make_loader):
    model = nn.Sequential(nn.ReLU(inplace=True), *make_small_model())
    images, labels = make_images(60)
    before, loader = images.clone(), make_loader(images, labels.tolist(), 20)
    assert utils.find_lr(model, loader, config) > 0
    for data in (loader, list(zip(images.split(20), labels.split(20), strict=True))):
        utils.fit_one_cycle(model, data, data, 0.01, config)
        assert torch.equal(images, before)


GPUS = {"T4": ((7, 5), torch.float16, 1024), "A100": ((8, 0), torch.bfloat16, 1)}


@pytest.mark.parametrize("gpu", GPUS)
def test_precision_reaches_every_pass(model, config, loaders, native_bfloat16, monkeypatch, gpu):
    """As on a T4, whose loss is scaled, and on newer GPUs; a CPU can do both, if slowly."""
    capability, dtype, scale = GPUS[gpu]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert utils.get_autocast(config.device)["dtype"] == torch.float32
    native_bfloat16()
    assert utils.get_autocast(config.device)["dtype"] == torch.bfloat16
    on_gpu = utils.get_autocast(torch.device("cuda"))
    assert utils.get_scaler(torch.device("cuda")).get_scale() == scale, "no step is skipped"
    monkeypatch.setattr(utils, "get_autocast", lambda _: {**on_gpu, "device_type": "cpu"})
    seen = set()
    model[0].register_forward_hook(lambda *values: seen.add(values[-1].dtype))
    history = utils.fit_one_cycle(model, *loaders, utils.find_lr(model, loaders[0], config), config)
    assert seen == {dtype}
    assert utils.predict(model, loaders[1])[0].dtype == torch.float32, "for exact losses"
    assert history["train_loss"][-1] < history["train_loss"][0]


def test_nan_and_other_labels_classes_or_peaks_are_told(model, config, make_loader):
    images, labels = make_images(40)
    broken = torch.where(torch.arange(40).view(40, 1, 1, 1) == 25, torch.nan, images)
    loader, column = (make_loader(images, given, 10) for given in (labels, labels[:, None]))
    broken = make_loader(broken, labels, 10)
    for train, test, kind, words in (
        (loader, broken, FloatingPointError, "check the images"),
        (broken, loader, FloatingPointError, r"nan in step 3 .*smaller max_lr"),
        (loader, column, ValueError, r"abels .*whole numbers"),
        (column, loader, ValueError, r"abels .*whole numbers"),
    ):
        with pytest.raises(kind, match=words):
            utils.fit_one_cycle(copy.deepcopy(model), train, test, 0.05, config)
    assert not config.output_dir.exists(), "no checkpoint, and no history with a NaN"
    with pytest.raises(ValueError, match=r"has 3 outputs.*num_classes=10"):
        utils.find_lr(make_small_model(3), loader, config)
    for max_lr in (0, -1.0, None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"max_lr is .* a number above 0"):
            utils.fit_one_cycle(model, loader, loader, max_lr, config)
