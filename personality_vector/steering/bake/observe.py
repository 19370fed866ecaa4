"""What a model says: greedy tokens and logits. As a program, that of an export, in a new process.

``python -m personality_vector.steering.bake.observe REQUEST.json`` knows nothing of how an export
was made: it loads what lies on disk as any user would, and writes down what it sees.
"""

import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality_vector.errors import CheckpointError, ModelError, PersonalityVectorError, some
from personality_vector.subject.models import load_model, load_tokenizer

TEXTS = (
    "The committee met on Tuesday to decide how the money from the old mill should be spent, and",
    "I have been thinking about the party next weekend, and to be honest with you, I would rather",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    ret",
    "When the ferry was late again, the passengers on the pier began to talk to one another about",
)
"""One topic each: business, self-report, code, story."""

_LONGEST = 16


@dataclass(frozen=True, slots=True)
class Request:
    """What to load and where to write what is seen.

    Attributes:
        model: A checkpoint directory.
        adapter: A PEFT adapter for it, or "".
        dtypes: To compute in; the first one generates.
        tokens: How many to generate.
        out: A safetensors file to write.
    """

    model: str
    adapter: str
    dtypes: tuple[str, ...]
    tokens: int
    out: str


def encoded(path: str | Path) -> Int[Tensor, "texts seq"]:
    """Return the ids of :data:`TEXTS` by a checkpoint's tokenizer, all cut to one length."""
    rows = load_tokenizer(path)(list(TEXTS))["input_ids"]
    length = min(_LONGEST, *map(len, rows))
    if length < 1:
        raise CheckpointError(
            f"{path}: its tokenizer reads no token from {TEXTS[0]!r}, so nothing can be proved; "
            "put the tokenizer's files there"
        )
    return torch.tensor([row[:length] for row in rows])


@torch.no_grad()
def continued(model: Any, ids: Int[Tensor, "texts seq"], tokens: int) -> Int[Tensor, "texts more"]:
    """Return ``ids`` and ``tokens`` greedy tokens, decoded with a cache; an end mark ends nothing.

    Of equal logits the first one wins.
    """
    chunk, cache = ids, None
    for _ in range(tokens):
        output = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        chunk, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        ids = torch.cat([ids, chunk], dim=1)
    return ids


@torch.no_grad()
def logits_of(model: Any, ids: Int[Tensor, "texts seq"]) -> Float[Tensor, "texts seq vocab"]:
    """Return the logits of one uncached pass; float32."""
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def load_export(model: str, adapter: str, dtype: str) -> Any:
    """Return a model by ``AutoModelForCausalLM``, and PEFT where there is an adapter.

    Raises:
        ModelError: A tensor on disk has no place in the model, or a parameter no tensor on disk.
    """
    loaded = load_model(model, dtype=dtype)
    return _with_adapter(loaded, adapter) if adapter else loaded


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, adapter).eval()
    stored = load_file(Path(adapter) / "adapter_model.safetensors")
    loaded = {
        name.replace(".default.", "."): parameter.data
        for name, parameter in adapted.named_parameters()
        if ".lora_" in name
    }
    odd = stored.keys() ^ loaded.keys()
    odd |= {name for name in stored.keys() - odd if not torch.equal(stored[name], loaded[name])}
    if odd:
        raise ModelError(f"{adapter}: PEFT does not load what is on disk: {some(odd)}")
    return adapted


def _observe(request: Request) -> None:
    ids = encoded(request.model)
    seen = {"prompts": ids}
    for dtype in request.dtypes:
        model = load_export(request.model, request.adapter, dtype)
        if "sequences" not in seen:
            seen["sequences"] = continued(model, ids, request.tokens)
        seen[f"logits.{dtype}"] = logits_of(model, seen["sequences"])
        del model
        gc.collect()
    save_file(seen, request.out)


def write_request(request: Request, file: Path) -> None:
    """Write what :func:`main` reads."""
    file.write_text(json.dumps(asdict(request)), encoding="utf-8")


def main(file: str) -> int:
    """Carry out a request; say on stderr why if it cannot be."""
    try:
        _observe(Request(**json.loads(Path(file).read_text(encoding="utf-8"))))
    except PersonalityVectorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
