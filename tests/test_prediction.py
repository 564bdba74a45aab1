"""Your own picture: what the network gets of it, whatever its format, and what the figure says."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import utils
from helpers import make_small_model, take_snapshot

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUARTERS = [(RED, GREEN), (BLUE, WHITE)]  # as we look at them


def make_picture(colors=QUARTERS, side=32):
    """Return a picture of squares, given by the rows of their colours."""
    pixels = np.uint8(colors).repeat(side, 0).repeat(side, 1)
    return Image.fromarray(pixels)


def get_corners(images):
    """Return the colours of one square image's quarters, as in QUARTERS, from 0 to 255."""
    size = images.shape[-1]
    places = (size // 4, 3 * size // 4)
    pixels = images[0].permute(1, 2, 0).numpy()
    return np.array([[pixels[y, x] for x in places] for y in places])


def save(picture, tmp_path, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


# --- What the network gets ------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.bmp", "a.tiff"])
def test_a_picture_of_any_format_is_seen_as_it_is(name, tmp_path):
    path = save(make_picture(), tmp_path, name)
    images = utils.read_picture(path, 32)
    assert (images.dtype, images.shape) == (torch.uint8, (1, 3, 32, 32))
    np.testing.assert_allclose(get_corners(images), QUARTERS, atol=12)


@pytest.mark.parametrize(
    "kind",
    [
        str,
        Path,
        lambda path: f" '{path}'",
        Image.open,
        lambda path: io.BytesIO(path.read_bytes()),
        Path.read_bytes,
    ],
)
def test_a_picture_is_a_path_a_file_its_bytes_or_an_image(kind, tmp_path):
    given = kind(save(make_picture(), tmp_path, "a.png"))
    np.testing.assert_array_equal(get_corners(utils.read_picture(given, 32)), QUARTERS)


@pytest.mark.parametrize("size", [8, 32, 64])
def test_the_network_gets_the_size_that_it_knows(size):
    images = utils.read_picture(make_picture(), size)
    assert images.shape == (1, 3, size, size)
    np.testing.assert_allclose(get_corners(images), QUARTERS, atol=1)


TURNS = {  # EXIF's number: how the camera's pixels become the upright picture
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: np.rot90(pixels, 2),
    6: lambda pixels: np.rot90(pixels, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}


@pytest.mark.parametrize("number", TURNS)
def test_a_photo_is_turned_as_the_camera_was_held(number, tmp_path):
    stored = Image.fromarray(np.ascontiguousarray(TURNS[number](np.array(make_picture()))))
    exif = Image.Exif()
    exif[0x0112] = number
    path = save(stored, tmp_path, "photo.jpg", exif=exif, quality=95)
    np.testing.assert_allclose(get_corners(utils.read_picture(path, 32)), QUARTERS, atol=12)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_colours_are_the_same_in_every_mode(mode):
    picture = make_picture().convert(mode)
    np.testing.assert_allclose(get_corners(utils.read_picture(picture, 32)), QUARTERS, atol=3)


GREYS = np.array([[0, 85], [170, 255]], np.uint8)
GREY_PICTURES = {
    "L": GREYS,
    "I;16": np.uint16(GREYS) * 257,
    "I": np.int32(GREYS),
    "I to 65535": np.int32(GREYS) * 257,
    "F to 1": np.float32(GREYS) / 255,
    "F to 255": np.float32(GREYS),
    "F beyond": np.float32(GREYS) * 1000,
}


@pytest.mark.parametrize("kind", GREY_PICTURES)
def test_grey_with_white_in_it_is_as_bright_whatever_its_numbers(kind):
    picture = Image.fromarray(GREY_PICTURES[kind].repeat(32, 0).repeat(32, 1))
    corners = get_corners(utils.read_picture(picture, 32))
    np.testing.assert_allclose(corners, np.repeat(GREYS[..., None], 3, axis=2), atol=1)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.int32, 255), (np.float32, 1)])
def test_a_dark_grey_picture_stays_dark(dtype, white):
    picture = Image.fromarray(np.full((40, 40), white * 0.2).astype(dtype))
    assert utils.read_picture(picture, 32).unique().tolist() in ([50], [51])


