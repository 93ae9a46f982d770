"""The public names, the exception tree, and what the package promises about its own modules."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import halfconv
from halfconv import errors

PACKAGE = Path(halfconv.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 500


def test_all_is_sorted_and_importable() -> None:
    assert list(halfconv.__all__) == sorted(set(halfconv.__all__))
    for name in halfconv.__all__:
        assert getattr(halfconv, name) is not None


def test_all_and_the_lazy_names_agree() -> None:
    assert set(halfconv.__all__) == {*halfconv._HOME, "__version__"}
    assert dir(halfconv) == sorted(halfconv.__all__)
    for name, home in halfconv._HOME.items():
        module = __import__(home, fromlist=[name])
        assert getattr(halfconv, name) is getattr(module, name)
        assert name in module.__all__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(halfconv.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == halfconv._HOME


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'convret'"):
        halfconv.convret  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    import importlib.metadata

    assert importlib.metadata.version("halfconv") == halfconv.__version__


def test_public_names_have_docstrings() -> None:
    for name in set(halfconv.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(halfconv, name)), name


def drawn() -> dict[str, tuple[str, int]]:
    """The exception tree of the docstring: name -> (base, exit code)."""
    found: dict[str, tuple[str, int]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"( {4}[│├└─ ]*)(\w+)(?: {2,}\S.* exit (\d+))?", line)
        if match is None:
            continue
        indent = len(match[1])
        above = [(depth, name) for depth, name in above if depth < indent]
        found[match[2]] = (above[-1][1] if above else "Exception", int(match[3] or 2))
        above.append((indent, match[2]))
    return found


def test_every_exception_is_in_the_drawn_tree() -> None:
    real = {name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert sorted(real) == sorted(errors.__all__)
    warnings = {name for name, kind in real.items() if issubclass(kind, Warning)}
    assert warnings <= set(halfconv.__all__)
    real = {name: kind for name, kind in real.items() if name not in warnings}
    assert {name: (kind.__mro__[1].__name__, kind.exit_code) for name, kind in real.items()} == drawn()
    assert set(real) <= set(halfconv.__all__)
    assert all(issubclass(kind, halfconv.HalfconvError) for kind in real.values())


def test_package_defines_no_other_exception() -> None:
    defined = [
        f"{path.name}:{node.name}"
        for path in MODULES
        if path.name != "errors.py" and "files" not in path.relative_to(PACKAGE).parts  # which packages of `deploy` are made of
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(re.search(r"(Error|Exception|Warning|Problem)$", ast.unparse(base)) for base in node.bases)
    ]
    assert defined == []


def test_messages_are_one_line() -> None:
    assert str(halfconv.InputError("two\n lines", "do\nthis")) == "two lines; try: do this"
    assert str(halfconv.InputError("alone")) == "alone"


def test_import_loads_nothing_heavy() -> None:
    heavy = ("click", "ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "scipy", "torch")
    code = f"import sys, halfconv, halfconv.errors; dir(halfconv); print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_errors_imports_nothing() -> None:
    tree = ast.parse((PACKAGE / "errors.py").read_text("utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text))


def test_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
