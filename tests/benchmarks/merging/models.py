"""Synthetic checkpoints of real shapes: a base of random weights and fine-tunes close to it.

    python tests/benchmarks/merging/models.py 0.5b runs/bench/0.5b

bfloat16; weights have standard deviation 0.02 and deltas 0.001. A folder that is complete is
used again.
"""

import argparse
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from personality_vector.checkpoint import ShardWriter, TensorPlan
from personality_vector.numeric.random import generator_for
from personality_vector.progress import progress

DELTA_STD = 1e-3


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2 model with tied embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int = 151_936

    @property
    def keys(self) -> int:
        """Width of keys and of values: two heads."""
        return 2 * self.hidden // self.heads

    @property
    def config(self) -> dict[str, object]:
        """What transformers and mergekit read."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 2,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    @property
    def tensors(self) -> list[TensorPlan]:
        """Every tensor of the checkpoint."""
        hidden, wide, keys = self.hidden, self.intermediate, self.keys
        block = {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.q_proj.bias": (hidden,),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (wide, hidden),
            "mlp.up_proj.weight": (wide, hidden),
            "mlp.down_proj.weight": (hidden, wide),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
        return [TensorPlan(name, torch.bfloat16, shape) for name, shape in shapes.items()]


SHAPES = {
    "pico": Shape(64, 128, 2, 4, vocabulary=512),
    "0.5b": Shape(896, 4864, 24, 14),
    "1.5b": Shape(1536, 8960, 28, 12),
}


@dataclass(frozen=True)
class Models:
    """Where the checkpoints lie."""

    base: Path
    tuned: tuple[Path, ...]

    @property
    def folders(self) -> list[Path]:
        """The base and every fine-tune."""
        return [self.base, *self.tuned]


def make(shape: str, folder: Path, count: int = 5) -> Models:
    """Return a base and ``count`` fine-tunes of a shape; writes them if they are not there."""
    models = Models(folder / "base", tuple(folder / f"ft{index}" for index in range(count)))
    done, made = folder / "complete.json", {"shape": shape, "count": count}
    if done.exists():
        if json.loads(done.read_text()) != made:
            raise SystemExit(f"{folder}: holds other models; choose another folder")
        return models
    _write(SHAPES[shape], models)
    done.write_text(json.dumps(made))
    return models


def _write(shape: Shape, models: Models) -> None:
    for path in models.folders:
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").unlink(missing_ok=True)
        (path / "config.json").write_text(json.dumps(shape.config, indent=2))
    with ExitStack() as stack:
        writers = [
            stack.enter_context(ShardWriter(path, shape.tensors, 2**63)) for path in models.folders
        ]
        for plan in progress(shape.tensors, "models", lambda plan: plan.size):
            generator = generator_for(0, plan.name)
            base = torch.empty(plan.shape).normal_(0.0, 0.02, generator=generator).bfloat16()
            writers[0].write(plan.name, base)
            for writer in writers[1:]:
                delta = torch.empty(plan.shape).normal_(0.0, DELTA_STD, generator=generator)
                writer.write(plan.name, (base + delta).bfloat16())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(*make(given.shape, given.folder).folders, sep="\n")
