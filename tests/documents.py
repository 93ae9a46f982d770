"""The documentation's pages, README.md first: their commands, snippets and generated parts.

What a block is, its language says:

- ``sh``: commands that any reader can run. Those of a page run in order, in one folder, in which the front page's model
  (``magika.onnx``) and its conversion lie; those that install something run in a fresh clone only.
- every other language: a snippet that a test of its own runs; ``SNIPPETS`` in tests/test_readme.py says which.

A page that a file ``test_docs*.py`` below tests/ names is left to that file, its ``sh`` blocks as well.

A part between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is what ``MAKERS`` in tests/generated.py makes of that name; where
there is no such name, it is what the ``sh`` block before it prints.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import halfconv

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WIDTH = "100"
PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->\n)", re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: What the front page leaves for the others.
LEFT = ("magika.onnx", "magika.fp16.onnx", "magika.fp16.onnx.profile.json")


def pages() -> list[Path]:
    """README.md, and the pages in docs/ by name."""
    return [README, *sorted((ROOT / "docs").glob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@functools.cache
def left_to_others() -> frozenset[str]:
    """Names of the pages whose blocks files of their own test."""
    files = (ROOT / "tests").rglob("test_docs*.py")
    return frozenset(name for file in files for name in re.findall(r"[\w-]+\.md\b", file.read_text("utf-8")))


def is_ours(page: Path) -> bool:
    """Whether the blocks of a page are for tests/test_readme.py."""
    return page.name not in left_to_others()


def text() -> str:
    """All pages, one after another."""
    return "\n".join(page.read_text("utf-8") for page in pages())


def blocks(language: str, page: Path | None = None) -> list[str]:
    """The blocks of a language, of one page or of all."""
    return [body for kind, body in BLOCK.findall(page.read_text("utf-8") if page else text()) if kind == language]


def block(language: str, words: str) -> str:
    """The one block of a language that holds these words, on whatever page, or the same on several."""
    found = list(dict.fromkeys(body for body in blocks(language) if words in body))
    assert len(found) == 1, f"{len(found)} {language} blocks with {words!r}"
    return found[0]


def installs(script: str) -> bool:
    return "pip install" in script


def environment(**more: str) -> dict[str, str]:
    """The environment without what would change commands or their output, for the package and programs under test."""
    dropped = ("PYTEST_ADDOPTS", "VIRTUAL_ENV", "FORCE_COLOR", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    path = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", "")))
    package = str(Path(halfconv.__file__).parents[1])
    return {**kept, "COLUMNS": WIDTH, "PYTHONUTF8": "1", "PYTHONPATH": package, "PATH": path, **more}


def shell(script: str, cwd: Path, timeout: int = 300, **more: str) -> str:
    """Run a script, which must work; return what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def here(script: str) -> str:
    """A command of a page for the environment that runs the tests."""
    return script.replace(".venv/", f"{sys.prefix}/")


@functools.cache
def scratch() -> Path:
    """A folder with one for each page, in which its commands have run."""
    return Path(tempfile.mkdtemp(prefix="halfconv-documents-"))


def remove_scratch() -> None:
    if scratch.cache_info().currsize:
        shutil.rmtree(scratch(), ignore_errors=True)
    scratch.cache_clear()
    printed.cache_clear()


def folder_of(page: Path) -> Path:
    """The folder of a page's commands."""
    return scratch() / page.stem


@functools.cache
def printed(page: Path) -> dict[str, str]:
    """Run a page's commands, once; what each block prints."""
    folder = folder_of(page)
    folder.mkdir()
    scripts = [script for script in blocks("sh", page) if not installs(script)]
    if page != README and scripts:
        printed(README)
        for name in LEFT:
            shutil.copy2(folder_of(README) / name, folder)
    return {script: shell(here(script), folder) for script in scripts}


def parts(page: Path) -> dict[str, tuple[str, str]]:
    """The generated parts of a page: name -> what is written, and the ``sh`` block before it."""
    written = page.read_text("utf-8")
    found: dict[str, tuple[str, str]] = {}
    for part in PART.finditer(written):
        before = [match[2] for match in BLOCK.finditer(written, 0, part.start()) if match[1] == "sh"]
        assert part[2] not in found, f"{name_of(page)} has two parts called {part[2]}"
        found[part[2]] = part[3], before[-1] if before else ""
    return found


def fenced(output: str) -> str:
    """Output as a block of text."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"


def plain(part: str) -> str:
    """A part without what differs from run to run: times, and the blanks that a time's width moves."""
    return re.sub(r"[ ─]+", " ", re.sub(r"\d+\.\d s\b", "0.0 s", part)).strip()
