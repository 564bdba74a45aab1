"""The notebook as it is saved: thin, executed, readable on GitHub, and checked where it can be."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import utils

PATH = Path(__file__).parent.parent / "S11.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
SOURCES = {cell.id: cell.source for cell in CODE}
OUTPUTS = [output for cell in CODE for output in cell.outputs]


def parse(source):
    return ast.parse(TransformerManager().transform_cell(source))


def get_text(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_format_is_valid():
    nbformat.validate(NOTEBOOK)
    assert NOTEBOOK.nbformat_minor >= 5, "cells have ids"
    assert len({cell.id for cell in NOTEBOOK.cells}) == len(NOTEBOOK.cells)


def test_colab_is_asked_for_a_t4():
    assert NOTEBOOK.metadata.accelerator == "GPU"
    assert NOTEBOOK.metadata.colab.gpuType == "T4"


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell.id)
def test_cells_define_nothing_and_loop_over_nothing(cell):
    forbidden = (
        *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
        *(ast.For, ast.While, ast.comprehension),
    )
    found = [node for node in ast.walk(parse(cell.source)) if isinstance(node, forbidden)]
    assert not found
    assert not re.search(r"(['\"/ ])(/(content|home|Users|root|tmp|work)|[A-Z]:\\)", cell.source)


def test_repository_is_named_once():
    addresses = re.findall(r"https://github\.com/[\w.-]+/TSAI-S11", "\n".join(SOURCES.values()))
    assert len(addresses) == 1


def test_code_comes_from_the_repository():
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(parse(SOURCES["imports"]))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert modules == {"torch", "torchsummary", "utils", "models.resnet"}


def test_numbers_in_the_parameters_cell_are_the_defaults():
    (call,) = (node for node in ast.walk(parse(SOURCES["config"])) if isinstance(node, ast.Call))
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given.pop("profile") is None
    defaults = {field.name: field.default for field in fields(utils.Config)}
    assert given == {name: defaults[name] for name in given}


# What is saved


def test_first_cell_says_which_profile_the_outputs_are_of():
    (config,) = (cell for cell in CODE if cell.id == "config")
    told = "outputs saved here are those of its quick profile" in NOTEBOOK.cells[0].source
    assert told == ("QUICK PROFILE" in get_text(config))


def test_every_cell_was_executed_in_order():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))


def test_no_cell_failed_or_warned():
    for output in OUTPUTS:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.get("text")


def test_progress_is_plain_text():
    assert "widget" not in json.dumps(NOTEBOOK.metadata)
    for output in OUTPUTS:
        assert not [kind for kind in output.get("data", {}) if "widget" in kind]
        assert "\r" not in output.get("text", ""), "GitHub shows every state of such a bar"
    assert "Train: Loss=" in get_text(CODE[list(SOURCES).index("fit")])


def test_every_figure_is_inline():
    pictures = [output for output in OUTPUTS if "image/png" in output.get("data", {})]
    assert len(pictures) == 6


def test_saved_run_says_what_it_ran_on():
    text = get_text(CODE[list(SOURCES).index("config")])
    assert re.search(r"epochs, batches of \d+, on .+ in (float32|float16|bfloat16)", text)


def test_saved_outputs_name_no_folder_of_the_machine_they_ran_on():
    text = json.dumps([{k: v for k, v in o.items() if k != "data"} for o in OUTPUTS])
    assert not re.search(r"/(home|root|tmp|work|Users|content|usr|opt)/", text)


def test_it_is_small_enough_for_github():
    assert PATH.stat().st_size < 5_000_000
    assert max(len(json.dumps(output)) for output in OUTPUTS) < 1_000_000


# What the nbval run compares: a misspelt tag would compare measured numbers, or nothing


def test_tags_are_spelt_right():
    tags = {tag for cell in NOTEBOOK.cells for tag in cell.metadata.get("tags", [])}
    assert tags == {"nbval-ignore-output"}


def test_deterministic_cells_are_compared():
    compared = {cell.id for cell in CODE if not cell.metadata.get("tags")}
    assert compared == {"imports", "loaders", "torchsummary", "model-cell", "map-size"}
    saved = {cell.id: get_text(cell) for cell in CODE}
    assert "11,173,962" in saved["torchsummary"]
    assert "Total mult-adds (M): 555.43" in saved["model-cell"]
    assert "test images" in saved["loaders"]
    (size,) = CODE[list(SOURCES).index("map-size")].outputs
    assert size.data["text/plain"] == "(8, 8)"
