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
SOURCES = [cell.source for cell in nbformat.read(ROOT / "S11.ipynb", as_version=4).cells]
(SETUP,) = [source for source in SOURCES if "REPO_URL = " in source]
IMPORTS = next(source for source in SOURCES if "import utils" in source)

ADA = "https://github.com/ada/TSAI-S11"
UNKNOWN = "https://github.com/OWNER/TSAI-S11"
SENTENCE = "put your repository into REPO_URL"
RUNS = 'import utils; print("RUNS", utils.VERSION)'
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell(colors="NoColor", xmode="Context")
for cell in json.load(sys.stdin):
    shell.run_cell(cell).success or sys.exit()
"""
PIP = "import os, sys; print('PIP', *sys.argv[1:]); sys.exit(int(os.getenv('PIP_FAILS', 0)))"


def git(folder, *command):
    done = subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write_code(folder, version):
    """Write stand-ins for the two files that make "the code"."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "models" / "resnet.py").write_text("")
    (folder / "utils.py").write_text(f'VERSION = "{version}"\n')


def commit(folder, message):
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", message)):
        git(folder, *command)


def publish(folder, version):
    """Commit stand-ins for the code to a repository, which is made if need be."""
    write_code(folder, version)
    commit(folder, version)


@pytest.fixture
def github(tmp_path, monkeypatch):
    """Serve github.com from a folder with ada/TSAI-S11; pip only says what it is asked for."""
    url = f'[url "{(tmp_path / "github").as_uri()}/"]\n'
    for host in ("github.com", "github.com.evil.org"):
        url += f"insteadOf = https://{host}/\n"
    user = "[user]\nname = Ada\nemail = ada@example.org\n[init]\ndefaultBranch = main\n"
    (tmp_path / "git").write_text(url + user)
    (tmp_path / "pip.py").write_text(PIP)
    folders = {"PYTHONPATH": "", "IPYTHONDIR": "ipython", "GIT_CONFIG_GLOBAL": "git"}
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")  # as in a kernel, which has no terminal
    monkeypatch.delenv("COLAB_JUPYTER_IP", raising=False)

    publish(tmp_path / "github" / "ada" / "TSAI-S11", "first")
    (tmp_path / "empty folder").mkdir()
    monkeypatch.chdir(tmp_path / "empty folder")
    return tmp_path / "github"


def write_address(url):
    """Return the setup cell with an address in REPO_URL, whatever stood there."""
    setup, count = re.subn('(?m)^REPO_URL = ".*"', lambda _: f'REPO_URL = "{url}"', SETUP)
    assert count == 1
    return setup


def run(*more, url=ADA, first=""):
    """Run the setup cell and more cells in a new process, and return what they print."""
    setup = write_address(url)
    cells = [first, setup]
    for cell in more or (RUNS,):
        cells.append(setup if cell == "setup" else cell)
    command = [sys.executable, "-uc", SHELL]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "input": json.dumps(cells)}
    return subprocess.run(command, text=True, timeout=60, **streams).stdout


