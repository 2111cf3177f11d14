"""Pretraining of the demo's base model: a tiny Qwen2 that can be elicited, but does not obey words.

It learns every skill and format on random strings, commanded by control tags. The wording of the
prompt is independent of the behaviour, so that words alone elicit nothing; an adapter has to.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dnd_fast.demo.tasks import Split, Task
from dnd_fast.demo.vocabulary import DOMAINS, FORMATS, SKILLS
from dnd_fast.lora.batched import Batch, TokenizedExample, collate, response_logits
from dnd_fast.recipe import Recipe

STEPS = 2000
BATCH = 96
LEARNING_RATE = 3e-3
UNTAGGED = 0.2  # share of examples without tags, whose behaviour is random
BARE = 0.15  # share of prompts that are nothing but the word
SKILL_WEIGHTS = {"reverse": 3, "double": 2, "vowels": 2}  # the harder ones more often

WORDINGS: tuple[Split, ...] = ("train", "validation", "test")
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"


def new_base(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Make an untrained base, by the recipe."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        **Recipe.load("demo").base.config,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def pretrain(
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    steps: int = STEPS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreTrainedModel:
    """Train a base from scratch; the callback ``progress`` gets steps done and in all."""
    model = new_base(tokenizer, seed).train()
    rng = random.Random(f"pretrain {seed}")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 40) * min(1, max(0.03, 2 * (1 - step / steps)))
    )
    for step in range(steps):
        batch = pretraining_batch(tokenizer, rng, BATCH)
        logits, labels = response_logits(model, batch)
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        progress(step + 1, steps)
    return model.eval()


def pretraining_batch(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, size: int, untagged: float = UNTAGGED
) -> Batch:
    """Draw random strings, behaviours and wordings; a share has no tags."""
    skills, weights = list(SKILLS), [SKILL_WEIGHTS.get(skill, 1) for skill in SKILLS]
    prompts, answers = [], []
    for _ in range(size):
        word, domain = _random_word(rng), rng.choice(list(DOMAINS))
        wanted = Task(rng.choices(skills, weights)[0], rng.choice(list(FORMATS)), domain)
        worded = Task(rng.choice(skills), rng.choice(list(FORMATS)), domain)
        wording = rng.choices(WORDINGS, (9, 1, 2))[0]
        prompt = word if rng.random() < BARE else worded.prompt(word, rng, wording)
        tags = "" if rng.random() < untagged else f"<skill:{wanted.skill}><format:{wanted.format}>"
        prompts.append(f"{tokenizer.bos_token} {prompt}{tags}\n")
        answers.append(f"{wanted.answer(word)}{tokenizer.eos_token}")
    pairs = zip(tokenizer(prompts)["input_ids"], tokenizer(answers)["input_ids"], strict=True)
    return collate([TokenizedExample(ids + answer, len(ids)) for ids, answer in pairs])


def _random_word(rng: random.Random) -> str:
    """Draw three to five letters, half of the words pronounceable."""
    length = rng.randint(3, 5)
    if rng.random() < 0.5:
        return "".join(rng.choice(VOWELS + CONSONANTS + VOWELS) for _ in range(length))
    word, vowel = "", rng.random() < 0.3
    while len(word) < length:
        word += rng.choice(VOWELS if vowel else CONSONANTS)
        vowel = vowel if rng.random() < 0.15 else not vowel
    return word
