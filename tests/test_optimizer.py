"""MuonSGD: orthogonal steps for the filters of convolutions, SGD for everything else."""

import copy

import pytest
import torch
from torch import nn

import utils
from conftest import make_small_model
from models.resnet import ResNet18


class Zoo(nn.Module):
    """Every kind of convolution, and weights of as many dimensions that are none."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(
            (nn.Conv1d(3, 8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv3d(3, 8, 3))
        )
        layers = (nn.ConvTranspose1d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8))
        self.others = nn.ModuleList((*layers, nn.Linear(8, 10), nn.Embedding(5, 4)))
        self.tokens = nn.Parameter(torch.randn(1, 4, 5, 6))  # four dimensions, but no filters


def take_steps(optimizer, model):
    """Take three steps along gradients that are always the same ones."""
    torch.manual_seed(1)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_filters_keep_their_norm_and_all_else_trains_by_sgd(make_config, momentum, name):
    config = make_config(momentum=momentum, weight_decay=0.1, optimizer=name)
    start = Zoo()
    model, twin = copy.deepcopy(start), copy.deepcopy(start)
    optimizer = utils.get_optimizer(model, 0.1, config)
    assert isinstance(optimizer, torch.optim.SGD) == (name == "sgd")
    take_steps(optimizer, model)
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in twin.parameters()]
    sgd = torch.optim.SGD(groups, 0.1, momentum=momentum, nesterov=momentum > 0)
    take_steps(sgd, twin)
    filters = {f"convolutions.{i}.weight" for i in range(3)} if name == "muon" else ()
    for key, value in model.state_dict().items():
        if key in filters:
            before = start.state_dict()[key]
            torch.testing.assert_close(value.norm(), before.norm())
            assert not torch.allclose(value, before, rtol=0.05)
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
        singular = torch.linalg.svdvals(change) * (len(p) ** 0.5 / lr)
        assert 0.5 < singular.min() <= singular.max() < 1.4, name
        if len(p) <= p[0].numel():
            assert 0.7 < change.norm() / lr < 1.3, name
        u, _, v = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
        assert (change * (u @ v)).sum() > 0.9 * change.norm() * (u @ v).norm(), name


def test_filters_that_begin_at_zero_train(model, config, loaders):
    nn.init.zeros_(model[3].weight)
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert all(value.isfinite().all() for value in model.state_dict().values())
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


def test_what_has_no_gradient_stays(model, config):
    weights = model[0].weight, model[5].weight, model[3].weight
    for p in weights[:2]:
        p.requires_grad_(False)
    before = [p.clone() for p in weights]
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    utils.get_optimizer(model, 0.1, config).step()
    stayed = [torch.equal(p, q) for p, q in zip(weights, before, strict=True)]
    assert stayed == [True, True, False]


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_either_optimizer_learns(make_config, name):
    config = make_config(epochs=8, train_images=512, cutout_size=0, optimizer=name)
    history = utils.fit_one_cycle(make_small_model(), *utils.get_dataloaders(config), 0.05, config)
    assert history["test_accuracy"][-1] > 60
