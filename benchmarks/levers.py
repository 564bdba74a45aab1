"""Changes of the training that are not, or not yet, worth their lines in utils.py.

Each lever is a context manager around utils.find_lr and utils.fit_one_cycle: called with its value,
the model, the training loader and the configuration, it changes one thing from outside, and puts it
back.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import inf
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import Compose

import utils


def leave_out(kind: type, transform: Compose) -> Compose:
    """Return a transform without its steps of one kind."""
    return Compose([step for step in transform.transforms if not isinstance(step, kind)])


def change_one_cycle(**options) -> AbstractContextManager:
    """Give OneCycleLR other options than its own."""
    changed = partial(lr_scheduler.OneCycleLR, **options)
    return mock.patch.object(lr_scheduler, "OneCycleLR", changed)


@contextmanager
def count_epochs() -> Iterator[SimpleNamespace]:
    """Yield what has the number of the epoch in training, from 1 on; 0 while the LR finder runs."""
    train, epoch = utils.train, SimpleNamespace(number=0)

    def train_epoch(*args, **options):
        epoch.number += 1
        return train(*args, **options)

    with mock.patch.object(utils, "train", train_epoch):
        yield epoch


@contextmanager
def average_weights(decay: float, model: nn.Module, train_loader, config: utils.Config):
    """End with a moving average of weights and buffers, which starts four epochs before the end."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update(*_):
        if epoch.number > max(0, config.epochs - 4):
            average.update_parameters(model)

    hook = register_optimizer_step_post_hook(update)
    try:
        with count_epochs() as epoch:
            yield
        model.load_state_dict(average.module.state_dict())
    finally:
        hook.remove()


@contextmanager
def floor_lr(floor: float, *_):
    """Let OneCycle end at this part of its peak, instead of at almost 0."""
    with change_one_cycle(final_div_factor=1 / (25 * floor) if floor else inf):
        yield


@contextmanager
def anneal(strategy: str, *_):
    """Let OneCycle rise and fall in straight lines, "linear", or as a cosine, "cos"."""
    with change_one_cycle(anneal_strategy=strategy):
        yield


@contextmanager
def scale_bias_lr(factor: float, model: nn.Module, *_):
    """Train the biases of BatchNorm with a learning rate so many times higher."""
    one_cycle = lr_scheduler.OneCycleLR
    biases = [layer.bias for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    chosen = {id(bias) for bias in biases}

    def build(optimizer, *args, **options):
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
        optimizer.add_param_group({"params": biases, "weight_decay": 0})
        scheduler = one_cycle(optimizer, *args, **options)
        for name in ("initial_lr", "max_lr", "min_lr", "lr"):
            optimizer.param_groups[-1][name] *= factor
        return scheduler

    with mock.patch.object(lr_scheduler, "OneCycleLR", build):
        yield


@contextmanager
def zero_gamma(on: bool, model: nn.Module, *_):
    """Begin with residual blocks that pass on what they get (Goyal et al., 2017, 1706.02677)."""
    for block in model.modules():
        if on and hasattr(block, "bn2"):
            nn.init.zeros_(block.bn2.weight)
    yield


@contextmanager
def init_dirac(on: bool, model: nn.Module, *_):
    """Begin with convolutions whose first filters pass on what they get."""
    for layer in model.modules():
        if on and isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                nn.init.dirac_(layer.weight[: layer.in_channels])
    yield


@contextmanager
def alternate_flip(on: bool, model: nn.Module, train_loader, config: utils.Config):
    """Mirror an image at random in the first epoch, and then every second epoch (Jordan, 2024)."""
    if not on:
        yield
        return
    dataset = train_loader.dataset
    first = torch.rand(len(dataset), device=config.device) < 0.5

    def fetch(indices):
        indices = torch.as_tensor(indices, device=config.device)
        images = dataset.images[indices].permute(0, 3, 1, 2)
        mirrored = (first[indices] ^ (epoch.number % 2 == 0)).view(-1, 1, 1, 1)
        augment = leave_out(utils.RandomHorizontalFlip, dataset.transform)  # as it is at this time
        return augment(torch.where(mirrored, images.flip(3), images)), dataset.labels[indices]

    patch = mock.patch.object(dataset, "__getitems__", fetch, create=True)
    with patch, count_epochs() as epoch:
        yield


@contextmanager
def end_cutout(epochs: int, model, train_loader, config: utils.Config):
    """Train the last epochs, so many of them, without CutOut: test images are whole, too."""
    dataset = train_loader.dataset

    def end(cut_out):
        return lambda images: cut_out(images) if epoch.number <= config.epochs - epochs else images

    steps = dataset.transform.transforms
    ending = Compose([end(step) if isinstance(step, utils.CutOut) else step for step in steps])
    with count_epochs() as epoch, mock.patch.object(dataset, "transform", ending):
        yield


@contextmanager
def use_sgd(on: bool, *_):
    """Train the filters by SGD, as everything else, and with weight decay."""

    def get_sgd(model, lr, config):
        weights = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": others}, {"params": weights, "weight_decay": config.weight_decay}]
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr, config.momentum, nesterov=nesterov, fused=True)

    with mock.patch.object(utils, "_get_optimizer", get_sgd if on else utils._get_optimizer):
        yield


@contextmanager
def halve_images(on: bool, model: nn.Module, *_):
    """Let the network see 16 x 16 pixels, to compare settings on a CPU; it stays so."""
    if on:
        model.register_forward_pre_hook(lambda _, images: nn.functional.avg_pool2d(*images, 2))
    yield


@contextmanager
def compile_model(mode: str, model: nn.Module, *_):
    """Compile the network with torch.compile in one of its modes; it stays so."""
    model.compile(mode=mode, dynamic=False)
    yield


@contextmanager
def choose_convolutions(on: bool, *_):
    """Let cuDNN try its algorithms on the first batch of every shape, and take the fastest."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=on):
        yield


LEVERS = {
    "ema": average_weights,
    "lr_floor": floor_lr,
    "anneal": anneal,
    "bias_lr": scale_bias_lr,
    "zero_gamma": zero_gamma,
    "dirac": init_dirac,
    "alternating_flip": alternate_flip,
    "end_cutout": end_cutout,
    "sgd": use_sgd,
    "half_size": halve_images,
    "compile": compile_model,
    "cudnn_benchmark": choose_convolutions,
}