def test_a_dark_picture_of_16_bits_is_not_brightened():
    picture = Image.fromarray(np.full((40, 40), 200, np.uint16))
    assert utils.read_picture(picture, 32).unique().tolist() == [0]  # 200 of 65,535


def test_grey_below_black_is_black():
    pixels = np.float32([[-3, 0], [0, 1]]).repeat(32, 0).repeat(32, 1)
    corners = get_corners(utils.read_picture(Image.fromarray(pixels), 32))
    assert corners[..., 0].tolist() == [[0, 0], [0, 255]]


def test_what_is_transparent_is_white():
    picture = make_picture([(RED, GREEN), (BLUE, BLUE)]).convert("RGBA")
    alpha = np.uint8([[255, 255], [255, 0]]).repeat(32, 0).repeat(32, 1)
    picture.putalpha(Image.fromarray(alpha))
    np.testing.assert_array_equal(get_corners(utils.read_picture(picture, 32)), QUARTERS)


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_of_a_long_picture_is_seen(turned):
    pixels = np.array(make_picture([(WHITE, RED, BLUE, WHITE)], side=32).resize((128, 64)))
    if turned:
        pixels = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    seen = utils.read_picture(Image.fromarray(pixels), 32)[0].permute(1, 2, 0).numpy()
    if turned:
        seen = seen.transpose(1, 0, 2)
    np.testing.assert_allclose([seen[16, 4], seen[16, -5]], [RED, BLUE], atol=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 3), (3000, 2000)])
def test_a_picture_of_any_size_and_shape_is_seen(size):
    images = utils.read_picture(Image.new("RGB", size, RED), 32)
    assert images.shape == (1, 3, 32, 32)
    np.testing.assert_array_equal(get_corners(images), [[RED] * 2] * 2)


def make_png():
    """Return the bytes of a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


NO_PICTURES = {  # what to do to a path
    "a text": lambda path: path.write_text("This is no picture."),
    "an empty file": lambda path: path.touch(),
    "half of a file": lambda path: path.write_bytes(make_png()[:6000]),
    "a damaged file": lambda path: path.write_bytes(make_png().replace(b"IDAT", b"\x9a\x92\xf3,")),
    "a missing file": lambda path: None,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_told_in_one_sentence(kind, config, model, tmp_path):
    path = tmp_path / "picture.png"
    NO_PICTURES[kind](path)
    with pytest.raises(ValueError, match=r"^[^\n]*picture\.png is no picture[^\n]*$"):
        utils.plot_prediction(model, path, config)
    assert not (config.output_dir / "prediction.png").exists()


@pytest.mark.parametrize("given", [np.zeros((900, 900, 3)), torch.zeros(3, 99, 99), b"x" * 10**6])
def test_what_is_no_picture_is_told_shortly(given):
    with pytest.raises(ValueError, match=r"^[^\n]*no picture[^\n]*give a path[^\n]*$") as caught:
        utils.read_picture(given, 32)
    assert len(str(caught.value)) < 600


def test_a_picture_that_is_too_large_is_told():
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "BMP")
    header = bytearray(file.getvalue())
    header[18:26] = (100_000).to_bytes(4, "little") * 2  # width and height
    with pytest.raises(ValueError, match=r"^[^\n]*no picture[^\n]*DecompressionBomb[^\n]*$"):
        utils.read_picture(io.BytesIO(bytes(header)), 32)


# --- What the figure says -------------------------------------------------------------------------
class Answer(nn.Module):
    """Answer with the same logits to every image, and keep the images."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        self.images = images
        return self.logits.expand(len(images), -1)


def get_bars(figure):
    """Return the names beside the bars, their lengths and their labels, from the top down."""
    axis = figure.axes[-1]
    assert axis.yaxis_inverted(), "the first stands on top"
    names = [label.get_text() for label in axis.get_yticklabels()]
    widths = [bar.get_width() for bar in axis.patches]
    return names, widths, [text.get_text() for text in axis.texts]


