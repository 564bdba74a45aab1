"""Transforms against plain slicing, their distributions, and what the loaders deliver."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

import utils
from helpers import make_data, make_small_model, take_snapshot


@pytest.fixture(params=[torch.uint8, torch.float32])
def images(request):
    """32 images of random pixels, none of which is 0; they must stay as they are."""
    values = torch.randint(1, 256, (32, 32, 32, 3)).to(request.param).permute(0, 3, 1, 2)
    before = values.clone()
    yield values
    assert torch.equal(values, before)


# --- Transforms -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "padding"), [(32, 4), (32, 0), (24, 2), (32, 31)])
def test_every_crop_is_a_window_of_its_padded_image(images, size, padding):
    crops = utils.RandomCrop(size, padding)(images[:4])
    assert crops.shape == (4, 3, size, size)
    assert crops.dtype == images.dtype
    padded = np.pad(images[:4], [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2], mode="reflect")
    for image, crop in zip(padded, crops.numpy(), strict=True):
        windows = sliding_window_view(image, crop.shape)
        assert (windows == crop).all((-3, -2, -1)).any()


def assert_all_as_likely(offsets, n):
    """Assert that n x n offsets (N, 2) come about equally often: 100 times each, std 10."""
    counts = torch.bincount(n * offsets[:, 0] + offsets[:, 1])
    assert len(counts) == n * n
    assert counts.min() > 60
    assert counts.max() < 140


def test_crops_are_everywhere_as_likely():
    torch.manual_seed(0)
    row = torch.arange(32, dtype=torch.uint8)
    # A pixel far from the border tells its offset by its own coordinates.
    grid = torch.stack([row[:, None].expand(32, 32), row[None, :].expand(32, 32)])
    crops = utils.RandomCrop()(grid.expand(8100, 2, 32, 32))
    assert_all_as_likely(crops[:, :, 16, 16].long() - 12, 9)


def test_cutouts_are_everywhere_as_likely():
    torch.manual_seed(0)
    cut = utils.CutOut()(torch.ones(28900, 1, 32, 32))[:, 0] == 0
    top = cut.any(2).byte().argmax(1)
    left = cut.any(1).byte().argmax(1)
    assert_all_as_likely(torch.stack([top, left], 1), 17)


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
        assert torch.equal(result, torch.where(hole, 0, image))
        assert hole.sum() == size**2
        assert hole.any(0).sum() == size
        assert hole.any(1).sum() == size


def test_normalize_is_the_textbook_formula(images):
    result = utils.Normalize((0.1, 0.4, 0.7), (0.2, 0.3, 0.5))(images).permute(0, 2, 3, 1)
    expected = (images.permute(0, 2, 3, 1).numpy() / 255 - (0.1, 0.4, 0.7)) / (0.2, 0.3, 0.5)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_pictures_are_what_was_normalised(make_config):
    config = make_config("full")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    _, normalize = utils.get_transforms(config)
    pictures = utils.denormalize(normalize(pixels), config)
    np.testing.assert_allclose(255 * pictures, pixels.permute(0, 2, 3, 1), atol=1e-3)


def test_training_cuts_16_x_16_pixels_out_to_the_mean(make_config):
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    train_transform, _ = utils.get_transforms(make_config("full"))
    assert ((train_transform(white) == 0).sum((1, 2, 3)) == 3 * 16 * 16).all()


def count_kept_and_mirrored(config):
    """Return how many of 200 images training leaves as they are or only mirrors, and the latter."""
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    augment, normalize = utils.get_transforms(config)
    plain = normalize(images)
    result = augment(images)
    kept = (result == plain).flatten(1).all(1)
    mirrored = (result == plain.flip(3)).flatten(1).all(1)
    return (kept | mirrored).sum(), mirrored.sum()


def test_training_crops(make_config):
    kept, _ = count_kept_and_mirrored(make_config("full", cutout_size=0))
    assert kept < 16, "80 of 81 offsets move an image"


def test_training_mirrors_half_of_the_images(make_config):
    kept, mirrored = count_kept_and_mirrored(make_config("full", cutout_size=0, crop_padding=0))
    assert kept == 200
    assert 65 < mirrored < 135, "100 are expected (std 7)"


# --- Loaders --------------------------------------------------------------------------------------
def test_no_digit_is_both_trained_and_tested(make_config):
    train_loader, test_loader = utils.get_dataloaders(make_config(train_images=2000))
    trained = {image.numpy().tobytes() for image in train_loader.dataset.images}
    tested = {image.numpy().tobytes() for image in test_loader.dataset.images}
    assert len(train_loader.dataset) == 1437
    assert len(test_loader.dataset) == 360
    assert not trained & tested


def test_training_shuffles_and_drops_no_image(loaders):
    train_loader = loaders[0]
    passes = []
    for _ in range(2):
        batches = [labels for _, labels in train_loader]
        assert [len(labels) for labels in batches] == [32, 32, 16]
        passes.append(torch.cat(batches))
    assert not torch.equal(*passes)
    assert torch.equal(passes[0].sort()[0], train_loader.dataset.labels.sort()[0])


def test_every_training_image_is_cut_out(loaders):
    for images, _ in loaders[0]:
        assert ((images == 0).sum((1, 2, 3)) == 3 * 8 * 8).all()


def test_test_images_come_in_order_and_not_augmented(loaders, config):
    dataset = loaders[1].dataset
    batches = list(loaders[1])
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    _, normalize = utils.get_transforms(config)
    assert torch.equal(labels, dataset.labels)
    assert torch.equal(images, normalize(dataset.images.permute(0, 3, 1, 2)))


def test_one_image_of_a_dataset_is_the_one_of_its_batch(loaders):
    dataset = loaders[1].dataset
    images, labels = dataset.__getitems__(range(len(dataset)))
    for index in (2, -1):
        image, label = dataset[index]
        assert torch.equal(image, images[index])
        assert label == labels[index]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_batches_are_float32_and_contiguous(loaders):
    for loader in loaders:
        images, labels = next(iter(loader))
        assert images.shape == (32, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert labels.dtype == torch.int64


def test_own_images_may_have_another_size(make_config):
    config = make_config(image_size=48, cutout_size=40, dataset="pets", **OWN)
    images = torch.randint(0, 256, (6, 48, 48, 3), dtype=torch.uint8)
    augment, _ = utils.get_transforms(config)
    loader = utils.make_loader(images, [0, 1] * 3, augment, config)
    batch, _ = next(iter(loader))
    assert batch.shape == (6, 3, 48, 48)
    assert ((batch == 0).sum((1, 2, 3)) == 3 * 40 * 40).all()


PIXELS = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
OWN = {"classes": ("cat", "dog"), "mean": (0.5,) * 3, "std": (0.2,) * 3}
MISFITS = {
    "channels first": (PIXELS.permute(0, 3, 1, 2), [0, 1, 2], r"must be uint8 \(3, 32, 32, 3\)"),
    "floats": (PIXELS.float(), [0, 1, 2], r"images are torch\.float32"),
    "more labels": (PIXELS, [0, 1, 2, 3], r"must be uint8 \(4, 32, 32, 3\)"),
    "negative": (PIXELS, [0, -1, 9], r"label -1.* 0 to 9"),
    "too large": (PIXELS, [0, 10, 9], r"label 10.* 0 to 9"),
    "float labels": (PIXELS, np.zeros(3), "whole numbers"),
    "one-hot": (PIXELS, np.eye(3, dtype=int), "whole numbers"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_images_or_labels_of_another_kind_are_told(make_config, kind):
    images, labels, words = MISFITS[kind]
    with pytest.raises(ValueError, match=words):
        utils.make_loader(images, labels, lambda batch: batch, make_config())


def test_a_batch_larger_than_the_data_is_told(make_config):
    with pytest.raises(ValueError, match="batch_size is 32, but there are only 3 images"):
        utils.get_dataloaders(make_config(train_images=3))


def test_a_dataset_that_is_not_ours_is_told_the_way_to_make_loader(make_config):
    with pytest.raises(ValueError, match=r"pets.*make_loader"):
        utils.get_dataloaders(make_config(dataset="pets", **OWN))


# --- What training takes --------------------------------------------------------------------------
IMAGES, _ = make_data(64)
LABELS = torch.arange(64) % 10


def fit(model, loader, config):
    return utils.fit_one_cycle(model, loader, loader, 0.01, config)


@pytest.fixture(params=[utils.find_lr, fit], ids=["find_lr", "fit"])
def start(request):
    """Return each of the two functions that begin to train."""
    return request.param


class Photos(TensorDataset):
    """A dataset of somebody else's, which has a config of its own."""

    config: ClassVar = {"folder": "photos"}


