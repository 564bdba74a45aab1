"""What holds for all inputs, tried on a few hundred of them: the pure parts, with hypothesis."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import utils

many = settings(max_examples=200, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def make_images(seed, count, dtype=torch.uint8, side=32):
    generator = torch.Generator().manual_seed(seed)
    shape = count, 3, side, side
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(dtype)


@many
@given(seeds, st.integers(1, 5), st.integers(0, 8), st.sampled_from([torch.uint8, torch.float32]))
def test_every_crop_is_a_window_of_its_padded_image(seed, count, padding, dtype):
    images = make_images(seed, count, dtype)
    torch.manual_seed(seed)
    crops = utils.RandomCrop(32, padding)(images)
    assert crops.shape == images.shape
    assert crops.dtype == dtype
    pad = [padding] * 4
    for image, crop in zip(F.pad(images.float(), pad, mode="reflect"), crops.float(), strict=True):
        windows = image.unfold(1, 32, 1).unfold(2, 32, 1)
        assert (windows == crop[:, None, None]).all((-1, -2)).all(0).any()


@many
@given(seeds, st.integers(1, 5))
def test_every_flip_is_the_image_or_its_mirror_image(seed, count):
    images = make_images(seed, count)
    torch.manual_seed(seed)
    flips = utils.RandomHorizontalFlip()(images)
    for image, flip in zip(images, flips, strict=True):
        assert torch.equal(flip, image) or torch.equal(flip, image.flip(2))


@many
@given(seeds, st.integers(1, 5), st.integers(0, 32))
def test_cutout_changes_one_square_per_image(seed, count, size):
    images = make_images(seed, count, torch.float32) + 1
    torch.manual_seed(seed)
    cut = utils.CutOut(size)(images)
    for image, result in zip(images, cut, strict=True):
        changed = (result != image).all(0)
        assert torch.equal((result != image).any(0), changed), "all channels alike"
        assert changed.sum() == size**2
        assert changed.any(0).sum() == changed.any(1).sum() == size
        assert (result[:, changed] == 0).all()


@many
@given(seeds, st.tuples(*[st.floats(0.05, 0.95)] * 3), st.tuples(*[st.floats(0.05, 0.5)] * 3))
def test_denormalize_undoes_normalize(seed, mean, std):
    images = make_images(seed, 2)
    config = utils.get_config("quick", device="cpu", mean=mean, std=std)
    pictures = utils.denormalize(utils.Normalize(mean, std)(images), config)
    np.testing.assert_allclose(pictures, images.permute(0, 2, 3, 1) / 255, atol=1e-5)


class Constant(nn.Module):
    """Answer with what is written into the images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return images[:, 0, 0, :10] + self.weight


@many
@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_mean_loss_does_not_depend_on_the_batches(seed, count, batch_size):
    generator = torch.Generator().manual_seed(seed)
    images = 3 * torch.randn(count, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    loader = DataLoader(list(zip(images, labels, strict=True)), batch_size)
    loss, accuracy = utils.test(Constant(), loader)
    logits = images[:, 0, 0, :10].double()
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())


def make_curve(lrs, lowest, steepness, drop):
    """A loss that falls along a sigmoid until the lowest, and explodes beyond."""
    x = np.log10(lrs) - np.log10(lowest)
    return 2.3 - drop / (1 + np.exp(-steepness * (x + 1))) + np.exp(np.minimum(8 * x, 20)) / 50


@many
@given(st.floats(-2, 0.3), st.floats(3, 8), st.floats(0.3, 1.5), st.integers(60, 300))
def test_limit_is_where_the_loss_has_lost_half_of_its_fall(exponent, steepness, drop, steps):
    lrs = np.logspace(-4, 1, steps)
    losses = make_curve(lrs, 10**exponent, steepness, drop)
    limit, smoothed = utils.find_lr_limit(lrs, losses)
    kept = (smoothed[0] - smoothed) / (smoothed[0] - smoothed.min())
    assert kept[lrs == limit] >= 0.5 - 1e-9
    assert (kept[lrs > limit] < 0.5).all()
    assert smoothed.min() >= losses.min() - 1e-9


@many
@given(seeds, st.floats(-1.5, 0.3), st.floats(0, 0.1))
def test_limit_is_the_end_of_a_noisy_plateau_and_no_chance_minimum(seed, exponent, noise):
    lrs = np.logspace(-4, 1, 300)
    x = np.log10(lrs)
    losses = 2.3 - np.clip(x + 4, 0, 1) + np.clip(4 * (x - exponent), 0, 3)
    losses += noise * np.random.default_rng(seed).standard_normal(300)
    limit, _ = utils.find_lr_limit(lrs, losses)
    assert 0.75 < limit / 10**exponent < 1.4


@many
@given(st.floats(-2, 0), st.floats(-3, 3), st.floats(0.1, 100), st.floats(-5, 5))
def test_limit_moves_with_the_axis_and_not_with_the_loss(exponent, shift, scale, offset):
    lrs = np.logspace(-4, 1, 100)
    losses = make_curve(lrs, 10**exponent, 5, 1)
    expected, _ = utils.find_lr_limit(lrs, losses)
    moved, _ = utils.find_lr_limit(lrs * 10**shift, losses * scale + offset)
    assert moved == pytest.approx(expected * 10**shift, rel=1e-6)