def test_the_three_likeliest_classes_stand_with_their_probabilities(config, shown):
    logits = torch.full((10,), -20.0)
    logits[[7, 2, 5]] = torch.tensor([0.6, 0.3, 0.1]).log()
    utils.plot_prediction(Answer(logits.tolist()), make_picture(), config)
    names, widths, labels = get_bars(shown[0][0])
    assert names == ["7", "2", "5"]
    assert widths == pytest.approx([60, 30, 10], abs=0.01)
    assert labels == ["60.0 %", "30.0 %", "10.0 %"]
    assert shown[0][1].startswith("7: 60%")
    assert (config.output_dir / "prediction.png").exists()


def test_two_classes_are_shown_if_there_are_no_more(make_config, shown):
    own = {"dataset": "mine", "classes": ("ant", "bee"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    utils.plot_prediction(Answer([0.0, 1.0]), make_picture(), make_config("full", **own))
    assert get_bars(shown[0][0])[0] == ["bee", "ant"]


def test_the_network_gets_the_picture_normalised_as_in_training(make_config, shown):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    config = make_config(mean=mean, std=std)
    model = Answer([0.0] * 10)
    utils.plot_prediction(model, make_picture(), config)
    corners = get_corners(model.images)
    np.testing.assert_allclose(corners, (np.array(QUARTERS) / 255 - mean) / std, atol=1e-5)
    seen = shown[0][0].axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(seen[[8, 24]][:, [8, 24]], np.array(QUARTERS) / 255, atol=1e-5)


def test_gradcam_lies_over_the_picture_for_the_likeliest_class(config, shown):
    """With 10 maps that, pooled, are the logits: GradCAM of class k is map k, here a channel."""
    conv = nn.Conv2d(3, 10, 1)
    conv.weight = nn.Parameter(torch.eye(10)[:, :3, None, None].clone())
    conv.bias = nn.Parameter(torch.eye(10)[2] * 9)  # blue, channel 2, is the likeliest
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    picture = make_picture([(RED, BLUE), (RED, RED)])
    utils.plot_prediction(model, picture, config, target_layer=conv)
    first, second, _ = shown[0][0].axes
    assert second.get_title() == "what speaks for 2"
    grey, heat = (image.get_array() for image in second.get_images())
    seen = first.get_images()[0].get_array()
    np.testing.assert_allclose(grey, 0.3 + 0.7 * seen.mean(2), err_msg="the same picture")
    assert heat[4:12, 20:28].min() > 0.8, "the blue quarter"
    assert heat[20:28].max() < 0.2


def test_a_layer_of_coarse_maps_is_refused(config, model):
    with pytest.raises(ValueError, match=r"only 4 x 4 pixels: choose an earlier layer"):
        utils.plot_prediction(model, make_picture(), config, target_layer=model[3])
    assert not config.output_dir.exists()


def test_without_a_layer_there_is_no_heat_map(config, shown, model):
    utils.plot_prediction(model, make_picture(), config)
    assert len(shown[0][0].axes) == 2


def test_a_look_at_a_picture_changes_nothing(config):
    model = make_small_model()
    model[1].eval()
    before = take_snapshot(model)
    utils.plot_prediction(model, make_picture(), config, target_layer=model[0])
    assert take_snapshot(model) == before


def test_an_answer_that_is_no_number_is_told(config):
    with pytest.raises(FloatingPointError, match="infinite or NaN"):
        utils.plot_prediction(Answer([float("nan")] * 10), make_picture(), config)
    assert not config.output_dir.exists()


def test_the_answer_is_that_of_predict(config, shown):
    model = make_small_model()
    pixels = utils.read_picture(make_picture(), 32)
    batch = (utils.Normalize(config.mean, config.std)(pixels), torch.zeros(1, dtype=torch.int64))
    logits, _ = utils.predict(model, [batch])
    utils.plot_prediction(model.train(), make_picture(), config)
    expected = 100 * logits.softmax(1)[0].sort(descending=True).values[:3]
    assert get_bars(shown[0][0])[1] == pytest.approx(expected.tolist(), abs=1e-3)
