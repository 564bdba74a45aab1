"""Figures: what they show, and what they leave as it was; GradCAM on networks of known answer."""

import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import nn
from torch.utils.data import DataLoader

import utils
from conftest import make_small_model, take_snapshot
from models.resnet import ResNet18

RAMP = [1.0, 2.0, 3.0, 4.0]
HISTORY = {
    **{"train_loss": RAMP[::-1], "train_accuracy": [20 * value for value in RAMP]},
    **{"test_loss": [2.0, 0.5, 0.7, 0.9], "test_accuracy": [40.0, 80.0, 78.0, 77.5]},
    **{"seconds": RAMP, "lr": [0.1, 0.4, 0.2, 0.0] * 4},
}
LOOKS = {
    "samples": lambda m, loaders, c: utils.plot_samples(loaders[0], c),
    "lr_finder": lambda m, loaders, c: utils.find_lr(m, loaders[0], c),
    "history": lambda m, loaders, c: utils.plot_history(HISTORY, c),
    "confusion_matrix": lambda m, loaders, c: utils.plot_confusion_matrix(m, loaders[1], c),
    "misclassified": lambda m, loaders, c: utils.plot_misclassified(miss(m, loaders), c),
    "gradcam": lambda m, loaders, c: utils.plot_gradcam(m, miss(m, loaders), c, m[0]),
    "summary": lambda m, loaders, c: utils.show_summary(m),
}
ODD = {"text.color": "red", "font.size": 25, "image.origin": "lower", "axes.grid": True}
ODD |= {"savefig.transparent": True, "savefig.facecolor": "black", "savefig.bbox": "tight"}


def miss(model, loaders):
    return utils.get_misclassified(model, loaders[1])


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_leaves_all_as_it_was_and_ignores_the_style(
    look, model, loaders, config, shown, monkeypatch
):
    fork_rng = torch.random.fork_rng  # without its devices, it warns of a second GPU
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices, **_: fork_rng(devices))
    model[1].eval()  # one frozen layer
    loaders = loaders[0], list(loaders[1])  # a DataLoader itself draws a number in every pass
    before, pictures = take_snapshot(model), []
    for style in ("default", ["dark_background", ODD]):
        with plt.style.context(style):
            LOOKS[look](model, loaders, config)
        pictures.append({path.name: path.read_bytes() for path in config.output_dir.glob("*")})
    assert take_snapshot(model) == before
    assert pictures[0] == pictures[1]
    assert plt.get_fignums() == []
    for _, title in shown:
        assert list(pictures[0]) == [f"{look}.png"]
        assert (plt.imread(config.output_dir / f"{look}.png")[0, 0] == 1).all(), "white, opaque"
        assert "not CIFAR-10" in title


NOTEBOOKS = {"module://matplotlib_inline.backend_inline": "inline", "nbagg": "display", "agg": ""}


@pytest.mark.parametrize("backend", NOTEBOOKS)
def test_figures_are_shown_in_every_notebook_and_told_in_a_terminal(
    make_config, tmp_path, monkeypatch, capsys, backend
):
    calls, is_notebook = [], backend != "agg"
    monkeypatch.setattr(plt, "get_backend", lambda: backend)
    monkeypatch.setattr(plt, "show", lambda: calls.append("inline"))
    monkeypatch.setattr(utils, "display", lambda _: calls.append("display"))
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    if not is_notebook:
        monkeypatch.delitem(sys.modules, "ipykernel")
    (tmp_path / "a file").touch()
    with pytest.warns(UserWarning, match="could not be written"):  # they are shown anyway
        utils.plot_history(HISTORY, make_config(output_dir=tmp_path / "a file"))
    assert calls == [NOTEBOOKS[backend]] * is_notebook
    assert ("history.png" in capsys.readouterr().out) == (not is_notebook)


