"""The notebook as it is saved, by whom and with whatever parameters: thin, executed, readable.

Each check is a function of a notebook. It holds for ours, and for a small one, as Colab and others
save it; and it fails for a notebook with the one mistake that it looks for.
"""

import ast
import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent
NOTEBOOK = nbformat.read(ROOT / "S11.ipynb", as_version=4)

HOME = r"(?<![\w.:~/])(/home/\w|/Users/\w|/root/(?!\.)|[A-Za-z]:\\+Users\\)"
COMPARED = ("torchsummary.summary(", "utils.show_summary(", "utils.get_map_size(")
LIMIT = 10  # states of bars that stopped on their way: a few broke off, hundreds were all kept


def get_code(notebook):
    """Return the code cells in which anything is written."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if cell.source.strip()]


def name(notebook, cell):
    """Say which cell it is: its number, counted as nbval does, and its first line."""
    number = [other for other in notebook.cells if other.cell_type == "code"].index(cell)
    return f"Cell {number} ({cell.source.strip().splitlines()[0]!r})"


def find_nodes(cell, *kinds):
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def get_texts(cell):
    """Return everything that stands below a cell as text."""
    texts = []
    for output in cell.outputs:
        texts.append(output.get("text", ""))
        texts += output.get("traceback", [])
        for kind, content in output.get("data", {}).items():
            if kind.startswith("text/"):
                texts.append(content)
    return "\n".join(texts)


def find_cells(notebook, words):
    return [cell for cell in get_code(notebook) if words in cell.source]


def find_cell(notebook, words):
    """Return the cell with these words, of which there is one."""
    (cell,) = find_cells(notebook, words)
    return cell


def check_format(notebook):
    nbformat.validate(copy.deepcopy(notebook))


def check_size(notebook):
    size = len(json.dumps(notebook))
    assert size < 5_000_000, f"The notebook has {size:,} bytes; GitHub shows fewer than 5,000,000."
    for cell in get_code(notebook):
        size = len(json.dumps(cell.outputs))
        assert size < 2_000_000, (
            f"{name(notebook, cell)} has outputs of {size:,} bytes: clear them."
        )


def check_functions(notebook):
    for cell in get_code(notebook):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        defined = find_nodes(cell, *kinds)
        assert not defined, (
            f"{name(notebook, cell)} defines a function or class: put it into utils.py."
        )


def check_loops(notebook):
    for cell in get_code(notebook):
        loops = find_nodes(cell, ast.For, ast.While, ast.comprehension)
        assert not loops, f"{name(notebook, cell)} has a loop: put it into a function in utils.py."


def check_executed(notebook):
    for cell in get_code(notebook):
        count = cell.execution_count
        assert count is not None, f"{name(notebook, cell)} was not run: run all cells, and save."


def check_order(notebook):
    """A cell may run again, but what others have made of its results must be made again, too."""
    made_by = {}
    for cell in get_code(notebook):
        nodes = find_nodes(cell, ast.Name)
        for node in nodes:
            maker = made_by.get(node.id)
            if isinstance(node.ctx, ast.Load) and maker is not None:
                assert maker.execution_count < cell.execution_count, (
                    f"{name(notebook, cell)} shows what is older than {node.id!r}: "
                    f"{name(notebook, maker)} ran later. Run the first again."
                )
        for node in nodes:
            if isinstance(node.ctx, ast.Store):
                made_by[node.id] = cell


def check_errors(notebook):
    for cell in get_code(notebook):
        failed = [output for output in cell.outputs if output.output_type == "error"]
        assert not failed, f"{name(notebook, cell)} ended in an error: mend it, and run all cells."


def check_widgets(notebook):
    for cell in get_code(notebook):
        for output in cell.outputs:
            kinds = " ".join(output.get("data", {}))
            assert "widget" not in kinds, (
                f"{name(notebook, cell)} shows a widget, which GitHub cannot draw: "
                "use utils.progress_bar, or tqdm.tqdm in place of tqdm.notebook."
            )


def check_bars(notebook):
    for cell in get_code(notebook):
        percentages = re.findall(r"(\d+)%\|", get_texts(cell))
        states = len(percentages) - percentages.count("100")
        assert states <= LIMIT, (
            f"{name(notebook, cell)} shows {states} states of its progress bars, not the last ones "
            "alone: use utils.progress_bar, and run the cell again."
        )


def check_folders(notebook):
    for cell in get_code(notebook):
        found = re.search(HOME + r"\S*", get_texts(cell))
        assert not found, f"{name(notebook, cell)} shows a folder of your own machine: {found[0]}"


def check_figures(notebook):
    drawn = ""
    for cell in get_code(notebook):
        calls = re.findall(r"^[^#\n]*utils\.(plot_\w+|find_lr)\(", cell.source, re.MULTILINE)
        shown = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert shown or not calls, (
            f"{name(notebook, cell)} draws a figure, but shows none: run all cells, and save."
        )
        drawn += " ".join(calls)
    for needed in ("plot_history", "plot_misclassified", "plot_gradcam"):
        assert needed in drawn, f"No cell calls utils.{needed}: the assignment asks for its figure."


def check_parameters(notebook):
    tagged = []
    for cell in get_code(notebook):
        if "parameters" in cell.metadata.get("tags", []):
            tagged.append(cell)
    assert len(tagged) == 1, (
        f"{len(tagged)} cells have the tag 'parameters', where the tests put the quick profile: "
        "give it to the cell that calls utils.get_config, and to no other."
    )
    (cell,) = tagged
    assert re.search(r"^config = utils\.get_config\(", cell.source, re.MULTILINE), (
        f"{name(notebook, cell)} has the tag 'parameters' but makes no config: move the tag."
    )
    assert re.search(r"in (float32|float16|bfloat16)\b", get_texts(cell)), (
        f"{name(notebook, cell)} does not say on which machine it ran: run all cells, and save."
    )


def check_compared(notebook):
    for words in COMPARED:
        cells = find_cells(notebook, words)
        assert cells, f"No cell calls {words}...): the tests compare what it shows."
        for cell in cells:
            assert cell.outputs, (
                f"{name(notebook, cell)} calls {words}...), but shows nothing: run all cells."
            )
        tags = [cell.metadata.get("tags", []) for cell in cells]
        assert any("nbval-check-output" in own for own in tags), (
            f"{name(notebook, cells[0])} calls {words}...), but is not compared by the tests: "
            "give it the tag 'nbval-check-output'."
        )


CHECKS = (
    check_format,
    check_size,
    check_functions,
    check_loops,
    check_executed,
    check_order,
    check_errors,
    check_widgets,
    check_bars,
    check_folders,
    check_figures,
    check_parameters,
    check_compared,
)


@pytest.mark.parametrize("check", CHECKS)
def test_our_notebook_passes(check):
    check(NOTEBOOK)


def test_the_setup_cell_is_short_and_folded_by_whoever_saved_it_last():
    cell = find_cell(NOTEBOOK, "REPO_URL = ")
    lines = [line.strip() for line in cell.source.splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 33
    assert re.match("# ?@title ", lines[0])
    folded = cell.metadata.get("jupyter", {}).get("source_hidden")
    assert folded or cell.metadata.get("cellView") == "form" or cell.metadata.get("_kg_hide-input")


# A small notebook, which no run and no change of ours alters: (source, tags, printed, figures)
CELLS = (
    ('# @title Fetch\nREPO_URL = "https://github.com/ada/S11"', [], "We use ~/S11/utils.py\n", 0),
    ("import torch\n\nimport utils", [], "", 0),
    ("config = utils.get_config()", ["parameters"], "on CPU in float32 (PyTorch)\n", 0),
    ("train_loader, test_loader = utils.get_dataloaders(config)", [], "50,000 images\n", 0),
    ("utils.plot_samples(train_loader, config)", [], "", 1),
    ("model = ResNet18()", [], "", 0),
    ("torchsummary.summary(model, (3, 32, 32))", ["nbval-check-output"], "Layers\n", 0),
    ("utils.show_summary(model)", ["nbval-check-output"], "Layers\n", 0),
    ("max_lr = utils.find_lr(model, train_loader, config)", [], "", 1),
    ("history = utils.fit_one_cycle(model, train_loader, max_lr, config)", [], "Epoch 1\n", 0),
    ("utils.plot_history(history, config)", [], "", 1),
    ("utils.plot_misclassified(misclassified, config)", [], "", 1),
    ("utils.get_map_size(model, layer)", ["nbval-check-output"], "(8, 8)\n", 0),
    ("utils.plot_gradcam(model, misclassified, config)", [], "", 1),
)


def make_notebook():
    """Return the small notebook, all its cells run in their order."""
    notebook = new_notebook(metadata={"language_info": {"name": "python", "version": "3.11.0"}})
    for count, (source, tags, printed, figures) in enumerate(CELLS, start=1):
        cell = new_code_cell(source, execution_count=count, metadata={"tags": tags})
        if printed:
            add_output(cell, printed)
        for _ in range(figures):
            add_output(cell, "iVBORw0KGgo=", "image/png")
        notebook.cells.append(cell)
    return notebook


@pytest.mark.parametrize("check", CHECKS)
def test_the_small_notebook_passes(check):
    check(make_notebook())


# Copies of it that are fine


def add_output(cell, text, kind="stream"):
    if kind == "stream":
        cell.outputs.append(new_output("stream", name="stdout", text=text))
    else:
        cell.outputs.append(new_output("display_data", data={kind: text}))


def add_cell(notebook, source, after="import utils", **fields):
    """Put a code cell behind another one, as if it had been there when all cells were run."""
    cell = find_cell(notebook, after)
    place = notebook.cells.index(cell) + 1
    for later in get_code(notebook):
        if later.execution_count > cell.execution_count:
            later.execution_count += 1
    count = cell.execution_count + 1
    notebook.cells.insert(place, new_code_cell(source, execution_count=count, **fields))
    return notebook.cells[place]


def drop_ids(notebook, minor):
    notebook.nbformat_minor = minor
    for number, cell in enumerate(notebook.cells):
        cell.pop("id", None)
        cell.metadata["id"] = f"id{number}"


def save_by_colab(notebook):
    drop_ids(notebook, 0)
    notebook.metadata["colab"] = {"provenance": [], "gpuType": "T4"}
    for cell in get_code(notebook):
        cell.metadata["outputId"] = "5cb6-1f"
        cell.metadata["colab"] = {"base_uri": "https://localhost:8080/", "height": 17}
    setup = find_cell(notebook, "REPO_URL = ")
    add_output(setup, "We use /content/S11-clone/utils.py\n")
    notebook.cells.append(new_code_cell("", id="empty"))  # Colab likes to leave one
    notebook.cells[-1].pop("id")


def save_by_kaggle(notebook):
    drop_ids(notebook, 4)
    notebook.metadata["papermill"] = {"duration": 900.0, "exception": None}
    for cell in get_code(notebook):
        cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00.000000Z"}
        cell.metadata["papermill"] = {"status": "completed", "duration": 0.1}
        cell.metadata["trusted"] = True
    setup = find_cell(notebook, "REPO_URL = ")
    add_output(setup, "We use /kaggle/working/S11-clone/utils.py\n")


def save_by_vs_code(notebook):
    for cell in notebook.cells:
        cell.metadata["vscode"] = {"languageId": "python"}
    notebook.metadata["language_info"]["version"] = "3.13.1"


def save_by_nbconvert(notebook):
    for cell in get_code(notebook):
        cell.metadata["execution"] = {"shell.execute_reply": "2026-01-01T00:00:00.000000Z"}


def save_by_papermill(notebook):
    for cell in notebook.cells:
        cell.metadata["tags"] = cell.metadata.get("tags", [])
        cell.metadata["papermill"] = {"status": "completed"}
    add_cell(
        notebook, "epochs = 40", "utils.get_config(", metadata={"tags": ["injected-parameters"]}
    )


def run_a_figure_again(notebook):
    cell = find_cell(notebook, "utils.plot_samples(")
    cell.execution_count = 99


def run_everything_twice(notebook):
    for cell in get_code(notebook):
        cell.execution_count += 15


def run_each_cell_twice(notebook):
    for cell in get_code(notebook):
        cell.execution_count *= 2


def add_a_figure(notebook):
    cell = add_cell(notebook, "utils.plot_samples(test_loader, config)", "utils.plot_samples(")
    add_output(cell, "iVBORw0KGgo=", "image/png")


def mount_a_drive(notebook):
    cell = add_cell(notebook, "from google.colab import drive\ndrive.mount('/content/drive')")
    add_output(cell, "Mounted at /content/drive\n")


def go_on(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    add_output(cell, "Going on from /content/drive/MyDrive/S11/checkpoint.pt: 3 of 20 epochs\n")


def show_bars_in_place(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    cell.outputs = []
    for epoch in range(1, 21):
        add_output(cell, f"Epoch {epoch}\n")
        add_output(cell, "Train: Loss=0.1: 100%|██████████| 98/98 [04:53<00:00]", "text/plain")


def show_bars_as_a_stream(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    cell.outputs = []
    add_output(cell, "\rTrain:   0%|          | 0/98\rTrain: 100%|██████████| 98/98\n" * 3)


def break_off_and_go_on(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    add_output(cell, "Train: Loss=0.1:  41%|████      | 40/98 [01:53<02:00]", "text/plain")


def print_numbers(notebook):
    cell = add_cell(notebook, "history['test_accuracy'][-1]", "utils.fit_one_cycle(")
    add_output(cell, "94.36\n")


def warn(notebook):
    cell = get_code(notebook)[1]
    cell.outputs.append(new_output("stream", name="stderr", text="UserWarning: old driver\n"))


def train_another_network(notebook):
    cell = find_cell(notebook, "ResNet18()")
    cell.source = cell.source.replace("ResNet18", "ResNet34")


FINE = (
    save_by_colab,
    save_by_kaggle,
    save_by_vs_code,
    save_by_nbconvert,
    save_by_papermill,
    run_a_figure_again,
    run_everything_twice,
    run_each_cell_twice,
    add_a_figure,
    mount_a_drive,
    go_on,
    show_bars_in_place,
    show_bars_as_a_stream,
    break_off_and_go_on,
    print_numbers,
    warn,
    train_another_network,
)


@pytest.mark.parametrize("change", FINE)
def test_a_copy_that_is_fine_passes(change):
    notebook = make_notebook()
    before = copy.deepcopy(notebook)
    change(notebook)
    assert notebook != before
    for check in CHECKS:
        check(notebook)


# Copies with a mistake, and words that name it


def give_a_cell_two_ids(notebook):
    notebook.cells[0]["number"] = 1


def grow(notebook):
    add_output(get_code(notebook)[3], "x" * 2_500_000)


def grow_everywhere(notebook):
    for cell in get_code(notebook):
        add_output(cell, "x" * 500_000)


def define_a_function(notebook):
    add_cell(notebook, "def double(x):\n    return 2 * x")


def define_a_class(notebook):
    add_cell(notebook, "class Own(torch.nn.Module):\n    pass")


def write_a_loop(notebook):
    add_cell(notebook, "for epoch in range(2):\n    print(epoch)")


def write_a_comprehension(notebook):
    add_cell(notebook, "[2 * x for x in range(3)]")


def forget_a_cell(notebook):
    cell = find_cell(notebook, "utils.plot_history(")
    cell.execution_count = None


def train_again_without_the_figures(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    cell.execution_count = 99


def fail(notebook):
    cell = find_cell(notebook, "utils.plot_history(")
    cell.outputs = [new_output("error", ename="KeyboardInterrupt", evalue="", traceback=[])]


def show_a_widget(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    add_output(cell, {"model_id": "1"}, "application/vnd.jupyter.widget-view+json")


def keep_all_states_of_a_stream(notebook):
    cell = find_cell(notebook, "utils.fit_one_cycle(")
    states = [f"Train: {percent:3}%|      | {percent}/98" for percent in range(98)]
    add_output(cell, "\r".join(states))


def keep_all_states_as_outputs(notebook):
    cell = find_cell(notebook, "utils.find_lr(")
    for percent in range(98):
        add_output(cell, f"Train: {percent:3}%|      | {percent}/98", "text/plain")


def show_a_home_folder(notebook):
    add_output(get_code(notebook)[3], "Saved in /home/ada/S11/outputs\n")


def show_a_home_folder_on_a_mac(notebook):
    add_output(get_code(notebook)[3], "'/Users/ada/S11/outputs'", "text/plain")


def show_a_home_folder_on_windows(notebook):
    add_output(get_code(notebook)[3], r"Saved in C:\Users\ada\S11")


def show_the_folder_of_root(notebook):
    add_output(get_code(notebook)[3], "Saved in /root/S11/outputs\n")


def drop_gradcam(notebook):
    notebook.cells.remove(find_cell(notebook, "utils.plot_gradcam("))


def clear_all_outputs(notebook):
    for cell in get_code(notebook):
        cell.outputs = []


def lose_all_tags(notebook):
    for cell in notebook.cells:
        cell.metadata.pop("tags", None)


def copy_the_parameters(notebook):
    cell = find_cell(notebook, "utils.get_config(")
    notebook.cells.append(copy.deepcopy(cell))


def tag_another_cell(notebook):
    cell = find_cell(notebook, "utils.get_config(")
    cell.metadata["tags"] = []
    get_code(notebook)[1].metadata["tags"] = ["parameters"]


def leave_out_the_summary(notebook):
    notebook.cells.remove(find_cell(notebook, "torchsummary.summary("))


WRONG = (
    (give_a_cell_two_ids, check_format, "number"),
    (grow, check_size, "Cell 3 .*bytes"),
    (grow_everywhere, check_size, "notebook has .*bytes"),
    (define_a_function, check_functions, "Cell 2 .*def double.*utils.py"),
    (define_a_class, check_functions, "Cell 2 .*class Own.*utils.py"),
    (write_a_loop, check_loops, "Cell 2 .*for epoch.*loop"),
    (write_a_comprehension, check_loops, "Cell 2 .*for x.*loop"),
    (forget_a_cell, check_executed, "plot_history.*was not run"),
    (train_again_without_the_figures, check_order, "plot_history.*'history'.*fit_one_cycle"),
    (fail, check_errors, "plot_history.*error"),
    (show_a_widget, check_widgets, "fit_one_cycle.*widget"),
    (keep_all_states_of_a_stream, check_bars, "fit_one_cycle.*98 states"),
    (keep_all_states_as_outputs, check_bars, "find_lr.*98 states"),
    (show_a_home_folder, check_folders, "Cell 3 .*/home/ada/S11"),
    (show_a_home_folder_on_a_mac, check_folders, "Cell 3 .*/Users/ada/S11"),
    (show_a_home_folder_on_windows, check_folders, r"Cell 3 .*C:\\Users\\ada"),
    (show_the_folder_of_root, check_folders, "Cell 3 .*/root/S11"),
    (clear_all_outputs, check_figures, "shows none"),
    (drop_gradcam, check_figures, "No cell calls utils.plot_gradcam"),
    (clear_all_outputs, check_parameters, "get_config.*machine"),
    (clear_all_outputs, check_compared, "torchsummary.*shows nothing"),
    (lose_all_tags, check_parameters, "'parameters'.*get_config"),
    (lose_all_tags, check_compared, "torchsummary.*'nbval-check-output'"),
    (copy_the_parameters, check_parameters, "2 cells.*'parameters'"),
    (tag_another_cell, check_parameters, "Cell 1 .*'parameters'.*config"),
    (leave_out_the_summary, check_compared, "torchsummary.summary"),
)


@pytest.mark.parametrize(("change", "check", "words"), WRONG)
def test_a_mistake_is_told_in_words(change, check, words):
    notebook = make_notebook()
    change(notebook)
    with pytest.raises((AssertionError, nbformat.ValidationError), match=f"(?s){words}"):
        check(notebook)


# What nbval makes of a copy

STAND_IN = """
def get_config(*args, **settings):
    print("PARAMETERS", args, settings)
    folders.append(settings.get("output_dir"))
    return "quick"

