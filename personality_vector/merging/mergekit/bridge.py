"""mergekit's other methods, tensor by tensor through its in-memory interface.

That interface knows nothing of architectures or names: this tool reads, checks and writes. It also
sets the dtype that is written, because without out_dtype some of mergekit's methods write float32
whatever the inputs and ``dtype`` are (its issue #604).
Memory: one tensor of every model, and what the method needs. mergekit is imported when it is used.
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality_vector.checkpoint import FLOATS, Checkpoint, ShardWriter, TensorPlan, revision_of
from personality_vector.delta import require_finite
from personality_vector.errors import NonFiniteError, RecipeError, blame
from personality_vector.files import AtomicDirectory
from personality_vector.merging.engine import MergeReport, complete
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.merging.mergekit.settings import Values, summary, summary_of
from personality_vector.merging.plan import described_base
from personality_vector.numeric.kernels import is_finite
from personality_vector.numeric.random import key_for
from personality_vector.progress import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BridgePlan:
    """A plan to merge by a method of mergekit's own: checked, and not yet begun.

    Attributes:
        recipe: The checked YAML.
        base: The model that config and tokenizer come from: the base, or else the first model.
        models: The models by reference.
        values: The parameters by tensor.
        tensors: What will be written.
        seed: Seed of methods that draw at random.
        given: The YAML as it was read.
    """

    recipe: MergekitRecipe
    base: Checkpoint
    models: Mapping[str, Checkpoint]
    values: Mapping[str, Values]
    tensors: Sequence[TensorPlan]
    seed: int
    given: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """Name of the method."""
        return f"mergekit-{self.recipe.merge_method}"

    @property
    def inputs(self) -> list[Path]:
        """Every directory that is read."""
        return [one.path for one in self.models.values()]

    @property
    def output_dtype(self) -> str:
        """Dtype of the floating-point tensors, or ``same`` as the base."""
        return self.recipe.out_dtype or self.recipe.dtype or "same"

    @property
    def size(self) -> int:
        """Number of bytes that will be written."""
        return sum(tensor.size for tensor in self.tensors)

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON-like data."""
        return {
            "base": described_base(self.base),
            "method": self.method,
            "source": f"mergekit {version('mergekit')}",
            "options": summary(found.shared for found in self.values.values()),
            "seed": self.seed,
            "terms": [
                {
                    "label": one.reference,
                    "identity": one.fingerprint.digest,
                    **revision_of(one.path),
                    **summary_of(self.values, model),
                }
                for model, one in self.models.items()
            ],
            "output": {"dtype": self.output_dtype},
            "bytes": self.size,
            "recipe": dict(self.given),
        }


def write_bridge(plan: BridgePlan, out: str | Path, *, force: bool = False) -> MergeReport:
    """Carry out a plan; the output appears whole or not at all."""
    with AtomicDirectory(
        out, kind="merge", force=force, inputs=plan.inputs, size=plan.size
    ) as directory:
        with ShardWriter(directory, plan.tensors) as writer:
            for tensor in progress(plan.tensors, "merge", lambda tensor: tensor.size):
                with blame(tensor=tensor.name):
                    writer.write(tensor.name, _merged(plan, tensor))
        for one in plan.models.values():
            one.require_unchanged()
        content = {**plan.describe(), "realised": None, "tensors": {}}
        manifest = complete(directory, plan.base, plan.output_dtype, content)
    log.info("merged %d models into %s", len(plan.models), out)
    return MergeReport(Path(out), None, manifest)


def _merged(plan: BridgePlan, tensor: TensorPlan) -> Tensor:
    """Return one merged tensor in its planned dtype; integer tensors are those of the base."""
    name = tensor.name
    if name not in plan.values:
        return plan.base[name]
    values, recipe = plan.values[name], plan.recipe
    ids = list(values.of)
    # By name and model, as mergekit takes them.
    of_models = {
        key: {model: of.get(key) for model, of in values.of.items()}
        for key in sorted(set().union(*values.of.values()))
    }
    # Copies, since mergekit may work in place.
    inputs = [require_finite(plan.models[one], name).reshape(tensor.shape).clone() for one in ids]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_for(plan.seed, name))
        try:
            merged: Tensor = _mergekit().merge_tensors(
                inputs,
                find_method(recipe.merge_method),
                parameters={**values.shared, **of_models},
                ids=ids,
                base_index=ids.index(recipe.base_model) if recipe.base_model in ids else None,
                name=name,
                dtype=FLOATS[recipe.dtype] if recipe.dtype else None,
                out_dtype=tensor.dtype,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise RecipeError(f"mergekit's {recipe.merge_method} fails: {error}") from error
    if not is_finite(merged.reshape(-1)):
        raise NonFiniteError(f"{name}: {recipe.merge_method} of mergekit gives NaN or infinity")
    return merged


def find_method(name: str) -> Any:
    """Return the method of mergekit that has this name, or refuse it."""
    methods = {one.spec.name: one for one in _mergekit().registered_methods()}
    if name not in methods:
        raise RecipeError(
            f"unknown merge_method {name!r}; mergekit has {', '.join(sorted(methods))}"
        )
    return methods[name]


def _mergekit() -> Any:
    try:
        return importlib.import_module("mergekit.merge_methods")
    except ImportError as error:
        raise RecipeError(
            f"this merge_method runs through mergekit, which cannot be imported ({error}); "
            "pip install mergekit"
        ) from error
