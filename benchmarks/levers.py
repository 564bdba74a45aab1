"""Changes of the training that are not, or not yet, worth their lines in utils.py.

Each lever is a context manager around utils.fit_one_cycle: called with its value, the model, the
training loader and the configuration, it changes one thing from outside, and puts it back.
"""

from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from unittest import mock

import torch
from torch import Tensor, nn
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
def average_weights(decay: float, model: nn.Module, train_loader, config: utils.Config):
    """End with a moving average of weights and buffers, which starts four epochs before the end."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    steps, first = count(), (config.epochs - 4) * len(train_loader)

    def update(*_):
        if next(steps) >= first:
            average.update_parameters(model)

    hook = register_optimizer_step_post_hook(update)
    try:
        yield
        model.load_state_dict(average.module.state_dict())
    finally:
        hook.remove()


@contextmanager
def floor_lr(floor: float, *_):
    """Let OneCycle end at this part of its peak, instead of at almost 0."""
    with change_one_cycle(final_div_factor=1 / (25 * floor)):
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
    dataset, calls = train_loader.dataset, count()
    first = torch.rand(len(dataset), device=config.device) < 0.5
    augment = leave_out(utils.RandomHorizontalFlip, dataset.transform)

    def fetch(indices):
        indices = torch.as_tensor(indices, device=config.device)
        odd = next(calls) // len(train_loader) % 2 == 1
        images = dataset.images[indices].permute(0, 3, 1, 2)
        mirrored = (first[indices] ^ odd).view(-1, 1, 1, 1)
        return augment(torch.where(mirrored, images.flip(3), images)), dataset.labels[indices]

    with mock.patch.object(dataset, "__getitems__", fetch, create=True):
        yield


@contextmanager
def end_cutout(epochs: int, model, train_loader, config: utils.Config):
    """Train the last epochs, so many of them, without CutOut: test images are whole, too."""
    whole = leave_out(utils.CutOut, train_loader.dataset.transform)
    train, calls = utils.train, count(1)

    def train_epoch(*args, **options):
        if next(calls) <= config.epochs - epochs:
            return train(*args, **options)
        with mock.patch.object(train_loader.dataset, "transform", whole):
            return train(*args, **options)

    with mock.patch.object(utils, "train", train_epoch):
        yield


@contextmanager
def use_muon(factor: float, *_):
    """Train the convolutions with Muon, at so many times the learning rate of the rest."""
    get_optimizer = utils._get_optimizer

    def get_muon(model, lr, config):
        return Muon(get_optimizer(model, lr, config), factor)

    with mock.patch.object(utils, "_get_optimizer", get_muon):
        yield


class Muon(torch.optim.SGD):
    """SGD whose steps for convolutions are orthogonal and as large as the filters are many.

    After Muon (Jordan, 2024), as it is used for CIFAR-10: the filters of a layer keep their norm,
    so that weight decay has nothing to do there.
    """

    def __init__(self, sgd: torch.optim.SGD, factor: float):
        weights, others = sgd.param_groups
        filters = [p for p in weights["params"] if p.ndim == 4]
        rest = [p for p in weights["params"] if p.ndim != 4]
        groups = [
            {"params": rest, "weight_decay": weights["weight_decay"]},
            {"params": others["params"]},
            {"params": filters, "factor": factor},
        ]
        options = {name: others[name] for name in ("lr", "momentum", "nesterov", "fused")}
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step: Muon for the filters, whose gradients are used up, and SGD for the rest."""
        group = self.param_groups[-1]
        for filters in group["params"]:
            state = self.state[filters]
            momentum = state.setdefault("muon", torch.zeros_like(filters))
            momentum.mul_(0.6).add_(filters.grad)
            gradient = filters.grad.add(momentum, alpha=0.6)
            filters.mul_(len(filters) ** 0.5 / filters.norm())
            update = orthogonalize(gradient.flatten(1)).view_as(filters)
            filters.add_(update, alpha=-group["lr"] * group["factor"])
            filters.grad = None  # SGD leaves alone what has no gradient
        return super().step(closure)

    step.hooked = True  # the hooks run in SGD's step: PyTorch would run them here as well


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near 1, by five steps of Newton and Schulz."""
    wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    x = wide / (wide.norm() + 1e-7)
    with torch.autocast(**utils._autocast(matrix.device)):  # as fast as the network's own products
        for _ in range(5):
            square = x @ x.T
            factor = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
            x = torch.addmm(x, factor, x, beta=3.4445)
    return (x if wide is matrix else x.T).to(matrix.dtype).contiguous()


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
    "muon": use_muon,
    "half_size": halve_images,
    "compile": compile_model,
    "cudnn_benchmark": choose_convolutions,
}
