"""Which layer and which kind of module a tensor belongs to, by its name."""

import re
from collections.abc import Callable, Iterable

EMBEDDING, FINAL_NORM, HEAD = "embedding", "final norm", "head"

_BLOCK = re.compile(r"^(.*?\b(?:layers|layer|h|blocks|block))\.(\d+)\.(.+)$")
_TOWERS = ("vision", "visual", "audio")
_HEADS = ("lm_head", "embed_out", "score")
_EMBEDDINGS = ("emb", "wte", "wpe")
_NORMS = ("norm", "ln")


def block_of(name: str) -> tuple[str, int, str] | None:
    """Return the stack, the number and the module of a tensor that lies in a numbered layer.

    >>> block_of("model.layers.3.mlp.up_proj.weight")
    ('model.layers', 3, 'mlp.up_proj.weight')
    """
    match = _BLOCK.match(name)
    return (match[1], int(match[2]), match[3]) if match else None


def layer_of(name: str) -> str:
    """Return the group of a tensor: its decoder block, or embedding, final norm, head, or other.

    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("model.norm.weight")
    ('layer 3', 'final norm')
    """
    block = block_of(name)
    if block is None:
        return _outside(name)
    tower = next((word for word in _TOWERS if word in block[0]), "")
    return f"{tower} layer {block[1]}".strip()


def module_of(name: str) -> str:
    """Return the kind of module of a tensor: the same for every block.

    >>> module_of("model.layers.3.mlp.up_proj.weight"), module_of("gpt_neox.embed_in.weight")
    ('mlp.up_proj', 'embedding')
    """
    block = block_of(name)
    if block is None:
        return _outside(name)
    words = [word for word in _words(block[2]) if not word.isdigit()]
    return "norm" if _is_any(words[-1:], _NORMS) else ".".join(words)


def grouped(names: Iterable[str], group: Callable[[str], str] = layer_of) -> dict[str, list[str]]:
    """Return the names by group, from the embedding through the blocks to the head."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(group(name), []).append(name)
    return dict(sorted(groups.items(), key=lambda item: _place(item[0])))


def _outside(name: str) -> str:
    words = _words(name)
    if words[-1] in _HEADS:
        return HEAD
    if _is_any(words, _EMBEDDINGS):
        return EMBEDDING
    return FINAL_NORM if _is_any(words[-1:], _NORMS) else ".".join(words)


def _words(name: str) -> list[str]:
    return name.removesuffix(".weight").removesuffix(".bias").split(".")


def _is_any(words: Iterable[str], kinds: tuple[str, ...]) -> bool:
    return any(
        part.startswith(kinds) or part.endswith(kinds) for word in words for part in word.split("_")
    )


def _place(group: str) -> tuple[int, str, int]:
    """Return the sorting key of a group: embedding, blocks by number, final norm, head, others."""
    stem, _, index = group.rpartition(" ")
    if index.isdigit():
        return 1, stem, int(index)
    order = {EMBEDDING: 0, FINAL_NORM: 2, HEAD: 3}
    return order.get(group, 4), group, 0
