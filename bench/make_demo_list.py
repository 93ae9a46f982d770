"""Make ``halfconv/demo/files.json``, the labelled file list of ``halfconv demo``.

The list holds real files of the distributions that constraints.txt pins and ``halfconv[demo]`` installs, and this
repository's licence. What a file is, its *label*, follows from its name and from a check of its content (a JSON file
must parse, a PNG file must start as one); the model is never asked, so that its mistakes count. Files whose name and
content do not settle what they are stay out.

Every machine should count the same files, so compiled code stays out (it differs by system, processor and Python), and
so does whatever installers write. ``--wheels DIR`` also drops what differs in the wheels of other systems found there
(``pip download --no-deps --platform … -d DIR PACKAGE==VERSION``); the committed list was made so, with the wheels of
onnx, onnxruntime, numpy, scipy, ml_dtypes, protobuf and magika for Windows, macOS and Linux on ARM.

    python bench/make_demo_list.py [--wheels DIR]
"""

from __future__ import annotations

import argparse
import ast
import configparser
import csv
import gzip
import importlib.metadata
import io
import json
import pickletools
import re
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from halfconv.demo.files import (
    LIST_PATH,
    OWN_DISTRIBUTION,
    OWN_LICENSE,
    digest,
    installed_files,
    line_end_forms,
    normal_path,
)
from halfconv.demo.magika import find_model

