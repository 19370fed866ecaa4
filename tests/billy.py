"""BILLY's design as it ships, on a pico model, with made-up vectors and fine-tunes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from personality_vector.lab import builtin
from personality_vector.numeric.random import generator_for
from personality_vector.recipes.reading import read_recipe
from personality_vector.steering import SteeringVector
from personality_vector.study.recipe import SweepRecipe

RECIPE = "builtin:eval/sweeps/billy.yaml"
ARMS = ["base", "temperature 1", "roles", "discussion", "one vector", "fused vectors", "merge"]


def shrunk(folder: Path, pico: Any, pico_tuned: Any, judges: list[Any]) -> SweepRecipe:
    """Return the recipe with one item of each task, one strength of each arm, and these judges."""
    for name in ("creative-professional", "fused"):
        drawn = {1: torch.randn(48, generator=generator_for(0, name))}
        SteeringVector(drawn, "", None, name, "response_mean", (1, 1)).save(folder / name)
    base = shutil.copytree(pico("llama"), folder / "base")
    config = json.loads((base / "config.json").read_text())
    # A discussion of three roles is longer than a pico model reads; its positions are not learned.
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    settings: list[Any] = [f"base={base}", f"vectors={folder}", "device=cpu"]
    settings += [f"interventions.{arm}.layers=[1]" for arm in (3, 4)]
    settings += [f"interventions.{arm}.strengths=[1.0]" for arm in (3, 4, 5)]
    settings += [f"interventions.5.terms.{n}.tuned={pico_tuned('llama', seed=n)}" for n in range(3)]
    measure = "measures.0.creativity"
    settings += [
        f"{measure}.limit=1",
        f"{measure}.generation={{max_new_tokens: 8, temperature: 0.7}}",
    ]
    settings += [f"{measure}.judges={judges}", "measures.1.cost.price_in=1.0"]
    return read_recipe(builtin(RECIPE), SweepRecipe, settings)