@pytest.mark.parametrize("epochs", [4, 1])
def test_history_shows_both_curves_and_the_last_accuracy(make_config, shown, epochs):
    history = {name: values[:epochs] for name, values in HISTORY.items()}
    utils.plot_history(history, make_config("full"))
    figure, title = shown[0]
    last = HISTORY["test_accuracy"][epochs - 1]
    assert title == f"Test accuracy after epoch {epochs}: {last:.2f} %", "not the best; no caveat"
    for axis, name in zip(figure.axes, ("loss", "accuracy"), strict=False):
        lines = {line.get_label().split()[0]: line for line in axis.lines}
        assert lines.keys() == {"train", "test"}, "nothing for the best"
        for split, line in lines.items():
            np.testing.assert_array_equal(line.get_ydata(), history[f"{split}_{name}"])
            assert line.get_marker() == ".", "no line is seen of one point"
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), history["lr"])


class Reader(nn.Module):
    """Answer with the logits that stand in the first pixels; call other layers on the side."""

    def __init__(self, outputs=10, others=()):
        super().__init__()
        self.outputs, self.others, self.unused = outputs, others, nn.Linear(1, 1)

    def forward(self, images):
        for layer in self.others:
            layer(images)
        return images[:, 0].flatten(1)[:, : self.outputs]


NAMES = ["$5", "$10", "$20", "a_b^2", "x" * 60, "one of very many words " * 4, *"6789"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_mistakes_are_found_sorted_counted_and_shown(make_config, shown, shuffle):
    labels = torch.arange(30) % 10
    logits = 5.0 * torch.eye(10)[labels]
    for index, predicted, certainty in ((4, 9, 8.0), (17, 2, 12.0), (29, 0, 6.0)):
        logits[index] = certainty * torch.eye(10)[predicted]
    images = torch.zeros(30, 3, 32, 32)
    images[:, 0, 0, :10], images[:, 1, 0, 0] = logits, torch.arange(30)
    items = [item for item in zip(images, labels, strict=True) if item[1] != 5]
    model, loader, config = Reader(), DataLoader(items, 8, shuffle), make_config(classes=NAMES)

    found = utils.get_misclassified(model, loader)
    assert found.images[:, 1, 0, 0].tolist() == [17, 4, 29], "numbered in the second channel"
    assert shuffle or found.indices.tolist() == [15, 4, 26], "two images of class 5 are left out"
    assert (found.labels.tolist(), found.predictions.tolist()) == ([7, 4, 9], [2, 9, 0])
    exponential = np.exp([12.0, 8.0, 6.0])
    np.testing.assert_allclose(found.probabilities, exponential / (exponential + 9), rtol=1e-4)
    np.testing.assert_allclose(found.losses, np.log(exponential + 9), rtol=1e-4)

    utils.plot_misclassified(found, config)
    headings = [axis.get_title() for axis in shown[0][0].axes if axis.get_title()]
    assert (len(headings), headings[0]) == (3, "predicted $20 (100%)\ntrue 7")
    assert "3 of 3 mistakes" in shown[0][1]

    utils.plot_confusion_matrix(model, loader, config)
    axis, title = shown[1][0].axes[0], shown[1][1]
    matrix = axis.get_images()[0].get_array()
    assert (matrix.sum(), matrix.trace()) == (27, 24)
    assert matrix[7, 2] == matrix[4, 9] == matrix[9, 0] == 1, "a row is a true class"
    assert "1 of 3 mistakes" in title
    rows, columns = (
        [text.get_text() for text in a.get_ticklabels()] for a in (axis.yaxis, axis.xaxis)
    )
    assert (rows[0], rows[5][-7:], rows[7]) == ("$5: 100.0 %", ": nan %", "7: 66.7 %")
    assert columns[:4] == NAMES[:4]
    assert max(column.count("\n") for column in columns) == 1
    assert all(len(line) <= 16 for column in columns for line in column.split("\n"))
    texts = [text for figure, _ in shown for text in figure.findobj(Text)]
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())


