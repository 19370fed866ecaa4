"""A random two-layer Llama with one token per byte, so that every boundary is known."""

from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personality_vector.subject.protocols import Reply
from personality_vector.subject.subject import Subject
from personality_vector.subject.thoughts import said

MARKS = ["<pad>", "<system>", "<user>", "<assistant>", "<end>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    model: Any
    tokenizer: Any

    def subject(self, **given):
        return Subject(self.model, self.tokenizer, **given)

    def readings(self, measure, **given):
        """Return what a measure finds, by the name and the trait of each number."""
        found = measure.finish(self.subject(), measure.collect(self.subject(**given), 0))
        return {(reading.measure, reading.trait): reading for reading in found.readings}

    def response_log_probs(self, prompt, reply):
        """Restate: one unpadded sequence, the reply's own bytes, log p of the whole vocabulary."""
        text = self.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        before = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        assert len(tokens) == len(reply.encode())
        with torch.no_grad():
            logits = self.model(torch.tensor([before + tokens])).logits[0].double()
        rows = logits[len(before) - 1 : len(before) - 1 + len(tokens)]
        return tokens, torch.log_softmax(rows, dim=-1)


def byte_tokenizer():
    names = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_only = Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=MARKS[1:4],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def random_llama(vocab_size):
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # far from uniform predictions
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=MARKS.index("<end>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(11)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny():
    tokenizer = byte_tokenizer()
    return Tiny(random_llama(len(tokenizer)), tokenizer)


@dataclass(frozen=True, eq=False)
class Parrot(Subject):
    """Says what it was told to, whatever it is asked."""

    said: tuple[str, ...] = ()

    def replies_of(self, draws):
        return [self._told(draw.chats) for draw in draws]

    def _told(self, chats):
        told = [(text, said(text)) for _, text in zip(chats, cycle(self.said))]
        return [
            Reply(one.answer, 3, len(text), 0.0, one.thought, one.is_finished) for text, one in told
        ]


@pytest.fixture
def parrot(tiny):
    """Return ``parrot(*texts, **given)``: a subject that gives these replies."""
    told = Parrot(tiny.model, tiny.tokenizer)
    return lambda *texts, **given: replace(told, said=texts, **given)
