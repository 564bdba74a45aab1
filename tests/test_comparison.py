"""Several runs in one figure: which is the best, how far each is, and in what they differ."""

import json
from types import SimpleNamespace

import pytest

import utils
from helpers import save_run


@pytest.fixture
def compare(tmp_path, make_config, shown):
    """Return a function that saves runs and compares them.

    It takes the accuracy per epoch of each run, and its settings, by the run's name, and returns
    the figure, the texts of its legends, and the lines of its title.
    """

    def compare(**runs):
        folders = {}
        for name, (accuracies, changes) in runs.items():
            folders[name] = tmp_path / name
            others = {key: changes[key] for key in utils.RECORD if key in changes}
            settings = {key: changes[key] for key in changes if key not in utils.RECORD}
            save_run(folders[name], **{"epochs": len(accuracies), **settings})
            set_history(folders[name], accuracies, others)
        utils.plot_comparison(folders, make_config())
        figure, title = shown[-1]
        legends = [[text.get_text() for text in a.get_legend().get_texts()] for a in figure.axes]
        return SimpleNamespace(figure=figure, legends=legends, title=title.split("\n"))

    return compare


def set_history(folder, accuracies, others):
    """Let a run have these accuracies, and losses that are a hundredth of the mistakes."""
    (folder / "checkpoint.pt").unlink()
    record = json.loads((folder / "history.json").read_text())
    done = len(accuracies)
    record["history"] = {name: [1.0] * done for name in utils.HISTORY}
    record["history"]["test_accuracy"] = accuracies
    record["history"]["test_loss"] = [(100 - accuracy) / 100 for accuracy in accuracies]
    (folder / "history.json").write_text(json.dumps(record | others))


def test_the_best_run_stands_first_by_its_last_epoch(compare):
    drawn = compare(early=([90.0, 60.0], {}), best=([50.0, 80.0], {}), middle=([50.0, 70.0], {}))
    assert drawn.legends[0] == ["80.00 %: best", "70.00 %: middle", "60.00 %: early"]
    assert drawn.legends[1] == ["0.2000: best", "0.3000: middle", "0.4000: early"]
    for axis in drawn.figure.axes:
        assert all([*line.get_xdata()] == [1, 2] for line in axis.lines)
    assert [*drawn.figure.axes[0].lines[-1].get_ydata()] == [90, 60]
    assert [*drawn.figure.axes[1].lines[-1].get_ydata()] == pytest.approx([0.1, 0.4])


def test_a_run_that_is_not_finished_says_so_and_is_drawn_as_far_as_it_is(compare):
    drawn = compare(whole=([50.0, 60.0, 70.0], {}), part=([50.0, 65.0], {"epochs": 20}))
    assert drawn.legends[0] == ["70.00 %: whole", "65.00 %: part (2 of 20 epochs)"]
    assert [*drawn.figure.axes[0].lines[1].get_xdata()] == [1, 2]
    assert drawn.figure.axes[0].get_xlim()[1] < 4, "no wider than the runs are"


def test_the_same_settings_are_told(compare):
    drawn = compare(a=([50.0], {}), b=([60.0], {"seed": 0}))
    assert drawn.title[1] == "the same settings"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cutout_size": 8}, "cutout size: 8, 16"),
        ({"seed": 3}, "seed: 3, 0"),
        ({"max_lr": 0.0212345}, "peak: 0.0212, 0.03"),
        ({"cutout_size": 8, "optimizer": "sgd"}, "cutout size: 8, 16; optimizer: sgd, muon"),
        ({"machine": "N"}, "machine: N, M"),
        ({"trained_before": True}, "trained before: True, False"),
        ({"commit": "fedcba9"}, "code: fedcba9, abc1234"),
        ({"number of steps": 7}, "number of steps: 7, None"),
        ({"epochs": 2, "number of steps": 7}, "epochs: 2, 1"),
        ({"network": "ResNet 1234"}, "network: ResNet 1234, None"),
    ],
)
def test_all_that_differs_is_told_in_the_order_of_the_legend(compare, settings, told):
    drawn = compare(second=([50.0], {}), first=([60.0], settings))
    assert " ".join(drawn.title[1:]) == told


