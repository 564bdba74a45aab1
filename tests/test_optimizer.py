"""MuonSGD: orthogonal steps for the filters of convolutions, SGD for everything else."""

import copy

import pytest
import torch
from conftest import make_small_model
from torch import nn

import utils
from models.resnet import ResNet18


class Zoo(nn.Module):
    """Every kind of convolution, and weights of as many dimensions that are none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(3, 8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv3d(3, 8, 3)]
        )
        self.others = nn.ModuleList(
            [nn.ConvTranspose1d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)]
            + [nn.Linear(8, 10), nn.Embedding(5, 4)]
        )
        self.tokens = nn.Parameter(torch.randn(1, 4, 5, 6))  # four dimensions, but no filters


def take_steps(optimizer, model, count=3):
    """Take steps along gradients that are always the same ones."""
    draws = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draws)
        optimizer.step()


def make_sgd(model, without, momentum):
    """Return torch's own SGD, with weight decay for all weights but those of one dimension."""
    rest = [p for p in model.parameters() if not any(p is q for q in without)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0},
    ]
    return torch.optim.SGD(groups, 0.1, momentum=momentum, nesterov=momentum > 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_only_weights_of_convolutions_train_by_muon_and_keep_their_norm(
    make_config, momentum, name
):
    config = make_config(momentum=momentum, weight_decay=0.1, optimizer=name)
    model = Zoo()
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = utils.get_optimizer(model, 0.1, config)
    take_steps(optimizer, model)
    filters = [layer.weight for layer in twin.convolutions] if name == "muon" else []
    take_steps(make_sgd(twin, filters, momentum), twin)
    for p, q, before in zip(model.parameters(), twin.parameters(), start.parameters(), strict=True):
        if any(q is weight for weight in filters):
            assert p.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
            assert not torch.allclose(p, before, rtol=0.05)
        else:
            torch.testing.assert_close(p, q)
    assert isinstance(optimizer, torch.optim.SGD) == (name == "sgd")


def test_steps_are_orthogonal_and_lr_is_their_relative_size(config):
    model, lr = ResNet18(), 0.01
    filters = {name: p for name, p in model.named_parameters() if p.ndim == 4}
    assert len(filters) == 20
    before = {name: p.detach().clone() for name, p in filters.items()}
    optimizer = utils.get_optimizer(model, lr, config)
    for p in filters.values():
        p.grad = torch.randn_like(p) * 1e-3  # the size of a gradient does not count
    optimizer.step()
    for name, p in filters.items():
        change = (before[name] - p.detach()).flatten(1) / before[name].norm()
        relative_to_rows = change * (len(p) ** 0.5 / lr)
        singular = torch.linalg.svdvals(relative_to_rows)
        assert 0.5 < singular.min() <= singular.max() < 1.4, name
        if len(p) <= p[0].numel():
            assert 0.7 < change.norm() / lr < 1.3, name
        u, _, v = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
        nearest = u @ v
        assert (change * nearest).sum() > 0.9 * change.norm() * nearest.norm(), name


def test_filters_that_begin_at_zero_train(model, config, loaders):
    nn.init.zeros_(model[3].weight)
    history = utils.fit_one_cycle(model, *loaders, 0.05, config)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model[3].weight.norm() > 0
    assert history["train_loss"][-1] < history["train_loss"][0]


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_trained_network_without_batchnorm_goes_on_where_it_was(make_config, name):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(784, 10)),
    )
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
    frozen = [model[0].weight, model[5].weight]
    for p in frozen:
        p.requires_grad_(False)
    before = [p.clone() for p in (*frozen, model[3].weight)]
    optimizer = utils.get_optimizer(model, 0.1, config)
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    optimizer.step()
    changed = [
        not torch.equal(p, q) for p, q in zip((*frozen, model[3].weight), before, strict=True)
    ]
    assert changed == [False, False, True]


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_either_optimizer_learns(make_config, name):
    config = make_config(epochs=8, train_images=512, cutout_size=0, optimizer=name)
    history = utils.fit_one_cycle(make_small_model(), *utils.get_dataloaders(config), 0.05, config)
    assert history["test_accuracy"][-1] > 60
