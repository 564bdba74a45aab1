"""The download, against servers on 127.0.0.1 that misbehave in every way that real ones do."""

import hashlib
import io
import multiprocessing
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import utils


@pytest.fixture
def archive(tiny_cifar10, monkeypatch):
    """Pack the small CIFAR-10 into an archive, remove it, and inject the archive's hash."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(tiny_cifar10, "cifar-10-batches-py")
    for file in tiny_cifar10.iterdir():
        file.unlink()
    tiny_cifar10.rmdir()
    tiny_cifar10.parent.rmdir()
    data = buffer.getvalue()
    monkeypatch.setattr(utils, "CIFAR10_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(utils, "NETWORK_TIMEOUT", 0.3)
    return data


@pytest.fixture
def mirrors(archive, monkeypatch):
    """Serve the archive, rightly and wrongly; return a function that chooses the mirrors."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, half = self.path.strip("/"), archive[: len(archive) // 2]
            if name == "mute":
                time.sleep(0.8)
                return
            self.send_response(404 if name == "missing" else 200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            page = b"<html>Please log in</html>".ljust(len(archive))
            answers = {"good": archive, "truncated": half, "stalls": half, "other": page}
            self.wfile.write(answers.get(name, b""))
            if name == "stalls":
                self.wfile.flush()
                time.sleep(0.8)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def choose(*names):
        address = f"http://127.0.0.1:{server.server_port}"
        closed = "http://127.0.0.1:9"
        urls = [f"{closed if name == 'down' else address}/{name}" for name in names]
        monkeypatch.setattr(utils, "CIFAR10_MIRRORS", urls)
        return urls

    yield choose
    server.shutdown()
    server.server_close()


def assert_loads(config):
    train_loader, test_loader = utils.get_dataloaders(config)
    assert (train_loader.dataset.images == 1).all()
    assert (test_loader.dataset.images == 2).all()


@pytest.fixture
def full(make_config):
    return make_config("full", batch_size=32)


@pytest.mark.parametrize(
    "fault", [None, "down", "missing", "mute", "stalls", "truncated", "other"]
)
def test_bad_mirror_is_left_for_the_next_with_a_line(mirrors, full, capsys, fault):
    bad, *_ = mirrors(fault or "good", "good")
    assert_loads(full)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith(f"No CIFAR-10 from {bad}: ")]
    assert len(told) == (fault is not None)
    assert [path.name for path in full.data_dir.iterdir()] == ["cifar-10-batches-py"]


def test_nothing_is_unpacked_before_its_hash_is_right(mirrors, full, monkeypatch):
    mirrors("other", "truncated")
    monkeypatch.setattr(utils, "extract_archive", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(FileNotFoundError):
        utils.get_dataloaders(full)
    assert not full.data_dir.exists(), "nothing half-done is left"


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    "place", ["no network", "a file", "below a file", "/proc", "no mkdir", "no replace"]
)
def test_whatever_fails_the_message_says_what_to_do(
    mirrors, make_config, tmp_path, monkeypatch, place
):
    urls = mirrors(*["down"] * (place == "no network"), "missing", "other", "truncated")
    file = tmp_path / "a file"
    file.write_text("the user's")
    folders = {"a file": file, "below a file": file / "data", "/proc": Path("/proc/data")}
    folder = folders.get(place, tmp_path / "data")
    if place in ("no mkdir", "no replace"):
        mirrors("good")
        urls = utils.CIFAR10_MIRRORS
        monkeypatch.setattr(*((Path, "mkdir") if place == "no mkdir" else (os, "replace")), refuse)
    with pytest.raises(FileNotFoundError) as caught:
        utils.get_dataloaders(make_config("full", batch_size=32, data_dir=folder))
    message = str(caught.value)
    directions = (utils.CIFAR10_ARCHIVE, utils.CIFAR10_SHA256, "S11_DATA_DIR", str(folder))
    assert [part for part in (*urls, *directions) if part not in message] == []
    assert "\n" not in message
    assert file.read_text() == "the user's"
    assert folder in (file, tmp_path / "data") or not folder.exists()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_archive_put_there_by_hand(mirrors, archive, full, capsys, is_damaged):
    mirrors("good" if is_damaged else "down")
    content = archive[:-1] if is_damaged else archive
    full.data_dir.mkdir()
    by_hand = full.data_dir / "cifar-10-python.tar.gz"
    by_hand.write_bytes(content)
    assert_loads(full)
    assert by_hand.read_bytes() == content, "it is the user's"
    assert (str(by_hand) in capsys.readouterr().out) == is_damaged


def get_times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_valid_data_is_never_touched(mirrors, full):
    mirrors("good")
    utils.get_dataloaders(full)
    mirrors("down")
    before = get_times(full.data_dir)
    assert_loads(full)
    assert get_times(full.data_dir) == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("data_batch_3", "gone"), ("data_batch_3", "cut"), ("test_batch", "changed")),
        *(("test_batch", "gone"), ("batches.meta", "changed"), ("batches.meta", "gone")),
    ],
)
def test_damaged_data_is_kept_without_a_network_and_repaired_with_one(mirrors, full, name, damage):
    mirrors("good")
    utils.get_dataloaders(full)
    file = full.data_dir / "cifar-10-batches-py" / name
    content = file.read_bytes()
    damaged = content[:-5] if damage == "cut" else content[:-1] + b"?"
    file.write_bytes(damaged)
    if damage == "gone":
        file.unlink()
    mirrors("down")
    with pytest.raises(FileNotFoundError):
        utils.get_dataloaders(full)
    assert damage == "gone" or file.read_bytes() == damaged
    mirrors("good")
    assert_loads(full)
    assert file.read_bytes() == content


def load_in_process(config, barrier, results):
    barrier.wait()
    train_loader, _ = utils.get_dataloaders(config)
    results.put(len(train_loader.dataset))


def test_three_processes_at_once(mirrors, full):
    mirrors("truncated", "good")
    context = multiprocessing.get_context("fork")  # to inherit the mirrors and the hash
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (full, barrier, results)
    processes = [context.Process(target=load_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=20) for _ in processes] == [100] * 3
    for process in processes:
        process.join()
    assert [path.name for path in full.data_dir.iterdir()] == ["cifar-10-batches-py"]