def test_three_runs_are_told_in_the_order_of_the_legend(compare):
    drawn = compare(
        third=([50.0], {"seed": 5}), first=([70.0], {"seed": 6}), second=([60.0], {"seed": 7})
    )
    assert drawn.title[1] == "seed: 6, 7, 5"


def test_a_run_that_is_read_from_its_checkpoint_is_no_other(tmp_path, config, shown):
    for name in ("a", "b"):
        save_run(tmp_path / name)
    (tmp_path / "b" / "history.json").unlink()
    utils.plot_comparison({name: tmp_path / name for name in ("a", "b")}, config)
    assert shown[0][1].endswith("the same settings")


def test_a_machine_stands_once_however_many_runs_it_made(compare):
    long = "one NVIDIA GPU with a name that is not short at all"
    drawn = compare(
        a=([50.0], {"machine": long}), b=([60.0], {"machine": long}), c=([70.0], {"machine": "N"})
    )
    assert " ".join(drawn.title).count(long) == 1


def test_many_differences_do_not_run_off_the_figure(compare):
    settings = dict.fromkeys(("momentum", "label_smoothing", "weight_decay"), 0.123456789)
    settings |= {"crop_padding": 2, "cutout_size": 9, "anneal_strategy": "cos", "seed": 123456}
    drawn = compare(a=([50.0], {}), b=([60.0], settings))
    assert all(name.replace("_", " ") in " ".join(drawn.title) for name in settings)
    drawn.figure.canvas.draw()
    box = drawn.figure._suptitle.get_window_extent()
    assert box.x0 > 0
    assert box.x1 < drawn.figure.bbox.width


def test_a_hundred_classes_leave_room_for_the_curves(compare):
    classes = [f"class {i}" for i in range(100)]
    own = {"dataset": "mine", "classes": classes, "image_size": 64, "cutout_size": 40}
    drawn = compare(a=([50.0], {}), b=([60.0], own))
    drawn.figure.canvas.draw()
    assert drawn.figure.axes[0].get_window_extent().height > 0.5 * drawn.figure.bbox.height


def test_the_figure_tells_of_their_data_not_of_yours(compare):
    drawn = compare(a=([50.0], {}), b=([60.0], {}))
    assert "digits" not in " ".join(drawn.title), "though the config is of the quick profile"
    quick = {"profile": "quick", "dataset": "handwritten digits"}
    drawn = compare(c=([50.0], {**quick}), d=([60.0], {**quick}))
    assert "not CIFAR-10" in drawn.title[-1]


def test_names_may_be_long_or_begin_with_an_underscore(compare):
    long = "a run with" + " many words" * 18
    drawn = compare(**{"_private": ([50.0], {}), long: ([60.0], {})})
    assert drawn.legends[0][1] == "50.00 %: _private"
    drawn.figure.canvas.draw()
    for axis in drawn.figure.axes:
        assert axis.get_window_extent().width > 0.3 * drawn.figure.bbox.width


def test_a_single_epoch_is_seen(compare):
    drawn = compare(a=([50.0], {}), b=([60.0], {}))
    assert {line.get_marker() for axis in drawn.figure.axes for line in axis.lines} == {"."}


def test_a_folder_without_a_run_is_told(tmp_path, config):
    save_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^There is no run in [^\n]*nowhere[^\n]*output_dir"):
        utils.plot_comparison({"a": tmp_path / "run", "b": tmp_path / "nowhere"}, config)
    assert not (config.output_dir / "comparison.png").exists()


@pytest.mark.parametrize("runs", [{}, ["outputs/full"], "outputs/full"])
def test_runs_without_names_are_told(runs, config):
    with pytest.raises(ValueError, match=r"^Give each run a name"):
        utils.plot_comparison(runs, config)


def test_runs_of_other_images_than_the_configs_are_compared(tmp_path, make_config, shown):
    for name in ("a", "b"):
        save_run(tmp_path / name)
    own = {"dataset": "mine", "classes": ("a", "b"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config = make_config("full", **own, image_size=64, cutout_size=40)
    utils.plot_comparison({name: tmp_path / name for name in ("a", "b")}, config)
    assert len(shown) == 1


def test_a_run_of_another_program_is_no_run(tmp_path, config):
    save_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    (tmp_path / "run" / "history.json").write_text('{"epochs": 3}')
    with pytest.raises(ValueError, match="There is no run in"):
        utils.plot_comparison({"a": tmp_path / "run"}, config)