def test_a_dataset_with_a_config_of_its_own_is_trained_on_and_looked_at(make_config, shown):
    config = make_config(epochs=1)
    loader = DataLoader(Photos(IMAGES, LABELS), 8)
    model = make_small_model()
    fit(model, loader, config)
    utils.plot_confusion_matrix(model, loader, config)
    utils.plot_misclassified(utils.get_misclassified(model, loader), config)
    assert len(shown) == 2


class Unsized:
    """An endless stream, as a generator makes it, which can be read again."""

    def __iter__(self):
        while True:
            yield IMAGES[:8], LABELS[:8]


def make_loader_of(*parts, size=8):
    return DataLoader(TensorDataset(*parts), size)


NAMED = [{"image": IMAGES[i], "label": LABELS[i]} for i in range(64)]
MISFIT = {  # made anew for each use: some can be read only once
    "with an index": lambda: make_loader_of(IMAGES, LABELS, torch.arange(64)),
    "images alone": lambda: make_loader_of(IMAGES),
    "dicts": lambda: DataLoader(NAMED, 8),
    "no length": Unsized,
    "a generator": lambda: (pair for pair in [(IMAGES, LABELS)] * 3),
    "read only once": lambda: iter(make_loader_of(IMAGES, LABELS, size=1)),
    "nothing in it": lambda: make_loader_of(IMAGES[:0], LABELS[:0]),
    "an empty list": list,
    "not normalised": lambda: make_loader_of(IMAGES.to(torch.uint8), LABELS),
    "float labels": lambda: make_loader_of(IMAGES, LABELS.float()),
    "a column of labels": lambda: make_loader_of(IMAGES, LABELS[:, None]),
    "labels from 1": lambda: make_loader_of(IMAGES, LABELS + 1, size=16),
    "a negative label": lambda: make_loader_of(IMAGES, LABELS - 1),
    "NumPy's arrays": lambda: [(IMAGES.numpy(), LABELS.numpy())],
}


