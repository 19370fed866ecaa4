"""Pico models as GGUF files, written by the package gguf as llama.cpp's converter writes them."""

import json

import numpy as np
import pytest

from personality_vector.checkpoint import Checkpoint

gguf = pytest.importorskip("gguf", reason="needs the package gguf (the extra of that name)")

_FIELDS = {
    "max_position_embeddings": "add_context_length",
    "hidden_size": "add_embedding_length",
    "num_hidden_layers": "add_block_count",
    "intermediate_size": "add_feed_forward_length",
    "num_attention_heads": "add_head_count",
    "num_key_value_heads": "add_head_count_kv",
    "rms_norm_eps": "add_layer_norm_rms_eps",
    "head_dim": "add_key_length",
    "vocab_size": "add_vocab_size",
    "sliding_window": "add_sliding_window",
}
_PERMUTED = (".q_proj.weight", ".k_proj.weight")


def write_gguf(
    source, file, architecture="llama", *, stored="F32", cut="gpt-2", change=None, **split
):
    """Write a checkpoint as a GGUF file.

    Args:
        source: The folder of the checkpoint.
        file: The file.
        architecture: Its name in llama.cpp.
        stored: How its matrices are stored, if their rows divide into blocks; the rest is F32.
        cut: Name of the pre-tokenizer.
        change: Called with the writer and the tensors by their name there, before they are written.
        **split: How ``gguf`` splits the file, such as ``split_max_tensors=10``.
    """
    checkpoint = Checkpoint.open(source)
    config = checkpoint.config
    writer = gguf.GGUFWriter(file, architecture, **split)
    writer.add_type(gguf.GGUFType.MODEL)
    for key, add in _FIELDS.items():
        if config.get(key) is not None:
            getattr(writer, add)(config[key])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_rope_dimension_count(
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    _add_tokenizer(writer, checkpoint.path, cut)
    tensors = dict(_tensors(checkpoint, architecture))
    if change is not None:
        change(writer, tensors)
    for name, numbers in tensors.items():
        kind = gguf.GGMLQuantizationType[stored]
        fits = numbers.ndim > 1 and numbers.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        kind = kind if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)
    return _written(writer, file)


def _written(writer, file):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors(checkpoint, architecture):
    config = checkpoint.config
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for name in checkpoint.names:
        numbers = checkpoint[name].float().numpy()
        if architecture == "llama" and name.endswith(_PERMUTED):
            numbers = permuted(numbers, config["num_" + heads(name)])
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            numbers = numbers + 1
        yield names.get_name(name, (".weight", ".bias")), numbers


def heads(name):
    return "attention_heads" if ".q_proj." in name else "key_value_heads"


def permuted(rows, count):
    """Put the halves of every head that are rotated together beside each other, as llama.cpp."""
    halves = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _add_tokenizer(writer, folder, cut):
    read = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary = read["model"]["vocab"]
    special = {one["content"] for one in read["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(
        [one if isinstance(one, str) else " ".join(one) for one in read["model"]["merges"]]
    )
    writer.add_eos_token_id(vocabulary[said["eos_token"]])
    writer.add_pad_token_id(vocabulary[said["pad_token"]])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    writer.add_chat_template(template.read_text(encoding="utf-8"))


def write_lora(source, file, architecture="llama", *, alpha=6.0, rank=2, change=None):
    """Write a LoRA adapter of a checkpoint on queries and on the MLP as a GGUF file.

    Args:
        source: The folder of the checkpoint.
        file: The file.
        architecture: Its name in llama.cpp.
        alpha: The alpha of the adapter.
        rank: The rank of its factors.
        change: Called with the factors by their name there, before they are written.
    """
    checkpoint, numbers = Checkpoint.open(source), np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    factors = {}
    for name, weight in _tensors(checkpoint, architecture):
        if name.endswith(("attn_q.weight", "ffn_down.weight")):
            rows, columns = weight.shape
            factors[f"{name}.lora_a"] = numbers.normal(size=(rank, columns)).astype("f4")
            factors[f"{name}.lora_b"] = numbers.normal(size=(rows, rank)).astype("f4")
    if change is not None:
        change(factors)
    for name, one in factors.items():
        writer.add_tensor(name, one)
    return _written(writer, file)
