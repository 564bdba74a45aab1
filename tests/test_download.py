"""The download, against servers on 127.0.0.1 that misbehave in every way that real ones do."""

import hashlib
import io
import multiprocessing
import os
import shutil
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest

import utils


@pytest.fixture
def archive(tiny_cifar10, monkeypatch):
    """Pack the small CIFAR-10 into an archive, remove it, and inject the archive's hash."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(tiny_cifar10, "cifar-10-batches-py")
    shutil.rmtree(tiny_cifar10.parent)
    data = buffer.getvalue()
    monkeypatch.setattr(utils, "CIFAR10_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(utils, "NETWORK_TIMEOUT", 0.3)
    return data


@pytest.fixture
def mirrors(archive, monkeypatch):
    """Serve the archive, rightly and wrongly; return a function that chooses the mirrors."""
    half, page = archive[: len(archive) // 2], b"<html>Please log in</html>".ljust(len(archive))
    answers = {"good": archive, "truncated": half, "stalls": half, "other": page}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            if name == "mute":
                time.sleep(0.8)
                return
            self.send_response(404 if name == "missing" else 200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(answers.get(name, b""))
            time.sleep(0.8 if name == "stalls" else 0)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def choose(*names):
        ports = {"down": 9}  # nobody listens there
        urls = [f"http://127.0.0.1:{ports.get(n, server.server_port)}/{n}" for n in names]
        monkeypatch.setattr(utils, "CIFAR10_MIRRORS", urls)
        return urls

    yield choose
    server.shutdown()
    server.server_close()


@pytest.fixture
def full(make_config):
    return make_config("full", batch_size=32)


def assert_loads(config):
    train_loader, test_loader = utils.get_dataloaders(config)
    assert (train_loader.dataset.images == 1).all()
    assert (test_loader.dataset.images == 2).all()
    files = {path.name for path in config.data_dir.iterdir()}
    assert files <= {"cifar-10-batches-py", utils.CIFAR10_ARCHIVE}, "nothing half-done is left"


FAULTS = ["none", "down", "missing", "mute", "stalls", "truncated", "other"]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_mirror_is_left_for_the_next_with_a_line(mirrors, full, capsys, fault):
    bad, *_ = mirrors("good" if fault == "none" else fault, "good")
    full.data_dir.mkdir(mode=0o755)
    assert_loads(full)
    assert full.data_dir.stat().st_mode & 0o777 == 0o755
    assert capsys.readouterr().out.count(f"No CIFAR-10 from {bad}: ") == (fault != "none")


PLACES = {"below a file": "a file/data", "a file": "a file", "/proc": "/proc/data"}


@pytest.mark.parametrize("place", ["no network", "mkdir", "replace", *PLACES])
def test_whatever_fails_the_message_says_what_to_do(
    mirrors, make_config, tmp_path, monkeypatch, place
):
    urls = mirrors("good") if place != "no network" else mirrors("down", "other", "truncated")
    (tmp_path / "a file").write_text("the user's")
    folder = tmp_path / PLACES.get(place, "data")
    if place in ("mkdir", "replace"):
        monkeypatch.setattr(os, place, Mock(side_effect=PermissionError))
    with pytest.raises(FileNotFoundError) as caught:
        utils.get_dataloaders(make_config("full", batch_size=32, data_dir=folder))
    message = str(caught.value)
    directions = (utils.CIFAR10_ARCHIVE, utils.CIFAR10_SHA256, "S11_DATA_DIR", str(folder))
    assert [part for part in (*urls, *directions) if part not in message] == []
    assert "\n" not in message
    assert (tmp_path / "a file").read_text() == "the user's"
    assert not folder.exists() or place in ("a file", "replace"), "nothing half-done is left"


@pytest.mark.parametrize("is_damaged", [False, True])
def test_archive_put_there_by_hand(mirrors, archive, full, is_damaged):
    mirrors("good" if is_damaged else "down")
    full.data_dir.mkdir()
    by_hand = full.data_dir / "cifar-10-python.tar.gz"
    by_hand.write_bytes(archive[:-1] if is_damaged else archive)
    assert_loads(full)
    assert is_damaged or by_hand.read_bytes() == archive, "it is the user's"


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_whole_data_is_never_touched_and_damaged_data_is_repaired(mirrors, full, name, damage):
    mirrors("good")
    utils.get_dataloaders(full)
    (full.data_dir / utils.CIFAR10_ARCHIVE).unlink(missing_ok=True)
    times = [{path: path.stat().st_mtime_ns for path in full.data_dir.rglob("*")}]
    mirrors("down")
    assert_loads(full)
    assert times == [{path: path.stat().st_mtime_ns for path in full.data_dir.rglob("*")}]
    file = full.data_dir / "cifar-10-batches-py" / name
    content = file.read_bytes()
    damaged = content[:-5] if damage == "cut" else content[:-1] + b"?"
    file.unlink() if damage == "gone" else file.write_bytes(damaged)
    with pytest.raises(FileNotFoundError):
        utils.get_dataloaders(full)
    assert damage == "gone" or file.read_bytes() == damaged, "kept without a network"
    mirrors("good")
    assert_loads(full)
    assert file.read_bytes() == content


def test_three_processes_at_once(mirrors, full):
    mirrors("truncated", "good")
    context = multiprocessing.get_context("fork")  # to inherit the mirrors and the hash
    processes = [context.Process(target=utils.get_dataloaders, args=(full,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 3
    assert_loads(full)
