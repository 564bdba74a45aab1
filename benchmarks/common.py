"""What the other scripts share: results.json, and a start that keeps freed memory."""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402


def keep_memory():
    """Start Python again so that Linux's C library keeps freed memory: a fifth faster on a CPU."""
    variables = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # read at the start only
    if sys.platform == "linux" and not variables.keys() <= os.environ.keys():
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | variables)


def read_results() -> dict[str, list[dict]]:
    """Return the rows of results.json by what they measure."""
    path = ROOT / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_row(part: str, row: dict, keep=lambda old: True):
    """Add a row to those that are kept, each a line of results.json."""
    results = read_results()  # now: another script may have added to it
    row = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}
    results[part] = [*filter(keep, results.get(part, [])), row]
    text = json.dumps(results).replace('{"date"', '\n{"date"') + "\n"
    utils.replace_file(ROOT / "results.json", lambda file: file.write(text.encode()))
    if read_results() != json.loads(text):
        sys.exit("The row is not in results.json, which could not be written.")