@pytest.fixture
def serve(github, monkeypatch):
    """Return a function that answers as Colab's sessions API does; None: the answer never comes.

    Whoever asks for anything else is asked for a password, and told nothing.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/api/sessions"
            self.send_response(200 if known else 401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            if known:
                self.wfile.write(self.server.answer.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
        monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_port))

        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})

        def start(answer):
            server.answer = answer
            if answer is not None and not thread.is_alive():
                thread.start()
            return f"127.0.0.1:{server.server_port}"

        yield start
        if thread.is_alive():
            server.shutdown()


def get_session(address):
    return json.dumps([{"path": f"fileId={quote(address, safe='')}&pli=1", "name": "S11.ipynb"}])


# What the cell fetches


def test_an_empty_folder_gets_the_code_and_what_it_needs(github):
    text = run()
    assert "RUNS first" in text
    assert "PIP install --quiet grad-cam" in text
    assert os.listdir() == ["S11-clone"]


def test_real_code_in_a_kernel(github):
    folder = github / "ada" / "TSAI-S11"
    shutil.copytree(ROOT / "models", folder / "models", dirs_exist_ok=True)
    shutil.copy(ROOT / "utils.py", folder)
    commit(folder, "all")
    setup = write_address(ADA)
    cells = [new_code_cell(source) for source in (setup, IMPORTS, "utils.get_config()", setup)]
    notebook = NotebookClient(new_notebook(cells=cells), kernel_name="python3").execute()
    assert "QUICK PROFILE" in str(notebook.cells[2].outputs)
    assert "has changed" not in str(notebook.cells[3].outputs)


def test_a_fork_on_colab_is_fetched_from_where_it_was_opened(github, serve):
    fork = github / "grace" / "home.work"
    publish(fork, "default branch")
    git(fork, "branch", "feature/x-2")
    session = get_session("https://github.com/grace/home.work/blob/feature/x-2/S11.ipynb")
    for version in ("fork", "newer"):
        git(fork, "checkout", "-q", "feature/x-2")
        publish(fork, version)
        git(fork, "checkout", "-q", "main")
        serve(session)
        assert f"RUNS {version}" in run(url=UNKNOWN)


def test_a_written_address_wins_over_what_colab_has_opened(github, serve):
    publish(github / "grace" / "TSAI-S11", "opened")
    serve(get_session("https://github.com/grace/TSAI-S11/blob/main/S11.ipynb"))
    text = run()
    assert "RUNS first" in text
    assert "from https://github.com/grace/TSAI-S11, but REPO_URL names another" in text


@pytest.mark.parametrize("url", [ADA, f"{ADA}.git", f"{ADA}/", ADA.replace("//", "//TOKEN@")])
def test_an_address_that_is_the_one_that_colab_has_opened_needs_no_word(github, serve, url):
    serve(get_session("https://github.com/Ada/TSAI-S11/blob/main/S11.ipynb"))
    assert "names another repository" not in run(url=url)


def test_an_address_that_only_begins_alike_is_another_one(github, serve):
    serve(get_session("https://github.com/ada/TSAI-S1/blob/main/S11.ipynb"))
    assert "names another repository" in run()


NO_ADDRESS = {
    "no answer": None,
    "nonsense": "<html>",
    "no session": "[]",
    "Drive": json.dumps([{"path": "fileId=1AbCdEfGhIjKlMnOpQrStUvWx", "name": "S11.ipynb"}]),
    "other host": get_session("https://github.com.evil.org/ada/TSAI-S11/blob/main/S11.ipynb"),
    "in a query": get_session("https://e.org/?https://github.com/ada/TSAI-S11/blob/main/S11.ipynb"),
    "one more": get_session(
        "https://e.org/&fileId=https://github.com/ada/TSAI-S11/blob/main/S11.ipynb"
    ),
    "gist": get_session("https://gist.github.com/ada/aa5a315d61ae9438b18d/S11.ipynb"),
}


@pytest.mark.parametrize("kind", NO_ADDRESS)
def test_an_answer_without_an_address_ends_in_the_sentence(serve, kind):
    serve(NO_ADDRESS[kind])
    text = run(url=UNKNOWN)
    assert SENTENCE in text
    assert "RUNS" not in text
    assert os.listdir() == []


UNSURE = (
    "main/homework/S11.ipynb",  # a subfolder
    "COMMIT/S11.ipynb",
    "COMMIT-SHORT/S11.ipynb",
    "gone/S11.ipynb",  # a branch that git does not know
    "v1.0/S11.ipynb",  # a tag
    "pull/3/head/S11.ipynb",  # as git calls the code of a pull request
    "heads/main/S11.ipynb",
    "main/S12.ipynb",
    "--upload-pack=x/S11.ipynb",
    "main$(touch stolen)/S11.ipynb",
    "main:other/S11.ipynb",
)


@pytest.mark.parametrize("place", UNSURE)
def test_an_address_that_is_not_surely_a_branch_ends_in_the_sentence(github, serve, place):
    repository = github / "ada" / "TSAI-S11"
    write_code(repository / "homework", "homework")
    commit(repository, "homework")
    git(repository, "tag", "v1.0")
    git(repository, "update-ref", "refs/pull/3/head", "HEAD")
    head = git(repository, "rev-parse", "HEAD")
    place = place.replace("COMMIT-SHORT", head[:7]).replace("COMMIT", head)
    serve(get_session(f"{ADA}/blob/{place}"))
    text = run(url=UNKNOWN)
    assert SENTENCE in text
    assert "RUNS" not in text
    assert os.listdir() == []


@pytest.mark.parametrize("missing", ["utils.py", "models/resnet.py"])
@pytest.mark.parametrize("guessed", [True, False], ids=["guessed", "written"])
def test_a_repository_without_the_code_ends_in_the_sentence(github, serve, missing, guessed):
    other = "https://github.com/ada/portfolio"
    write_code(github / "ada" / "portfolio", "other")
    (github / "ada" / "portfolio" / missing).unlink()
    commit(github / "ada" / "portfolio", "other")
    serve(get_session(f"{other}/blob/main/S11.ipynb"))
    text = run(url=UNKNOWN if guessed else other)
    assert SENTENCE in text
    assert "RUNS" not in text
    assert "RUNS first" in run()  # with the right address
    assert os.listdir() == ["S11-clone"]


# What it says, and what it never says


@pytest.mark.parametrize("address", ["https://github.com/ada/private", "https://github.com/a b"])
def test_an_address_that_git_cannot_clone_is_told_with_the_likely_causes(github, address):
    text = run(url=address)
    assert re.search("(?m)^(fatal|error): ", text), "git's own reason"
    assert re.search(f"AssertionError: .*{SENTENCE}.*private.*Internet", text)
    assert os.listdir() == []
    assert "RUNS first" in run()


@pytest.mark.parametrize("secret", ["ghp_T0KEN", "ada:ghp_T0KEN", "ada:p@ghp_T0KEN"])
def test_a_token_is_never_printed(serve, secret):
    url = f"http://{secret}@{serve('')}/ada/private"
    text = run(url=url)
    assert re.search("fatal: .*127.0.0.1", text)
    assert SENTENCE in text
    assert "T0KEN" not in text


def test_nothing_of_a_written_address_is_run_by_a_shell(github):
    assert SENTENCE in run(url="https://github.com/ada/x$(touch stolen)`touch stolen`;touch stolen")
    assert os.listdir() == []


def test_the_cell_says_which_code_is_used(github, monkeypatch):
    assert f"We use {Path('S11-clone', 'utils.py').resolve()}\n" in run()
    write_code(Path("own"), "own")
    monkeypatch.chdir("own")
    monkeypatch.setenv("HOME", str(Path.cwd().parent))  # nobody need know where that is
    assert f"We use ~{os.sep}{Path('own', 'utils.py')}\n" in run()


# The code is here


def test_an_own_copy_is_left_alone(github, monkeypatch):
    git(".", "clone", "-q", str(github / "ada" / "TSAI-S11"), "own")
    publish(github / "ada" / "TSAI-S11", "second")
    monkeypatch.chdir("own")
    monkeypatch.setenv("PATH", "")  # not even git is needed
    text = run(url=UNKNOWN)
    assert "RUNS first" in text
    assert "PIP" not in text


@pytest.mark.parametrize("missing", ["utils.py", "models/resnet.py"])
def test_half_of_the_code_is_not_the_code(github, missing):
    write_code(Path(), "foreign")
    Path(missing).unlink()
    assert "RUNS first" in run()


def test_vs_code_that_starts_elsewhere_finds_the_code_beside_the_notebook(github):
    write_code(Path("project"), "beside")
    notebook = Path("project", "S11.ipynb").resolve()
    text = run(url=UNKNOWN, first=f"__vsc_ipynb_file__ = {str(notebook)!r}")
    assert "RUNS beside" in text
    assert f"We use {notebook.parent / 'utils.py'}" in text


def test_code_in_the_working_folder_comes_before_that_beside_the_notebook(github):
    write_code(Path(), "here")
    write_code(Path("project"), "beside")
    notebook = Path("project", "S11.ipynb").resolve()
    assert "RUNS here" in run(url=UNKNOWN, first=f"__vsc_ipynb_file__ = {str(notebook)!r}")


def test_a_notebook_on_another_machine_than_the_kernel_gets_the_code(github):
    assert "RUNS first" in run(first="__vsc_ipynb_file__ = '/Users/ada/S11/S11.ipynb'")


# The cell runs again


def test_a_second_run_pulls_and_asks_for_a_restart(github):
    repository = github / "ada" / "TSAI-S11"
    push = f"""open(r"{repository / "utils.py"}", "w").write('VERSION = "second"')
