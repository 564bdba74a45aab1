"""The optimizers, OneCycle, one epoch of training, one pass of testing."""

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
from models.resnet import ResNet18


def make_images(count):
    torch.manual_seed(1)
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def train_once(model, loader, lr, config):
    """Train for one epoch with plain SGD, whose learning rate is constant."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1)
    scaler = utils.get_scaler(config.device)
    return *utils.train(model, loader, optimizer, scheduler, scaler, config), scheduler.last_epoch


@pytest.mark.parametrize("batch_size", [7, 10, 25])
def test_losses_are_means_over_images_whatever_the_batches(model, config, make_loader, batch_size):
    images, labels = make_images(25)
    loader, twin = make_loader(images, labels, batch_size), copy.deepcopy(model)
    for work in ("train", "test"):
        if work == "train":
            loss, accuracy, lrs, scheduled = train_once(model.eval(), loader, 0.0, config)
            assert (lrs, scheduled) == ([0.0] * len(loader), len(loader)), "after every batch"
        else:
            loss, accuracy = utils.test(model, loader)
            twin.eval()
        with torch.no_grad():
            logits = torch.cat([twin(batch) for batch in images.split(batch_size)])
        assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


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
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        train_once(model, [batch] * 3, 0.1, replace(config, device=torch.device("meta")))
    assert len(steps) == 3, "all steps were made before the first reading"


# The optimizers
class Zoo(nn.Module):
    """Every kind of convolution, and weights of as many dimensions that are none."""

    def __init__(self):
        super().__init__()
        filters = nn.Conv1d(3, 8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv3d(3, 8, 3)
        others = nn.ConvTranspose1d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)
        self.layers = nn.ModuleList((*filters, *others, nn.Linear(8, 10)))
        self.tokens = nn.Parameter(torch.randn(1, 4, 5, 6))  # four dimensions, but no filters


def take_steps(optimizer, model):
    torch.manual_seed(1)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_filters_keep_their_norm_and_all_else_trains_by_sgd(make_config, momentum, name):
    model = Zoo()
    start, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    config = make_config(momentum=momentum, weight_decay=0.1, optimizer=name)
    take_steps(utils.get_optimizer(model, 0.1, config), model)
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in twin.parameters()]
    take_steps(torch.optim.SGD(groups, 0.1, momentum=momentum, nesterov=momentum > 0), twin)
    filters = {f"layers.{i}.weight" for i in range(3)} if name == "muon" else ()
    for key, value in model.state_dict().items():
        if key in filters:
            torch.testing.assert_close(value.norm(), start[key].norm())
            assert not torch.allclose(value, start[key], rtol=0.05)
        else:
            torch.testing.assert_close(value, twin.state_dict()[key])


def test_steps_are_orthogonal_and_lr_is_their_relative_size(config):
    model, lr = ResNet18(), 0.01
    filters = {name: p for name, p in model.named_parameters() if p.ndim == 4}
    before = {name: p.detach().clone() for name, p in filters.items()}
    for p in filters.values():
        p.grad = 1e-3 * torch.randn_like(p)  # the size of a gradient does not count
    utils.get_optimizer(model, lr, config).step()
    for name, p in filters.items():
        change = (before[name] - p.detach()).flatten(1) / before[name].norm()
        if len(p) <= p[0].numel():
            assert 0.7 < change.norm() / lr < 1.3, name
        u, singular, v = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
        singular = torch.einsum("ij,ik,kj->k", change, u, v) * (len(p) ** 0.5 / lr)
        assert 0.5 < singular.min() <= singular.max() < 1.4, name


def test_filters_that_begin_at_zero_train(model, config, loaders):
    nn.init.zeros_(model[3].weight)
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert model[3].weight.norm() > 0
    assert history["train_loss"][-1] < history["train_loss"][0]


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_trained_network_without_batchnorm_goes_on_where_it_was(make_config, name):
    first, second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for factor, index in ((3, 0), (0.2, 2), (5, 5)):
            model[index].weight *= factor  # what training did to them
    config = make_config(epochs=1, train_images=64, optimizer=name)
    loaders = utils.get_dataloaders(config)
    before, (loss, _) = copy.deepcopy(model.state_dict()), utils.test(model, loaders[1])
    history = utils.fit_one_cycle(model, *loaders, 1e-9, config)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-8)
    assert history["test_loss"] == [pytest.approx(loss, rel=1e-5)]


# OneCycle
def test_every_step_follows_one_cycle_at_a_constant_momentum(model, make_config, steps):
    config = make_config(epochs=10, batch_size=32, train_images=64)
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)
    used, momenta = zip(*steps, strict=True)
    assert history["lr"] == list(used), "the history shows the learning rates used"
    assert set(momenta) == {0.9}, "momentum is not cycled"
    assert (len(used), np.argmax(used)) == (20, 3)  # after 20 % of 20 steps, counted from 0
    assert (used[0], used[3]) == pytest.approx((0.05 / 25, 0.05))
    assert (np.diff(used[:4]) > 0).all()
    assert (np.diff(used[3:]) < 0).all()
    assert 0 <= used[-1] < used[0] / 100


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 0.5])
def test_any_number_of_steps_is_a_cycle(model, make_config, warmup_fraction):
    settings = {"warmup_fraction": warmup_fraction, "train_images": 32, "resume": False}
    for epochs in (1, 2, 5):
        config = make_config(epochs=epochs, **settings)
        lrs = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.05, config)["lr"]
        assert len([lr for lr in lrs if 0 <= lr <= 0.0501]) == epochs


def test_history_is_complete_and_ends_with_the_returned_model(model, config, loaders, capsys):
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    printed = capsys.readouterr()
    per_epoch = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
    lengths = {name: len(values) for name, values in history.items()}
    assert lengths == {**dict.fromkeys(per_epoch, 2), "lr": 6}
    assert all(type(value) is float for values in history.values() for value in values)
    assert utils.test(model, loaders[1]) == (history["test_loss"][-1], history["test_accuracy"][-1])
    assert f"({history['test_accuracy'][-1]:.2f}%)" in printed.out.splitlines()[-1]
    assert all(word in printed.out for word in ("Loss=", "3/3", "Test set: Average loss: "))
    assert printed.err == "", "the bars are on stdout"
    assert type(utils.progress_bar([])) is tqdm.std.tqdm, "not the notebook's widget"
    again = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert again["lr"] == history["lr"], "running the cell again just trains again"
    assert again["train_loss"][0] < history["train_loss"][0], "from the weights that it has"


def test_any_loader_or_list_works_and_is_left_as_it_is(config, make_loader):
    model = nn.Sequential(nn.ReLU(inplace=True), *make_small_model())
    images, labels = make_images(60)
    before, loader = images.clone(), make_loader(images, labels.tolist(), 20)
    assert utils.find_lr(model, loader, config) > 0
    for data in (loader, list(zip(images.split(20), labels.split(20), strict=True))):
        assert len(utils.fit_one_cycle(model, data, data, 0.01, config)["test_loss"]) == 2
        assert torch.equal(images, before)


# Precision: what a GPU would use, told from its kind alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_precision_reaches_every_pass(
    model, make_config, native_bfloat16, monkeypatch, dtype
):
    """With float16 as on a T4, whose loss is scaled, and which a CPU can do slowly."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capability = {torch.float16: (7, 5)}.get(dtype, (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    on_gpu = utils.get_autocast(torch.device("cuda"))
    assert on_gpu["dtype"] == (dtype if dtype == torch.float16 else torch.bfloat16)
    scaler = utils.get_scaler(torch.device("cuda"))
    assert scaler.is_enabled() == (dtype == torch.float16)
    assert not scaler.is_enabled() or scaler._init_scale <= 4096, "no step is skipped"
    if dtype == torch.bfloat16:
        native_bfloat16()
    elif dtype == torch.float16:
        monkeypatch.setattr(utils, "get_autocast", lambda _: {**on_gpu, "device_type": "cpu"})
    config, seen = make_config(epochs=2, train_images=80, lr_finder_steps=40), []
    loaders = utils.get_dataloaders(config)
    model[0].register_forward_hook(lambda *values: seen.append(values[-1].dtype))
    history = utils.fit_one_cycle(model, *loaders, utils.find_lr(model, loaders[0], config), config)
    assert set(seen) == {dtype}
    assert utils.predict(model, loaders[1])[0].dtype == torch.float32, "for exact losses"
    assert history["train_loss"][-1] < history["train_loss"][0]


