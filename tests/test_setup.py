"""The setup cell, run for real in an empty folder: on Colab, on Kaggle, or anywhere else."""

import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import requires
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
CELLS = {cell.id: cell.source for cell in nbformat.read(ROOT / "S11.ipynb", as_version=4).cells}
UNKNOWN = "https://github.com/OWNER/TSAI-S11"
COLAB = 'import sys, types; sys.modules["google.colab"] = types.ModuleType("google.colab")'
RUNS = 'import utils; print("RUNS", utils.VERSION)'
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell(colors="NoColor", xmode="Minimal")
for cell in json.load(sys.stdin):
    shell.run_cell(cell).success or sys.exit()
"""
PIP = "import os, sys; print('PIP', *sys.argv[1:]); sys.exit(int(os.getenv('PIP_FAILS', 0)))"


def git(folder, *command):
    subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def commit(folder, version):
    """Commit a stand-in for the code: the setup cell asks for no more than its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(f'VERSION = "{version}"\n')
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", version)):
        git(folder, *command)


@pytest.fixture
def github(tmp_path, monkeypatch):
    """Serve github.com from a folder with ada/TSAI-S11, and let pip say what it is asked for."""
    (tmp_path / "pip.py").write_text(PIP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{(tmp_path / 'github').as_uri()}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
    for name in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT"):
        monkeypatch.delenv(name, raising=False)
    commit(tmp_path / "github" / "ada" / "TSAI-S11", "first")
    return tmp_path / "github"


@pytest.fixture
def run(github, tmp_path):
    """Return a function that runs the setup cell and more cells, and returns what they print."""
    (tmp_path / "empty folder").mkdir()

    def run_cells(*more, url="https://github.com/ada/TSAI-S11", first="", folder="empty folder"):
        setup, count = re.subn('(?m)^REPO_URL = ".*"', f'REPO_URL = "{url}"', CELLS["fetch"])
        assert count == 1
        cells = [first, setup, *(setup if cell == "fetch" else cell for cell in more or (RUNS,))]
        streams = {
            "input": json.dumps(cells),
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        command = [sys.executable, "-uc", SHELL]
        return subprocess.run(
            command, cwd=tmp_path / folder, text=True, timeout=60, **streams
        ).stdout

    return run_cells


@pytest.fixture
def empty(tmp_path, run):
    return tmp_path / "empty folder"


@pytest.fixture
def serve(monkeypatch):
    """Return a function that answers as Colab's sessions API does; None: the answer never comes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(self.server.answer.encode())

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
        monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_port))

        def start(answer):
            server.answer = answer
            if answer is not None:
                Thread(target=server.handle_request, daemon=True).start()

        yield start


def get_session(address):
    return json.dumps([{"path": f"fileId={quote(address, safe='')}&pli=1", "name": "S11.ipynb"}])


@pytest.mark.parametrize("first", ["", COLAB], ids=["anywhere", "Colab"])
def test_empty_folder(run, empty, first):
    text = run(first=first)
    assert "RUNS first" in text
    assert "PIP install --quiet grad-cam" in text
    assert [path.name for path in empty.iterdir()] == ["S11-clone"]


def test_real_code_in_a_kernel(github, empty):
    folder = github / "ada" / "TSAI-S11"
    shutil.copytree(ROOT / "models", folder / "models")
    commit(folder, "models")
    shutil.copy(ROOT / "utils.py", folder)
    git(folder, "commit", "-qam", "utils")
    setup = CELLS["fetch"].replace("github.com/OWNER/", "github.com/ada/")  # as the README has it
    cells = [new_code_cell(s) for s in (setup, CELLS["imports"], CELLS["config"], setup)]
    options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(empty)}}}
    notebook = NotebookClient(new_notebook(cells=cells), timeout=100, **options).execute()
    assert "QUICK PROFILE" in str(notebook.cells[2].outputs)
    assert "has changed" not in str(notebook.cells[3].outputs)


@pytest.mark.parametrize("branch", ["main-2", "feature/x"])
def test_fork_on_colab_is_fetched_from_where_it_was_opened(run, github, serve, branch):
    fork = github / "grace" / "home.work"
    commit(fork, "default branch")
    git(fork, "checkout", "-qb", branch)
    commit(fork, "fork")
    git(fork, "checkout", "-q", "-")
    session = get_session(f"https://github.com/grace/home.work/blob/{branch}/My S11.ipynb")
    serve(session)
    assert "RUNS fork" in run(url=UNKNOWN, first=COLAB)
    git(fork, "checkout", "-q", branch)
    commit(fork, "newer")
    serve(session)
    assert "RUNS newer" in run(url=UNKNOWN, first=COLAB)


OTHER_ANSWERS = {
    "never": None,
    "nonsense": "<html>",
    "nothing": "[]",
    "Drive": json.dumps([{"path": "fileId=1AbCdEfGhIjKlMnOpQrStUvWx", "name": "S11.ipynb"}]),
    "other host": get_session("https://github.com.evil.org/ada/evil/blob/main/S11.ipynb"),
    "in a query": get_session("https://evil.org/?https://github.com/ada/evil/blob/main/S11.ipynb"),
    "option": get_session("https://github.com/ada/evil/blob/--upload-pack=x/S11.ipynb"),
    "shell": get_session("https://github.com/ada/evil/blob/x$(touch stolen)/S11.ipynb"),
}


@pytest.mark.parametrize("answer", OTHER_ANSWERS.values(), ids=OTHER_ANSWERS)
def test_other_answers_leave_repo_url(run, empty, serve, answer):
    serve(answer)
    assert "RUNS first" in run(first=COLAB)
    assert [path.name for path in empty.iterdir()] == ["S11-clone"]


def test_second_run_pulls_and_asks_for_a_restart(run, github, empty):
    repository = github / "ada" / "TSAI-S11"
    push = f"""open(r"{repository / "utils.py"}", "w").write('VERSION = "second"')
get_ipython().system('git -C "{repository}" commit -qam second')"""
    text = run(RUNS, "fetch", "print('BETWEEN')", push, "fetch")
    before, after = text.split("BETWEEN")
    assert "has changed" not in before
    assert "has changed: restart" in after
    assert "second" in (empty / "S11-clone" / "utils.py").read_text()
    text = run()  # in a new kernel
    assert "RUNS second" in text
    assert "has changed" not in text


@pytest.mark.parametrize("obstacle", ["local changes", "offline", "another repository"])
def test_pull_that_is_impossible_keeps_the_files(run, github, empty, obstacle):
    run()
    (empty / "S11-clone" / "utils.py").write_text("VERSION = 'mine'")
    commit(github / "eve" / "TSAI-S11", "other")
    commit(github / "ada" / "TSAI-S11", "second")
    if obstacle == "offline":
        (github / "ada").rename(github / "away")
    owner = "eve" if obstacle == "another repository" else "ada"
    text = run(url=f"https://github.com/{owner}/TSAI-S11")
    assert "stays as it is" in text
    assert re.search("(?m)^(error|fatal): ", text), "git's reason"
    assert "RUNS mine" in text


def test_own_checkout_is_left_alone(run, github, tmp_path, monkeypatch):
    git(tmp_path, "clone", "-q", str(github / "ada" / "TSAI-S11"), "own")
    commit(github / "ada" / "TSAI-S11", "second")
    monkeypatch.setenv("PATH", str(tmp_path))  # not even git is needed
    assert run(url=UNKNOWN, folder=tmp_path / "own").split() == ["RUNS", "first"]


NO_NETWORK = "echo 'fatal: unable to access: Could not resolve host: github.com' >&2; exit 128"
KILLED = "mkdir S11-clone.part; echo 'VERSION = 0' >S11-clone.part/utils.py; kill -9 $$"


@pytest.mark.parametrize(
    ("url", "script", "sentence", "reason"),
    [
        (UNKNOWN, None, "REPO_URL", ""),
        ("https://github.com/ada/nowhere", None, "nowhere cannot be cloned", "fatal: "),
        ("https://github.com/ada/no-code", None, "no-code has no utils.py", ""),
        ("https://github.com/ada/TSAI-S11", "", "cannot be cloned", "git.*not found"),
        ("https://github.com/ada/TSAI-S11", NO_NETWORK, "Kaggle.*Internet", "not resolve host"),
        ("https://github.com/ada/TSAI-S11", KILLED, "cannot be cloned", ""),
    ],
    ids=["owner", "address", "no code", "no git", "no network", "killed"],
)
def test_trouble_is_told_and_leaves_nothing_half_there(
    run, github, tmp_path, empty, monkeypatch, url, script, sentence, reason
):
    commit(github / "ada" / "no-code", "wrong name")
    git(github / "ada" / "no-code", "mv", "utils.py", "other.py")
    git(github / "ada" / "no-code", "commit", "-qm", "no code")
    with monkeypatch.context() as patch:
        if script is not None:
            (tmp_path / "bin").mkdir()
            patch.setenv("PATH", str(tmp_path / "bin"))
        if script:
            (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            (tmp_path / "bin" / "git").chmod(0o755)
        text = run(url=url)
    assert re.search(f"AssertionError: .*{sentence}", text)
    assert re.search(reason, text)
    assert not (empty / "S11-clone").exists()
    assert "RUNS first" in run()
    assert [path.name for path in empty.iterdir()] == ["S11-clone"]


def test_pip_that_failed_is_called_again(run, monkeypatch):
    monkeypatch.setenv("PIP_FAILS", "1")
    for _ in range(2):
        assert re.search("AssertionError: .*pip", run())
    monkeypatch.delenv("PIP_FAILS")
    assert "RUNS first" in run()


def test_everything_that_is_required_is_installed():
    (line,) = re.findall(r"%pip install --quiet (.+)", "\n".join(CELLS.values()))
    named = set(line.split())
    brought = {re.match(r"[\w-]+", r)[0] for n in named for r in requires(n) or [] if ";" not in r}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")}
    assert required - {"jupyter", "nbval", "hypothesis"} <= named | brought


def test_settings_do_not_depend_on_the_folder(request):
    assert Path(request.config.option.nbval_sanitize_with).is_absolute()
    assert Path(request.config.option.nbval_sanitize_with).is_file()
    assert os.environ["S11_PROFILE"] == "quick"


def test_ci_runs_the_line_of_the_readme():
    line = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert "pytest" in line
    assert f"\n{line}\n" in (ROOT / "README.md").read_text()
