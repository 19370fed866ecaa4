"""The installed mergekit beside us, on the same YAML: the whole of `run_merge`, file to file.

Where mergekit is random it is given our mask, and where it orders equal magnitudes arbitrarily
(its sort is not stable) it is given a stable sort. Nothing else of it is touched.
"""

import json
import warnings
from copy import deepcopy
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.merging import terms
from personality_vector.merging.engine import write_merge
from personality_vector.merging.mergekit.bridge import write_bridge
from personality_vector.merging.mergekit.export import export_mergekit
from personality_vector.merging.mergekit.plan import plan_mergekit
from personality_vector.merging.plan import MergePlan
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.numeric.random import generator_for

METHODS = [
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
]
TERMS = [(0.6, 0.2), (-0.5, 0.5), (0.8, 0.8)]
"""Weight and density of each model; .9 and epsilon .15 would leave della's range."""

LAYERS, HIDDEN, INNER = 3, 64, 96
CHUNK = 1 << 13
VOCAB = CHUNK // HIDDEN + 50  # so that embeddings and head are more than a chunk each
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "lm_head.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in _LAYER.items()
    },
}


@pytest.fixture(scope="module", autouse=True)
def mergekit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        import mergekit.merge
        import mergekit.sparsify
    return mergekit


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return ``models(dtype)``: folders of a base and of three fine-tunes."""

    @cache
    def make(dtype):
        folder = tmp_path_factory.mktemp(str(dtype))
        base = {n: 0.05 * torch.randn(s, generator=generator_for(0, n)) for n, s in SHAPES.items()}
        found = [write(folder / "base", base, dtype)]
        for number in range(3):
            tuned = {
                n: t.to(dtype).float()
                + 2e-3 * torch.randn(t.shape, generator=generator_for(number + 1, n))
                for n, t in base.items()
            }
            found.append(write(folder / f"tuned-{number}", tuned, dtype))
        return found

    return make


def write(path, tensors, dtype):
    path.mkdir()
    kept = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG | {"dtype": str(dtype)[6:]}))
    return str(path)


class Torch:
    """torch as mergekit's sparsifier sees it: a stable sort, and masks from numbers of ours."""

    def __init__(self, drawn):
        self.drawn = drawn
        self.tensor = None

    def __getattr__(self, name):
        return getattr(torch, name)

    def argsort(self, values, **options):
        return torch.argsort(values, stable=True, **options)

    def sort(self, values, **options):
        return torch.sort(values, stable=True, **options)

    def bernoulli(self, kept_with):
        drawn = self.drawn[self.tensor].pop(0).reshape(kept_with.shape)
        return (drawn < kept_with.float()).to(kept_with.dtype)


@pytest.fixture(autouse=True)
def chunk(monkeypatch):
    monkeypatch.setattr(terms, "CHUNK", CHUNK)


@pytest.fixture
def both(mergekit, monkeypatch, tmp_path):
    """Return ``both(yaml, patched=True)``: our tensors and theirs, of the same YAML."""

    def run(given, *, patched=True):
        plan = plan_mergekit(given, origin="test.yaml", folder=tmp_path, seed=5)
        write = write_merge if isinstance(plan, MergePlan) else write_bridge
        ours = write(plan, tmp_path / "ours", force=True).path
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if patched and isinstance(plan, MergePlan):
                _inject(mergekit, patch, plan)
            theirs = tmp_path / "theirs"
            configuration = mergekit.config.MergeConfiguration.model_validate(deepcopy(given))
            options = {"quiet": True, "write_model_card": False, "copy_tokenizer": False}
            mergekit.merge.run_merge(
                configuration, str(theirs), mergekit.options.MergeOptions(**options)
            )
        read = [load_file(next(path.glob("*.safetensors"))) for path in (ours, theirs)]
        next(theirs.glob("*.safetensors")).unlink()
        return read

    return run


def _inject(mergekit, patch, plan):
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

    drawn = {}
    for tensor in plan.tensors:
        whole = slice(0, torch.Size(tensor.shape).numel())
        slices = plan.merged.slices(tensor.name, whole)
        drawn[tensor.name] = [s.uniform() for s in sorted(slices, key=lambda s: s.term.position)]
    shim, merge_group = Torch(drawn), GeneralizedTaskArithmeticMerge.merge_group

    def noted(self, group, /, **parameters):
        shim.tensor = group.metadata.name
        return merge_group(self, group, **parameters)

    patch.setattr(mergekit.sparsify, "torch", shim)
    patch.setattr(GeneralizedTaskArithmeticMerge, "merge_group", noted)


