"""A real llama.cpp for tests: the C interface of the library inside the package xllamacpp.

Its Python interface sets no control vector and gives no logits, so the functions of ``llama.h`` are
called through ctypes, in the version that constraints.txt pins. A file of a control vector is read
by llama.cpp's own loader, which is C++: a ``std::vector`` is three pointers, and a ``std::string``
is one, behind its length, its room and a count of its owners (libstdc++ with the ABI of 2010).
"""

import ctypes as c
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

_ROOM = 1024  # bytes; more than any structure of parameters has
_TYPE_F16, _TYPE_F32 = 1, 0
_LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class _Parameters(c.Structure):
    """Parameters whose fields are not named here: they are passed on as they were given."""

    _fields_ = (("raw", c.c_uint8 * _ROOM),)


class _Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class _Vector(c.Structure):
    _fields_ = (("begin", c.c_void_p), ("end", c.c_void_p), ("room", c.c_void_p))


class _Text(c.Structure):
    _fields_ = (
        ("length", c.c_size_t),
        ("room", c.c_size_t),
        ("owners", c.c_int64),
        ("text", c.c_char * 4096),
    )


class _LoadInfo(c.Structure):
    """``struct { float strength; std::string fname; }``."""

    _fields_ = (("strength", c.c_float), ("fname", c.c_void_p))


class _Loaded(c.Structure):
    """``struct { int n_embd; std::vector<float> data; }``."""

    _fields_ = (("n_embd", c.c_int), ("data", _Vector))


def library():
    """Return the library, or skip the test."""
    spec = find_spec("xllamacpp")
    if spec is None:
        pytest.skip("needs the package xllamacpp (`make extras` installs it)")
    (file,) = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
    found = c.CDLL(str(file))
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory"):
        getattr(found, name).restype = c.c_void_p
    found.llama_adapter_lora_init.restype = c.c_void_p
    found.llama_model_get_vocab.restype = c.c_void_p
    found.llama_get_logits_ith.restype = c.POINTER(c.c_float)
    found.llama_model_default_params.restype = _Parameters
    found.llama_context_default_params.restype = _Parameters
    found.llama_batch_init.restype = _Batch
    getattr(found, _LOADER).restype = _Loaded
    return found


class LlamaCpp:
    """A model in llama.cpp: one context, everything in float32 on one thread."""

    def __init__(self, file):
        self._library = lib = library()
        self._silent = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda *_: None)
        lib.llama_log_set(self._silent, None)
        lib.llama_backend_init()
        self._model = c.c_void_p(
            lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        )
        assert self._model, f"llama.cpp refuses {file}"
        parameters = lib.llama_context_default_params()
        _in_float32(parameters)
        self._context = c.c_void_p(lib.llama_init_from_model(self._model, parameters))
        lib.llama_set_n_threads(self._context, 1, 1)
        self._vocabulary = c.c_void_p(lib.llama_model_get_vocab(self._model))

    def close(self):
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def tokens(self, text):
        """Return the tokens of a text, with what it adds by itself."""
        raw, room = text.encode(), (c.c_int32 * 512)()
        found = self._library.llama_tokenize(
            self._vocabulary, raw, len(raw), room, len(room), c.c_bool(True), c.c_bool(True)
        )
        return list(room[:found])

    def steer(self, file, strength=1.0):
        """Load a control vector into the context, as ``--control-vector`` does."""
        lib, name = self._library, str(file).encode()
        text = _Text(len(name), len(name), 1, name)
        info = _LoadInfo(strength, c.addressof(text) + _Text.text.offset)
        at = c.addressof(info)
        infos = _Vector(at, at + c.sizeof(info), at + c.sizeof(info))
        loaded = getattr(lib, _LOADER)(c.byref(infos))
        assert loaded.n_embd > 0, f"llama.cpp refuses {file}"
        data = loaded.data
        numbers = c.c_size_t((data.end - data.begin) // 4)
        done = lib.llama_set_adapter_cvec(
            self._context, c.c_void_p(data.begin), numbers, loaded.n_embd, 1, 10_000
        )
        assert done == 0

    def adapt(self, file, strength=1.0):
        """Put a LoRA adapter on the model, as ``--lora`` does."""
        lib = self._library
        adapter = c.c_void_p(lib.llama_adapter_lora_init(self._model, str(file).encode()))
        assert adapter, f"llama.cpp refuses {file}"
        one, scale = (c.c_void_p * 1)(adapter), (c.c_float * 1)(strength)
        assert lib.llama_set_adapters_lora(self._context, one, c.c_size_t(1), scale) == 0

    def logits(self, tokens):
        """Return the logits after every token of a sequence."""
        lib, count = self._library, len(tokens)
        lib.llama_memory_clear(c.c_void_p(lib.llama_get_memory(self._context)), c.c_bool(True))
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert lib.llama_decode(self._context, batch) == 0
        width = lib.llama_n_vocab(self._vocabulary)
        rows = [lib.llama_get_logits_ith(self._context, i)[:width] for i in range(count)]
        lib.llama_batch_free(batch)
        return np.array(rows, dtype=np.float32)


def _in_float32(parameters):
    """Compute attention step by step, with keys and values in float32."""
    numbers = np.frombuffer(parameters.raw, np.int32)
    # Four choices that are left open, -1: of rope scaling, pooling, attention, flash attention.
    _only(numbers, [-1] * 4)[3] = 0
    # Two pointers, null, of a callback and its data; then the types of keys and of values.
    _only(numbers, [0] * 4 + [_TYPE_F16] * 2)[4:] = _TYPE_F32


def _only(numbers, wanted):
    """Return the only place where these numbers lie."""
    size = len(wanted)
    found = [i for i in range(60) if numbers[i : i + size].tolist() == wanted]
    assert len(found) == 1, "this llama.cpp has another structure of parameters"
    return numbers[found[0] : found[0] + size]