folders = []

model = train_loader = test_loader = None

def fit_one_cycle(*args):
    return {"accuracy": 10}
"""


def run_nbval(folder, *cells):
    """Run pytest --nbval with our conftest.py on a notebook of (source, tags, printed) cells."""
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "utils.py").write_text(STAND_IN)
    code = []
    for count, (source, tags, printed) in enumerate(cells, start=1):
        outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
        cell = new_code_cell(source, execution_count=count, outputs=outputs)
        cell.metadata["tags"] = tags
        code.append(cell)
    nbformat.write(new_notebook(cells=code), folder / "own.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "own.ipynb", "-rA"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_nbval_is_red_where_something_is_wrong_and_nowhere_else(tmp_path):
    own = 'config = utils.get_config("full", epochs=40, output_dir="/content/drive/MyDrive/S11")'
    fine = (
        ("import utils", [], ""),
        (own, ["parameters", "nbval-ignore-output"], "CIFAR-10\n"),
        ("assert config == 'quick'", [], ""),
        ("print(config)", [], "94.36\n"),  # a number of one's own
        ("print((8, 8))", ["nbval-check-output"], "(8, 8)\n"),
        ("from utils import model, test_loader, train_loader", [], ""),
        ("history = utils.load_result(model, config)", [], ""),
        ("assert history['accuracy'] == 10", [], ""),
        ('utils.get_config(output_dir="/content/drive/MyDrive/b")', [], "CIFAR-10\n"),
        ("utils.get_config(output_dir=f'outputs/seed{1}')", [], "CIFAR-10\n"),
        ("assert utils.folders[-2].endswith('/drive/MyDrive/b')", [], ""),
        ("assert utils.folders[-1].endswith('/outputs/seed1')", [], ""),
        ("assert utils.folders[-2].startswith(utils.folders[-1][:-13])", [], ""),  # of the tests
    )
    elsewhere = (
        ("from google.colab import drive\ndrive.mount('/content/drive')", [], "Mounted\n"),
        ("import shutil\nshutil.copytree('outputs', '/kaggle/working/outputs')", [], ""),
        ('utils.plot_comparison({"a": "outputs/full", "b": "outputs/seed1"}, config)', [], ""),
        ('utils.plot_prediction(model, "photo.jpg", config)', [], ""),
        ('!python -m benchmarks.report "{config.output_dir}"', [], ""),
    )
    wrong = (
        ("print((4, 4))", ["nbval-check-output"], "(8, 8)\n"),
        ("utils.get_cnfig()", [], ""),
    )
    text = run_nbval(tmp_path, *fine, *elsewhere, *wrong)
    assert "2 failed, 13 passed, 5 skipped" in text
    assert re.findall(r"(?m)^FAILED \S+::(Cell \d+)", text) == ["Cell 18", "Cell 19"]
    assert "get_cnfig" in text