@pytest.mark.parametrize("kind", MISFIT)
def test_a_loader_that_training_cannot_use_is_told_alike_in_one_sentence(model, config, kind):
    sentences = []
    for function in (utils.find_lr, fit):
        before = take_snapshot(model)
        with pytest.raises(ValueError, match=r"^[^\n]*(loader|images|abel)[^\n]*$") as caught:
            function(model, MISFIT[kind](), config)
        sentences.append(str(caught.value))
        assert take_snapshot(model)["values"] == before["values"]
    assert sentences[0] == sentences[1]


def test_swapped_loaders_are_told(model, config, loaders):
    before = take_snapshot(model)
    with pytest.raises(ValueError, match=r"^This loader augments[^\n]*for testing"):
        utils.fit_one_cycle(model, loaders[1], loaders[0], 0.01, config)
    assert take_snapshot(model)["values"] == before["values"]


@pytest.mark.parametrize("size", [0, 8])
def test_nothing_is_measured_on_augmented_images(model, make_config, size):
    config = make_config(cutout_size=size, train_images=80)
    train_loader, test_loader = utils.get_dataloaders(config)
    part = DataLoader(Subset(train_loader.dataset, range(40)), 20, collate_fn=tuple)
    for loader in (train_loader, part):
        with pytest.raises(ValueError, match=r"^This loader augments"):
            utils.fit_one_cycle(model, train_loader, loader, 0.01, config)
        with pytest.raises(ValueError, match=r"^This loader augments"):
            utils.plot_confusion_matrix(model, loader, config)
        with pytest.raises(ValueError, match=r"^This loader augments"):
            utils.get_misclassified(model, loader)
    assert len(utils.get_misclassified(model, test_loader).images)


