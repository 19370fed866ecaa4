"""Writing a merge recipe as mergekit YAML, or saying which of its conventions mergekit lacks.

mergekit computes in ``dtype`` and rounds once more to ``out_dtype``; in float32 the two agree but
for the last bit. A comment in the YAML says what differs for a few entries only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from personality_vector.checkpoint import FLOATS, Checkpoint
from personality_vector.delta import block_of, is_adapter, is_saved_delta
from personality_vector.errors import RecipeError
from personality_vector.merging.formula import Options
from personality_vector.merging.methods import find_method
from personality_vector.merging.recipe import MergeRecipe, TermSpec
from personality_vector.merging.summands import alpha_by_tensor, selected

_TIES = "where the terms cancel exactly, mergekit adds the positive ones and this tool nothing"
_EQUAL = "of equal magnitudes at the threshold mergekit keeps some, this tool all"
_ENDS = "mergekit rounds the number of entries at each end in another way"
_MASKS = "the masks are mergekit's own: give --random-seed, and expect other entries"


@dataclass(frozen=True, slots=True)
class Equivalent:
    """Names the method of mergekit that does what one of ours does.

    Attributes:
        method: Its name in mergekit.
        own: The parameters of each model, except weight.
        shared: The parameters that all models share, except lambda.
        factor: The factor on lambda.
        remarks: What differs for some entries.
    """

    method: str
    own: Mapping[str, float]
    shared: Mapping[str, bool]
    factor: float = 1.0
    remarks: tuple[str, ...] = ()


def export_mergekit(recipe: MergeRecipe) -> str:
    """Return the mergekit YAML that does what a recipe does.

    Raises:
        RecipeError: mergekit cannot express it; the message names the convention.
        CheckpointError: The base cannot be read.
    """
    options = find_method(recipe.method).bind(recipe.options).options
    equivalent = _equivalent(recipe.method, options)
    _require_plain(recipe)
    terms = [term for term in recipe.terms if term.alpha != 0.0]
    if not terms:
        raise RecipeError("every alpha is 0: the result is the base, there is nothing to export")
    base = Checkpoint.open(recipe.base)
    is_mean = equivalent.shared["normalize"]
    factor = equivalent.factor * float(options["lambda"])
    factor *= _common_alpha(terms, recipe) if is_mean else 1.0
    content = {
        "merge_method": equivalent.method,
        "base_model": recipe.base,
        "models": [
            {
                "model": term.tuned,
                "parameters": {
                    "weight": 1.0 if is_mean else _weight(term, base.names, recipe),
                    **equivalent.own,
                },
            }
            for term in terms
        ],
        "parameters": {**equivalent.shared, "lambda": factor},
        "dtype": "float32",
        "out_dtype": _written(recipe, base),
    }
    remarks = "".join(f"# {remark}\n" for remark in equivalent.remarks)
    return remarks + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _equivalent(method: str, options: Options) -> Equivalent:
    """Return what a method of ours is in mergekit.

    Raises:
        RecipeError: mergekit lacks one of its conventions.
    """
    # A sum of weights of 1 is a count, so mergekit normalizes to the mean of those that agree.
    shared = {"normalize": options.get("consensus") == "mean"}
    if method == "della":
        raise RecipeError(
            "della: mergekit rescales a tensor to its L1 norm, not each entry by its own "
            "probability"
        )
    if options.get("election") == "count":
        raise RecipeError("election: count has no counterpart in mergekit, which sums the terms")
    match method:
        case "task_arithmetic":
            return Equivalent("task_arithmetic", {}, shared)
        case "ties":
            density = float(options["density"])
            if options["trim"] == "global" and density < 1.0:
                raise RecipeError(
                    "ties: mergekit trims each tensor alone, not the whole vector; "
                    "trim: per_tensor can be exported"
                )
            return Equivalent("ties", {"density": density}, shared, 1.0, (_TIES, _EQUAL))
        case "dare" | "dare_ties":
            density = round(1.0 - float(options["drop_rate"]), 12)
            name, remarks = ("dare_linear", ()) if method == "dare" else ("dare_ties", (_TIES,))
            remarks = (_MASKS, *remarks) if density < 1.0 else remarks
            # mergekit's own rescaling matches the L1 norm of each tensor.
            shared["rescale"] = False
            return Equivalent(name, {"density": density}, shared, 1.0 / density, remarks)
        case "breadcrumbs":
            beta, gamma = float(options["beta"]), float(options["gamma"])
            own = {"density": max(0.0, round(1.0 - beta - gamma, 12)), "gamma": gamma}
            return Equivalent("breadcrumbs", own, shared, 1.0, (_ENDS,))
    raise RecipeError(
        f"mergekit has no method with the conventions of {method}; export knows task_arithmetic, "
        "ties, dare, dare_ties, breadcrumbs"
    )


def _common_alpha(terms: Sequence[TermSpec], recipe: MergeRecipe) -> float:
    alphas = {term.alpha for term in terms if isinstance(term.alpha, float)}
    if len(alphas) != 1 or any(not isinstance(term.alpha, float) for term in terms):
        raise RecipeError(
            "consensus: mean divides by a number of terms and mergekit by a sum of weights, which "
            "is the same only if every alpha is; consensus: sum can be exported"
        )
    if recipe.include or recipe.exclude:
        raise RecipeError("consensus: mean with include or exclude: mergekit divides weights out")
    return alphas.pop()


def _require_plain(recipe: MergeRecipe) -> None:
    if recipe.output.rounding != "nearest":
        raise RecipeError("output.rounding: mergekit has no stochastic rounding")
    for number, term in enumerate(recipe.terms):
        if term.of is not None:
            raise RecipeError(f"terms.{number}.of: mergekit has no delta of another base")
        path = Path(term.source)
        if term.delta is not None or is_saved_delta(path):
            raise RecipeError(f"terms.{number}: mergekit reads models, {path} is a saved delta")
        if is_adapter(path):
            raise RecipeError(f"terms.{number}: mergekit reads models, {path} is a LoRA adapter")
    for where in (recipe.base, *(str(term.tuned) for term in recipe.terms)):
        if "+" in where or "@" in where:
            raise RecipeError(f"{where}: mergekit reads + and @ in a path as signs of its own")


def _weight(term: TermSpec, names: Sequence[str], recipe: MergeRecipe) -> Any:
    """Return alpha, or rules for it: filters are parts of names, the first that fits wins."""
    if isinstance(term.alpha, float) and not recipe.include and not recipe.exclude:
        return term.alpha
    kept = selected(list(names), recipe.include, recipe.exclude)
    alpha_at = alpha_by_tensor(term.alpha, sorted(kept), names)
    table = dict.fromkeys(names, 0.0) | {name: alpha_at(name) for name in kept}
    default = Counter(table.values()).most_common(1)[0][0]
    parts = _parts(table)
    needed = [
        {"filter": part, "value": value}
        for part, value in parts.items()
        if value != default or any(other in part for other in parts if other != part)
    ]
    return [*needed, {"value": default}]


def _parts(table: Mapping[str, float]) -> dict[str, float]:
    """Return parts of names with their value: a layer if all of it has one, else whole names.

    The longest come first, so that no part hides a longer one that it is in.
    """
    layers: dict[str, set[float]] = {}
    for name, value in table.items():
        layers.setdefault(_layer(name), set()).add(value)
    parts = {_layer(n) if len(layers[_layer(n)]) == 1 else n: v for n, v in table.items()}
    return dict(sorted(parts.items(), key=lambda item: (-len(item[0]), item[0])))


def _layer(name: str) -> str:
    block = block_of(name)
    return f"{block[0]}.{block[1]}." if block else name


def _written(recipe: MergeRecipe, base: Checkpoint) -> str:
    stored = {e.dtype for e in base.entries.values() if e.dtype.is_floating_point}
    names = [name for name, dtype in FLOATS.items() if stored == {dtype}]
    if recipe.output.dtype == "same" and not names:
        raise RecipeError("output.dtype: same: the base mixes dtypes, mergekit writes one; name it")
    return names[0] if recipe.output.dtype == "same" else recipe.output.dtype
