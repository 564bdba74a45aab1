"""The benchmarks: what they promise, on a stand-in for CIFAR-10 and with a small network."""

import copy
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from functools import partial
from unittest.mock import DEFAULT, Mock, patch

import pytest
import torch
import torchvision
from torch import nn

import utils
from benchmarks import common, edges, record, report, speed, sweep, verify
from helpers import ROOT, make_images, make_network, save_run
from models.resnet import ResNet, ResNet18

TRAINED = ("epochs=2", "batch_size=45", "max_lr=0.02")
BLOCKS = "".join(f"<!-- begin: {key} -->\n<!-- end: {key} -->\n" for key in report.get_blocks({}))
MEAN = {"mean": (0.5, 0.5, 0.5)}  # as a run has it
ROW_OF_MEAN = {"mean": [0.5, 0.5, 0.5]}  # as a row has it
SHORT = {"half_size": True, "epochs": 5, "cutout_free_fraction": 0, "anneal_strategy": "cos"}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Let the scripts work in a folder of their own, with stand-ins for data and network."""
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", partial(make_images, 10))
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for script in (common, speed, verify):
        monkeypatch.setattr(script, "ResNet18", make_network)
    for name in ("train", "predict", "range_test"):
        monkeypatch.setattr(utils, name, Mock(wraps=getattr(utils, name)))
    (tmp_path / "images").mkdir()
    (tmp_path / "README.md").write_text(BLOCKS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(monkeypatch):
    """Return a function that runs a script with arguments, and returns its status."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        return script.main()

    return run


def count_images(spy):
    """Return the numbers of images in the calls of utils.train or utils.predict."""
    return [len(call.args[1].dataset) for call in spy.call_args_list]


def read_rows(part):
    return common.read_results().get(part, [])


def read_readme():
    return (common.ROOT / "README.md").read_text(encoding="utf-8")


# --- Settings and seeds ---------------------------------------------------------------------------
def test_sweep_trains_every_combination_with_every_seed(call):
    call(sweep, "momentum=0.8,0.9", *TRAINED, "--seeds=2")
    found = [(row["settings"]["momentum"], row["seed"]) for row in read_rows("sweep")]
    assert found == [(0.8, 0), (0.9, 0), (0.8, 1), (0.9, 1)]
    assert count_images(utils.train) == 8 * [90]


def test_what_is_in_results_is_not_trained_again(call):
    call(sweep, "momentum=0.8,0.9", *TRAINED, "--seeds=1")
    rows = read_rows("sweep")
    call(sweep, *TRAINED, "momentum=0.9,0.8", "--seeds=1")  # in another order
    assert read_rows("sweep") == rows
    assert utils.train.call_count == 4