# Trouble is told in a sentence that says what to do
def test_first_infinite_loss_is_named_by_its_step(model, config, make_loader):
    images, labels = make_images(40)
    whole, broken = make_loader(images, labels, 10), images.clone()
    broken[25] = float("nan")
    broken = make_loader(broken, labels, 10)
    with pytest.raises(FloatingPointError, match=r"nan in step 3 .*smaller max_lr"):
        utils.fit_one_cycle(copy.deepcopy(model), broken, whole, 0.05, config)
    with pytest.raises(FloatingPointError, match="check the images"):
        utils.fit_one_cycle(model, whole, broken, 0.05, config)
    assert not config.output_dir.exists(), "no checkpoint, and no history with a NaN"


WORKS = {
    "find": lambda model, loader, config: utils.find_lr(model, loader, config),
    "fit": lambda model, loader, config: utils.fit_one_cycle(model, loader, loader, 0.05, config),
    "test": lambda model, loader, config: utils.test(model, loader),
}
CHANGES = [lambda y: y[:, None], lambda y: F.one_hot(y, 10), lambda y: y.float()]


@pytest.mark.parametrize("work", WORKS)
def test_other_labels_classes_or_peaks_are_told(config, make_loader, work):
    images, labels = make_images(20)
    for change in CHANGES:
        with pytest.raises(ValueError, match=r"abels .*whole numbers"):
            WORKS[work](make_small_model(), make_loader(images, change(labels), 10), config)
    loader = make_loader(images, labels, 10)
    for outputs in (3, 20) if work != "test" else ():
        with pytest.raises(ValueError, match=rf"has {outputs} outputs.*num_classes=10"):
            WORKS[work](make_small_model(outputs), loader, config)
    for max_lr in (0, -1.0, None, float("nan"), float("inf")) if work == "fit" else ():
        with pytest.raises(ValueError, match=r"max_lr is .* a number above 0"):
            utils.fit_one_cycle(make_small_model(), loader, loader, max_lr, config)