DISTRIBUTIONS = (
    "click",
    "magika",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxconverter-common",
    "onnxruntime",
    "onnxscript",
    "protobuf",
    "rich",
    "scipy",
)
CAP = 25  # files of one label, those with the smallest SHA-256
SMALLEST = 64  # bytes; below that nothing can be told
LICENSE_NAMES = {"LICENSE", "LICENSE.txt", "LICENCE", "COPYING", "NOTICE"}


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _is_python(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return len(ast.parse(_text(data)).body) > 0


_CODE = re.compile(r"^\s*#\s*(include|define|if|pragma)|[;{}]\s*$", re.MULTILINE)
_GUARDED = re.compile(r"^\s*#\s*ifdef\s+__cplusplus.*?^\s*#\s*(else|endif)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_CPP_ONLY = re.compile(
    r"\b(namespace|template|typename|constexpr|nullptr|class|public:|private:|using)\b|\w::\w|#\s*include\s*<\w+>"
)


def _is_c_family(data: bytes) -> bool:
    return bool(_CODE.search(_text(data)))


def _header_label(text: str) -> str | None:
    """``cpp`` for a header with what C does not know, else ``c`` if it declares something, else unsettled."""
    code = _GUARDED.sub("", _COMMENT.sub("", text))
    if _CPP_ONLY.search(code):
        return "cpp"
    return "c" if re.search(r"\b(typedef|struct|enum|union|static|extern)\b", code) else None


def _is_fortran(data: bytes) -> bool:
    words = set(re.findall(r"[a-z]+", _text(data).lower()))
    return "end" in words | {w[:3] for w in words} and bool(words & {"subroutine", "function", "module", "program"})


def _is_csv(data: bytes) -> bool:
    widths = Counter(len(row) for row in csv.reader(io.StringIO(_text(data))) if row)
    width, count = widths.most_common(1)[0]
    return width > 1 and count > 2 and count >= 0.9 * widths.total()


def _is_ini(data: bytes) -> bool:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(_text(data))
    return bool(parser.sections())


def _is_onnx(data: bytes) -> bool:
    import onnx

    model = onnx.load_model_from_string(data)
    return model.ir_version > 0 and len(model.graph.node) > 0


def _is_npz(data: bytes) -> bool:
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _is_wav(data: bytes) -> bool:
    return data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE"


def _is_markdown(data: bytes) -> bool:
    return bool(re.search(r"^(#{1,6} |```)|\[[^\]]+\]\([^)]+\)|^\|[-|: ]+\|$", _text(data), re.MULTILINE))


def _is_rst(data: bytes) -> bool:
    return bool(re.search(r"^\S[^\n]*\n([=\-~^*])\1{3,}\s*$", _text(data), re.MULTILINE))


def _is_pickle(data: bytes) -> bool:
    return next(iter(pickletools.genops(data)), None) is not None and data.endswith(b".")


# By the file name's ending: the label, and the check that the content must pass.
KINDS: dict[str, tuple[str, Callable[[bytes], bool]]] = {
    ".c": ("c", _is_c_family),
    ".cc": ("cpp", _is_c_family),
    ".cpp": ("cpp", _is_c_family),
    ".csv": ("csv", _is_csv),
    ".f": ("fortran", _is_fortran),
    ".f90": ("fortran", _is_fortran),
    ".f95": ("fortran", _is_fortran),
    ".gz": ("gzip", lambda data: bool(gzip.decompress(data))),
    ".ini": ("ini", _is_ini),
    ".json": ("json", lambda data: isinstance(json.loads(data), dict | list)),
    ".md": ("markdown", _is_markdown),
    ".npy": ("npy", lambda data: data.startswith(b"\x93NUMPY")),
    ".npz": ("npz", _is_npz),
    ".onnx": ("onnx", _is_onnx),
    ".pkl": ("pickle", _is_pickle),
    ".png": ("png", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n")),
    ".proto": ("proto", lambda data: bool(re.search(r"^syntax = ", _text(data), re.MULTILINE))),
    ".py": ("python", _is_python),
    ".pyi": ("python", _is_python),
    ".rst": ("rst", _is_rst),
    ".wav": ("wav", _is_wav),
}


def label_of(path: str, data: bytes) -> str | None:
    """What a file is, from its name and content; None where they leave a doubt.

    Args:
        path: The file's path in its distribution.
        data: All of the file.
    """
    name = PurePosixPath(path)
    if len(data.strip()) < SMALLEST or ".in." in name.name:  # X.in.proto is a template of X.proto
        return None
    if name.name in LICENSE_NAMES:
        return "txt" if not _is_rst(data) and not _is_markdown(data) else None
    if name.suffix == ".h":
        return _header_label(_text(data))
    label, check = KINDS.get(name.suffix, ("", lambda data: False))
    try:
        return label if check(data) else None
    except Exception:  # whatever a parser throws says that the content is not what the name promises
        return None


def candidates() -> Iterator[tuple[str, str, bytes]]:
    """The files that the list may take, as (distribution, path, content)."""
    yield OWN_DISTRIBUTION, OWN_LICENSE, (LIST_PATH.parents[2] / "LICENSE").read_bytes()
    for name in DISTRIBUTIONS:
        for path, place in sorted(installed_files(name).items()):
            stem = PurePosixPath(path)
            if (stem.suffix in KINDS or stem.suffix == ".h" or stem.name in LICENSE_NAMES) and place.is_file():
                yield name, path, place.read_bytes()


def wheel_digests(folder: Path) -> dict[str, list[dict[str, set[str]]]]:
    """For each distribution, one map from path to SHA-256 (of either form of line ends) per wheel of it in a folder.

    Args:
        folder: Searched for ``*.whl``, folders in it included.
    """
    found: dict[str, list[dict[str, set[str]]]] = defaultdict(list)
    for wheel in sorted(folder.rglob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            found[_plain(wheel.name.split("-")[0])].append(
                {normal_path(name): set(map(digest, line_end_forms(archive.read(name)))) for name in archive.namelist()}
            )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def choose(labels: frozenset[str], wheels: dict[str, list[dict[str, set[str]]]]) -> list[dict[str, str]]:
    """The list's entries, sorted by distribution and path.

    Args:
        labels: The labels that the model knows; files of other kinds stay out.
        wheels: What `wheel_digests` found; a file must be the same in every wheel of its distribution.
    """
    by_label: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for distribution, path, data in candidates():
        sha256 = digest(data)
        if any(sha256 not in wheel.get(path, ()) for wheel in wheels.get(_plain(distribution), [])):
            continue
        label = label_of(path, data)
        if label in labels:
            by_label[label].setdefault(sha256, (distribution, path))
    return sorted(
        (
            {"distribution": distribution, "path": path, "sha256": sha256, "label": label}
            for label, files in by_label.items()
            for sha256, (distribution, path) in sorted(files.items())[:CAP]
        ),
        key=lambda entry: (entry["distribution"], entry["path"]),
    )


def main() -> int:
    """Write the list and print how many files of each label it has."""
    parser = argparse.ArgumentParser(description="Make the file list of `halfconv demo`.")
    parser.add_argument("--wheels", type=Path, help="drop files that differ in the wheels found in this folder")
    options = parser.parse_args()
    model = find_model()
    files = choose(frozenset(model.labels), wheel_digests(options.wheels) if options.wheels else {})
    versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
    head = {"schema_version": 1, "model_sha256": model.sha256, "versions": versions}
    lines = ",\n".join("    " + json.dumps(entry) for entry in files)
    text = json.dumps(head, indent=2)[:-2] + ',\n  "files": [\n' + lines + "\n  ]\n}\n"
    print(f"{len(files)} files:", dict(sorted(Counter(entry["label"] for entry in files).items())))
    LIST_PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
