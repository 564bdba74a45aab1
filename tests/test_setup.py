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
ADA, UNKNOWN = "https://github.com/ada/TSAI-S11", "https://github.com/OWNER/TSAI-S11"
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


def commit(folder, version, name="utils.py"):
    """Commit a stand-in for the code: the setup cell asks for no more than its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'VERSION = "{version}"\n')
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", version)):
        git(folder, *command)


@pytest.fixture
def github(tmp_path, monkeypatch):
    """Serve github.com from a folder with ada/TSAI-S11; pip only says what it is asked for."""
    url = f'[url "{(tmp_path / "github").as_uri()}/"]\ninsteadOf = https://github.com/\n'
    (tmp_path / "git").write_text(f"{url}[user]\nname = Ada\nemail = ada@example.org\n")
    (tmp_path / "pip.py").write_text(PIP)
    folders = {"PYTHONPATH": "", "IPYTHONDIR": "ipython", "GIT_CONFIG_GLOBAL": "git"}
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("COLAB_JUPYTER_IP", raising=False)
    commit(tmp_path / "github" / "ada" / "TSAI-S11", "first")
    (tmp_path / "empty folder").mkdir()
    monkeypatch.chdir(tmp_path / "empty folder")
    return tmp_path / "github"


def run(*more, url=ADA, first=""):
    """Run the setup cell and more cells in a new process, and return what they print."""
    setup = re.sub('(?m)^REPO_URL = ".*"', f'REPO_URL = "{url}"', CELLS["fetch"])
    cells = [first, setup, *(setup if cell == "fetch" else cell for cell in more or (RUNS,))]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "input": json.dumps(cells)}
    command = [sys.executable, "-uc", SHELL]
    return subprocess.run(command, text=True, timeout=60, **streams).stdout


@pytest.fixture
def serve(github, monkeypatch):
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


def test_empty_folder(github):
    text = run()
    assert "RUNS first" in text
    assert "PIP install --quiet grad-cam" in text
    assert os.listdir() == ["S11-clone"]


def test_real_code_in_a_kernel(github):
    folder = github / "ada" / "TSAI-S11"
    shutil.copytree(ROOT / "models", folder / "models")
    shutil.copy(ROOT / "utils.py", folder)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    setup = CELLS["fetch"].replace("github.com/OWNER/", "github.com/ada/")  # as owner.py does it
    cells = [new_code_cell(s) for s in (setup, CELLS["imports"], "utils.get_config()", setup)]
    notebook = NotebookClient(new_notebook(cells=cells), kernel_name="python3").execute()
    assert "QUICK PROFILE" in str(notebook.cells[2].outputs)
    assert "has changed" not in str(notebook.cells[3].outputs)


def test_fork_on_colab_is_fetched_from_where_it_was_opened(github, serve):
    fork = github / "grace" / "home.work"
    session = get_session("https://github.com/grace/home.work/blob/feature/x-2/My S11.ipynb")
    commit(fork, "default branch")
    git(fork, "branch", "feature/x-2")
    for version in ("fork", "newer"):
        git(fork, "checkout", "-q", "feature/x-2")
        commit(fork, version)
        git(fork, "checkout", "-q", "-")
        serve(session)
        assert f"RUNS {version}" in run(url=UNKNOWN)


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


@pytest.mark.parametrize("kind", OTHER_ANSWERS)
def test_other_answers_leave_repo_url(serve, kind):
    serve(OTHER_ANSWERS[kind])
    assert "RUNS first" in run()
    assert os.listdir() == ["S11-clone"]


def test_second_run_pulls_and_asks_for_a_restart(github):
    repository = github / "ada" / "TSAI-S11"
    push = f"""open(r"{repository / "utils.py"}", "w").write('VERSION = "second"')
get_ipython().system('git -C "{repository}" commit -qam second')"""
    before, after = run(RUNS, "fetch", "print('BETWEEN')", push, "fetch").split("BETWEEN")
    assert "has changed" not in before
    assert "has changed: restart" in after
    text = run()  # in a new kernel
    assert "RUNS second" in text
    assert "has changed" not in text


@pytest.mark.parametrize("obstacle", ["local changes", "offline", "another repository"])
def test_pull_that_is_impossible_keeps_the_files(github, obstacle):
    run()
    Path("S11-clone", "utils.py").write_text("VERSION = 'mine'")
    commit(github / "eve" / "TSAI-S11", "other")
    commit(github / "ada" / "TSAI-S11", "second")
    if obstacle == "offline":
        (github / "ada").rename(github / "away")
    text = run(url=ADA.replace("ada", "eve") if obstacle == "another repository" else ADA)
    assert "stays as it is" in text
    assert re.search("(?m)^(error|fatal): ", text), "git's reason"
    assert "RUNS mine" in text


def test_own_checkout_is_left_alone(github, monkeypatch):
    git(".", "clone", "-q", str(github / "ada" / "TSAI-S11"), "own")
    commit(github / "ada" / "TSAI-S11", "second")
    monkeypatch.chdir("own")
    monkeypatch.setenv("PATH", "")  # not even git is needed
    assert run(url=UNKNOWN).split() == ["RUNS", "first"]


TROUBLE = [
    (UNKNOWN, "REPO_URL"),
    ("https://github.com/ada/nowhere", "nowhere cannot be cloned: .*Kaggle.*Internet"),
    ("https://github.com/ada/no-code", "no-code has no utils.py"),
]


@pytest.mark.parametrize(("url", "sentence"), TROUBLE)
def test_trouble_is_told_and_leaves_nothing_half_there(github, url, sentence):
    commit(github / "ada" / "no-code", "wrong name", "other.py")
    commit(Path("S11-clone.part"), "half of it")  # left by a clone that broke off
    text = run(url=url)
    assert re.search(f"AssertionError: .*{sentence}", text)
    assert "cannot" not in sentence or re.search("(?m)^fatal: ", text), "git's reason"
    assert not os.path.exists("S11-clone")
    assert "RUNS first" in run()
    assert os.listdir() == ["S11-clone"]


def test_pip_that_failed_is_called_again(github, monkeypatch):
    monkeypatch.setenv("PIP_FAILS", "1")
    for _ in range(2):
        assert re.search("AssertionError: .*pip", run())
    monkeypatch.delenv("PIP_FAILS")
    assert "RUNS first" in run()


def test_everything_that_is_required_is_installed():
    (line,) = re.findall(r"%pip install --quiet (.+)", CELLS["fetch"])
    named = set(line.split())
    brought = {re.match(r"[\w-]+", r)[0] for n in named for r in requires(n) or [] if ";" not in r}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")}
    assert required - {"jupyter", "nbval"} <= named | brought


def test_ci_runs_the_line_of_the_readme():
    line = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert "pytest" in line
    assert f"\n{line}\n" in (ROOT / "README.md").read_text()
