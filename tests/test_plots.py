"""Figures: what they show, and what they leave as it was; GradCAM on networks of known answer."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.utils.data import DataLoader

import utils
from helpers import make_small_model, take_snapshot
from models.resnet import ResNet18

CURVES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "lr")
HISTORY = {name: [40.0 + i, 80.0, 77.5] for i, name in enumerate(CURVES)}
ODD_STYLE = {
    "text.color": "red",
    "image.origin": "lower",
    "savefig.transparent": True,
    "font.size": 25,
}


# All figures, drawn once in matplotlib's style, and once in an odd one
def look_at_everything(model, train_loader, test_batches, config):
    """Call everything that only looks."""
    utils.show_summary(model)
    utils.get_map_size(model, model[0])
    utils.plot_samples(train_loader, config)
    utils.find_lr(model, train_loader, config)
    utils.plot_history(HISTORY, config)
    utils.plot_confusion_matrix(model, test_batches, config)
    found = utils.get_misclassified(model, test_batches)
    utils.plot_misclassified(found, config)
    utils.plot_gradcam(model, found, config, target_layer=model[0])


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """Look at everything twice; return what was before and after, the pictures and the titles."""
    folder = tmp_path_factory.mktemp("looks")
    own = {"train_images": 80, "lr_finder_steps": 40, "precision": "float32"}
    config = utils.get_config("quick", device="cpu", output_dir=folder, **own)
    train_loader, test_loader = utils.get_dataloaders(config)
    test_batches = list(test_loader)  # a DataLoader draws a number in every pass
    model = make_small_model()
    model[1].eval()  # one frozen layer

    titles = []
    show_figure = utils.show_figure

    def note(figure, *others):
        show_figure(figure, *others)
        titles.append(figure.get_suptitle())

    before = take_snapshot(model)
    pictures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "show_figure", note)
        for style in ("default", ["dark_background", ODD_STYLE]):
            with plt.style.context(style):
                look_at_everything(model, train_loader, test_batches, config)
            pictures.append({path.name: path.read_bytes() for path in folder.glob("*.png")})
    return SimpleNamespace(
        before=before, after=take_snapshot(model), pictures=pictures, titles=titles, folder=folder
    )


def test_looks_change_nothing_of_the_model_nor_the_random_state(looks):
    assert looks.after == looks.before


def test_there_are_six_figures_and_none_stays_open(looks):
    names = {path.stem for path in looks.folder.iterdir()}
    first = {"samples", "lr_finder", "history"}
    assert names == first | {"confusion_matrix", "misclassified", "gradcam"}
    assert plt.get_fignums() == []


def test_figures_are_the_same_whatever_style_is_set(looks):
    assert looks.pictures[0] == looks.pictures[1]


def test_figures_are_opaque_white(looks):
    corners = [plt.imread(path)[0, 0].tolist() for path in looks.folder.iterdir()]
    assert corners == [[1, 1, 1, 1]] * 6


def test_every_title_tells_that_digits_are_not_cifar10(looks):
    assert len(looks.titles) == 12
    assert all("not CIFAR-10" in title for title in looks.titles)


# Where figures go
@pytest.fixture
def unwritable(config):
    """A config in whose folder nothing can be saved, since it is a file."""
    config.output_dir.touch()
    return config


def test_in_a_notebook_a_figure_is_shown_even_if_it_cannot_be_saved(unwritable, monkeypatch):
    displayed = []
    monkeypatch.setattr(utils, "get_ipython", lambda: SimpleNamespace(kernel=1))
    monkeypatch.setattr(utils.display, "display", lambda *given, **_: displayed.extend(given))
    with pytest.warns(UserWarning, match="could not be written"):
        utils.plot_history(HISTORY, unwritable)
    (picture,) = displayed
    assert picture.data.startswith(b"\x89PNG")


def test_in_a_terminal_the_figures_file_is_told(config, capsys):
    utils.plot_history(HISTORY, config)
    assert "history.png" in capsys.readouterr().out


# The history
def test_history_is_titled_with_the_last_accuracy_not_the_best(make_config, shown):
    utils.plot_history(HISTORY, make_config("full"))
    assert shown[0][1] == "Test accuracy after epoch 3: 77.50 %", "and a full run has no caveat"


def test_learning_rates_stand_at_the_epochs_of_their_steps(config, shown):
    utils.plot_history({**HISTORY, "lr": [0.1] * 12}, config)
    rates = shown[0][0].axes[2].lines[0]
    assert rates.get_xdata() == pytest.approx(np.arange(1, 13) / 4), "4 steps an epoch"


def test_history_shows_train_and_test_and_every_learning_rate(config, shown):
    utils.plot_history(HISTORY, config)
    lines = [line for axis in shown[0][0].axes for line in axis.lines]
    assert [line.get_label().split()[0] for line in lines] == ["train", "test"] * 2 + ["peak:"]
    assert {axis.get_xlabel() for axis in shown[0][0].axes} == {"epoch"}
    assert lines[-1].get_xdata()[-1] == 3, "the last step ends the last epoch"
    assert [[*line.get_ydata()] for line in lines] == [HISTORY[name] for name in CURVES]


def find_ends(figure):
    """Return where a figure of a history says that CutOut ends, an entry for each axis."""
    lines = [line for axis in figure.axes for line in axis.lines]
    return [line.get_xdata()[0] for line in lines if line.get_label() == "CutOut ends"]


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({"epochs": 3, "cutout_free_fraction": 0.4}, 2),
        ({"epochs": 3, "cutout_free_fraction": 0.2}, None),  # there is none for 0.6 epochs
        ({"epochs": 3, "cutout_free_fraction": 0.4, "cutout_size": 0}, None),
        ({"epochs": 20}, None),  # it is not there yet
    ],
)
def test_a_line_shows_where_cutout_ends(make_config, shown, settings, end):
    config = make_config(**settings)
    utils.plot_history(utils.History(HISTORY, config), config)
    assert find_ends(shown[0][0]) == ([end] * 3 if end else [])


def test_of_a_training_loop_of_your_own_only_what_is_known_is_told(make_config, shown):
    config = make_config(epochs=3, cutout_free_fraction=0.4)
    utils.plot_history(utils.History(HISTORY, config), config)
    utils.plot_history(HISTORY, config)
    texts = []
    for figure, _ in shown:
        axes = figure.axes
        labels = [line.get_label() for axis in axes for line in axis.lines]
        texts.append("\n".join([*labels, *(axis.get_title() for axis in axes)]))
    for words in ("OneCycle", "augmented", "CutOut"):
        assert words in texts[0]
        assert words not in texts[1]


def test_no_line_is_drawn_where_we_cannot_know_of_cutout(make_config, shown):
    own = {"dataset": "mine", "classes": ("a", "b"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config = make_config("full", **own, epochs=3, cutout_free_fraction=0.4)
    utils.plot_history(utils.History(HISTORY, config), config)
    assert find_ends(shown[0][0]) == []


def test_no_line_is_drawn_if_images_did_not_pass_our_cutout(make_config, shown):
    config = make_config(epochs=3, cutout_free_fraction=0.4)
    utils.plot_history(utils.History(HISTORY, config, "others"), config)
    assert find_ends(shown[0][0]) == []


def test_history_of_a_single_epoch_is_seen(config, shown):
    utils.plot_history({name: values[:1] for name, values in HISTORY.items()}, config)
    curves = [line for axis in shown[0][0].axes[:2] for line in axis.lines]
    assert {line.get_marker() for line in curves} == {"."}, "a line needs two points"
    ticks = shown[0][0].axes[0].get_xticks()
    assert all(tick == int(tick) for tick in ticks), "no half epochs"


# Mistakes
NAMES = ("$5", "$10", "$20", "a_b^2", "x" * 60, "one of very many words " * 4, *"6789")
WRONG = (17, 4, 29)  # the positions of the mistakes, from the highest loss on
PREDICTED = (2, 9, 0)
TRUE = (7, 4, 9)


class Reader(nn.Linear):
    """Answer with the logits that stand in the first pixels of an image."""

    def forward(self, images):
        return images[:, 0, 0, :10]


@pytest.fixture
def answers():
    """27 images and labels; the logits stand in the first channel, the position in the second."""
    labels = torch.arange(30) % 10
    logits = 5.0 * torch.eye(10)[labels]
    logits[WRONG, PREDICTED] = torch.tensor([12.0, 8.0, 6.0])
    images = torch.zeros(30, 3, 32, 32)
    images[:, 0, 0, :10] = logits
    images[:, 1, 0, 0] = torch.arange(30)
    return [item for item in zip(images, labels, strict=True) if item[1] != 5]


@pytest.fixture
def reader():
    return Reader(1, 1)


def test_mistakes_are_found_in_all_batches_the_highest_loss_first(answers, reader):
    found = utils.get_misclassified(reader, DataLoader(answers, 8, shuffle=True))
    assert found.images[:, 1, 0, 0].tolist() == [*WRONG]
    assert found.labels.tolist() == [*TRUE]
    assert found.predictions.tolist() == [*PREDICTED]


def test_mistakes_have_their_probability_and_their_loss(answers, reader):
    found = utils.get_misclassified(reader, DataLoader(answers, 8))
    highest = np.exp([12.0, 8.0, 6.0])
    total = highest + np.exp(5.0) + 8  # the true class, and eight others
    np.testing.assert_allclose(found.probabilities, highest / total, rtol=1e-4)
    np.testing.assert_allclose(found.losses, np.log(total) - 5, rtol=1e-4)


def test_mistakes_have_their_position_in_the_test_set(answers, reader):
    found = utils.get_misclassified(reader, DataLoader(answers, 8))
    positions = [int(answers[index][0][1, 0, 0]) for index in found.indices]
    assert positions == [*WRONG]


def test_gallery_numbers_mistakes_and_names_both_classes_with_their_probabilities(
    answers, reader, make_config, shown
):
    found = utils.get_misclassified(reader, DataLoader(answers, 8))
    utils.plot_misclassified(found, make_config(classes=NAMES))
    figure, title = shown[0]
    headings = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(headings) == 3
    assert headings[0] == "1: $20 (99.9%)\ntrue: 7 (0.1%)"
    assert headings[1].startswith("2: 9 (95.0%)\n")
    assert headings[1].endswith("(4.7%)")
    labels = [label.get_text() for axis in figure.axes for label in axis.get_xticklabels()]
    assert not any("speaks" in label for label in labels), "no scale, since there are no maps"
    assert "3 of 3 mistakes" in title


def test_a_dollar_in_the_name_of_a_class_is_no_formula(answers, reader, make_config, shown):
    found = utils.get_misclassified(reader, DataLoader(answers, 8))
    utils.plot_misclassified(found, make_config(classes=NAMES))
    assert not shown[0][0].axes[0].title.get_parse_math()


@pytest.fixture
def matrix(answers, reader, make_config, shown):
    """The confusion matrix of the three mistakes: its axis, its numbers and its title."""
    loader = DataLoader(answers, 8, shuffle=True)
    utils.plot_confusion_matrix(reader, loader, make_config(classes=NAMES))
    figure, title = shown[0]
    axis = figure.axes[0]
    return SimpleNamespace(axis=axis, numbers=axis.get_images()[0].get_array(), title=title)


def test_confusion_matrix_has_a_row_for_each_true_class(matrix):
    assert matrix.numbers[TRUE, PREDICTED].tolist() == [1, 1, 1]
    assert matrix.numbers.trace() == 24
    assert matrix.numbers.sum() == 27


def test_confusion_matrix_names_the_pair_that_is_mixed_up_most(matrix):
    assert "1 of 3 mistakes" in matrix.title


def test_confusion_matrix_tells_the_accuracy_of_each_class(matrix):
    rows = [label.get_text() for label in matrix.axis.get_yticklabels()]
    assert rows[0] == "$5: 100.0 %"
    assert rows[7] == "7: 66.7 %"
    assert rows[5].endswith(": nan %"), "there are no images of this class"


def test_long_names_of_classes_are_cut_and_short_ones_are_not(matrix):
    columns = [label.get_text() for label in matrix.axis.get_xticklabels()]
    assert columns[:4] == [*NAMES[:4]]
    assert max(len(line) for column in columns for line in column.splitlines()) <= 16
    assert max(len(column.splitlines()) for column in columns) == 2


def test_confusion_matrix_of_100_classes_is_readable(make_config, shown):
    batches = [(torch.rand(500, 3, 32, 32), torch.arange(500) % 100)]
    config = make_config(classes=[f"class {i}" for i in range(100)])
    utils.plot_confusion_matrix(make_small_model(100), batches, config)
    axis = shown[0][0].axes[0]
    assert not [text for text in axis.texts if text.get_visible()], "no numbers"
    names = [f"class {i}" for i in range(0, 100, 5)]
    assert [label.get_text() for label in axis.get_xticklabels()] == names
    assert [label.get_text().split(":")[0] for label in axis.get_yticklabels()] == names


# Pictures
@pytest.fixture
def noise(make_config):
    """Ten images of random pixels, whose mean and deviation are not those of digits."""
    own = {"mean": (0.1, 0.4, 0.7), "std": (0.2, 0.3, 0.5), "cutout_size": 0, "crop_padding": 0}
    config = make_config(**own)
    pixels = torch.randint(0, 256, (10, 32, 32, 3), dtype=torch.uint8)
    labels = torch.arange(10)
    augment, normalize = utils.get_transforms(config)
    return SimpleNamespace(
        config=config,
        pixels=pixels,
        train_loader=utils.make_loader(pixels, labels, augment, config),
        test_loader=utils.make_loader(pixels, labels, normalize, config),
    )


@pytest.fixture
def pictures(noise, shown):
    """Return a function that lists the pictures of the figure that was drawn last."""
    return lambda: [axis.get_images()[0] for axis in shown[-1][0].axes if axis.get_images()]


def test_gallery_and_gradcam_show_the_images_as_they_were_stored(noise, pictures):
    model = make_small_model()
    found = utils.get_misclassified(model, noise.test_loader)
    expected = [*noise.pixels[found.indices] / 255]
    assert len(expected) > 2

    utils.plot_misclassified(found, noise.config)
    gallery = [picture.get_array() for picture in pictures()]
    np.testing.assert_allclose(gallery, expected, atol=1e-5)

    utils.plot_gradcam(model, found, noise.config, target_layer=model[0])
    gradcam = [picture.get_array() for picture in pictures()]
    colored = [image for image in gradcam if image.ndim == 3]
    np.testing.assert_allclose(colored, expected, atol=1e-5)


LONG = {
    "13 letters": ["hippopotamus" + letter for letter in "abcdefghij"],
    "CJK": ["\u98db\u884c\u6a5f" * 4] * 10,
    "two words": ["sulphur-crested cockatoo"] * 10,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_classes_do_not_run_into_each_other(make_config, noise, shown, kind):
    config = replace(noise.config, classes=tuple(LONG[kind]))
    loader = utils.make_loader(
        noise.pixels, torch.arange(10), noise.test_loader.dataset.transform, config
    )
    utils.plot_samples(loader, config)
    utils.plot_misclassified(utils.get_misclassified(make_small_model(), loader), config)
    for figure, _ in shown:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        titles = [axis.title for axis in figure.axes if axis.get_title()]
        renderer = canvas.get_renderer()
        boxes = [title.get_window_extent(renderer).bounds for title in titles]  # row after row
        for (x, _, width, _), (next_x, *_) in pairwise(boxes):
            assert next_x < x or x + width <= next_x


def test_long_names_that_begin_alike_stay_apart(make_config):
    cars = (
        "Chevrolet Silverado 1500 Regular Cab 2012",
        "Chevrolet Silverado 1500 Extended Cab 2012",
    )
    config = make_config("full", dataset="cars", classes=cars, mean=(0.5,) * 3, std=(0.5,) * 3)
    first, second = utils.wrap_names(config)
    assert first != second
    for name in (first, second):
        assert [len(line) <= 14 for line in name.split("\n")] == [True, True]


def test_samples_show_the_images_as_they_were_stored_and_augmented(noise, pictures):
    utils.plot_samples(noise.train_loader, noise.config)
    drawn = [picture.get_array() for picture in pictures()]
    np.testing.assert_array_equal(drawn[:10], noise.pixels)
    for augmented, image in zip(drawn[10:], noise.pixels.numpy() / 255, strict=True):
        mirrored = image[:, ::-1]
        assert min(abs(augmented - image).max(), abs(augmented - mirrored).max()) < 1e-5


def test_small_images_are_not_smoothed(noise, pictures):
    utils.plot_samples(noise.train_loader, noise.config)
    assert {picture.get_interpolation() for picture in pictures()} == {"nearest"}


def test_a_network_that_works_in_place_does_not_change_the_images(noise):
    images, labels = next(iter(noise.test_loader))
    before = images.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), *make_small_model())
    found = utils.get_misclassified(model, [(images, labels)])
    kept = found.images.clone()
    utils.plot_gradcam(model, found, noise.config, target_layer=model[1])
    assert torch.equal(images, before)
    assert torch.equal(found.images, kept)


# GradCAM
SQUARES = [(slice(i, i + 8), slice(i, i + 8)) for i in (0, 12, 24)]


@pytest.fixture
def explain(config, shown):
    """Return a function that draws GradCAM of two images with a red, a green and a blue square."""
    images = torch.zeros(2, 3, 32, 32)
    for channel, (rows, columns) in enumerate(SQUARES):
        images[:, channel, rows, columns] = 1
    labels = torch.tensor([1, 2])
    found = utils.Misclassified(images, labels, labels - 1, labels / 4, labels / 2, labels)

    def explain(model, layer):
        utils.plot_gradcam(model, found, config, target_layer=layer)
        axes = shown[-1][0].axes
        headings = [axis.get_title() for axis in axes]
        assert "speaks most" in axes[-1].get_xticklabels()[-1].get_text(), "a scale"
        assert axes[-1].collections[-1].get_cmap() is utils.HEAT
        maps = [axis.get_images()[1].get_array() for axis in axes if len(axis.get_images()) > 1]
        return headings, maps

    return explain


def test_gradcam_explains_each_image_for_its_own_two_classes(explain):
    """With 10 maps that, pooled, are the logits: GradCAM of class k is map k, exactly."""
    conv = nn.Conv2d(3, 10, 1, bias=False)
    conv.weight = nn.Parameter(torch.eye(10)[:, :3, None, None].clone())
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    headings, maps = explain(model.requires_grad_(False), conv)
    assert headings[:2] == ["1", "2"]
    assert headings[2:4] == ["predicted: 0", "predicted: 1"]
    assert headings[4:6] == ["true: 1", "true: 2"]
    means = [[heat[square].mean() for square in SQUARES] for heat in maps]
    np.testing.assert_allclose(means, np.eye(3)[[0, 1, 1, 2]], atol=0.1)


def test_gradcam_stands_in_rows_of_five_mistakes_with_the_numbers_of_the_gallery(noise, shown):
    model = make_small_model()
    found = utils.get_misclassified(model, noise.test_loader)
    utils.plot_gradcam(model, found, noise.config, model[0], count=7)
    rows = {}
    for axis in shown[-1][0].axes[:-1]:
        if axis.get_title():
            rows.setdefault(axis.get_subplotspec().rowspan.start, []).append(axis.get_title())
    assert rows[0] == ["1", "2", "3", "4", "5"]
    assert rows[3] == ["6", "7"]
    predictions = [f"predicted: {label}" for label in found.predictions[:7].tolist()]
    assert rows[1] + rows[4] == predictions
    assert rows[2] + rows[5] == [f"true: {label}" for label in found.labels[:7].tolist()]


@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0])
def test_a_spot_is_seen_on_images_of_any_brightness(brightness):
    figure, axis = plt.subplots(figsize=(1, 1), dpi=32)
    axis.set_axis_off()
    axis.set_position([0, 0, 1, 1])
    heat = np.zeros((32, 32))
    heat[8:24, 8:24] = 1
    utils.draw_heat(axis, np.full((32, 32, 3), brightness), heat)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255.0
    plt.close(figure)
    spot = pixels[16, 16]
    around = pixels[2, 2]
    assert spot[0] - spot[2] > 0.5, "red"
    assert np.ptp(around) < 0.05, "grey"
    assert np.abs(spot - around).max() > 0.25


def test_gradcam_is_the_same_when_what_follows_works_in_place(explain):
    plain = make_small_model()
    in_place = make_small_model()
    in_place[2].inplace = True
    _, first = explain(plain, plain[1])
    _, second = explain(in_place, in_place[1])
    assert np.ptp(first) > 0.5
    np.testing.assert_array_equal(first, second)


NO_MAPS = {
    "channels last": (lambda maps: maps.permute(0, 2, 3, 1), 1),
    "three dimensions": (lambda maps: maps.flatten(2), 1),
    "a list": (lambda maps: [maps], 1),
    "called twice": (lambda maps: maps, 2),
    "never called": (lambda maps: maps, 0),
}


@pytest.mark.parametrize("case", NO_MAPS)
def test_a_layer_without_maps_is_told_what_is_needed(explain, case):
    forward, calls = NO_MAPS[case]
    layer = nn.ReLU()
    layer.forward = forward
    model = make_small_model()

    def run(images):
        for _ in range(calls):
            layer(images)
        return images[:, 0]

    model.forward = run
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\).*once"):
        explain(model, layer)


def test_maps_that_are_too_coarse_are_refused_with_a_layer_that_will_do(explain):
    model = ResNet18()
    with pytest.raises(ValueError, match=r"4 x 4.*model\.layer3\[-1\].*8 x 8"):
        explain(model, model.layer4[-1])


@pytest.mark.parametrize("image_size", [32, 64, (64, 32)])
def test_maps_are_measured_for_images_of_any_size(image_size):
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    height, width = np.broadcast_to(image_size, 2)
    assert utils.get_map_size(model, model[0], image_size) == (height // 4, width // 4)


def test_maps_are_measured_in_float32_where_others_are_native(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    kinds = []
    model[0].register_forward_hook(lambda layer, inputs, maps: kinds.append(maps.dtype))
    assert utils.get_map_size(model, model[0]) == (8, 8)
    assert kinds == [torch.float32]


def test_a_network_that_knows_one_size_only_is_measured_with_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(256, 2))
    assert utils.get_map_size(model, model[0], 64) == (8, 8)


def test_more_answers_than_classes_are_told_by_gallery_and_gradcam(make_config):
    own = {"dataset": "mine", "classes": [*"abcd"], "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config = make_config("full", **own)
    model = make_small_model()
    batches = [(torch.randn(40, 3, 32, 32), torch.arange(40) % 4)]
    found = utils.get_misclassified(model, batches)
    assert found.predictions.max() > 3
    sentence = r"^There is a prediction \d, but predictions must be 0 to 3\.$"
    with pytest.raises(ValueError, match=sentence):
        utils.plot_misclassified(found, config)
    with pytest.raises(ValueError, match=sentence):
        utils.plot_gradcam(model, found, config, model[0])


def test_a_model_without_a_mistake_is_told_by_gallery_and_gradcam(model, config, capsys):
    none = torch.zeros(0, dtype=torch.int64)
    nothing = utils.Misclassified(torch.zeros(0, 3, 32, 32), none, none, none, none, none)
    utils.plot_misclassified(nothing, config)
    utils.plot_gradcam(model, nothing, config, target_layer=model[0])
    assert capsys.readouterr().out.count("no misclassified images to show") == 2