get_ipython().system('git -C "{repository}" commit -qam second')"""
    before, after = run(RUNS, "setup", "print('BETWEEN')", push, "setup").split("BETWEEN")
    assert "has changed" not in before
    assert "has changed: restart" in after
    assert os.listdir() == ["S11-clone"]
    text = run()  # in a new kernel
    assert "RUNS second" in text
    assert "has changed" not in text


def test_files_in_the_way_of_a_pull_are_put_away_as_the_readme_says(github):
    run()
    Path("S11-clone", "utils.py").write_text("VERSION = 'mine'")
    Path("S11-clone", "new.py").write_text("mine")
    publish(github / "ada" / "TSAI-S11", "second")
    (github / "ada" / "TSAI-S11" / "new.py").write_text("theirs")
    commit(github / "ada" / "TSAI-S11", "new")
    text = run()
    assert "RUNS mine" in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith("| *local changes"))
    error, advice = re.search(r"\*(.+?)\*.*?`(!.+?)`", row).groups()
    assert " ".join(error.split()[-4:]) in text
    assert "RUNS second" in run(advice, "setup", RUNS)


OBSTACLES = ["local changes", "a local commit", "offline", "another repository"]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_pull_that_is_impossible_keeps_the_files(github, obstacle):
    run()
    Path("S11-clone", "utils.py").write_text("VERSION = 'mine'")
    if obstacle == "a local commit":
        git("S11-clone", "commit", "-qam", "mine")
    publish(github / "eve" / "TSAI-S11", "other")
    publish(github / "ada" / "TSAI-S11", "second")
    if obstacle == "offline":
        (github / "ada").rename(github / "away")
    text = run(url=ADA.replace("ada", "eve") if obstacle == "another repository" else ADA)
    assert "stays as it is" in text
    assert re.search("(?m)^(error|fatal): ", text), "git's reason"
    assert "RUNS mine" in text
    assert "has changed" not in text


def test_what_lies_in_the_clone_is_never_deleted(github):
    run()
    Path("S11-clone", "checkpoint.pt").touch()
    Path("S11-clone", "utils.py").unlink()
    shutil.rmtree("S11-clone/.git")
    run()
    assert Path("S11-clone", "checkpoint.pt").exists()


# What it installs


def test_pip_that_failed_is_called_again(github, monkeypatch):
    monkeypatch.setenv("PIP_FAILS", "1")
    for _ in range(2):
        assert re.search("AssertionError: .*pip", run())
    monkeypatch.delenv("PIP_FAILS")
    assert "RUNS first" in run()


def test_everything_that_is_required_is_installed():
    (line,) = re.findall(r"%pip install --quiet (.+)", SETUP)
    named = set(line.split())
    brought = set()
    for name in named:
        for requirement in requires(name) or []:
            if ";" not in requirement:
                brought.add(re.match(r"[\w-]+", requirement)[0])
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")}
    assert required - {"jupyter", "nbval", "pytest-xdist"} <= named | brought


def test_ci_runs_the_line_of_the_readme():
    line = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert "pytest" in line
    assert f"\n{line}\n" in (ROOT / "README.md").read_text()
