"""What the other scripts share: the repository's folder, and its results.json."""

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402


def read_results() -> dict[str, list[dict]]:
    """Return the rows of results.json by what they measure."""
    path = ROOT / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_row(part: str, row: dict, gone=()):
    """Add a row in place of those that are gone, each a line of results.json."""
    results = read_results()  # now: another script may have added to it
    row = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}
    results[part] = [*(old for old in results.get(part, []) if old not in gone), row]
    text = json.dumps(results).replace('{"date"', '\n{"date"') + "\n"
    utils.replace_file(ROOT / "results.json", lambda file: file.write(text.encode()))
    if read_results() != json.loads(text):
        sys.exit("The row is not in results.json, which could not be written.")
