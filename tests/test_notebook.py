"""The notebook as it is saved, by whom and with whatever parameters: thin, executed, readable."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

PATH = Path(__file__).parent.parent / "S11.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
FOLDER = r"(?<![\w.:/])(/(home|root|tmp|Users|content|kaggle|mnt)/(?!drive\b)|[A-Z]:\\)"


def find_nodes(cell, *kinds):
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def find_cell(words):
    (cell,) = (cell for cell in CODE if words in cell.source)
    return cell


def test_file_is_valid_executed_in_order_and_small_enough_for_github():
    nbformat.validate(NOTEBOOK)
    assert NOTEBOOK.nbformat_minor >= 5, "cells have ids"
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert PATH.stat().st_size < 5_000_000
    assert max(len(json.dumps(output)) for cell in CODE for output in cell.outputs) < 1_000_000


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell.id)
def test_cells_only_call_what_comes_from_the_repository(cell):
    assert not find_nodes(cell, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not find_nodes(cell, ast.For, ast.While, ast.comprehension)
    modules = {alias.name for node in find_nodes(cell, ast.Import) for alias in node.names}
    modules |= {node.module for node in find_nodes(cell, ast.ImportFrom)}
    extra = {name.split(".")[0] for name in modules}
    extra -= {"torch", "torchsummary", "torchvision", "utils", "models"}
    assert not extra or "REPO_URL" in cell.source
    assert extra <= sys.stdlib_module_names
    assert "get_config" in cell.source or not re.search(FOLDER, cell.source)


def test_outputs_are_plain_text_and_six_figures_without_errors_or_folders():
    assert "vnd.jupyter.widget" not in PATH.read_text(encoding="utf-8")
    outputs = [output for cell in CODE for output in cell.outputs]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 6
    for output in outputs:
        assert (output.output_type, output.get("name")) != ("stream", "stderr"), output.text
        assert output.output_type != "error"
        data = output.get("data", {})
        texts = [output.get("text", ""), *(data[kind] for kind in data if "text" in kind)]
        assert not [text for text in texts if "\r" in text], "GitHub shows all states of such a bar"
        assert not [text for text in texts if re.search(FOLDER, text)]
    machine = r"epochs, batches of \d+, on .+ in (float32|float16|bfloat16)"
    assert re.search(machine, str(find_cell("get_config").outputs))


def test_cells_whose_outputs_are_the_same_everywhere_are_compared():
    tags = {tag for cell in NOTEBOOK.cells for tag in cell.metadata.get("tags", [])}
    assert tags == {"nbval-ignore-output"}, "a misspelt tag would compare measured numbers"
    compared = {cell.id for cell in CODE if not cell.metadata.get("tags")}
    words = ("import utils", "get_dataloaders", "torchsummary.summary", "show_summary", "map_size")
    assert compared == {find_cell(word).id for word in words}