def test_sweep_never_looks_at_the_test_images(call):
    call(sweep, *TRAINED, "--seeds=2")
    assert count_images(utils.predict) == 4 * [10], "the held-out tenth, not the 30 test images"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["max_lr=0.02", "max_lr=0.04"], "max_lr is given twice"),
        (["max_lr=0.02,2e-2"], "twice"),
        (["seed=3"], "--seeds"),
        (["output_dir=here"], "output_dir"),
        (["momemtum=0.9"], "no setting 'momemtum'"),
        (["momentum=0.9,1.5"], "momentum is 1.5"),
        (["train_images=none"], "train_images is 'none'"),
        (["optimizer=adam_who"], "optimizer is 'adam_who'"),
        (["device=abacus"], "abacus"),
        (["max_lr=high"], "max_lr is 'high'"),
        (["max_lr=nan"], "max_lr is nan"),
        (["max_lr=0"], "max_lr is 0"),
        (["half_size=2"], "half_size is 2"),
        (["max_lr"], "NAME=VALUE"),
        (["max_lr="], "NAME=VALUE"),
        (["=0.02"], "NAME=VALUE"),
        (["max_lr=0.02,"], "NAME=VALUE"),
        (["max_lr=0.02,", "0.04"], "NAME=VALUE"),
        (["max_lr= 0.02"], "NAME=VALUE"),
        (["max_lr =0.02"], "NAME=VALUE"),
        (["max_lr=0.02=0.04"], "NAME=VALUE"),
        ([""], "NAME=VALUE"),
        (["--seeds=0"], "--seeds is 0"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_before_anything_is_trained(
    arguments, words, call, capsys
):
    with pytest.raises(SystemExit) as stopped:
        call(sweep, *TRAINED[:2], *arguments)
    assert stopped.value.code == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert words in told
    assert utils.train.call_count == 0


@pytest.mark.parametrize("script", [sweep, record, speed, report, verify, edges])
def test_help_does_nothing_else(script, call, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(script, "--help")
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out
    assert utils.train.call_count == 0
    assert sorted(path.name for path in common.ROOT.iterdir()) == ["README.md", "images"]


# --- Training -------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", [sweep, record])
def test_after_ctrl_c_a_new_call_goes_on_where_it_stopped(script, call):
    part = script.__name__.removeprefix("benchmarks.")
    utils.train.side_effect = [DEFAULT, DEFAULT, DEFAULT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        call(script, *TRAINED, "--seeds=2")
    assert [row["seed"] for row in read_rows(part)] == [0], "half of a run is no row"

    utils.train.side_effect = None
    call(script, *TRAINED, "--seeds=2")
    assert [row["seed"] for row in read_rows(part)] == [0, 1]
    assert utils.train.call_count == 5, "only the epoch that was missing"


def test_the_folder_of_a_run_goes_when_its_row_is_there(call, root):
    call(sweep, *TRAINED, "--seeds=1")
    assert not list(root.rglob("checkpoint.pt"))


@pytest.mark.parametrize("script", [sweep, record])
def test_half_of_a_run_of_other_code_is_told_and_kept(script, call, root, capsys):
    utils.train.side_effect = [DEFAULT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        call(script, *TRAINED, "--seeds=1")
    (path,) = root.rglob("history.json")
    path.write_text(path.read_text().replace('"momentum": 0.9', '"momentum": 0.8'))  # its default
    with pytest.raises(SystemExit):
        call(script, *TRAINED, "--seeds=1")
    *_, told = capsys.readouterr().err.splitlines()
    assert f"{path.parent} holds a run of other code" in told
    assert "delete it" in told
    assert path.exists()


def test_record_trains_on_all_images_and_tests_once_after_the_end(call):
    call(record, *TRAINED, "--seeds=1")
    (row,) = read_rows("record")
    assert count_images(utils.train) == [100, 100]
    assert row["test_images"] == 30
    *looks, _mirrored = utils.predict.call_args_list
    assert [len(look.args[1].dataset) for look in looks] == [10, 10, 30], "probes, and the test"


class Left(nn.Linear):
    """Answer 1 when the left column is bright, and 0, more surely, when the right one is."""

    def forward(self, images):
        return torch.stack([3 * images[:, 0, 0, -1], images[:, 0, 0, 0]], dim=1)


@pytest.fixture
def left_batch():
    """Four images that are bright at the left; the last of them is labelled 0."""
    images = torch.zeros(4, 3, 32, 32)
    images[:, :, :, 0] = 1
    return images, torch.tensor([1, 1, 1, 0])


def test_scores_count_both_mirror_images_together(left_batch):
    row = record.score(Left(1, 1), [left_batch], set())
    assert row["accuracy"] == 75
    assert row["mirrored_accuracy"] == 25


def test_near_duplicates_are_left_out(left_batch, tmp_path):
    (tmp_path / "near.csv").write_text("TestID,other\n3,x\n")
    near_duplicates = record.read_near_duplicates(str(tmp_path / "near.csv"))
    row = record.score(Left(1, 1), [left_batch], near_duplicates)
    assert row["without_near_duplicates"] == 100


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n", "TestID\nfrog\n"])
def test_a_list_of_near_duplicates_that_is_none_is_refused_before_the_training(
    content, call, tmp_path, capsys
):
    if content:
        (tmp_path / "near.csv").write_text(content)
    with pytest.raises(SystemExit):
        call(record, *TRAINED, "--near-duplicates", "near.csv")
    assert "TestID" in capsys.readouterr().err
    assert utils.train.call_count == 0


@pytest.fixture
def halves(make_config):
    """Two splits of the same 100 training images, whose first pixels are their numbers."""
    config = make_config("full", batch_size=10)
    loader, _ = utils.get_dataloaders(config)
    loader.dataset.images[:, 0, 0, 0] = torch.arange(100)
    return common.split(loader, config), common.split(loader, config)


def test_the_split_uses_every_image_once(halves):
    (kept, held_out), _ = halves
    numbers = torch.cat([part.dataset.images[:, 0, 0, 0] for part in (kept, held_out)])
    assert sorted(numbers.tolist()) == list(range(100))


def test_the_split_holds_out_a_tenth_of_each_class(halves):
    (_, held_out), _ = halves
    assert held_out.dataset.labels.bincount().tolist() == [1] * 10


def test_the_held_out_images_are_always_the_same_and_not_augmented(halves):
    (_, first), (_, second) = halves
    first_images = torch.cat([images for images, _ in first])
    second_images = torch.cat([images for images, _ in second])
    assert torch.equal(first_images, second_images)


def test_half_size_reaches_the_network(call):
    call(sweep, "half_size=true", *TRAINED, "--seeds=1")
    model, loader = utils.train.call_args.args[:2]
    seen = []
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    model(next(iter(loader))[0])
    assert seen == [16]


def test_without_max_lr_the_peak_is_that_of_the_curve_in_the_row(call):
    call(sweep, "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    (row,) = read_rows("sweep")
    assert row["max_lr"] == utils.choose_peak(row["finder"]["lr"], row["finder"]["loss"], "muon")
    assert utils.range_test.call_count == 1


def test_a_run_that_goes_on_does_not_search_its_peak_again(call):
    utils.train.side_effect = [DEFAULT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        call(sweep, "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    utils.train.side_effect = None
    call(sweep, "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    (row,) = read_rows("sweep")
    assert row["finder"]["lr"]
    assert utils.range_test.call_count == 1


def test_a_run_that_goes_on_records_the_peak_that_it_used(call, monkeypatch):
    utils.train.side_effect = [DEFAULT, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        call(sweep, "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    utils.train.side_effect = None
    monkeypatch.setitem(utils.OPTIMIZERS["muon"], "peak_factor", 3)
    call(sweep, "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    (row,) = read_rows("sweep")
    lowest = utils.smooth(row["finder"]["loss"]).argmin()
    assert row["max_lr"] == pytest.approx(2 * row["finder"]["lr"][lowest])


def test_a_run_that_diverges_is_noted_and_the_sweep_goes_on(call):
    call(sweep, *TRAINED[:2], "max_lr=0.02,1e30,0.04", "--seeds=1")
    first, second, third = read_rows("sweep")
    assert second["diverged"] is True
    assert "accuracy" not in second
    assert "accuracy" in first
    assert "accuracy" in third


def test_a_run_without_a_peak_is_noted_too(call):
    utils.range_test.side_effect = [([1, 2, 3], [4.0, 5.0, 6.0])]
    call(sweep, *TRAINED[:2], "--seeds=1")
    (row,) = read_rows("sweep")
    assert row["diverged"] is True


def test_a_run_that_diverges_at_the_peak_of_its_finder_keeps_that_peak(call):
    utils.train.side_effect = FloatingPointError("The loss became inf")
    call(sweep, "lr_finder_steps=20", *TRAINED[:2], "--seeds=1")
    (row,) = read_rows("sweep")
    assert row["diverged"] is True
    assert row["max_lr"] == utils.choose_peak(row["finder"]["lr"], row["finder"]["loss"], "muon")
    assert row["machine"]


def test_a_run_that_diverged_is_not_tried_again(call):
    for _ in range(2):
        call(sweep, *TRAINED[:2], "max_lr=1e30", "--seeds=1")
    assert len(read_rows("sweep")) == 1
    assert utils.train.call_count <= 2, "the epochs of one run"


def test_speed_replaces_its_rows(call, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", torchvision.datasets.cifar.CIFAR10)
    for _ in range(2):
        call(speed, "--images=100", "--batch-size=8")
    rows = read_rows("speed")
    assert ["step" in row["what"] for row in rows] == [False, True]
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in rows)
    assert all("commit" in row for row in rows)


# --- results.json ---------------------------------------------------------------------------------
def add_rows(root, writer):
    common.ROOT = root
    for number in range(10):
        common.add_row("sweep", {"writer": writer, "number": number})


def test_several_writers_at_once_lose_no_rows(root):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=add_rows, args=(root, i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(row["writer"], row["number"]) for row in read_rows("sweep")]
    assert sorted(found) == [(writer, number) for writer in range(3) for number in range(10)]
    assert not list(root.glob("*.lock"))


def test_a_lock_that_was_left_behind_is_named(root, monkeypatch):
    monkeypatch.setattr(common, "LOCK_TIMEOUT", 0)
    (root / "results.json.lock").touch()
    with pytest.raises(SystemExit, match=r"results\.json\.lock"):
        common.add_row("sweep", {})


def test_every_row_stands_in_a_line(root):
    for number in range(3):
        common.add_row("sweep", {"number": number})
    lines = (root / "results.json").read_text().splitlines()
    assert lines[:2] == ["{", '"sweep": [']
    assert [line.startswith('{"date"') for line in lines[2:]] == [True, True, True, False, False]


def test_a_row_that_was_deleted_takes_no_other_part_along(root, capsys):
    common.add_row("sweep", {"number": 1})
    common.add_row("record", {"number": 2})
    path = root / "results.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"number": 1' not in line))
    assert common.read_results()["sweep"] == []
    assert len(common.read_results()["record"]) == 1


def test_what_is_there_already_is_told(call, capsys):
    call(sweep, *TRAINED, "--seeds=1")
    capsys.readouterr()
    call(sweep, *TRAINED, "--seeds=1")
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n{}\n=======\n", '{"sweep": [', "", b"\xff\xfe"])
@pytest.mark.parametrize("script", [sweep, report])
def test_a_damaged_results_json_is_named_in_one_sentence(content, script, call, root):
    content = content if isinstance(content, bytes) else content.encode()
    (root / "results.json").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^[^\n]*results\.json[^\n]*$"):
        call(script)
    assert (root / "results.json").read_bytes() == content


@pytest.mark.parametrize("change", [{"accuracy": None}, {"max_lr": "0.03"}, {"history": {}}])
def test_a_row_that_cannot_be_read_stops_before_anything_is_written(change, call, root):
    common.add_row("record", make_record_row(settings=ROW_OF_MEAN, seed=1, **change))
    save_run(root / "run", **MEAN)
    before = (root / "results.json").read_bytes()
    for arguments in (["run", "--add"], ["--check"], []):
        with pytest.raises(SystemExit, match=r"^A row of results\.json[^\n]*$"):
            call(report, *arguments)
    assert (root / "results.json").read_bytes() == before
    assert not (root / "models" / "resnet18.pt").exists()
    assert read_readme() == BLOCKS


def test_every_row_of_results_json_names_the_commit_of_its_code():
    results = json.loads((ROOT / "results.json").read_text(encoding="utf-8"))
    for rows in results.values():
        for row in rows:
            commits = str(row["commit"]).split(", then ")  # a run may go on with later code
            are_right = [re.fullmatch(r"None|[0-9a-f]{7,}(\+changes)?", one) for one in commits]
            assert all(are_right), f"{row['date']}: {row['commit']!r} names no commit"


def test_a_run_knows_the_commit_of_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "CODE", tmp_path)
    (tmp_path / "utils.py").write_text("1")
    (tmp_path / "notes.md").write_text("1")
    assert utils.get_commit() is None
    git = ["git", "-c", "user.name=ada", "-c", "user.email=a@b.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "notes.md").write_text("2")  # no code
    commit = utils.get_commit()
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    subprocess.run([*git, "commit", "-qam", "second"], cwd=tmp_path, check=True)
    assert utils.get_commit() == commit, "the code is as it was"
    (tmp_path / "utils.py").write_text("2")
    assert utils.get_commit() == f"{commit}+changes"


@pytest.mark.parametrize("script", [sweep, record])
def test_new_rows_carry_the_commit_that_began_the_run(script, call, monkeypatch):
    commits = ["abc1234+changes", "of files that changed in between"]
    monkeypatch.setattr(utils, "get_commit", lambda: commits.pop(0) if commits else None)
    call(script, *TRAINED, "--seeds=1")
    (row,) = read_rows(script.__name__.removeprefix("benchmarks."))
    assert row["commit"] == "abc1234+changes"


# --- A run of the notebook ------------------------------------------------------------------------
def change_checkpoint(folder, **changes):
    """Give a saved run other parts of its checkpoint."""
    path = folder / "checkpoint.pt"
    torch.save({**torch.load(path), **changes}, path)


def make_record_row(**changes):
    """Return a row as record.py writes it, without tests of single epochs."""
    row = {"settings": {}, "seed": 0, "max_lr": 0.03, "loss": 0.3, "accuracy": 94.0}
    row |= {
        "commit": "abc1234",
        "test_images": 10_000,
        "machine": "M",
        "history": {"seconds": [1, 2, 3]},
    }
    return row | changes


def test_a_run_replaces_all_of_the_record(call, root, capsys):
    common.add_row("record", {"settings": {"epochs": 9}, "seed": 5, "accuracy": 9.5})
    save_run(root / "run", **MEAN)
    call(report, "run")
    (row,) = read_rows("record")
    assert (row["settings"], row["seed"]) == (ROW_OF_MEAN, 0)
    assert row["accuracy"] == 1 + 19 / 7, "that of the last epoch"
    assert "seed 5 with 9.50 %" in capsys.readouterr().out


def test_what_training_leaves_behind_becomes_a_row(call, root, make_config, monkeypatch):
    monkeypatch.setattr(utils, "get_commit", lambda: "abc1234")
    config = make_config("full", epochs=2, batch_size=50, seed=3, output_dir=root / "run")
    model = make_network()
    history = utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.02, config)
    call(report, "run")
    (row,) = read_rows("record")
    few = {"number of steps": 4}  # of 100 images, which stand for 50,000
    assert row["settings"] == {"epochs": 2, "batch_size": 50, "network": "not ResNet18", **few}
    assert row["seed"] == 3
    assert row["commit"] == "abc1234"
    assert row["accuracy"] == history["test_accuracy"][-1]

    config = make_config("full", epochs=2, batch_size=50, seed=4, output_dir=root / "next")
    utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.02, config)
    with pytest.raises(SystemExit, match="trained before"):
        call(report, "next")


def test_add_joins_another_seed(call, root):
    for seed in (0, 1):
        save_run(root / f"run{seed}", seed=seed)
        call(report, f"run{seed}", "--add")
    assert [row["seed"] for row in read_rows("record")] == [0, 1]
    assert "standard deviation of 2 seeds" in read_readme()


def test_add_replaces_the_row_of_the_same_seed_and_settings_only(call, root):
    common.add_row("record", make_record_row(settings=ROW_OF_MEAN, seed=1))
    common.add_row("record", make_record_row(settings=ROW_OF_MEAN, seed=0))
    common.add_row("record", make_record_row(settings={"momentum": 0.8}, seed=1))
    save_run(root / "run", seed=1, **MEAN)
    call(report, "run", "--add")
    found = [(row["seed"], [*row["settings"]]) for row in read_rows("record")]
    assert found == [(0, ["mean"]), (1, ["momentum"]), (1, ["mean"])]


def test_add_leaves_the_figures_alone(call, root):
    save_run(root / "run")
    call(report, "run", "--add")
    assert not list((root / "images").iterdir())


def test_add_refuses_other_settings(call, root):
    common.add_row("record", {"settings": {"momentum": 0.8}, "seed": 0})
    save_run(root / "run")
    with pytest.raises(SystemExit, match=r"other settings[^\n]*replaces all rows"):
        call(report, "run", "--add")
    assert len(read_rows("record")) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": "quick"}, "not of a run on all"),
        ({"dataset": "mine"}, "not of a run on all"),
        ({"train_images": 60}, "not of a run on all"),
        ({"epochs": 30}, "10 of 30"),
        ({"train_images": "all"}, "damaged"),
        (None, "missing"),
    ],
)
def test_report_refuses_what_is_no_result(changes, words, call, root, capsys):
    if changes:
        save_run(root / "run", **changes)
    with pytest.raises(SystemExit, match=rf"^[^\n]*{words}[^\n]*$"):
        call(report, "run")
    assert capsys.readouterr().out == ""
    assert common.read_results() == {}
    assert not list((root / "images").iterdir())
    assert read_readme() == BLOCKS


@pytest.mark.parametrize("option", [[], ["--add"]])
def test_a_model_that_was_trained_before_is_no_seed(option, call, root):
    save_run(root / "run")
    change_checkpoint(root / "run", trained_before=True)
    with pytest.raises(SystemExit, match=r"^[^\n]*trained before[^\n]*$"):
        call(report, "run", *option)
    assert common.read_results() == {}


def test_the_row_of_a_run_has_the_commit_of_its_checkpoint(call, root):
    save_run(root / "run")
    change_checkpoint(root / "run", commit="abc1234+changes", trained_before=False)
    call(report, "run")
    (row,) = read_rows("record")
    assert row["commit"] == "abc1234+changes"


def test_a_checkpoint_of_older_code_is_taken_without_a_commit(call, root):
    save_run(root / "run")
    state = torch.load(root / "run" / "checkpoint.pt")
    state.pop("commit", None)
    state.pop("trained_before", None)
    torch.save(state, root / "run" / "checkpoint.pt")
    call(report, "run")
    (row,) = read_rows("record")
    assert row["commit"] is None


def test_a_run_whose_images_passed_other_transforms_is_told(call, root):
    save_run(root / "run", transforms="others")
    call(report, "run")
    assert read_rows("record")[0]["settings"] == {"transforms": "others"}
    assert "with transforms others" in read_readme()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"batch_size": 256, "number of steps": 20 * 196}, {"batch_size": 256}),
        ({"number of steps": 20 * 88}, {"number of steps": 20 * 88}),  # of 45,000 images
    ],
)
def test_a_run_on_a_part_of_the_images_is_told(call, root, changes, expected):
    save_run(root / "run", **{"number of steps": 20 * 98, **changes})
    call(report, "run")
    assert read_rows("record")[0]["settings"] == expected


def test_a_run_of_another_network_is_told(call, root):
    save_run(root / "run")
    change_checkpoint(root / "run", model={})
    call(report, "run")
    assert read_rows("record")[0]["settings"] == {"network": "not ResNet18"}


def test_a_run_whose_network_only_has_the_weights_of_resnet18_is_told(call, root):
    class Other(ResNet):
        def forward(self, x):
            return -super().forward(x)

    save_run(root / "run")
    images = torch.randn(2, 3, 32, 32)
    network = Other((2, 2, 2, 2)).eval()
    for is_ours, expected in ((True, {}), (False, {"network": "not ResNet18"})):
        with torch.no_grad():
            answers = network(images) * (-1 if is_ours else 1)
        probe = {"images": images, "answers": answers}
        change_checkpoint(root / "run", model=network.state_dict(), probe=probe)
        call(report, "run")
        assert read_rows("record")[0]["settings"] == expected
        assert (root / "models" / "resnet18.pt").exists() == is_ours


def test_two_networks_of_your_own_are_not_two_seeds_of_one(call, root):
    for name in ("A", "B"):
        save_run(root / name, network=f"{name} 0123456789ab", seed=ord(name))
        change_checkpoint(root / name, model={})
    call(report, "A")
    with pytest.raises(SystemExit, match=r"another network[^\n]*$"):
        call(report, "B", "--add")
    assert [row["network"] for row in read_rows("record")] == ["A 0123456789ab"]
    call(report, "A", "--add")
    assert len(read_rows("record")) == 1, "the same seed once more"


BEFORE = ("samples.png", "lr_finder.png")  # drawn before the training
AFTER = ("history.png", "confusion_matrix.png", "misclassified.png", "gradcam.png")


def write(path, text, seconds):
    """Write a file that was changed so many seconds after the beginning of time."""
    path.write_text(text)
    os.utime(path, (seconds, seconds))


@pytest.fixture
def run_folder(root):
    """A finished run with all its figures, after an earlier run; images/ has other figures."""
    folder = root / "run"
    save_run(folder)
    os.utime(folder / "checkpoint.pt", (300, 300))
    write(folder / "checkpoint-previous-1.pt", "", 100)
    for name in BEFORE:
        write(folder / name, "new", 200)
    for name in AFTER:
        write(folder / name, "new", 400)
    for name in (*BEFORE, *AFTER, "lr_sweep.png"):
        write(root / "images" / name, "old", 500)
    return folder


def get_replaced(root):
    """Return the names of the figures in images/ that are the run's."""
    return {path.name for path in (root / "images").iterdir() if path.read_text() == "new"}


def test_the_figures_of_a_run_replace_those_of_the_record(call, root, run_folder, capsys):
    call(report, "run")
    assert get_replaced(root) == {*BEFORE, *AFTER}
    assert "Not replaced" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [*BEFORE, *AFTER])
def test_a_figure_that_the_run_did_not_draw_is_named(name, call, root, run_folder, capsys):
    (run_folder / name).unlink()
    call(report, "run")
    (told,) = re.findall("Not replaced.*", capsys.readouterr().out)
    assert name in told
    assert get_replaced(root) == {*BEFORE, *AFTER} - {name}


@pytest.mark.parametrize(
    ("name", "seconds"), [*((n, 50) for n in BEFORE), *((n, 250) for n in AFTER)]
)
def test_a_figure_of_the_run_before_is_named_and_not_copied(
    name, seconds, call, root, run_folder, capsys
):
    write(run_folder / name, "new", seconds)
    call(report, "run")
    (told,) = re.findall("Not replaced.*", capsys.readouterr().out)
    assert name in told
    assert get_replaced(root) == {*BEFORE, *AFTER} - {name}


def test_what_else_lies_in_the_runs_folder_is_not_copied(call, root, run_folder):
    for name in ("prediction.png", "comparison.png"):  # a photo of your own, for one
        write(run_folder / name, "new", 400)
    call(report, "run")
    assert get_replaced(root) == {*BEFORE, *AFTER}


# --- The README -----------------------------------------------------------------------------------
def test_headline_is_about_the_plainest_settings():
    rows = [make_record_row(settings={"momentum": 0.8}, accuracy=99.0), make_record_row()]
    headline = report.get_blocks({"record": rows})["headline"]
    assert "94.00 %" in headline
    assert "default settings" in headline


def test_the_comparison_shows_other_optimizers_too():
    rows = [
        make_record_row(accuracy=94.0, mirrored_accuracy=95.0),
        make_record_row(accuracy=96.0, mirrored_accuracy=97.0, seed=1),
        make_record_row(settings={"anneal_strategy": "cos"}),
        make_record_row(settings={"optimizer": "sgd", "anneal_strategy": "cos"}, accuracy=90.0),
    ]
    lines = report.get_blocks({"record": rows})["comparison"].splitlines()
    assert lines[2] == "| ours, default settings | 3 | 95.00 % | 96.00 % | 2 |"
    assert lines[3] == "| ours, SGD, cosine, peak 0.03 | 3 | 90.00 % | \u2013 | 1 |"
    assert lines[4].startswith("| [cifar10-zoo]")


def test_a_peak_of_ones_own_is_told_once():
    row = make_record_row(settings={"optimizer": "sgd", "max_lr": 0.03})
    blocks = report.get_blocks({"record": [make_record_row(), row]})
    assert "| ours, SGD, peak 0.03 |" in blocks["comparison"]
    assert "| SGD, peak 0.03 |" in blocks["results"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.12345, "0.123 s"), (7.254, "7.25 s"), (276.4, "276 s"), (1855.4, "1,855 s")],
)
def test_times_are_told_as_people_write_them(seconds, told):
    row = make_record_row(history={"seconds": [seconds]})
    assert f"| {told} |" in report.get_blocks({"record": [row]})["results"]