def agreement(ours, theirs) -> float:
    """Return the share of entries that are equal bit for bit; all names and dtypes must be."""
    assert ours.keys() == theirs.keys() == SHAPES.keys()
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    equal = torch.cat([(ours[name] == theirs[name]).reshape(-1) for name in ours])
    return float(equal.float().mean())


def recipe(method, paths, **top):
    """Return the YAML of a merge with the weights and densities of :data:`TERMS`."""
    base, *tuned = paths
    return {
        "merge_method": method,
        "base_model": base,
        "models": [
            {"model": model, "parameters": {"weight": weight, "density": density}}
            for model, (weight, density) in zip(tuned, TERMS, strict=True)
        ],
        **top,
    }


@pytest.mark.parametrize(
    ("method", "normalize"), [*((method, False) for method in METHODS), ("ties", True)]
)
def test_in_bfloat16_every_entry_is_mergekits(both, models, method, normalize):
    parameters = {"normalize": normalize, "lambda": 0.7}
    given = recipe(method, models(torch.bfloat16), dtype="bfloat16", parameters=parameters)
    assert agreement(*both(given)) == 1.0


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "della"])
def test_computed_in_float32_and_written_in_bfloat16(both, models, method):
    # A float32 L1 norm depends on the order of its sum, so rescaled entries may round otherwise.
    top = {"dtype": "float32", "out_dtype": "bfloat16"}
    assert agreement(*both(recipe(method, models(torch.bfloat16), **top))) >= 0.9999


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della"])
def test_a_dtype_narrower_than_the_checkpoints_rounds_them_first(both, models, method):
    given = recipe(method, models(torch.float32), dtype="bfloat16")
    assert agreement(*both(given)) == 1.0


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs_ties"])
def test_without_a_dtype_that_of_the_checkpoints_is_used(both, models, method):
    assert agreement(*both(recipe(method, models(torch.float32)))) == 1.0


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_rescale_can_be_turned_off(both, models, method):
    given = recipe(method, models(torch.float32), parameters={"rescale": False})
    assert agreement(*both(given)) == 1.0


@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_rescale_can_be_turned_on_and_int8_mask_changes_nothing(both, models, method):
    parameters = {"rescale": True, "int8_mask": True}
    given = recipe(method, models(torch.bfloat16), dtype="bfloat16", parameters=parameters)
    assert agreement(*both(given)) == 1.0


@pytest.mark.parametrize("density", [0.5])
def test_distinct_magnitudes_need_no_stable_sort(both, models, density):
    given = recipe("ties", models(torch.float32), parameters={"normalize": False})
    for model in given["models"]:
        model["parameters"]["density"] = density
    assert agreement(*both(given, patched=False)) >= 0.9999


@pytest.mark.parametrize(
    ("method", "density"), [("ties", 0.2), ("dare_ties", 0.9), ("breadcrumbs", 0.2)]
)
def test_density_that_is_not_given_to_each_model(both, models, method, density):
    given = recipe(method, models(torch.bfloat16), parameters={"density": density})
    for model in given["models"]:
        del model["parameters"]["density"]
    assert agreement(*both(given)) == 1.0


def test_gradients_and_filters(both, models):
    base, one, other, _ = models(torch.bfloat16)
    rules = [
        {"filter": "mlp", "value": [0, 0.5, 1.0, 0.2]},
        {"filter": "self_attn", "value": 0.3},
        {"value": [0.1, -0.9]},
    ]
    given = {
        "merge_method": "ties",
        "base_model": base,
        "models": [
            {"model": one, "parameters": {"weight": rules, "density": [0.2, 0.9]}},
            {"model": base},
            {"model": other, "parameters": {"weight": [-1, 1]}},
        ],
        "parameters": {
            "density": [{"filter": "lm_head", "value": 0.5}, {"filter": "*", "value": 1}],
            "normalize": [True, False],
            "lambda": [{"filter": "q_proj", "value": 1.5}, {"value": [1, 2, 0.5]}],
        },
    }
    assert agreement(*both(given)) == 1.0


