"""Pretrain the demo model from scratch.

``python -m tests.benchmarks.demo_model.pretrain --out DIR`` in the root of the repository does it.
The corpus is generated (:mod:`tests.benchmarks.demo_model.corpus`), so the model directory follows
from the seed and the settings below. It takes about half an hour on one core.
"""

import argparse
import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personality_vector.errors import OutputExistsError, TrainingError
from tests.benchmarks.demo_model.corpus import Message, chats

log = logging.getLogger(__name__)

PAD, END = "<|endoftext|>", "<|end|>"
SPECIAL_TOKENS = (PAD, "<|system|>", "<|user|>", "<|assistant|>", END)
"""In the order of their ids; the padding token is 0."""

CONTEXT = 256
_TOKENIZER_CHATS = 20_000
_BUCKET = 32  # batches that are sorted by length together, so that little is padded
_IGNORED = -100  # the label that transformers leaves out of the loss

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
"""Marks the assistant's words and their end token, so that a trainer can learn from them alone."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how fast to learn; the defaults made the shipped model."""

    seed: int = 0
    steps: int = 2_300
    batch: int = 64
    vocabulary: int = 1_024
    peak_lr: float = 3e-3
    final_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.05

    def lr(self, step: int) -> float:
        """Return the learning rate of a 0-based step: linear warm-up, then a cosine."""
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_lr + (self.peak_lr - self.final_lr) * cosine


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from the first chats of the corpus."""
    sample = itertools.islice(chats(settings.seed), _TOKENIZER_CHATS)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (message["content"] for chat in sample for message in chat)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained Llama in float32 whose weights follow from ``seed``."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # transformers initialises weights from the global generator and takes no other.
    torch.manual_seed(seed)  # noqa: TID251
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``(ids, mask)``, both ``(batch, seq)`` int64, padded on the right, without end.

    Chats of similar length share a batch; the order of batches within a bucket is that of a
    generator fixed by the seed.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    stream = chats(settings.seed)
    while True:
        bucket = list(itertools.islice(stream, settings.batch * _BUCKET))
        rows = sorted((encode(chat, tokenizer) for chat in bucket), key=len)
        for index in torch.randperm(_BUCKET, generator=generator).tolist():
            yield padded(rows[index * settings.batch :][: settings.batch])


def encode(chat: list[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of a chat; the chat template, without the cost of Jinja."""
    text = "".join(f"<|{message['role']}|>{message['content']}{END}" for message in chat)
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids[:CONTEXT]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of ids as ``(ids, mask)``; padding has id 0 and mask 0."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> float:
    """Train ``model`` in place on every token of the chats.

    Returns:
        The mean loss of the last 100 steps, in nats per token, on text not seen before.

    Raises:
        TrainingError: The loss is no longer a finite number.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    losses: list[float] = []
    tokens, start = 0, time.monotonic()
    model.train()
    for step, (ids, mask) in enumerate(
        itertools.islice(batches(tokenizer, settings), settings.steps)
    ):
        losses.append(_step(model, optimizer, (ids, mask), settings.lr(step)))
        tokens += int(mask.sum())
        if step % 50 == 0 or step == settings.steps - 1:
            recent = sum(losses[-50:]) / len(losses[-50:])
            seconds = time.monotonic() - start
            log.info("step %d loss %.4f tokens %d in %.0f s", step, recent, tokens, seconds)
    return sum(losses[-100:]) / len(losses[-100:])


def _step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    lr: float,
) -> float:
    """Take one step and return the loss before it."""
    ids, mask = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
    labels = ids.masked_fill(mask == 0, _IGNORED)
    with torch.autocast("cpu", torch.bfloat16):  # a third faster; weights stay in float32
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()}: lower the peak learning rate")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model directory, with weights in bfloat16."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Train the tokenizer and the model, and write the model directory."""
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    arguments = parser.parse_args()
    if (arguments.out / "config.json").exists():
        raise OutputExistsError(f"{arguments.out} has a model already: choose another --out")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # the same sums in the same order on every machine
    settings = Settings(seed=arguments.seed, steps=arguments.steps)
    tokenizer = train_tokenizer(settings)
    model = new_model(tokenizer, settings.seed)
    log.info("%d parameters, %d tokens in the vocabulary", model.num_parameters(), len(tokenizer))
    log.info("final loss %.4f", pretrain(model, tokenizer, settings))
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