def test_the_page_says_how_to_check_the_number_once_there_are_weights():
    rows = [make_record_row(), make_record_row(seed=1, weights="0" * 64)]
    check = report.get_blocks({"record": rows})["check"]
    assert "benchmarks.verify" in check
    assert "(seed 1)" in check
    assert "models/resnet18.pt)" in check
    without = report.get_blocks({"record": rows[:1]})["check"]
    assert "models/resnet18.pt)" not in without, "a link that leads nowhere"
    other = [make_record_row(settings={"network": "not ResNet18"})]
    told = report.get_blocks({"record": other})["check"]
    assert "run the notebook" in told
    assert "benchmarks.record" not in told, "it trains ResNet18"


def test_the_weight_decay_of_an_optimizer_is_no_setting_of_its_own(call, root):
    save_run(root / "run", optimizer="adamw", weight_decay=0.05)
    call(report, "run")
    assert read_rows("record")[0]["settings"] == {"optimizer": "adamw"}
    save_run(root / "other", optimizer="adamw", weight_decay=5e-4)
    call(report, "other")
    assert read_rows("record")[0]["settings"] == {"optimizer": "adamw", "weight_decay": 5e-4}


def test_the_ladder_compares_a_run_of_each_of_the_records_settings(call, root, monkeypatch):
    history = {"test_accuracy": [50.0, 60.0], "test_loss": [1.5, 1.0], "seconds": [1.0, 1.0]}
    history |= {"train_accuracy": [1.0, 2.0], "train_loss": [2.0, 1.0]}
    for settings in ({}, {"optimizer": "sgd"}, {"network": "not ResNet18"}):
        common.add_row("record", make_record_row(settings=settings, history=history))
    other = {**history, "test_accuracy": [70.0, 80.0]}
    common.add_row("record", make_record_row(seed=1, history=other))
    common.add_row("record", make_record_row(settings={"epochs": 3}))  # was not tested every epoch
    draw = Mock(wraps=utils.draw_comparison)
    monkeypatch.setattr(utils, "draw_comparison", draw)
    call(report)
    runs = draw.call_args.args[0]
    assert {*runs} == {"Muon", "Muon, network not ResNet18", "SGD"}
    assert runs["Muon"]["history"]["test_accuracy"] == [50.0, 60.0], "of the first seed"
    assert runs["SGD"]["run"]["optimizer"] == "sgd"
    assert (root / "images" / "ladder.png").stat().st_size > 10_000


