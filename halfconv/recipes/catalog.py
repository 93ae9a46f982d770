"""Find recipes by name."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from halfconv.errors import EnvironmentProblem, UsageError
from halfconv.recipes.recipe import Recipe

__all__ = ["NAMES", "load_recipe", "needing_packages", "recipes_folder"]

#: Each has a file ``NAME.py`` with a `Recipe` called ``RECIPE``.
NAMES = ("digits_cnn", "digits_mlp", "movie_ratings", "cells_unet", "docstrings_bert", "digit_detector", "speech_gru")
#: Where the recipes' modules are imported to.
PACKAGE = "halfconv.recipes.models"


def recipes_folder() -> Path:
    """Return the folder of the recipes: within the installed package, or ``models/`` beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def load_recipe(name: str) -> Recipe:
    """Load a recipe.

    Args:
        name: One of `NAMES`; no other file is ever imported.

    Raises:
        UsageError: There is none of that name.
        EnvironmentProblem: A package that it needs is not installed.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, 1)
        raise UsageError(f"there is no recipe '{name}'", close[0] if close else f"one of {', '.join(NAMES)}")
    full = f"{PACKAGE}.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, recipes_folder() / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module  # where PyTorch looks for the sources of what it exports
        try:
            with needing_packages(name):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[full]
            raise
    recipe = sys.modules[full].RECIPE
    assert isinstance(recipe, Recipe)
    return recipe


@contextlib.contextmanager
def needing_packages(name: str) -> Iterator[None]:
    """Say of a package that is not installed that a recipe needs it.

    Args:
        name: The recipe.

    Raises:
        EnvironmentProblem: One is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        words = f"the recipe {name} needs the package {error.name}"
        raise EnvironmentProblem(words, "pip install 'halfconv[cpu,recipes]', or 'halfconv[gpu,recipes]'") from None
