"""Models with their tokenizers, for everything that reads activations."""

from collections.abc import Callable
from typing import Any

import pytest

from personality_vector.subject.models import load_model, load_tokenizer


@pytest.fixture
def loaded(pico) -> Callable[..., tuple[Any, Any]]:
    """Return ``loaded(family="llama", dtype="float32")``: a pico model and its tokenizer."""

    def load(family: str = "llama", dtype: str = "float32") -> tuple[Any, Any]:
        path = pico(family, dtype)
        return load_model(path, dtype=dtype), load_tokenizer(path)

    return load
