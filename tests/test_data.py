"""Transforms against plain slicing, their distributions, and what the loaders deliver."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

import utils


@pytest.fixture(params=[torch.uint8, torch.float32])
def images(request):
    """32 images of random pixels, none of which is 0; they must stay as they are."""
    values = torch.randint(1, 256, (32, 32, 32, 3)).to(request.param).permute(0, 3, 1, 2)
    before = values.clone()
    yield values
    assert torch.equal(values, before)


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (32, 0), (24, 2), (32, 31)])
def test_every_crop_is_a_window_of_its_padded_image(images, size, padding):
    crops = utils.RandomCrop(size, padding)(images[:4])
    assert (crops.shape, crops.dtype) == ((4, 3, size, size), images.dtype)
    padded = np.pad(images[:4], [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2], mode="reflect")
    for image, crop in zip(padded, crops.numpy(), strict=True):
        windows = sliding_window_view(image, crop.shape)
        assert (windows == crop).all((-3, -2, -1)).any()


def test_crops_and_cutouts_are_everywhere_as_likely():
    torch.manual_seed(0)
    row = torch.arange(32, dtype=torch.uint8)
    # A pixel far from the border tells its offset by its own coordinates.
    grid = torch.stack([row[:, None].expand(32, 32), row[None, :].expand(32, 32)])
    crops = utils.RandomCrop()(grid.expand(8100, 2, 32, 32))[:, :, 16, 16].long() - 12
    cut = utils.CutOut()(torch.ones(28900, 1, 32, 32))[:, 0] == 0
    corners = torch.stack([cut.any(axis).byte().argmax(1) for axis in (2, 1)], 1)
    for offsets, n in ((crops, 9), (corners, 17)):
        counts = torch.bincount(n * offsets[:, 0] + offsets[:, 1])
        assert len(counts) == n * n
        assert 60 < counts.min() < counts.max() < 140, "each is expected 100 times (std 10)"


def test_half_of_the_images_are_mirrored_each_by_its_own_chance(images):
    torch.manual_seed(0)
    images = images.repeat(32, 1, 1, 1)
    flips = utils.RandomHorizontalFlip()(images)
    mirrored = (flips == images.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, (flips != images).flatten(1).any(1))
    assert 450 < mirrored.sum() < 574, "512 are expected (std 16)"


@pytest.mark.parametrize("size", [16, 31, 0])
def test_cutout_fills_one_square_of_every_image_and_nothing_else(images, size):
    cut = utils.CutOut(size)(images)
    assert cut.dtype == images.dtype
    for image, result in zip(images, cut, strict=True):
        hole = (result == 0).all(0)
        assert torch.equal(result, torch.where(hole, torch.zeros_like(image), image))
        assert [hole.sum(), hole.any(0).sum(), hole.any(1).sum()] == [size**2, size, size]


def test_normalize_is_the_textbook_formula(images):
    result = utils.Normalize((0.1, 0.4, 0.7), (0.2, 0.3, 0.5))(images).permute(0, 2, 3, 1)
    expected = (images.permute(0, 2, 3, 1).numpy() / 255 - (0.1, 0.4, 0.7)) / (0.2, 0.3, 0.5)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_training_transform_crops_mirrors_and_cuts_out_to_the_mean(make_config):
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    train_transform, normalize = utils.get_transforms(make_config("full"))
    assert ((train_transform(white) == 0).sum((1, 2, 3)) == 3 * 16 * 16).all()
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    plain = normalize(images)
    for padding, least, most in ((4, 0, 15), (0, 200, 200)):  # 80 of 81 offsets move the image
        config = make_config("full", cutout_size=0, crop_padding=padding)
        result = utils.get_transforms(config)[0](images)
        mirrored = (result == plain.flip(3)).flatten(1).all(1)
        assert least <= ((result == plain).flatten(1).all(1) | mirrored).sum() <= most
    assert 65 < mirrored.sum() < 135, "100 are expected (std 7)"


def test_no_digit_is_both_trained_and_tested(make_config):
    loaders = utils.get_dataloaders(make_config(train_images=2000))
    train, test = ([i.numpy().tobytes() for i in loader.dataset.images] for loader in loaders)
    assert (len(train), len(test), set(train) & set(test)) == (1437, 360, set())


def test_training_shuffles_and_augments_and_testing_does_neither(loaders, config):
    assert [len(labels) for _, labels in loaders[0]] == [32, 32, 16]
    (images, labels), (_, other_labels) = (next(iter(loaders[0])) for _ in range(2))
    assert not torch.equal(labels, other_labels)
    assert ((images == 0).sum((1, 2, 3)) >= 3 * 8 * 8).all(), "every training image is cut out"
    assert (images.shape, images.dtype) == ((32, 3, 32, 32), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    images, labels = (torch.cat(column) for column in zip(*loaders[1], strict=True))
    dataset = loaders[1].dataset
    assert torch.equal(labels, dataset.labels)
    assert torch.equal(images, utils.get_transforms(config)[1](dataset.images.permute(0, 3, 1, 2)))
    assert all(torch.equal(dataset[index][0], images[index]) for index in (2, -1))


def test_images_labels_or_settings_of_another_kind_are_told(make_config):
    images, labels = torch.zeros(3, 32, 32, 3, dtype=torch.uint8), [0, 1, 2]
    for bad_images, bad_labels, words in (
        (images.permute(0, 3, 1, 2), labels, r"images are .* must be uint8 \(3, 32, 32, 3\)"),
        (images.float(), labels, r"images are .*torch\.float32"),
        (images, [0, -1, 9], "label -1.* 0 to 9"),
        (images, [0, 10, 9], "label 10.* 0 to 9"),
        (images, np.zeros(3), "abels .*whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            utils.make_loader(bad_images, bad_labels, lambda batch: batch, make_config())
    with pytest.raises(ValueError, match="batch_size is 32, but there are only 3 images"):
        utils.get_dataloaders(make_config(train_images=3))
    with pytest.raises(ValueError, match=r"no ImageNet here.*make_loader"):
        utils.get_dataloaders(make_config(dataset="ImageNet"))
