"""Transforms against a plain reference, their distributions, and what the loaders deliver."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_small_model
from torch._subclasses import FakeTensorMode
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

import utils


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["uint8", "float32", "channels_last"])
def images(request):
    values = torch.randint(0, 256, (64, 3, 32, 32), generator=generator(1), dtype=torch.uint8)
    if request.param == "uint8":
        return values
    values = values.float()
    is_last = request.param == "channels_last"
    return values.to(memory_format=torch.channels_last) if is_last else values


# The references below work image by image with plain slicing. They repeat only the random draws.


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (32, 0), (24, 2)])
def test_random_crop_is_padding_and_slicing(images, size, padding):
    torch.manual_seed(0)
    crops = utils.RandomCrop(size, padding)(images)
    draws = generator()
    span = 32 + 2 * padding - size + 1
    top, left = (torch.randint(0, span, (64,), generator=draws).tolist() for _ in range(2))
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        expected = padded[:, top[i] : top[i] + size, left[i] : left[i] + size]
        np.testing.assert_array_equal(crops[i].numpy(), expected)
    assert crops.dtype == images.dtype


def test_random_flip_mirrors_left_and_right(images):
    torch.manual_seed(0)
    flipped = utils.RandomHorizontalFlip()(images)
    draws = torch.rand(64, generator=generator())
    for i, image in enumerate(images.numpy()):
        expected = image[:, :, ::-1] if draws[i] < 0.5 else image
        np.testing.assert_array_equal(flipped[i].numpy(), expected)


@pytest.mark.parametrize("size", [16, 8, 0])
def test_cutout_fills_one_square_and_nothing_else(images, size):
    images = images.clamp(min=1)  # so that nothing else is 0
    before = images.clone()
    torch.manual_seed(0)
    cut = utils.CutOut(size)(images)
    draws = generator()
    top, left = (torch.randint(0, 32 - size + 1, (64,), generator=draws).tolist() for _ in range(2))
    for i, image in enumerate(images.numpy()):
        expected = image.copy()
        expected[:, top[i] : top[i] + size, left[i] : left[i] + size] = 0
        np.testing.assert_array_equal(cut[i].numpy(), expected)
    assert torch.equal(images, before), "the input must stay as it is"


def test_normalize_is_the_textbook_formula():
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    mean, std = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
    normalized = utils.Normalize(mean, std)(images).numpy()
    for channel in range(3):
        expected = (images[:, channel].numpy() / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(normalized[:, channel], expected, atol=1e-5)


def test_images_are_transformed_independently():
    ramp = torch.arange(32 * 32, dtype=torch.float32).view(1, 1, 32, 32).expand(100, 3, 32, 32)
    for transform in (utils.RandomCrop(), utils.RandomHorizontalFlip(), utils.CutOut()):
        torch.manual_seed(0)
        assert len(torch.unique(transform(ramp), dim=0)) > 1, transform


def test_crop_offsets_are_uniform():
    row = torch.arange(32.0)
    # A pixel far from the border tells its offset by its own coordinates.
    grid = torch.stack([row[:, None].expand(32, 32), row[None, :].expand(32, 32)])
    torch.manual_seed(0)
    crops = utils.RandomCrop()(grid.expand(16200, 2, 32, 32))
    offsets = crops[:, :, 16, 16] - 16 + 4
    counts = torch.zeros(9, 9)
    for y, x in offsets.int().tolist():
        counts[y, x] += 1
    assert counts.min() > 140, "each of the 81 offsets is expected 200 times (std 14)"
    assert counts.max() < 260


def test_half_of_the_images_are_flipped():
    image = torch.zeros(10000, 1, 1, 2)
    image[..., 0] = 1
    torch.manual_seed(0)
    flips = utils.RandomHorizontalFlip()(image)[..., 1].mean().item()
    assert abs(flips - 0.5) < 0.02


def test_cutout_is_16_x_16_in_every_image_and_everywhere():
    torch.manual_seed(0)
    cut = utils.CutOut()(torch.ones(5000, 1, 32, 32))[:, 0] == 0
    assert torch.equal(cut.sum((1, 2)), torch.full((5000,), 256)), "16 x 16, wholly inside"
    assert torch.equal(cut.any(1).sum(1), torch.full((5000,), 16)), "a square"
    assert torch.equal(cut.any(2).sum(1), torch.full((5000,), 16))
    for corner in (cut.any(2).float().argmax(1), cut.any(1).float().argmax(1)):
        counts = torch.bincount(corner)
        assert len(counts) == 17, "17 positions on each axis"
        assert counts.min() > 220, "each is expected 294 times (std 17)"


def test_cutout_fills_with_the_mean_of_the_data(make_config):
    config = make_config("full")
    train_transform, test_transform = utils.get_transforms(config)
    mean = (torch.tensor(config.mean) * 255).view(3, 1, 1).expand(3, 32, 32)
    images = mean.round().to(torch.uint8).expand(8, 3, 32, 32)
    assert test_transform(images).abs().max() < 0.01, "normalised, the mean is 0"
    white = torch.full_like(images, 255)
    assert ((train_transform(white) == 0).sum((1, 2, 3)) == 3 * 16 * 16).all()


def test_training_images_are_cropped_too(make_config):
    train_transform, normalize = utils.get_transforms(make_config("full", cutout_size=0))
    images = torch.randint(0, 256, (200, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    same, mirrored = normalize(images), normalize(images).flip(3)
    moved = [
        not torch.equal(result, image) and not torch.equal(result, mirror)
        for result, image, mirror in zip(train_transform(images), same, mirrored, strict=True)
    ]
    assert sum(moved) > 180, "80 of 81 offsets move the image"


def test_half_of_the_training_images_are_mirrored(make_config):
    config = make_config("full", crop_padding=0, cutout_size=0)
    train_transform, normalize = utils.get_transforms(config)
    images = torch.randint(0, 256, (200, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    torch.manual_seed(0)
    changed = train_transform(images)
    kept = (changed == normalize(images)).flatten(1).all(1)
    mirrored = (changed == normalize(images.flip(3))).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 70 < mirrored.sum() < 130, "100 are expected (std 7)"


def test_transforms_draw_anew_and_follow_the_seed():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 32, 32)
    first = utils.RandomCrop()(images)
    assert not torch.equal(first, utils.RandomCrop()(images))
    torch.manual_seed(0)
    torch.rand(16, 3, 32, 32)
    assert torch.equal(first, utils.RandomCrop()(images))


# The loaders


def test_full_profile_tests_on_the_test_images(tiny_cifar10, make_config):
    config = make_config("full", batch_size=32)
    train_loader, test_loader = utils.get_dataloaders(config)
    assert len(train_loader.dataset) == 100
    assert len(test_loader.dataset) == 20
    assert (train_loader.dataset.images == 1).all()
    assert (test_loader.dataset.images == 2).all(), "these are not the test images"


def test_full_profile_makes_98_batches_of_cifar10():
    images, labels = torch.zeros(50000, 32, 32, 3, dtype=torch.uint8), torch.arange(50000) % 10
    dataset = utils.DeviceDataset(images, labels, lambda batch: batch)
    loader = DataLoader(dataset, 512, shuffle=True, collate_fn=tuple)
    sizes = [len(labels) for _, labels in loader]
    assert sizes == [512] * 97 + [336], "no image is dropped"


def test_loaders_have_the_expected_batches(loaders):
    train_loader, test_loader = loaders
    assert isinstance(train_loader, DataLoader)
    assert [len(labels) for _, labels in train_loader] == [32, 32, 16]
    assert sum(len(labels) for _, labels in test_loader) == 360
    images, labels = next(iter(train_loader))
    assert images.shape == (32, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_training_shuffles_and_augments(loaders):
    train_loader, _ = loaders
    assert isinstance(train_loader.sampler, RandomSampler)
    (first, first_labels), (second, second_labels) = (
        next(iter(train_loader)),
        next(iter(train_loader)),
    )
    assert not torch.equal(first_labels, second_labels)
    dataset = train_loader.dataset
    assert not torch.equal(dataset.__getitems__([0])[0], dataset.__getitems__([0])[0])
    assert ((first == 0).sum((1, 2, 3)) >= 3 * 8 * 8).all(), "every training image is cut out"
    assert not torch.equal(first, second)


def test_testing_does_neither(loaders):
    _, test_loader = loaders
    assert isinstance(test_loader.sampler, SequentialSampler)
    twice = [torch.cat([images for images, _ in test_loader]) for _ in range(2)]
    assert torch.equal(*twice)
    labels = torch.cat([labels for _, labels in test_loader])
    assert torch.equal(labels, test_loader.dataset.labels)


def test_a_single_item_is_an_image_and_its_label(loaders):
    _, test_loader = loaders
    image, label = test_loader.dataset[3]
    images, labels = test_loader.dataset.__getitems__([2, 3])
    assert torch.equal(image, images[1])
    assert label == labels[1]


def test_digits_are_centred_by_their_own_mean_and_std(make_config):
    train_loader, _ = utils.get_dataloaders(make_config("quick", train_images=None))
    pixels = train_loader.dataset.images.float() / 255
    assert pixels.shape == (1437, 32, 32, 3)
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), make_config("quick").mean, atol=5e-4)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), make_config("quick").std, atol=5e-4)


def can_pretend_to_have_a_gpu():
    """Say whether this PyTorch can pretend to have a GPU; 2.6 wants a driver for it."""
    try:
        with FakeTensorMode():
            return torch.empty(2, device="cuda")[:, None].device.type == "cuda"
    except RuntimeError:
        return False


@pytest.mark.skipif(
    not can_pretend_to_have_a_gpu(), reason="this PyTorch cannot pretend to have a GPU"
)
@pytest.mark.filterwarnings("ignore:CUDA is not available")  # which is what this test is for
def test_batches_are_made_on_the_gpu_alone(make_config, loaders, monkeypatch):
    """With tensors that only know their shape and device: the CPU's and the GPU's do not mix."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU without a driver")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with FakeTensorMode():
        config = make_config(device="cuda")
        with torch.device(config.device):
            model = make_small_model()
        for loader, transform in zip(loaders, utils.get_transforms(config), strict=True):
            dataset = copy.copy(loader.dataset)
            dataset.transform = transform
            dataset.images = torch.empty(dataset.images.shape, dtype=torch.uint8, device="cuda")
            dataset.labels = torch.empty(dataset.labels.shape, dtype=torch.int64, device="cuda")
            images, labels = dataset.__getitems__(list(range(32)))
            assert images.device.type == labels.device.type == "cuda"
            assert (images.shape, images.dtype) == ((32, 3, 32, 32), torch.float32)
            assert images.is_contiguous(memory_format=torch.channels_last)
            logits, _ = utils.predict(model, [(images, labels)])
            assert (logits.shape, logits.device.type) == ((32, 10), "cuda")


# Bad input


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 28, 28, 3, dtype=torch.uint8),
        torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(3, 32, 32, 3),
    ],
    ids=["NCHW", "28 x 28", "more than labels", "float"],
)
def test_images_of_another_kind(images):
    with pytest.raises(ValueError, match=r"but the 3 labels need uint8 images \(N, 32, 32, 3\)"):
        utils.DeviceDataset(images, [0, 1, 2], lambda batch: batch)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes(label):
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"label {label}, but labels must be 0 to 9"):
        utils.DeviceDataset(images, [0, label, 9], lambda batch: batch)


def test_batch_size_above_the_data(make_config):
    with pytest.raises(ValueError, match="batch_size is 128, but there are only 100 training"):
        utils.get_dataloaders(make_config(batch_size=128, train_images=100))
