"""Transforms against plain slicing, their distributions, and what the loaders deliver."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils.data import RandomSampler, SequentialSampler

import utils


@pytest.fixture(params=["uint8", "float32", "channels_last"])
def images(request):
    """32 images of random pixels, none of which is 0; they must stay as they are."""
    values = torch.randint(1, 256, (32, 3, 32, 32), dtype=torch.uint8)
    values = values if request.param == "uint8" else values.float()
    is_last = request.param == "channels_last"
    values = values.to(memory_format=torch.channels_last) if is_last else values
    before = values.clone()
    yield values
    assert torch.equal(values, before)


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (32, 0), (24, 2), (32, 31)])
def test_every_crop_is_a_window_of_its_padded_image(images, size, padding):
    images = images[:4] if padding == 31 else images
    crops = utils.RandomCrop(size, padding)(images)
    assert (crops.shape, crops.dtype) == ((len(images), 3, size, size), images.dtype)
    pad = [(0, 0), (padding, padding), (padding, padding)]
    for image, crop in zip(images.numpy(), crops.numpy(), strict=True):
        windows = sliding_window_view(np.pad(image, pad, mode="reflect"), crop.shape)
        assert (windows == crop).all((-3, -2, -1)).any()


def test_crop_offsets_are_uniform():
    row = torch.arange(32, dtype=torch.uint8)
    # A pixel far from the border tells its offset by its own coordinates.
    grid = torch.stack([row[:, None].expand(32, 32), row[None, :].expand(32, 32)])
    torch.manual_seed(0)
    y, x = (utils.RandomCrop()(grid.expand(8100, 2, 32, 32))[:, :, 16, 16].long() - 12).unbind(1)
    counts = torch.bincount(9 * y + x)
    assert len(counts) == 81
    assert 60 < counts.min() < counts.max() < 140, "each is expected 100 times (std 10)"


def test_half_of_the_images_are_mirrored_each_by_its_own_chance(images):
    images = images.repeat(32, 1, 1, 1)
    torch.manual_seed(0)
    flips = utils.RandomHorizontalFlip()(images)
    mirrored = (flips == images.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, (flips != images).flatten(1).any(1))
    assert flips.dtype == images.dtype
    assert abs(mirrored.float().mean() - 0.5) < 0.05
    assert abs((mirrored[1:] == mirrored[:-1]).float().mean() - 0.5) < 0.05


@pytest.mark.parametrize("size", [16, 8, 31, 0])
def test_cutout_fills_one_square_of_every_image_and_nothing_else(images, size):
    cut = utils.CutOut(size)(images)
    assert cut.dtype == images.dtype
    for image, result in zip(images, cut, strict=True):
        hole = (result == 0).all(0)
        assert torch.equal(result, torch.where(hole, torch.zeros_like(image), image))
        assert [hole.sum(), hole.any(0).sum(), hole.any(1).sum()] == [size**2, size, size]


def test_cutout_is_16_x_16_and_everywhere_as_likely():
    torch.manual_seed(0)
    cut = utils.CutOut()(torch.ones(5000, 1, 32, 32))[:, 0] == 0
    assert torch.equal(cut.sum((1, 2)), torch.full((5000,), 256))
    top, left = (cut.any(axis).float().argmax(1) for axis in (2, 1))
    counts = torch.bincount(17 * top + left)
    assert len(counts) == 17 * 17, "all positions wholly inside"
    assert 2 < counts.min() < counts.max() < 40, "each is expected 17 times (std 4)"


def test_normalize_is_the_textbook_formula(images):
    mean, std = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
    expected = (images.permute(0, 2, 3, 1).numpy() / 255 - mean) / std
    result = utils.Normalize(mean, std)(images).permute(0, 2, 3, 1)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_training_transform_crops_mirrors_and_cuts_out_to_the_mean(make_config):
    train_transform, normalize = utils.get_transforms(make_config("full"))
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    assert ((train_transform(white) == 0).sum((1, 2, 3)) == 3 * 16 * 16).all()
    mean = (torch.tensor(make_config("full").mean) * 255).round().to(torch.uint8)
    assert normalize(mean.view(1, 3, 1, 1)).abs().max() < 0.01, "normalised, the mean is 0"
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    plain = normalize(images)
    for padding, least, most in ((4, 0, 15), (0, 200, 200)):  # 80 of 81 offsets move the image
        settings = {"cutout_size": 0, "crop_padding": padding}
        result = utils.get_transforms(make_config("full", **settings))[0](images)
        mirrored = (result == plain.flip(3)).flatten(1).all(1)
        assert least <= ((result == plain).flatten(1).all(1) | mirrored).sum() <= most
    assert 65 < mirrored.sum() < 135, "100 are expected (std 7)"


# The loaders
def test_full_profile_tests_on_the_test_images(tiny_cifar10, make_config):
    train_loader, test_loader = utils.get_dataloaders(make_config("full", batch_size=32))
    assert (len(train_loader.dataset), len(test_loader.dataset)) == (100, 20)
    assert (train_loader.dataset.images == 1).all()
    assert (test_loader.dataset.images == 2).all(), "these are not the test images"


def test_quick_profile_tests_on_images_that_are_not_trained(make_config):
    config = make_config("quick", train_images=2000)
    train, test = (loader.dataset.images for loader in utils.get_dataloaders(config))
    assert (len(train), len(test)) == (1437, 360)
    assert not {image.numpy().tobytes() for image in train} & {i.numpy().tobytes() for i in test}
    pixels = train.float() / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), config.mean, atol=5e-4)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), config.std, atol=5e-4)


def test_training_shuffles_and_augments(loaders):
    assert isinstance(loaders[0].sampler, RandomSampler)
    assert [len(labels) for _, labels in loaders[0]] == [32, 32, 16]
    (images, labels), (_, other_labels) = (next(iter(loaders[0])) for _ in range(2))
    assert not torch.equal(labels, other_labels)
    assert ((images == 0).sum((1, 2, 3)) >= 3 * 8 * 8).all(), "every training image is cut out"
    assert not torch.equal(loaders[0].dataset[0][0], loaders[0].dataset[0][0])
    assert (images.shape, labels.dtype) == ((32, 3, 32, 32), torch.int64)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_testing_does_neither_and_items_are_counted_from_either_end(loaders, config):
    assert isinstance(loaders[1].sampler, SequentialSampler)
    images, labels = (torch.cat(column) for column in zip(*loaders[1], strict=True))
    dataset = loaders[1].dataset
    assert torch.equal(labels, dataset.labels)
    normalize = utils.Normalize(config.mean, config.std)
    assert torch.equal(images, normalize(dataset.images.permute(0, 3, 1, 2)))
    for index in (2, -1, -360):
        assert torch.equal(dataset[index][0], images[index])
        assert dataset[index][1] == labels[index]
    for index in (len(dataset), -361):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", "cpu"])
def test_indices_are_copied_without_waiting_on_cuda_only(loaders, monkeypatch, kind):
    class Images:
        device, is_cuda = torch.device(kind), kind == "cuda"
        __getitem__ = loaders[1].dataset.images.__getitem__

    def to(tensor, *_, **options):
        asked.append(options.get("non_blocking", False))
        return tensor

    dataset, asked = loaders[1].dataset, []
    dataset.images, dataset.transform = Images(), torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "to", to)
    dataset.__getitems__([0, 1])
    assert set(asked) == {kind == "cuda"}


# Bad input
IMAGES, LABELS = torch.zeros(3, 32, 32, 3, dtype=torch.uint8), [0, 1, 2]
BAD_INPUT = {
    "NCHW": (IMAGES.permute(0, 3, 1, 2), LABELS, r"images are .* must be uint8 \(3, 32, 32, 3\)"),
    "28 x 28": (IMAGES[:, :28, :28], LABELS, "images are .*28, 28"),
    "more labels": (IMAGES, [0, 1, 2, 3], r"images are .*\(3, 32"),
    "float images": (IMAGES.float(), LABELS, r"images are .*torch\.float32"),
    "negative": (IMAGES, [0, -1, 9], "label -1.* 0 to 9"),
    "no such class": (IMAGES, [0, 10, 9], "label 10.* 0 to 9"),
    "(N, 1)": (IMAGES, [[0], [1], [2]], "abels .*whole numbers"),
    "one-hot": (IMAGES, torch.eye(10, dtype=torch.int64)[:3], "abels .*whole numbers"),
    "float labels": (IMAGES, np.zeros(3), "abels .*whole numbers"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_images_or_labels_of_another_kind_are_told(config, kind):
    images, labels, words = BAD_INPUT[kind]
    with pytest.raises(ValueError, match=words):
        utils.make_loader(images, labels, lambda batch: batch, config)


def test_batch_size_above_the_data(config):
    with pytest.raises(ValueError, match="batch_size is 32, but there are only 3 training"):
        utils.get_dataloaders(replace(config, train_images=3))