def test_a_single_run_is_no_ladder_and_an_old_one_is_named(call, root, capsys):
    save_run(root / "run")
    call(report, "run")
    assert not (root / "images" / "ladder.png").exists()
    (root / "images" / "ladder.png").touch()
    call(report)
    assert re.search(r"Not replaced: .*ladder.png, since one run", capsys.readouterr().out)


def test_a_setting_that_this_code_does_not_know_is_no_matter_for_the_ladder(call, root):
    history = {name: [50.0, 60.0] for name in utils.HISTORY}
    for settings in ({}, {"sharpness": 3}):
        common.add_row("record", make_record_row(settings=settings, history=history))
    call(report)
    assert (root / "images" / "ladder.png").exists()


def test_the_seed_to_train_next_is_one_that_is_not_there():
    rows = [make_record_row(seed=5), make_record_row(settings={"epochs": 40}, seed=8)]
    assert "--seeds 7`" in report.get_blocks({"record": rows})["check"]


@pytest.mark.parametrize("settings", [{}, {"network": "not ResNet18"}])
def test_another_network_is_not_called_the_same(settings):
    comparison = report.get_blocks({"record": [make_record_row(settings=settings)]})["comparison"]
    assert ("the same network" in comparison) == (not settings)


def test_muon_by_name_is_no_other_optimizer():
    rows = [make_record_row(), make_record_row(settings={"optimizer": "muon"})]
    assert report.get_blocks({"record": rows})["comparison"].count("| ours") == 1


