"""Write your GitHub account into the badges and addresses of README.md and S11.ipynb.

    python3 benchmarks/owner.py ACCOUNT
    python3 benchmarks/owner.py ACCOUNT --repository NAME      # if you have renamed your copy

Whatever account and repository they name now, they name yours afterwards; the addresses of other
projects stay. It needs nothing but Python, and you may run it again.
"""

import argparse
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAIR = r"(?P<account>[\w-]+)/(?P<repository>[\w.-]+)"
PLACES = (  # where an address is surely this project's own
    rf"colab\.research\.google\.com/github/{PAIR}/blob/[^/\s]+/S11\.ipynb",
    rf"kaggle\.com/kernels/welcome\?src=https://github\.com/{PAIR}/blob/[^/\s]+/S11\.ipynb",
    rf"REPO_URL\s*=\s*\\?[\"']https://github\.com/{PAIR}/?\\?[\"']",
)


def parse_account(text: str) -> str:
    """Return the name of an account, if it can be one."""
    if not re.fullmatch(r"[A-Za-z0-9-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no account: use letters, digits, hyphens.")
    return text


def parse_repository(text: str) -> str:
    """Return the name of a repository, if it can be one."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text) or text in (".", ".."):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no repository: use letters, digits, hyphens, points and underscores."
        )
    return text.removesuffix(".git")


def find_pairs(text: str) -> list[tuple[str, str]]:
    """Return account and repository of each badge and of REPO_URL."""
    pairs = []
    for place in PLACES:
        for found in re.finditer(place, text):
            pairs.append((found["account"], found["repository"].removesuffix(".git")))
    return pairs


def find_repository(account: str) -> str | None:
    """Return the name of this clone's repository on GitHub, if it belongs to the account."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        origin = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        return None

    pulled = ROOT / ".git" / "FETCH_HEAD"
    if not origin and pulled.exists():  # the notebook's setup cell pulls from an address
        origin = pulled.read_text().partition("\n")[0]
    found = re.fullmatch(rf".*\bgithub\.com[:/]{PAIR}/?", origin)
    if found and found["account"].lower() == account.lower():
        return found["repository"].removesuffix(".git")
    return None


def replace_pair(text: str, pair: tuple[str, str], new: str) -> str:
    """Put "account/repository" in place of a pair, wherever it stands as a whole name."""
    old = re.escape("/".join(pair))
    # Neither "canada/TSAI-S11" nor "ada/TSAI-S110" is "ada/TSAI-S11", but "ada/TSAI-S11.git" is.
    whole = rf"(?<![\w.-]){old}(?![\w-])(?!\.(?!git(?![\w-]))\w)"
    return re.sub(whole, new, text, flags=re.IGNORECASE)  # as GitHub takes names


def main():
    """Write account and repository into both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("account", type=parse_account, metavar="ACCOUNT")
    parser.add_argument("--repository", type=parse_repository, metavar="NAME")
    args = parser.parse_args()

    texts = {}
    pairs = []
    for name in ("README.md", "S11.ipynb"):
        texts[name] = (ROOT / name).read_bytes().decode()  # with its own ends of lines
        pairs += find_pairs(texts[name])
    if not pairs:
        parser.error("neither README.md nor S11.ipynb has a badge or REPO_URL that could be yours.")

    _, current = pairs[0]
    repository = args.repository or find_repository(args.account) or current
    new = f"{args.account}/{repository}"
    for name, text in texts.items():
        # Not those of the other file: a README may name its source, as the notebook still does.
        for pair in dict.fromkeys(find_pairs(text) or pairs):
            text = replace_pair(text, pair, new)
        owner = r"<!-- begin: owner -->.*?<!-- end: owner -->(\r?\n)?"
        text = re.sub(owner, "", text, flags=re.DOTALL)
        (ROOT / name).write_bytes(text.encode())
        print(f"The addresses of {name} name {new} now.")


if __name__ == "__main__":
    main()
