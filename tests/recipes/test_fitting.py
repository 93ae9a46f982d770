"""Recipes are trained and measured where their model is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from halfconv.recipes.catalog import NAMES, load_recipe  # noqa: E402
from halfconv.recipes.fitting import fit_recipe, fresh, held_out  # noqa: E402


@pytest.mark.parametrize("name", NAMES)
def test_all_of_what_is_measured_lies_on_the_models_device(name: str) -> None:
    recipe = load_recipe(name)
    deployed = recipe.final(fresh(recipe, 0).to("meta"))
    assert {value.device.type for value in (*deployed.parameters(), *deployed.buffers())} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_recipes_train_on_a_gpu(name: str) -> None:
    recipe = load_recipe(name)
    data = recipe.data(0)
    model, result = fit_recipe(recipe, data, precision="fp16", device="cuda", epochs=2)
    assert next(model.parameters()).is_cuda
    assert result.history[1]["loss"] < result.history[0]["loss"]
    assert held_out(recipe, model.float().cpu().eval(), data[1]) == pytest.approx(result.metrics["metric"], abs=0.05)