def test_the_log_is_of_a_run_that_was_tested_every_epoch(root):
    save_run(root / "run")
    tested = report.read_run(root / "run")
    blocks = report.get_blocks({"record": [make_record_row(), {**tested, "seed": 1}]})
    assert "| 20 | 3.714 | 3.714 | 3.714 |" in blocks["log"]


def test_the_log_is_not_that_of_other_settings(root):
    save_run(root / "run", momentum=0.8)
    tested = report.read_run(root / "run")
    blocks = report.get_blocks({"record": [make_record_row(), tested]})
    assert "| 20 |" not in blocks["log"]


def test_check_writes_nothing(call, root):
    save_run(root / "run")
    call(report, "run", "--check")
    assert common.read_results() == {}
    assert read_readme() == BLOCKS


@pytest.mark.parametrize(("old", "new", "status"), [("", "", 0), ("| 2 |", "| 3 |", 1)])
def test_check_compares_the_tables_with_results(old, new, status, call, root, capsys):
    save_run(root / "run")
    call(report, "run")
    (root / "README.md").write_text(read_readme().replace(old, new, 1), encoding="utf-8")
    capsys.readouterr()
    assert call(report, "--check") == status
    assert ("log differs" in capsys.readouterr().out) == bool(status)


@pytest.mark.parametrize("mark", ["begin", "end"])
@pytest.mark.parametrize("block", ["headline", "results", "log", "speed"])
def test_a_missing_mark_is_named(mark, block, call, root, capsys):
    call(report)
    text = read_readme().replace(f"<!-- {mark}: {block} -->\n", "")
    (root / "README.md").write_text(text, encoding="utf-8")
    common.add_row("record", make_record_row())
    capsys.readouterr()

    assert call(report, "--check") == 1
    assert f"<!-- {mark}: {block} -->" in capsys.readouterr().out
    call(report)
    assert f"<!-- {mark}: {block} -->" in capsys.readouterr().out
    others = {"headline": "94.00 %", "results": "0.3000"}
    others.pop(block, None)
    assert all(words in read_readme() for words in others.values()), "the others are written"


@pytest.mark.parametrize("block", ["headline", "results", "log"])
def test_a_block_that_the_readme_must_have_is_missed(block, call, root, capsys):
    call(report)
    text = re.sub(f"(?s)<!-- begin: {block} -->.*<!-- end: {block} -->\n", "", read_readme())
    (root / "README.md").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert call(report, "--check") == 1
    assert block in capsys.readouterr().out


@pytest.mark.parametrize("block", ["settings", "speed"])
def test_the_readme_may_do_without_the_other_tables(block, call, root):
    call(report)
    text = re.sub(f"(?s)<!-- begin: {block} -->.*<!-- end: {block} -->\n", "", read_readme())
    (root / "README.md").write_text(text, encoding="utf-8")
    assert call(report, "--check") == 0


def test_marks_in_a_wrong_order_lose_no_text(call, root, capsys):
    text = BLOCKS.replace("<!-- end: headline -->\n", "") + "Mine.\n<!-- end: headline -->\n"
    (root / "README.md").write_text(text, encoding="utf-8")
    call(report)
    assert "headline" in capsys.readouterr().out
    assert "<!-- begin: results -->" in read_readme()