def test_confusion_matrix_of_100_classes_is_fast_and_readable(make_config, shown):
    batches = [(torch.rand(500, 3, 32, 32), torch.arange(500) % 100)]
    config = make_config(classes=[f"class {i}" for i in range(100)])
    begin = time.perf_counter()
    utils.plot_confusion_matrix(Reader(100), batches, config)
    assert time.perf_counter() - begin < 5
    axis = shown[0][0].axes[0]
    assert not [text for text in axis.texts if text.get_visible()], "no numbers"
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert 5 <= len(labels) <= 21
        assert all(f"class {5 * i}" in label.get_text() for i, label in enumerate(labels))


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
    gradcam, gallery, samples = (
        [axis.get_images()[0] for axis in figure.axes if axis.get_images()] for figure, _ in shown
    )
    for i, index in enumerate(found.indices.tolist()):
        for picture in (gradcam[i], gallery[i]):
            original = loaders[1].dataset.images[index] / 255
            np.testing.assert_allclose(picture.get_array(), original, atol=1e-5)
            assert (picture.origin, picture.get_interpolation()) == ("upper", "nearest")
    for i, original in enumerate(loaders[0].dataset.images.numpy()):
        np.testing.assert_array_equal(samples[i].get_array(), original)
        augmented = samples[10 + i].get_array()
        is_mirrored = not np.allclose(augmented, original / 255, atol=1e-5)
        expected = original[:, ::-1] if is_mirrored else original
        np.testing.assert_allclose(augmented, expected / 255, atol=1e-5)


@pytest.fixture
def found():
    """Two images with a red, a green and a blue square: true classes 1 and 2, predicted 0 and 1."""
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, :8, :8] = images[:, 1, 12:20, 12:20] = images[:, 2, 24:, 24:] = 1
    labels = torch.tensor([1, 2])
    return utils.Misclassified(images, labels, labels - 1, labels / 4, labels / 2, labels)


@pytest.fixture
def explain(found, config, shown):
    """Return a function that draws GradCAM and returns headings and maps."""

    def explain(model, layer):
        utils.plot_gradcam(model, found, config, target_layer=layer)
        axes = shown[-1][0].axes
        maps = [axis.get_images()[1].get_array() for axis in axes if len(axis.get_images()) > 1]
        return [axis.get_title() for axis in axes], maps

    return explain


@pytest.mark.parametrize("is_frozen", [False, True])
def test_gradcam_explains_each_image_for_its_own_two_classes(explain, is_frozen):
    """With 10 maps that, pooled, are the logits: GradCAM of class k is map k, exactly."""
    conv = nn.Conv2d(3, 10, 1, bias=False)
    conv.weight = nn.Parameter(torch.eye(10)[:, :3, None, None].clone())
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    headings, maps = explain(model.requires_grad_(not is_frozen), conv)
    assert headings == [*["image"] * 2, *["predicted\n0", "predicted\n1", "true\n1", "true\n2"]]
    squares = [(slice(i, i + 8),) * 2 for i in (0, 12, 24)]
    means = [[heat[square].mean() for square in squares] for heat in maps]
    expected = np.eye(3)[[0, 1, 1, 2]]  # predicted twice, true twice
    np.testing.assert_allclose(means, expected, atol=0.1)


def test_gradcam_is_the_same_when_what_follows_works_in_place(explain):
    models = make_small_model(), make_small_model()
    models[1][2].inplace = True
    first, second = (explain(model, model[1])[1] for model in models)
    assert np.ptp(first) > 0.5
    np.testing.assert_array_equal(first, second)


NO_MAPS = [(lambda x: x.permute(0, 2, 3, 1), 1), (lambda x: x.flatten(2), 1), (lambda x: [x], 1)]


@pytest.mark.parametrize(("forward", "calls"), [*NO_MAPS, (nn.Identity(), 2), (nn.Identity(), 0)])
def test_layer_without_maps_is_told_what_is_needed(found, config, forward, calls):
    layer = nn.ReLU()
    layer.forward = forward
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\).*once"):
        utils.plot_gradcam(Reader(others=[layer] * calls), found, config, layer)


def test_coarse_maps_are_told_and_no_mistake_is_a_sentence(found, config, shown, capsys):
    model, nothing = ResNet18(), utils.Misclassified(*(column[:0] for column in found))
    with pytest.raises(ValueError, match=r"4 x 4.*model\.layer3\[-1\].*8 x 8"):
        utils.plot_gradcam(model, found, config, target_layer=model.layer4[-1])
    utils.plot_misclassified(nothing, config)
    utils.plot_gradcam(model, nothing, config, target_layer=model.layer3[-1])
    assert capsys.readouterr().out.count("no misclassified images to show") == 2
    assert not shown
