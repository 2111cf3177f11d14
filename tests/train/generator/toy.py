"""A training run small enough for hundreds of steps a second; also for scripts that tests start."""

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.lora.batched import TokenizedExample
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Phase
from dnd_fast.train.generator.checkpoints import Checkpoints
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.data import TaskData
from dnd_fast.train.generator.pairs import Pairing
from dnd_fast.train.generator.trainer import Trainer

CONFIG = Qwen2Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
DATA_SETS, TEXTS, ADAPTERS = 3, 7, 2
MSE = Phase("mse", 7, 1e-4, 4, dropout=0.1)
SFT = Phase("sft", 5, 1e-4, 4, examples=2)


def new_base():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(CONFIG).eval().requires_grad_(False)


def new_trainer(folder=None, phases=(MSE, SFT), *, seed=0, keep=2, save_every=2, **options):
    """Three data sets; texts of different lengths."""
    torch.manual_seed(seed)
    layout = TokenLayout.for_model(CONFIG, 2)
    shape = layout.num_tokens, *layout.token_shape
    tokens = torch.randn(DATA_SETS, ADAPTERS, *shape) * 0.5
    layout.fit(tokens.flatten(0, 1))
    targets = layout.normalize(tokens)
    tasks = []
    for index in range(DATA_SETS):
        texts = [torch.randn(2 + (index + each) % 5, 8).half() for each in range(TEXTS)]
        examples = [TokenizedExample(torch.randint(32, (6,)).tolist(), 3) for _ in range(5)]
        tasks.append(TaskData(f"data-{index}", (texts,), targets[index], examples))
    decoder = HyperConvDecoder([[3, 6, 8], [8, 4, 8], shape], 3)
    decoder.criterion_weight = torch.linspace(0.5, 1.5, layout.num_tokens).view(1, -1, 1, 1)
    pairing = Pairing(seed, 3, (TEXTS,) * DATA_SETS, (ADAPTERS,) * DATA_SETS, (5,) * DATA_SETS)
    return Trainer(
        decoder,
        layout,
        tasks,
        pairing,
        phases,
        base=new_base(),
        trainer_config=TrainerConfig(save_every=save_every, **options),
        checkpoints=Checkpoints(Path(folder), keep) if folder else None,
    )


def same(first, second, limit=1e-4):
    """Whether weights agree but for rounding, beside how far training has moved them."""
    start = new_trainer().decoder.state_dict()
    assert first.keys() == second.keys() == start.keys()
    # The next block's LayerNorm takes this bias away: its gradient is nothing but rounding, which
    # AdamW makes as large as any other.
    keys = start.keys() - {"blocks.0.layerwise.bias"}
    moved, apart = (
        torch.cat([(a[key] - b[key]).flatten() for key in keys])
        for a, b in ((first, start), (first, second))
    )
    assert moved.norm() > 0
    return bool(apart.norm() < limit * moved.norm() and apart.abs().max() < 1e-5)