@pytest.mark.parametrize("is_part", [False, True])
def test_a_loader_that_collates_our_batches_is_told_how_not_to(model, config, loaders, is_part):
    dataset = loaders[0].dataset
    if is_part:
        dataset, _ = random_split(dataset, [60, 20])
    loader = DataLoader(dataset, 20, shuffle=True)
    with pytest.raises(
        ValueError, match=r"^This loader gives no batch[^\n]*collate_fn=tuple[^\n]*$"
    ):
        utils.find_lr(model, loader, config)


def test_samples_of_another_loader_are_refused_in_one_sentence(config, loaders):
    part = DataLoader(Subset(loaders[0].dataset, range(40)), 20, collate_fn=tuple)
    for loader in (part, make_loader_of(IMAGES, LABELS), [*loaders[0]]):
        with pytest.raises(ValueError, match=r"^Samples can only[^\n]*make_loader[^\n]*$"):
            utils.plot_samples(loader, config)


USABLE = {
    "a list of batches": [(IMAGES[:32], LABELS[:32]), (IMAGES[32:], LABELS[32:])],
    "a list of lists": [[IMAGES[:32], LABELS[:32]], [IMAGES[32:], LABELS[32:]]],
    "float64": DataLoader(TensorDataset(IMAGES.double(), LABELS), 32, shuffle=True),
    "float16": DataLoader(TensorDataset(IMAGES.half(), LABELS), 32, shuffle=True),
    "Python's labels": DataLoader([*zip(IMAGES, LABELS.tolist(), strict=True)], 32, shuffle=True),
}


@pytest.mark.parametrize("kind", USABLE)
def test_what_the_finder_takes_training_and_prediction_take(model, config, kind):
    loader = USABLE[kind]
    assert utils.find_lr(model, loader, config) > 0
    history = fit(model, loader, config)
    assert len(history["lr"]) == 4
    logits, labels = utils.predict(model, loader)
    assert logits.dtype == torch.float32
    assert torch.equal(labels.sort()[0], LABELS.sort()[0])


def test_images_of_a_loader_stay_as_they_are(config, make_loader):
    model = torch.nn.Sequential(torch.nn.ReLU(inplace=True), *make_small_model())
    before = IMAGES.clone()
    for data in (make_loader(IMAGES, LABELS, 20), [(IMAGES, LABELS)]):
        utils.find_lr(model, data, config)
        fit(model, data, config)
        utils.get_misclassified(model, data)
        assert torch.equal(IMAGES, before)