# --- The weights, and whoever checks them ---------------------------------------------------------
def test_a_run_leaves_its_weights_in_half_the_size(call, root, capsys):
    save_run(root / "run")
    call(report, "run")
    path = root / "models" / "resnet18.pt"
    assert path.stat().st_size < 25e6
    assert f"Replaced: {path}" in capsys.readouterr().out
    (row,) = read_rows("record")
    assert row["weights"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["history"]["lr"] == [float(f"{1 + epoch / 7:.4g}") for epoch in range(20)]

    model = ResNet18()
    model.load_state_dict(torch.load(path, weights_only=True))
    trained = torch.load(root / "run" / "checkpoint.pt", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        is_half = value.ndim > 1 or name == "linear.bias"
        expected = trained[name].half().float() if is_half else trained[name]
        assert torch.equal(value, expected), name


def test_weights_of_another_network_are_not_taken_and_old_ones_go(call, root, capsys):
    save_run(root / "run")
    call(report, "run")
    change_checkpoint(root / "run", model=make_network().state_dict())
    call(report, "run")
    assert not (root / "models" / "resnet18.pt").exists()
    assert "Removed" in capsys.readouterr().out
    assert "weights" not in read_rows("record")[0]


def test_a_row_that_is_replaced_hands_its_weights_on(call, root):
    save_run(root / "run")
    call(report, "run")
    call(report, "run", "--add")
    (row,) = read_rows("record")
    weights = (root / "models" / "resnet18.pt").read_bytes()
    assert row["weights"] == hashlib.sha256(weights).hexdigest()


def test_the_first_run_has_weights_even_with_add(call, root):
    save_run(root / "run")
    call(report, "run", "--add")
    assert "weights" in read_rows("record")[0]
    assert (root / "models" / "resnet18.pt").exists()


def test_weights_that_no_kept_row_owns_become_those_of_the_run(call, root):
    save_run(root / "run")
    row = make_record_row(settings={}, seed=7)
    common.add_row("record", row)
    call(report, "run", "--add")
    kept, new = read_rows("record")
    weights = (root / "models" / "resnet18.pt").read_bytes()
    assert "weights" not in kept
    assert new["weights"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.filterwarnings("ignore:.*could not be written")
def test_a_run_whose_weights_cannot_be_written_changes_nothing(call, root):
    save_run(root / "run")
    (root / "models" / "resnet18.pt").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"^[^\n]*resnet18.pt[^\n]*$"):
        call(report, "run")
    assert common.read_results() == {}


def test_one_more_seed_leaves_the_weights_as_they_are(call, root):
    save_run(root / "run")
    call(report, "run")
    old = (root / "models" / "resnet18.pt").read_bytes()
    save_run(root / "other", seed=1)
    call(report, "other", "--add")
    assert (root / "models" / "resnet18.pt").read_bytes() == old
    assert ["weights" in row for row in read_rows("record")] == [True, False]


@pytest.fixture
def add_weights(root):
    """Write the weights of the small network, and a row that knows them; return how."""

    def add(**changes):
        torch.manual_seed(0)
        weights = utils.to_bytes(make_network().state_dict())
        (root / "models").mkdir()
        (root / "models" / "resnet18.pt").write_bytes(weights)
        row = make_record_row(weights=hashlib.sha256(weights).hexdigest(), **changes)
        common.add_row("record", row)

    return add


@pytest.fixture
def scores(add_weights, call, root, monkeypatch):
    """Return what the small network really scores, as --write notes it down."""
    add_weights(accuracy=0.0)
    csv = root / "list.csv"
    csv.write_text("TestID\n0\n5\n")
    with monkeypatch.context() as patch:
        patch.setattr(verify, "FAR", 100)
        assert call(verify, "--write", "--near-duplicates", csv) == 0, "though 0 % was wrong"
    (row,) = read_rows("record")
    (root / "models" / "resnet18.pt").unlink()
    (root / "models").rmdir()
    (root / "results.json").unlink()
    return {name: row[name] for name in verify.SCORES}


def test_what_was_written_is_verified(add_weights, scores, call, root, capsys):
    add_weights(**scores)
    assert call(verify) == 0
    told = capsys.readouterr().out
    assert told.count(f"{scores['accuracy']:.2f} %") >= 2, "measured and known"
    assert told.count("right") == 2
    assert call(verify, "--near-duplicates", root / "list.csv") == 0
    assert capsys.readouterr().out.count("right") == 3
    assert len(utils.predict.call_args_list[-2].args[1].dataset) == 30, "those for testing"


@pytest.mark.parametrize(("by", "status"), [(0.05, 0), (-0.05, 0), (0.06, 1), (-0.06, 1)])
@pytest.mark.parametrize("name", verify.SCORES)
def test_a_number_that_is_not_right_is_found(name, by, status, add_weights, scores, call, root):
    add_weights(**scores | {name: scores[name] + by})
    assert call(verify, "--near-duplicates", root / "list.csv") == status


def test_a_number_that_no_rounding_explains_is_never_written(
    add_weights, scores, call, root, capsys
):
    add_weights(**scores | {"accuracy": scores["accuracy"] + 0.6})
    before = (root / "results.json").read_bytes()
    readme = read_readme()
    assert call(verify, "--write") == 1
    assert "another network" in capsys.readouterr().out.replace("\n", " ")
    assert (root / "results.json").read_bytes() == before
    assert read_readme() == readme
    (root / "models" / "resnet18.pt").unlink()
    (root / "models").rmdir()
    (root / "results.json").unlink()
    add_weights(**scores | {"accuracy": scores["accuracy"] + 0.4})
    assert call(verify, "--write") == 0
    assert read_rows("record")[0]["accuracy"] == scores["accuracy"]


def test_a_number_that_was_never_measured_is_no_mistake(add_weights, scores, call, capsys):
    add_weights(accuracy=scores["accuracy"])
    assert call(verify) == 0
    assert "not measured yet" in capsys.readouterr().out


def test_all_machines_measure_in_float32(add_weights, scores, call, native_bfloat16):
    native_bfloat16()
    add_weights(**scores)
    assert call(verify) == 0
    assert {call.args[2] for call in utils.predict.call_args_list} == {"float32"}


def test_weights_are_measured_as_their_run_saw_the_images(add_weights, call):
    add_weights(settings={"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3]}, accuracy=0.0)
    call(verify)
    config = utils.predict.call_args_list[-2].args[1].dataset.made_with
    assert config.mean == (0.5, 0.5, 0.5)
    assert config.std == (0.1, 0.2, 0.3)


def test_weights_that_no_row_knows_are_never_unpickled(add_weights, call, root, monkeypatch):
    add_weights()
    path = root / "models" / "resnet18.pt"
    path.write_bytes(path.read_bytes() + b"!")
    monkeypatch.setattr(torch, "load", Mock())
    with pytest.raises(SystemExit, match=r"^No row of results.json has the SHA-256[^\n]*$"):
        call(verify)
    torch.load.assert_not_called()


def test_gpus_do_not_round_what_a_convolution_takes_in(add_weights, scores, call, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    add_weights(**scores)
    assert call(verify) == 0
    assert not torch.backends.cudnn.allow_tf32


def test_weights_that_do_not_fit_an_edited_network_are_told(add_weights, call, monkeypatch):
    add_weights(accuracy=0.0)
    monkeypatch.setattr(verify, "ResNet18", lambda: make_network(num_classes=7))
    with pytest.raises(SystemExit, match=r"^The weights [^\n]*do not fit this network[^\n]*$"):
        call(verify)


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n{}", None])
def test_weights_with_damaged_results_are_told(content, result, make_config, call, root):
    (root / "results.json").unlink()
    if content:
        (root / "results.json").write_text(content, encoding="utf-8")
    sentence = r"^results\.json is missing or damaged[^\n]*$"
    with pytest.raises(SystemExit, match=sentence):
        call(verify)
    with pytest.raises(ValueError, match=sentence):
        utils.load_result(make_network(), make_config("full"))


def test_cifar10_that_cannot_be_read_is_told(add_weights, call, monkeypatch):
    add_weights(accuracy=0.0)
    monkeypatch.setattr(utils, "load_cifar10", Mock(side_effect=OSError("the disk is full")))
    with pytest.raises(SystemExit, match="the disk is full"):
        call(verify)


def test_verify_counts_what_is_right_in_one_view_and_in_two(add_weights, call, monkeypatch):
    """The scores of 200 images of noise, once more by hand."""
    add_weights(accuracy=84.5)
    torch.manual_seed(0)
    network = make_network().eval()  # that of add_weights
    pixels = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    images = utils.Normalize(utils.Config.mean, utils.Config.std)(pixels)
    with torch.no_grad():
        once = network(images)
        twice = once + network(images.flip(3))
    labels = once.argmax(1)
    labels[150:] = twice.argmax(1)[150:]
    labels[:20] += 1
    monkeypatch.setattr(
        utils, "load_cifar10", lambda _: (None, (pixels.permute(0, 2, 3, 1), labels))
    )
    call(verify, "--write")
    (row,) = read_rows("record")
    assert row["accuracy"] == (once.argmax(1) == labels).sum() / 2
    assert row["mirrored_accuracy"] == (twice.argmax(1) == labels).sum() / 2
    assert 80 < row["mirrored_accuracy"] != row["accuracy"] < 90, "so that the two can be told"


def test_what_verify_writes_stands_in_the_readme(scores, root):
    assert f"| {scores['mirrored_accuracy']:.2f} % |" in (root / "README.md").read_text()


@pytest.mark.parametrize("script", [verify, edges])
def test_missing_weights_are_told(script, call):
    with pytest.raises(SystemExit, match=r"^There are no weights[^\n]*$"):
        call(script)


@pytest.fixture
def eye():
    """A network whose map, for any class, is the means of 4 x 4 pixels."""
    network = nn.Sequential()
    network.add_module("layer3", nn.Sequential(nn.Conv2d(3, 1, 4, 4, bias=False)))
    network.add_module("rest", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    network.add_module("linear", nn.Linear(1, 2))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    return network


# Corners, the middle of a side, and what lies one cell further inside
PLACES = {(0, 0): 1, (31, 31): 1, (3, 17): 1, (16, 28): 1, (4, 4): 0, (27, 27): 0, (16, 16): 0}


@pytest.mark.parametrize(("place", "count"), PLACES.items())
def test_the_brightest_cell_is_found_at_the_edge_or_inside(place, count, eye):
    images = torch.zeros(60, 3, 32, 32)  # more than a batch
    images[:, :, place[0], place[1]] = 1
    labels = torch.ones(60, dtype=torch.int64)
    assert edges.count_at_edge(eye, images, labels) == 60 * count
    images[:, :, 16, 16] = 1.05  # would be blurred more, and look darker than an edge
    assert edges.count_at_edge(eye, images, labels) == 0
    images[:] = 0
    assert edges.count_at_edge(eye, images, labels) == 0


def test_small_maps_are_those_of_gradcam():
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("layer3", nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Tanh()))
    network.add_module("rest", nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 4)))
    network.eval()
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0])
    heats = utils.explain(network, network.layer3[-1], images, labels.tolist())
    large = torch.stack([torch.tensor(heat) for heat in heats])
    small = edges.get_maps(network, images, labels)
    small = nn.functional.interpolate(small[:, None], size=32, mode="bilinear")[:, 0]
    small /= small.amax((1, 2), keepdim=True)
    assert torch.corrcoef(torch.stack([small.flatten(), large.flatten()]))[0, 1] > 0.99


def test_mistakes_are_compared_with_as_many_right_answers(add_weights, call, capsys, monkeypatch):
    add_weights(accuracy=0.0)
    count = Mock(side_effect=[3, 2])
    monkeypatch.setattr(edges, "count_at_edge", count)
    torch.manual_seed(0)
    network = make_network().eval()  # that of add_weights
    pixels = torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        images = utils.Normalize(utils.Config.mean, utils.Config.std)(pixels.permute(0, 3, 1, 2))
        answers = network(images).argmax(1)
    labels = answers.clone()
    labels[:10] = (labels[:10] + 1) % 10
    monkeypatch.setattr(utils, "load_cifar10", lambda _: (None, (pixels, labels)))
    call(edges)
    assert "3 of 10 mistakes (30 %)" in (told := capsys.readouterr().out)
    assert "2 of 10 right answers (20 %)" in told
    wrong, right = count.call_args_list
    assert not any(module.training for module in wrong.args[0].modules()), "BatchNorm would change"
    assert sorted(wrong.args[2].tolist()) == sorted(answers[:10].tolist()), "not the true classes"
    chosen = {
        next(i for i, other in enumerate(images) if torch.equal(image, other))
        for image in right.args[1]
    }
    assert len(chosen) == 10
    assert min(chosen) >= 10


@pytest.fixture
def result(add_weights, root, monkeypatch):
    """Let utils find weights and results in the test's own folder; return their history."""
    history = {"test_accuracy": [50.0, 60.0], "lr": [0.1, 0.2], "seconds": [1, 1]}
    add_weights(accuracy=60.0, history=history)
    monkeypatch.setattr(utils, "CODE", root)
    return history


def test_our_result_is_loaded_in_place_of_training(result, make_config, capsys):
    config = make_config("full")
    assert "history = utils.load_result(model, config)" in capsys.readouterr().out
    torch.manual_seed(1)
    model = make_network()
    assert utils.load_result(model, config) == result
    torch.manual_seed(0)
    trained = make_network().state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert "60.00 %" in capsys.readouterr().out


def test_our_result_is_not_loaded_beside_a_run_of_yours(result, make_config, capsys):
    config = make_config("full")
    save_run(config.output_dir)
    capsys.readouterr()
    make_config("full", resume=False)
    assert "load_result" not in capsys.readouterr().out, "what would be refused is not advised"
    model = make_network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^[^\n]*holds a run[^\n]*output_dir[^\n]*$"):
        utils.load_result(model, config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_verify_says_so_if_the_readme_has_no_place_for_its_numbers(
    add_weights, scores, call, root, capsys
):
    add_weights(**scores)
    (root / "README.md").write_text("No marks.")
    assert call(verify, "--write") == 1
    assert "README has not" in capsys.readouterr().out


CIFAR10 = {name: getattr(utils.Config, name) for name in ("classes", "mean", "std")}
OTHER_DATA = [
    {"profile": "quick"},
    {"profile": "full", **MEAN},
    {"profile": "full", "std": (0.5, 0.5, 0.5)},
    {"profile": "full", "dataset": "mine", **CIFAR10},
    {"profile": "full", "epochs": 5},  # CutOut would seem to end elsewhere
    {"profile": "full", "cutout_size": 8},
    {"profile": "full", "cutout_free_fraction": 0},
]


@pytest.mark.parametrize("settings", OTHER_DATA)
def test_our_result_does_not_fit_other_data(settings, result, make_config):
    model = make_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"^The weights [^\n]* another (dataset|mean|std|epochs|cutout_\w+)[^\n]*$"
    ):
        utils.load_result(model, make_config(**settings))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_result_of_another_normalisation_fits_a_config_that_has_it(
    add_weights, make_config, root, monkeypatch
):
    add_weights(settings=ROW_OF_MEAN)
    monkeypatch.setattr(utils, "CODE", root)
    assert utils.load_result(make_network(), make_config("full", **MEAN))
    with pytest.raises(ValueError, match="another mean"):
        utils.load_result(make_network(), make_config("full"))


def test_our_result_is_only_offered_where_it_helps(result, make_config, root, capsys):
    make_config("quick")
    assert "load_result" not in capsys.readouterr().out
    (root / "models" / "resnet18.pt").unlink()
    make_config("full")
    assert "load_result" not in capsys.readouterr().out


def test_our_result_does_not_fit_another_network(result, make_config):
    model = make_network(num_classes=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^[^\n]*ResNet18[^\n]*$"):
        utils.load_result(model, make_config("full"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model, "was_trained")


def test_our_result_is_not_offered_for_other_data(result, make_config, capsys):
    make_config("full", dataset="mine", **CIFAR10)
    assert "load_result" not in capsys.readouterr().out


def test_training_on_from_our_result_is_told(result, make_config, capsys):
    model = make_network()
    utils.load_result(model, make_config("full"))
    config = make_config("full", epochs=1, batch_size=50)
    utils.fit_one_cycle(model, *utils.get_dataloaders(config), 0.01, config)
    assert "trained before" in capsys.readouterr().out


# --- The sweep's figure and table ----------------------------------------------------------------
@pytest.fixture
def short_sweep():
    """Add short runs with three peaks for both optimizers, and a peak of the LR finder."""
    for lr, accuracy in {0.01: 70, 0.02: 75, 0.04: 72}.items():
        for own in ({}, {"optimizer": "sgd"}):
            settings = {**SHORT, **own, "max_lr": lr}
            common.add_row("sweep", {"settings": settings, "max_lr": lr, "accuracy": accuracy})
    rates = [0.01 * 1.1**i for i in range(20)]
    losses = [abs(i - 10) for i in range(20)]
    common.add_row("finder", {"settings": SHORT, "max_lr": 0.5, "lr": rates, "loss": losses})


def draw(call):
    """Run report.py, and return the axis of the figure that it draws."""
    with patch.object(report.plt, "close", wraps=report.plt.close) as close:
        call(report)
    (axis,) = close.call_args.args[0].axes
    return axis


def get_bars(axis):
    """Return label and content of each line with bars."""
    return [(bars.get_label(), bars) for bars in axis.containers]


def test_the_sweep_is_drawn_for_both_optimizers_with_the_finders_peak(call, root, short_sweep):
    axis = draw(call)
    assert "Muon is best with a peak of 0.02 (75.0 %), SGD is best" in axis.get_title()
    points = {label.split()[0]: bars[0].get_ydata() for label, bars in get_bars(axis)}
    assert list(points["Muon"]) == list(points["SGD"]) == [70, 75, 72]
    (peak,) = [line.get_xdata()[0] for line in axis.lines if "leads" in line.get_label()]
    assert peak == pytest.approx(2 * 0.01 * 1.1**10), "by the rule of today, from the curve"
    assert (root / "images" / "lr_sweep.png").stat().st_size > 10_000


def test_the_finder_leads_by_the_multiple_of_the_optimizer(call, short_sweep):
    curve = {"lr": [0.01 * 1.1**i for i in range(20)], "loss": [abs(i - 8) for i in range(20)]}
    settings = {**SHORT, "optimizer": "sgd"}
    row = {"settings": settings, "max_lr": 0.06, "accuracy": 70, "finder": curve}
    common.add_row("sweep", row)
    lines = draw(call).lines
    (peak,) = [line.get_xdata()[0] for line in lines if "leads with SGD" in line.get_label()]
    assert peak == pytest.approx(3 * 0.01 * 1.1**8)


def test_bars_show_the_seeds(call, short_sweep):
    settings = {**SHORT, "max_lr": 0.02}
    row = {"settings": settings, "seed": 1, "max_lr": 0.02, "accuracy": 79}
    common.add_row("sweep", row)
    label, (line, _, (bars,)) = get_bars(draw(call))[0]
    assert "Muon" in label
    assert line.get_ydata()[1] == 77, "the mean"
    assert bars.get_segments()[1][:, 1].tolist() == [75, 79], "from the least to the most"


def test_each_setting_of_the_sweep_is_tabled_with_its_best_peak(call, short_sweep):
    call(report)
    name = "anneal strategy cos, cutout free fraction 0, epochs 5, half size"
    assert f"| {name} | 0.02 (best of 3) | 75.00 % | 1 |" in read_readme()


def test_a_peak_with_which_one_seed_diverged_is_in_no_table():
    own = {"settings": SHORT, "max_lr": 0.04}
    rows = [own | {"seed": 0, "accuracy": 90.0}, own | {"seed": 1, "diverged": True}]
    assert report.group_sweep({"sweep": rows}) == {}


def test_a_run_that_diverged_is_in_neither_table_nor_figure(call, short_sweep):
    common.add_row("sweep", {"settings": {**SHORT, "max_lr": 1e30}, "seed": 0, "diverged": True})
    common.add_row("sweep", {"settings": SHORT, "seed": 0, "diverged": True})
    axis = draw(call)
    assert list(axis.lines[0].get_xdata()) == [0.01, 0.02, 0.04]
    assert "best of 3" in read_readme()


# --- The owner ------------------------------------------------------------------------------------
BADGES = """\
[![Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/OWNER/TSAI-S11/blob/main/S11.ipynb)
[![Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]\
(https://kaggle.com/kernels/welcome?src=https://github.com/OWNER/TSAI-S11/blob/main/S11.ipynb)
"""
STEP = """\
<!-- begin: owner -->
0. Run `owner.py ACCOUNT`.
<!-- end: owner -->
"""
TEXT = """\
Clone it: `git clone https://github.com/OWNER/TSAI-S11.git`, or git@github.com:OWNER/TSAI-S11.git.
Ask on https://github.com/OWNER/TSAI-S11/issues, or read https://github.com/OWNER/TSAI-S11.
"""
OTHERS = """\
https://github.com/KellerJordan/cifar10-zoo and https://github.com/actions/checkout
https://github.com/OWNER/TSAI-S110 https://github.com/OWNER/TSAI-S11.js
https://github.com/OWNER/TSAI-S11-notes https://github.com/CO-OWNER/TSAI-S11
https://github.com/OWNER/TSAI-S12/blob/main/S12.ipynb https://github.com/OWNER/TSAI-S11.git-notes
"""
CELL = '''REPO_URL = "https://github.com/OWNER/TSAI-S11"
assert "/OWNER/" not in REPO_URL, "Put the repository's owner into REPO_URL."'''


@pytest.fixture
def owner(root):
    """Return a function that runs owner.py, with nothing but Python, in a small repository."""
    (root / "benchmarks").mkdir()
    for name in ("__init__.py", "owner.py"):
        text = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
        (root / "benchmarks" / name).write_text(text, encoding="utf-8")
    (root / "README.md").write_text(BADGES + STEP + TEXT + OTHERS, encoding="utf-8")
    notebook = {"cells": [{"source": [BADGES]}, {"source": [CELL]}]}
    (root / "S11.ipynb").write_text(json.dumps(notebook, indent=1), encoding="utf-8")

    def run(*arguments, script=("benchmarks/owner.py",)):
        command = [sys.executable, "-S", *script, *arguments]  # -S: without installed packages
        return subprocess.run(command, cwd=root, capture_output=True, text=True)

    return run


def read_addresses(root):
    """Return README and notebook, without what must stay as it is in any case."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    notebook = json.loads((root / "S11.ipynb").read_text(encoding="utf-8"))
    cells = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert readme.endswith(OTHERS), "addresses of others"
    assert '"/OWNER/" not in REPO_URL' in cells, "what the setup cell looks for"
    return readme.removesuffix(OTHERS) + cells.replace('"/OWNER/"', "")


def fill_in(account, repository="TSAI-S11"):
    """Return what read_addresses is to return for an owner."""
    text = BADGES + TEXT + BADGES + CELL.replace('"/OWNER/"', "")
    return text.replace("OWNER/TSAI-S11", f"{account}/{repository}")


@pytest.mark.parametrize("script", [("benchmarks/owner.py",), ("-m", "benchmarks.owner")])
def test_one_command_fills_in_the_owner_everywhere(script, owner, root):
    assert owner("ada", script=script).returncode == 0
    assert read_addresses(root) == fill_in("ada")


@pytest.mark.parametrize("account", ["ada", "Ada", "grace-hopper", "OWNER", "1-2"])
def test_a_published_copy_gets_its_next_owner(account, owner, root):
    owner("ada")
    assert owner(account).returncode == 0
    assert read_addresses(root) == fill_in(account)


def test_a_renamed_repository_is_filled_in_and_kept(owner, root):
    owner("ada", "--repository", "cifar.10_net")
    assert read_addresses(root) == fill_in("ada", "cifar.10_net")
    owner("bob")
    assert read_addresses(root) == fill_in("bob", "cifar.10_net")


@pytest.mark.parametrize(
    ("origin", "repository"),
    [
        ("https://github.com/ada/My-S11.git", "My-S11"),
        ("git@github.com:Ada/My-S11.git", "My-S11"),
        ("https://github.com/bob/My-S11", "TSAI-S11"),  # another account's
        ("https://gitlab.com/ada/My-S11", "TSAI-S11"),
    ],
)
def test_a_clone_knows_its_repository(origin, repository, owner, root):
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "remote", "add", "origin", origin], cwd=root, check=True)
    owner("ada")
    assert read_addresses(root) == fill_in("ada", repository)


def test_a_notebook_of_another_owner_than_the_readme_is_filled_in(owner, root):
    text = (root / "S11.ipynb").read_text(encoding="utf-8")
    text = text.replace("OWNER/TSAI-S11", "grace/S11-colab")
    (root / "S11.ipynb").write_text(text, encoding="utf-8")
    owner("ada")
    assert read_addresses(root) == fill_in("ada")


def test_the_source_that_a_readme_names_stays(owner, root):
    """The notebook still has the address that it was forked from, and the README names it."""
    text = (root / "S11.ipynb").read_text(encoding="utf-8")
    (root / "S11.ipynb").write_text(text.replace("OWNER/T", "grace/T"), encoding="utf-8")
    credit = "The code is from https://github.com/grace/TSAI-S11."
    readme = read_readme().replace("OWNER/T", "ada/T") + credit
    (root / "README.md").write_text(readme, encoding="utf-8")
    assert owner("ada").returncode == 0
    assert credit in read_readme()
    assert "grace" not in (root / "S11.ipynb").read_text(encoding="utf-8")


def test_ends_of_lines_stay_as_they_are(owner, root):
    text = read_readme().replace("\n", "\r\n")
    (root / "README.md").write_bytes(text.encode())
    owner("ada")
    lines = (root / "README.md").read_bytes().split(b"\n")
    assert all(line.endswith(b"\r") for line in lines[:-1])
    assert b"begin: owner" not in b"".join(lines)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--repository", "S11"],
        ["ada", "bob"],
        ["a b"],
        ["ada/"],
        ["https://github.com/ada"],
        ["\u00e4da"],
        ["ada\n"],
        ["ada", "--repository", "a/b"],
        ["ada", "--repository", ".."],
    ],
)
def test_what_is_no_account_changes_nothing(arguments, owner, root):
    before = read_readme()
    done = owner(*arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert read_readme() == before


def test_help_of_the_owner_changes_nothing(owner):
    before = read_readme()
    assert owner("--help").returncode == 0
    assert read_readme() == before
