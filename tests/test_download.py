"""The download, against servers on 127.0.0.1 that misbehave in every way that real ones do."""

import hashlib
import io
import multiprocessing
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
    monkeypatch.setattr(utils, "NETWORK_TIMEOUT", 0.5)
    return data


@pytest.fixture
def mirrors(archive, monkeypatch):
    """Serve the archive, rightly and wrongly; return a function that chooses the mirrors."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            if name == "mute":
                time.sleep(1.5)
                return
            self.send_response(404 if name == "missing" else 200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            if name == "truncated":
                self.wfile.write(archive[: len(archive) // 2])
            elif name == "stalls":
                self.wfile.write(archive[: len(archive) // 2])
                self.wfile.flush()
                time.sleep(1.5)
            elif name == "other":
                self.wfile.write(b"<html>Please log in</html>".ljust(len(archive)))
            elif name == "good":
                self.wfile.write(archive)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

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


def test_first_good_mirror_is_enough(mirrors, full, capsys):
    mirrors("good", "down")
    assert_loads(full)
    assert "No CIFAR-10 from" not in capsys.readouterr().out
    assert [path.name for path in full.data_dir.iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("fault", ["down", "missing", "mute", "stalls", "truncated", "other"])
def test_bad_mirror_is_left_for_the_next_with_a_line(mirrors, full, capsys, fault):
    bad, _ = mirrors(fault, "good")
    assert_loads(full)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(f"No CIFAR-10 from {bad}: ")]) == 1


def test_nothing_is_unpacked_before_its_hash_is_right(mirrors, full, monkeypatch):
    mirrors("other", "truncated")
    unpacked = []
    monkeypatch.setattr(utils, "extract_archive", lambda *paths: unpacked.append(paths))
    with pytest.raises(FileNotFoundError):
        utils.get_dataloaders(full)
    assert not unpacked


def test_when_all_fail_the_message_says_what_to_do(mirrors, full):
    urls = mirrors("down", "missing", "other")
    with pytest.raises(FileNotFoundError) as caught:
        utils.get_dataloaders(full)
    message = str(caught.value)
    for part in (*urls, "cifar-10-python.tar.gz", utils.CIFAR10_SHA256, str(full.data_dir)):
        assert part in message
    assert "\n" not in message
    assert not full.data_dir.exists(), "nothing half-done is left"
    assert caught.value.__context__ is None, "the sentence stands alone"


def test_archive_put_there_by_hand(mirrors, archive, full):
    mirrors("down")
    full.data_dir.mkdir()
    by_hand = full.data_dir / "cifar-10-python.tar.gz"
    by_hand.write_bytes(archive)
    assert_loads(full)
    assert by_hand.read_bytes() == archive, "it is the user's"


def test_damaged_archive_put_there_by_hand(mirrors, archive, full, capsys):
    mirrors("good")
    full.data_dir.mkdir()
    (full.data_dir / "cifar-10-python.tar.gz").write_bytes(archive[:-1])
    assert_loads(full)
    assert "No CIFAR-10 from file://" in capsys.readouterr().out


def get_times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_valid_data_is_never_touched(mirrors, full):
    mirrors("good")
    utils.get_dataloaders(full)
    mirrors("down")
    before = get_times(full.data_dir)
    assert_loads(full)
    assert get_times(full.data_dir) == before


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_data_is_repaired(mirrors, full, name, damage):
    mirrors("good")
    utils.get_dataloaders(full)
    file = full.data_dir / "cifar-10-batches-py" / name
    content = file.read_bytes()
    file.write_bytes(content[:-5] if damage == "cut" else content[:-1] + b"?")
    if damage == "gone":
        file.unlink()
    assert_loads(full)
    assert file.read_bytes() == content


def test_damaged_data_without_a_network_is_reported_and_kept(mirrors, full):
    mirrors("good")
    utils.get_dataloaders(full)
    file = full.data_dir / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(b"damaged")
    mirrors("down")
    with pytest.raises(FileNotFoundError):
        utils.get_dataloaders(full)
    assert file.read_bytes() == b"damaged"


def load_in_process(config, barrier, results):
    barrier.wait()
    train_loader, _ = utils.get_dataloaders(config)
    results.put(len(train_loader.dataset))


def test_two_processes_at_once(mirrors, full):
    mirrors("truncated", "good")
    context = multiprocessing.get_context("fork")  # to inherit the mirrors and the hash
    barrier, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=load_in_process, args=(full, barrier, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [100] * 4
    for process in processes:
        process.join()
    assert [path.name for path in full.data_dir.iterdir()] == ["cifar-10-batches-py"]