def test_slices_in_place_with_other_models_and_parameters(both, models):
    base, one, other, _ = models(torch.bfloat16)
    given = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "slices": [
            {
                "sources": [
                    {"model": base, "layer_range": [0, 2]},
                    {"model": one, "layer_range": [0, 2], "parameters": {"weight": [0.2, 0.5]}},
                ]
            },
            {
                "sources": [
                    {"model": base, "layer_range": [2, 3]},
                    {"model": other, "layer_range": [2, 3]},
                ],
                "parameters": {"weight": [0.1, 0.9]},
            },
        ],
        "parameters": {"weight": 3.0},
    }
    assert agreement(*both(given)) == 1.0


BRIDGED = [
    ("slerp", 1, {"t": [{"filter": "mlp", "value": [0, 0.3, 1]}, {"value": 0.5}]}),
    ("nearswap", 1, {"t": 0.001}),
    ("nuslerp", 2, {"weight": [0.2, 0.9]}),
    ("multislerp", 2, {"weight": 0.5}),
    ("model_stock", 3, {"filter_wise": True}),
    ("sce", 2, {"select_topk": 0.3}),
    ("ram", 2, {}),
    ("karcher", 3, {"max_iter": 4}),
]


@pytest.mark.parametrize(("method", "count", "parameters"), BRIDGED)
def test_other_methods_run_through_mergekit(both, models, method, count, parameters):
    base, *tuned = models(torch.bfloat16)
    given = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model} for model in tuned[:count]],
        "parameters": parameters,
        "dtype": "bfloat16",
    }
    assert agreement(*both(given)) == 1.0


def test_linear_without_a_base(both, models):
    weights = [0.5, 0.3, -0.1]
    given = {
        "merge_method": "linear",
        "models": [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip(models(torch.bfloat16)[1:], weights, strict=True)
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    assert agreement(*both(given)) == 1.0


def test_passthrough_of_slices_in_place(both, models):
    _, one, other, _ = models(torch.bfloat16)
    scale = [{"filter": "down_proj", "value": 0.5}, {"value": 1}]
    given = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": one, "layer_range": [0, 2]}]},
            {"sources": [{"model": other, "layer_range": [2, 3], "parameters": {"scale": scale}}]},
        ],
    }
    assert agreement(*both(given)) == 1.0


OURS = [
    ("task_arithmetic", {"lambda": 0.75}, [0.6, -0.5]),
    ("task_arithmetic", {}, [[1.0, 0.0, 2.0], {"*.mlp.*": 0.5, "norms": 2.0}]),
    ("ties", {"density": 0.3, "trim": "per_tensor", "consensus": "sum"}, [0.6, -0.5]),
    ("ties", {"density": 0.3, "trim": "per_tensor", "lambda": 2.0}, [-0.4, -0.4]),
    ("ties", {"density": 1.0}, [0.7, 0.7]),
]


@pytest.mark.parametrize(("method", "options", "alphas"), OURS)
def test_an_exported_recipe_does_in_mergekit_what_it_does_here(
    mergekit, models, tmp_path, method, options, alphas
):
    from personality_vector.merging.plan import plan_recipe
    from personality_vector.recipes.reading import read_yaml

    base, *tuned = models(torch.float32)
    summands = [{"tuned": model, "alpha": a} for model, a in zip(tuned, alphas, strict=False)]
    data = {"base": base, "method": method, "options": options, "terms": summands}
    data["output"] = {"dtype": "bfloat16"}
    read = MergeRecipe.parse(data, origin="test", folder=tmp_path)
    (tmp_path / "exported.yaml").write_text(export_mergekit(read))
    given = read_yaml(tmp_path / "exported.yaml")
    options = {"quiet": True, "write_model_card": False, "copy_tokenizer": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mergekit.merge.run_merge(
            mergekit.config.MergeConfiguration.model_validate(given),
            str(tmp_path / "theirs"),
            mergekit.options.MergeOptions(**options),
        )
    ours = write_merge(plan_recipe(read), tmp_path / "ours").path
    found = [load_file(next(path.glob("*.safetensors"))) for path in (ours, tmp_path / "theirs")]
    assert agreement(*found) >= 0.9995  # theirs is rounded three times
