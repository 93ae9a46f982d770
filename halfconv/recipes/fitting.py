"""Train a recipe's model on its data, and measure it: what lies between the data and the export."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from halfconv.progress import Progress
from halfconv.recipes.recipe import Recipe, Split, batches, predict

if TYPE_CHECKING:
    import torch

    from halfconv.train import Result

__all__ = ["fit_recipe", "fresh", "held_out"]

#: Share of the steps in which the learning rate rises.
WARM_UP = 0.2


def fit_recipe(
    recipe: Recipe, data: tuple[Split, Split], *, precision: str = "fp32", device: str = "auto", epochs: int | None = None,
    seed: int = 0, on_progress: Callable[[Progress], None] | None = None,
) -> tuple[torch.nn.Module, Result]:  # fmt: skip
    """Train a recipe's model.

    Args:
        recipe: The recipe.
        data: Its training data, and what is held out, on which it is measured after each epoch.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``pure-fp16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        epochs: How often the training data is gone through; None for the recipe's number.
        seed: Of the weights and of the order of the data.
        on_progress: Told what is being done.

    Returns:
        The model, on that device and with weights of the precision that keeps them, and what `halfconv.train.fit` returned.

    Raises:
        EnvironmentProblem: The device or its half precision is missing.
    """
    from halfconv.train import fit

    train, test = data
    module, rounds = fresh(recipe, seed), epochs or recipe.epochs
    steps = rounds * -(-len(train) // recipe.batch)
    result = fit(
        module, lambda epoch: batches(recipe, train, seed, epoch), loss=recipe.loss, epochs=rounds, precision=precision,
        evaluate=lambda trained: {"metric": held_out(recipe, trained, test)}, optimizer=lambda weights: _optimizer(recipe, weights),
        scheduler=lambda optimizer: _schedule(recipe, optimizer, steps), device=device, seed=seed, progress=on_progress or False,
    )  # fmt: skip
    return module, result


def fresh(recipe: Recipe, seed: int) -> torch.nn.Module:
    """Return a recipe's model as it is before training; the same seed gives the same weights."""
    import torch

    torch.manual_seed(seed)
    return recipe.model()


def held_out(recipe: Recipe, model: torch.nn.Module, test: Split) -> float:
    """Return the recipe's metric of a model on held-out data."""
    return float(recipe.metric(predict(recipe, recipe.final(model).eval(), test.inputs), test.labels))


def _optimizer(recipe: Recipe, weights: Any) -> torch.optim.Optimizer:
    from halfconv.train.optimizer import adamw

    return adamw(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    import torch

    # One more than there are: the scheduler may be asked once beyond the last step.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps + 1, pct_start=WARM_UP)
