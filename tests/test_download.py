"""The download, against servers on 127.0.0.1 that misbehave in every way that real ones do."""

import hashlib
import os
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.pool import ThreadPool
from unittest.mock import Mock

import pytest

import utils


@pytest.fixture
def mirrors(tiny_cifar10, tmp_path, monkeypatch):
    """Serve the small CIFAR-10, rightly and wrongly; return a function that chooses the mirrors."""
    shutil.make_archive(tmp_path / "packed", "gztar", tiny_cifar10.parent)
    shutil.rmtree(tiny_cifar10.parent)
    archive = (tmp_path / "packed.tar.gz").read_bytes()
    monkeypatch.setattr(utils, "CIFAR10_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(utils, "NETWORK_TIMEOUT", 0.3)
    half, page = archive[: len(archive) // 2], b"<html>Please log in</html>".ljust(len(archive))
    answers = {"good": archive, "truncated": half, "stalls": half, "other": page}

    class Handler(BaseHTTPRequestHandler):
        log_message = Mock()

        def do_GET(self):
            name = self.path.strip("/")
            if name != "mute":
                self.send_response(404 if name == "missing" else 200)
                self.send_header("Content-Length", str(len(archive)))
                self.end_headers()
                self.wfile.write(answers.get(name, b""))
            time.sleep(0.8 if name in ("mute", "stalls") else 0)

    def choose(*names):
        ports = [9 if name == "down" else server.server_port for name in names]  # 9: nobody listens
        urls = [f"http://127.0.0.1:{port}/{name}" for port, name in zip(ports, names, strict=True)]
        monkeypatch.setattr(utils, "CIFAR10_MIRRORS", urls)
        return urls

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield choose
        server.shutdown()


@pytest.fixture
def full(make_config):
    return make_config("full", batch_size=32)


def assert_loads(config):
    parts = [loader.dataset.images for loader in utils.get_dataloaders(config)]
    assert [(len(part), part.unique().tolist()) for part in parts] == [(100, [1]), (20, [2])]
    files = {path.name for path in config.data_dir.iterdir()}
    assert files <= {"cifar-10-batches-py", utils.CIFAR10_ARCHIVE}, "nothing half-done is left"


def test_three_at_once_leave_bad_mirrors_for_the_next_with_a_line(mirrors, full, capsys):
    urls = mirrors("down", "missing", "mute", "stalls", "truncated", "other", "good")
    full.data_dir.mkdir()
    (full.data_dir / utils.CIFAR10_ARCHIVE).write_text("damaged")
    with ThreadPool(3) as pool:
        pool.map(utils.load_cifar10, [full] * 3, chunksize=1)
    assert_loads(full)
    printed = capsys.readouterr().out
    assert [url for url in urls if f"No CIFAR-10 from {url}: " not in printed] == [urls[-1]]


@pytest.mark.parametrize("place", ["no network", "replace", "a file", "a file/data"])
def test_whatever_fails_the_message_says_what_to_do(mirrors, full, tmp_path, monkeypatch, place):
    urls = mirrors("good") if place != "no network" else mirrors("down", "other", "truncated")
    (tmp_path / "a file").write_text("the user's")
    folder = tmp_path / (place if "file" in place else "data")
    if place == "replace":
        monkeypatch.setattr(os, place, Mock(side_effect=PermissionError))
    with pytest.raises(FileNotFoundError) as caught:
        utils.get_dataloaders(replace(full, data_dir=folder))
    directions = (utils.CIFAR10_ARCHIVE, utils.CIFAR10_SHA256, "S11_DATA_DIR", str(folder), *urls)
    assert [part for part in directions if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a file").read_text() == "the user's"
    assert not folder.exists() or place in ("a file", "replace"), "nothing half-done is left"


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_whole_data_needs_no_network_and_damaged_data_is_repaired(mirrors, full, name):
    mirrors("good")
    assert_loads(full)
    file = full.data_dir / "cifar-10-batches-py" / name
    by_hand = full.data_dir / utils.CIFAR10_ARCHIVE
    archive, content = by_hand.read_bytes(), file.read_bytes()
    by_hand.unlink()
    mirrors("down")
    assert_loads(full)
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(FileNotFoundError):
        utils.get_dataloaders(full)
    assert file.read_bytes() == content[:-1] + b"?", "kept without a network"
    by_hand.write_bytes(archive)  # put there by the user, whose it stays
    assert_loads(full)
    assert (file.read_bytes(), by_hand.read_bytes()) == (content, archive)