ORDER = "come class by class"
SORTED = TensorDataset(torch.randn(320, 3, 32, 32), torch.arange(320) // 32)


def test_data_in_the_order_of_its_classes_is_told_once(model, config, capsys):
    loader = DataLoader(SORTED, 32)
    utils.check_start(model, loader, config)
    fit(model, loader, config)
    assert capsys.readouterr().out.count(ORDER) == 1


def test_digits_that_are_sorted_and_not_shuffled_are_told(model, make_config, capsys):
    config = make_config(batch_size=64, resume=False)
    train_loader, _ = utils.get_dataloaders(config)
    dataset = train_loader.dataset
    order = dataset.labels.argsort().tolist()
    loader = DataLoader(Subset(dataset, order), 64, collate_fn=tuple)
    utils.check_start(model, loader, config)
    assert ORDER in capsys.readouterr().out


RARE = TensorDataset(torch.randn(320, 3, 32, 32), (torch.arange(320) % 80 == 0).long())
IN_GOOD_ORDER = {
    "shuffled": lambda: DataLoader(SORTED, 32, shuffle=True),
    "a sampler that mixes": lambda: DataLoader(SORTED, 32, sampler=torch.randperm(320).tolist()),
    "a rare class, shuffled": lambda: DataLoader(RARE, 32, shuffle=True),
    "small batches of many classes": lambda: DataLoader(SORTED, 8),
    "one batch": lambda: DataLoader(SORTED, 320),
    "mixed before": lambda: DataLoader(Subset(SORTED, torch.randperm(320).tolist()), 32),
}


@pytest.mark.parametrize("kind", IN_GOOD_ORDER)
def test_nothing_is_told_of_an_order_that_is_fine(model, config, capsys, kind):
    for seed in range(5):
        torch.manual_seed(seed)
        utils.check_start(model, IN_GOOD_ORDER[kind](), config)
    assert ORDER not in capsys.readouterr().out


def test_test_images_may_come_class_by_class(model, config, loaders, capsys):
    utils.fit_one_cycle(model, loaders[0], DataLoader(SORTED, 32), 0.01, config)
    assert ORDER not in capsys.readouterr().out


# --- Settings that change after the loaders were made ---------------------------------------------
CHANGES = {
    "batch_size": 16,
    "crop_padding": 2,
    "cutout_size": 4,
    "train_images": 64,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "classes": tuple("ABCDEFGHIJ"),
    "dataset": "pets",
    "precision": "float32",  # of predictions, which ask the loader
}


def draw_samples(model, loader, config):
    utils.plot_samples(loader, config)


@pytest.mark.parametrize("way", [utils.find_lr, fit, draw_samples, utils.plot_confusion_matrix])
@pytest.mark.parametrize("name", CHANGES)
def test_loaders_of_other_settings_are_refused(model, config, loaders, name, way):
    settings = {name: CHANGES[name]}
    if name == "dataset":
        settings["train_images"] = None  # which counts images of our datasets
    changed = replace(config, **settings)
    with pytest.raises(ValueError, match=rf"^{name} was .*cell that makes them again"):
        way(model, loaders[0], changed)
    assert not config.output_dir.exists()


def test_a_test_loader_of_other_settings_is_refused(model, config, loaders):
    _, other = utils.get_dataloaders(replace(config, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(ValueError, match=r"^mean was"):
        utils.fit_one_cycle(model, loaders[0], other, 0.01, config)


def test_loaders_below_a_subset_are_looked_at_as_well(model, config, loaders, start):
    part = Subset(Subset(loaders[0].dataset, range(64)), range(40))
    loader = DataLoader(part, 20, shuffle=True, collate_fn=tuple)
    with pytest.raises(ValueError, match=r"^cutout_size was 8"):
        start(model, loader, replace(config, cutout_size=4))


FREE = {
    "epochs": 1,
    "seed": 7,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "cutout_free_fraction": 0,
    "lr_finder_steps": 30,
}


@pytest.mark.parametrize("name", FREE)
def test_settings_that_are_not_of_the_data_may_change(model, config, loaders, name):
    changed = replace(config, **{name: FREE[name]})
    max_lr = utils.find_lr(model, loaders[0], changed)
    history = utils.fit_one_cycle(model, *loaders, 2 * max_lr, changed)
    assert len(history["seconds"]) == changed.epochs


def test_the_output_folder_may_change(model, config, loaders, tmp_path):
    changed = replace(config, output_dir=tmp_path / "another")
    utils.fit_one_cycle(model, *loaders, 0.01, changed)
    assert (tmp_path / "another" / "model.pt").exists()
    assert not config.output_dir.exists()
