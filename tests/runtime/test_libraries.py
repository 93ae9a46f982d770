"""Libraries: read what they need, and find them without loading them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from halfconv.runtime.libraries import find, loaded, loader_cache, needed, package_versions, search_folders

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF files are Linux's")


def compile_library(path: Path, *options: str, source: str = "int nothing;") -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    text = path.with_suffix(".c")
    text.write_text(source, "utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(text), *options], check=True)
    return path


def test_needs_are_read_from_the_file(tmp_path: Path) -> None:
    libraries = tmp_path / "lib"
    libraries.mkdir()
    compile_library(libraries / "libcublas.so.13", "-Wl,-soname,libcublas.so.13")
    options = ["-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN/lib:/opt/cuda", f"-L{libraries}", "-l:libcublas.so.13"]
    names, folders = needed(compile_library(tmp_path / "libprovider.so", *options))
    assert "libcublas.so.13" in names
    assert folders == (f"{tmp_path}/lib", "/opt/cuda")


def test_needs_are_those_that_the_loader_sees(tmp_path: Path) -> None:
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("no ldd")
    import numpy._core._multiarray_umath as module

    path = Path(module.__file__)
    said = subprocess.run([ldd, str(path)], capture_output=True, text=True, check=True).stdout
    names, _ = needed(path)
    assert names and all(name in said for name in names)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58), b"MZ" + bytes(100), os.urandom(4096)])
def test_another_file_needs_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert needed(path) == ((), ()) and needed(tmp_path / "absent") == ((), ())


def test_damaged_files_do_no_harm(tmp_path: Path) -> None:
    """Every byte of the head changed once, and the file cut off at many places."""
    whole = compile_library(tmp_path / "lib.so").read_bytes()
    path = tmp_path / "damaged.so"
    for index in range(64 + 56 * 8):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0xFF]) + whole[index + 1 :])
        needed(path)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        needed(path)


def test_folders_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, first, second = tmp_path / "site", tmp_path / "first", tmp_path / "second"
    ours = site / "nvidia" / "cu13" / "lib"
    for folder in (site / "onnxruntime", ours, first, second):
        folder.mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{first}::{second}")
    assert search_folders(site / "onnxruntime", ["/opt/own"])[:4] == [ours, first, second, Path("/opt/own")]
    assert search_folders(None)[:2] == [first, second]

    (second / "libcublas.so.13").touch()
    (first / "libcublas.so.12").touch()
    (first / "libcublas.so").touch()
    folders = search_folders(site / "onnxruntime")
    assert find("libcublas.so.13", folders, {}, {}).path == str(second / "libcublas.so.13")
    (ours / "libcublas.so.13").touch()
    found = find("libcublas.so.13", folders, {}, {os.path.realpath(ours / "libcublas.so.13"): "13.1.0.3"})
    assert (found.path, found.version, found.others) == (str(ours / "libcublas.so.13"), "13.1.0.3", ("libcublas.so.12",))
    missing = find("libcublas.so.14", folders, {"libcublas.so.14": str(tmp_path / "gone")}, {}, optional=True)
    assert missing.path == "" and missing.others == ("libcublas.so.13", "libcublas.so.12") and missing.optional


def test_a_link_tells_the_version(tmp_path: Path) -> None:
    (tmp_path / "libcudart.so.13.0.88").touch()
    (tmp_path / "libcudart.so.13").symlink_to("libcudart.so.13.0.88")
    found = find("libcudart.so.13", [tmp_path], {}, {})
    assert found.version == "13.0.88" and found.others == ()


def test_what_the_loader_knows() -> None:
    for known in (loader_cache(), loaded()):
        assert any(name.startswith("libc.so.") for name in known)
        assert all(Path(path).name == name for name, path in known.items())


def test_packages_tell_the_versions_of_their_libraries() -> None:
    found = package_versions(("scipy",))
    assert found and set(found.values()) == {__import__("scipy").__version__}
    assert package_versions(("nvidia-no-such-",)) == {}
