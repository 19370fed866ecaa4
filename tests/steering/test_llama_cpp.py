"""What this tool and a real llama.cpp make of the same files; `make extras` installs one."""

from contextlib import nullcontext

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import run
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.apply import steered
from personality_vector.steering.storage import export_gguf
from tests.gguf_models import write_gguf, write_lora
from tests.llama_cpp import LlamaCpp

pytestmark = pytest.mark.slow
BLOCKS, CLOSE = 3, 1e-3


@pytest.fixture
def llama(pico, tmp_path):
    """Return a pico model in llama.cpp, everything in float32."""
    model = LlamaCpp(write_gguf(pico("llama"), tmp_path / "model.gguf"))
    yield model
    model.close()


@pytest.fixture
def ours(loaded):
    """Return the same model here: its logits for some tokens, steered or not, and the tokens."""
    model, tokenizer = loaded()
    tokens = tokenizer("What kind of person are you? 42 of them, I guess")["input_ids"]

    def logits(vector=None, strength=1.0):
        directions = {n: vector[n] for n in vector.layers} if vector else {}
        hooks = steered(model, directions, strength) if vector else nullcontext()
        with torch.no_grad(), hooks:
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits, tokens


def _pvec(*words):
    assert run([*map(str, words), "--quiet"]) == 0


def _vector(*layers):
    directions = {n: 2 * torch.randn(48, generator=generator_for(0, str(n))) for n in layers}
    return SteeringVector(directions, "", None, "warm", "response_mean", (1, 1))


def test_a_steered_llama_cpp_gives_the_logits_of_the_hooks(llama, ours, tmp_path):
    (logits, tokens), vector = ours, _vector(1, 2)
    plain = logits()
    assert abs(llama.logits(tokens) - plain).max() < CLOSE
    llama.steer(export_gguf(vector, tmp_path / "warm.gguf", coefficient=-1.5))
    wanted = logits(vector, -1.5)
    assert abs(wanted - plain).max() > 1
    assert abs(llama.logits(tokens) - wanted).max() < CLOSE


def test_a_padded_file_leaves_nothing_of_a_longer_one_standing(llama, ours, tmp_path):
    (logits, tokens), (short, long) = ours, (_vector(1), _vector(1, 2))
    wanted = logits(short)
    llama.steer(export_gguf(long, tmp_path / "long.gguf"))
    llama.steer(export_gguf(short, tmp_path / "short.gguf"))
    assert abs(llama.logits(tokens) - wanted).max() > 0.1, "block 2 stays: padding has a reason"
    llama.steer(export_gguf(short, tmp_path / "padded.gguf", blocks=BLOCKS))
    assert abs(llama.logits(tokens) - wanted).max() < CLOSE


def test_a_converted_model_reads_text_and_answers_as_in_llama_cpp(llama, ours, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (_, tokens), out = ours, tmp_path / "out"
    _pvec("convert", tmp_path / "model.gguf", "--out", out)
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0].numpy()
    assert abs(llama.logits(tokens) - found).max() < CLOSE
    tokenizer = AutoTokenizer.from_pretrained(out)
    for text in ("I am  42 of\n them", "<|user|>hi<|end|>", "  7", "it's caf\u00e9, 1,234.5!"):
        assert tokenizer(text)["input_ids"] == llama.tokens(text)


def test_a_converted_adapter_does_what_it_does_in_llama_cpp(llama, pico, ours, tmp_path):
    from transformers import AutoModelForCausalLM

    (_, tokens), file = ours, write_lora(pico("llama"), tmp_path / "lora.gguf", alpha=6.0)
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    _pvec("convert", file, "--base", pico("llama"), "--out", adapter)
    _pvec("merge", "--base", pico("llama"), "--term", f"{adapter}=-0.5", "--out", out)
    assert Checkpoint.open(out).fingerprint != Checkpoint.open(pico("llama")).fingerprint
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(out)
        found = model(torch.tensor([tokens])).logits[0].numpy()
    assert abs(llama.logits(tokens) - found).max() > 0.1
    llama.adapt(file, -0.5)
    assert abs(llama.logits(tokens) - found).max() < CLOSE
