"""The download, against servers on 127.0.0.1 that misbehave in every way that real ones do."""

import hashlib
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
    half = archive[: len(archive) // 2]
    answers = {
        "good": archive,
        "truncated": half,
        "stalls": half,
        "other": b"<html>Please log in</html>".ljust(len(archive)),
    }
    monkeypatch.setattr(utils, "CIFAR10_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(utils, "NETWORK_TIMEOUT", 1)

    class Handler(BaseHTTPRequestHandler):
        log_message = Mock()

        def do_GET(self):
            name = self.path.strip("/")
            if name != "mute":
                self.send_response(404 if name == "missing" else 200)
                self.send_header("Content-Length", str(len(archive)))
                self.end_headers()
                self.wfile.write(answers.get(name, b""))
            time.sleep(2.5 if name in ("mute", "stalls") else 0)

    def choose(*names):
        urls = []
        for name in names:
            port = 9 if name == "down" else server.server_port  # 9: nobody listens
            urls.append(f"http://127.0.0.1:{port}/{name}")
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
    """Assert that all images are those of the small CIFAR-10, and that nothing else lies there."""
    train_loader, test_loader = utils.get_dataloaders(config)
    assert train_loader.dataset.images.unique().tolist() == [1]
    assert test_loader.dataset.images.unique().tolist() == [2]
    assert len(train_loader.dataset) == 100
    assert len(test_loader.dataset) == 20
    files = {path.name for path in config.data_dir.iterdir()}
    assert files <= {"cifar-10-batches-py", utils.CIFAR10_ARCHIVE}, "nothing half-done is left"


BAD = ("down", "missing", "mute", "stalls", "truncated", "other")


def test_a_bad_mirror_is_left_for_the_next_with_a_line(mirrors, full, capsys):
    urls = mirrors(*BAD, "good")
    assert_loads(full)
    printed = capsys.readouterr().out
    for url in urls[:-1]:
        assert f"No CIFAR-10 from {url}: " in printed
    assert urls[-1] not in printed


def test_three_runs_may_download_at_once(mirrors, full):
    mirrors("other", "good")
    with ThreadPool(3) as pool:
        pool.map(utils.load_cifar10, [full] * 3, chunksize=1)
    assert_loads(full)


def test_a_damaged_archive_is_downloaded_again(mirrors, full):
    mirrors("good")
    full.data_dir.mkdir()
    (full.data_dir / utils.CIFAR10_ARCHIVE).write_text("damaged")
    assert_loads(full)


def assert_says_what_to_do(config, urls):
    """Assert that there is no data, and that one sentence names each way to it."""
    with pytest.raises(FileNotFoundError) as caught:
        utils.get_dataloaders(config)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "S11_DATA_DIR" in sentence
    assert utils.CIFAR10_ARCHIVE in sentence
    assert utils.CIFAR10_SHA256 in sentence
    assert str(config.data_dir) in sentence
    for url in urls:
        assert url in sentence


def test_without_a_good_mirror_one_sentence_says_what_to_do(mirrors, full):
    urls = mirrors("down", "other", "truncated")
    assert_says_what_to_do(full, urls)
    assert not full.data_dir.exists(), "nothing half-done is left"


def test_a_full_disk_is_told_with_what_to_do(mirrors, full, monkeypatch, capsys):
    urls = mirrors("good")
    is_full = OSError(28, "No space left on device")
    monkeypatch.setattr(shutil, "unpack_archive", Mock(side_effect=is_full))
    assert_says_what_to_do(full, urls)
    assert "No space left" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["a file", "a file/data"])
def test_a_file_in_place_of_the_folder_is_kept_and_told(mirrors, full, tmp_path, place):
    urls = mirrors("good")
    (tmp_path / "a file").write_text("the user's")
    assert_says_what_to_do(replace(full, data_dir=tmp_path / place), urls)
    assert (tmp_path / "a file").read_text() == "the user's"


NAMES = ["data_batch_3", "test_batch", "batches.meta"]


def test_whole_data_needs_no_network(mirrors, full):
    mirrors("good")
    assert_loads(full)
    (full.data_dir / utils.CIFAR10_ARCHIVE).unlink()
    mirrors("down")
    assert_loads(full)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_data_is_kept_as_long_as_there_is_no_network(mirrors, full, name):
    mirrors("good")
    assert_loads(full)
    (full.data_dir / utils.CIFAR10_ARCHIVE).unlink()
    file = full.data_dir / "cifar-10-batches-py" / name
    damaged = file.read_bytes()[:-1] + b"?"
    file.write_bytes(damaged)
    urls = mirrors("down")
    assert_says_what_to_do(full, urls)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("name", NAMES)
def test_damaged_data_is_repaired_from_an_archive_that_you_put_there(mirrors, full, name):
    mirrors("good")
    assert_loads(full)
    archive = full.data_dir / utils.CIFAR10_ARCHIVE
    file = full.data_dir / "cifar-10-batches-py" / name
    packed = archive.read_bytes()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    mirrors("down")
    assert_loads(full)
    assert file.read_bytes() == whole
    assert archive.read_bytes() == packed, "it is yours, and stays"
