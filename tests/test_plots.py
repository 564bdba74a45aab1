"""Figures: what they show, and what they leave as it was; GradCAM on networks of known answer."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import utils
from conftest import make_small_model, take_snapshot
from models.resnet import ResNet18

CURVES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "lr")
HISTORY = {name: [40.0 + i, 80.0, 77.5] for i, name in enumerate(CURVES)}
ODD = {"text.color": "red", "image.origin": "lower", "savefig.transparent": True, "font.size": 25}


def test_looks_leave_all_as_it_was_in_any_style(model, loaders, config, shown, monkeypatch):
    fork_rng = torch.random.fork_rng  # without its devices, it warns of a second GPU
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices, **_: fork_rng(devices))
    model[1].eval()  # one frozen layer
    train_loader, test_loader = loaders[0], list(loaders[1])  # a DataLoader draws in every pass
    before, pictures = take_snapshot(model), []
    for style in ("default", ["dark_background", ODD]):
        with plt.style.context(style):
            utils.show_summary(model)
            utils.plot_samples(train_loader, config)
            utils.find_lr(model, train_loader, config)
            utils.plot_history(HISTORY, config)
            utils.plot_confusion_matrix(model, test_loader, config)
            found = utils.get_misclassified(model, test_loader)
            utils.plot_misclassified(found, config)
            utils.plot_gradcam(model, found, config, target_layer=model[0])
        pictures.append({path.name: path.read_bytes() for path in config.output_dir.iterdir()})
    assert take_snapshot(model) == before
    assert pictures[0] == pictures[1]
    assert plt.get_fignums() == []
    corners = [plt.imread(path)[0, 0].tolist() for path in config.output_dir.iterdir()]
    assert corners == [[1, 1, 1, 1]] * 6, "white, opaque"
    assert all("not CIFAR-10" in title for _, title in shown)


TOLD = {"module://matplotlib_inline.backend_inline": "INLINE", "nbagg": "DISPLAY", "agg": "Figure"}


@pytest.mark.parametrize("backend", TOLD)
def test_figures_are_shown_in_notebooks_or_told(config, monkeypatch, capsys, backend):
    monkeypatch.setattr(plt, "get_backend", lambda: backend)
    monkeypatch.setattr(plt, "show", lambda: print("INLINE"))
    monkeypatch.setattr(utils.display, "display", lambda _: print("DISPLAY"))
    kernel = None if backend == "agg" else SimpleNamespace(kernel=1)  # a terminal has none
    monkeypatch.setattr(utils, "get_ipython", lambda: kernel)
    config.output_dir.touch()  # nothing can be saved in a file, but is shown anyway
    with pytest.warns(UserWarning, match="could not be written"):
        utils.plot_history(HISTORY, config)
    printed = capsys.readouterr().out
    assert [word for word in TOLD.values() if word in printed] == [TOLD[backend]]


def test_history_shows_both_curves_and_the_last_accuracy(make_config, shown):
    utils.plot_history(HISTORY, make_config("full"))
    assert shown[0][1] == "Test accuracy after epoch 3: 77.50 %", "not the best; no caveat"
    lines = [line for axis in shown[0][0].axes for line in axis.lines]
    assert [line.get_label().split()[0] for line in lines] == ["train", "test"] * 2 + ["peak:"]
    assert [[*line.get_ydata()] for line in lines] == [HISTORY[name] for name in CURVES]
    assert {line.get_marker() for line in lines[:4]} == {"."}, "so that a single epoch is seen"


class Reader(nn.Linear):
    """Answer with the logits that stand in the first pixels of an image."""

    def forward(self, images):
        return images[:, 0, 0, :10]


def test_mistakes_are_found_sorted_counted_and_shown(make_config, shown):
    names = ["$5", "$10", "$20", "a_b^2", "x" * 60, "one of very many words " * 4, *"6789"]
    labels, images = torch.arange(30) % 10, torch.zeros(30, 3, 32, 32)
    logits = 5.0 * torch.eye(10)[labels]
    logits[[17, 4, 29], [2, 9, 0]] = torch.tensor([12.0, 8.0, 6.0])  # three mistakes
    images[:, 0, 0, :10], images[:, 1, 0, 0] = logits, torch.arange(30)
    items = [item for item in zip(images, labels, strict=True) if item[1] != 5]
    model, config = Reader(1, 1), make_config(classes=names)
    loader = DataLoader(items, 8, shuffle=True)

    found = utils.get_misclassified(model, loader)
    assert found.images[:, 1, 0, 0].tolist() == [17, 4, 29], "numbered in the second channel"
    assert (found.labels.tolist(), found.predictions.tolist()) == ([7, 4, 9], [2, 9, 0])
    highest = np.exp([12.0, 8.0, 6.0])
    total = highest + np.exp(5.0) + 8  # the true class, and eight others
    np.testing.assert_allclose(found.probabilities, highest / total, rtol=1e-4)
    np.testing.assert_allclose(found.losses, np.log(total) - 5, rtol=1e-4)
    utils.plot_misclassified(found, config)
    headings = [axis.get_title() for axis in shown[0][0].axes if axis.get_title()]
    assert (len(headings), headings[0]) == (3, "predicted $20 (100%)\ntrue 7")
    assert not shown[0][0].axes[0].title.get_parse_math(), "$ is no formula"
    assert "3 of 3 mistakes" in shown[0][1]
    utils.plot_confusion_matrix(model, loader, config)
    axis = shown[1][0].axes[0]
    matrix = axis.get_images()[0].get_array()
    cells = matrix[[7, 4, 9], [2, 9, 0]].tolist()  # a row is a true class
    assert (cells, matrix.trace(), matrix.sum()) == ([1, 1, 1], 24, 27)
    assert "1 of 3 mistakes" in shown[1][1]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert (rows[0], rows[5][-7:], rows[7]) == ("$5: 100.0 %", ": nan %", "7: 66.7 %")
    columns = [label.get_text() for label in axis.get_xticklabels()]
    assert columns[:4] == names[:4]
    assert max(len(line) for column in columns for line in column.split("\n", 1)) <= 16


def test_confusion_matrix_of_100_classes_is_readable(make_config, shown):
    batches = [(torch.rand(500, 3, 32, 32), torch.arange(500) % 100)]
    config = make_config(classes=[f"class {i}" for i in range(100)])
    utils.plot_confusion_matrix(make_small_model(100), batches, config)
    axis = shown[0][0].axes[0]
    assert not [text for text in axis.texts if text.get_visible()], "no numbers"
    ticks = [label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    assert [tick.split(":")[0] for tick in ticks] == [f"class {i}" for i in range(0, 100, 5)] * 2


def test_pictures_have_true_colours_and_are_not_turned_or_smoothed(make_config, shown):
    config = make_config(mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.5), cutout_size=0, crop_padding=0)
    loaders = utils.get_dataloaders(config)
    for loader in loaders:
        loader.dataset.images = torch.randint(0, 256, (10, 32, 32, 3), dtype=torch.uint8)
    images, labels = loaders[1].dataset.__getitems__(range(10))
    model, before = nn.Sequential(nn.ReLU(inplace=True), *make_small_model()), images.clone()
    found = utils.get_misclassified(model, [(images, (labels + 1) % 10)])
    assert torch.equal(images, before), "a network that works in place does not change them"
    utils.plot_gradcam(model, found, config, target_layer=model[1])
    utils.plot_misclassified(found, config)
    utils.plot_samples(loaders[0], config)
    drawn = [[a.get_images()[0] for a in f.axes if a.get_images()] for f, _ in shown]
    gradcam, gallery, samples = ([image.get_array() for image in images] for images in drawn)
    assert drawn[1][0].get_interpolation() == "nearest"
    expected = [*loaders[1].dataset.images[found.indices] / 255]
    np.testing.assert_allclose([*gradcam[: len(found.images)], *gallery], expected * 2, atol=1e-5)
    np.testing.assert_array_equal(samples[:10], loaders[0].dataset.images)
    for picture, image in zip(samples[10:], samples[:10], strict=True):  # mirrored or not
        assert min(abs(picture - i / 255).max() for i in (image, image[:, ::-1])) < 1e-5


@pytest.fixture
def explain(config, shown):
    """Return a function that draws GradCAM of two images with a red, a green and a blue square."""
    images, labels = torch.zeros(2, 3, 32, 32), torch.tensor([1, 2])
    images[:, 0, :8, :8] = images[:, 1, 12:20, 12:20] = images[:, 2, 24:, 24:] = 1
    found = utils.Misclassified(images, labels, labels - 1, labels / 4, labels / 2, labels)

    def explain(model, layer):
        utils.plot_gradcam(model, found, config, target_layer=layer)
        axes = shown[-1][0].axes
        maps = [axis.get_images()[1].get_array() for axis in axes if len(axis.get_images()) > 1]
        return [axis.get_title() for axis in axes], maps

    return explain


def test_gradcam_explains_each_image_for_its_own_two_classes(explain):
    """With 10 maps that, pooled, are the logits: GradCAM of class k is map k, exactly."""
    conv = nn.Conv2d(3, 10, 1, bias=False)
    conv.weight = nn.Parameter(torch.eye(10)[:, :3, None, None].clone())
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    headings, maps = explain(model.requires_grad_(False), conv)
    assert headings == [*["image"] * 2, *["predicted\n0", "predicted\n1", "true\n1", "true\n2"]]
    squares = [(slice(i, i + 8),) * 2 for i in (0, 12, 24)]
    means = [[heat[square].mean() for square in squares] for heat in maps]
    np.testing.assert_allclose(means, np.eye(3)[[0, 1, 1, 2]], atol=0.1)  # predicted, true


def test_gradcam_is_the_same_when_what_follows_works_in_place(explain):
    models = make_small_model(), make_small_model()
    models[1][2].inplace = True
    first, second = (explain(model, model[1])[1] for model in models)
    assert np.ptp(first) > 0.5
    np.testing.assert_array_equal(first, second)


NO_MAPS = [(lambda x: x.permute(0, 2, 3, 1), 1), (lambda x: x.flatten(2), 1), (lambda x: [x], 1)]


@pytest.mark.parametrize(("forward", "calls"), [*NO_MAPS, (lambda x: x, 2), (lambda x: x, 0)])
def test_layer_without_maps_is_told_what_is_needed(explain, forward, calls):
    model, layer = make_small_model(), nn.ReLU()
    layer.forward = forward
    model.forward = lambda images: (images[:, 0], [layer(images) for _ in range(calls)])[0]
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\).*once"):
        explain(model, layer)


def test_coarse_maps_and_no_mistake_are_told(explain, config, capsys):
    model, nothing = ResNet18(), utils.Misclassified(*[torch.zeros(0)] * 6)
    with pytest.raises(ValueError, match=r"4 x 4.*model\.layer3\[-1\].*8 x 8"):
        explain(model, model.layer4[-1])
    utils.plot_misclassified(nothing, config)
    utils.plot_gradcam(model, nothing, config, target_layer=model.layer3[-1])
    assert capsys.readouterr().out.count("no misclassified images to show") == 2
