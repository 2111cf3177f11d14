"""An encoder of all-MiniLM-L6-v2's shape with random weights, for machines that have no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from dnd_fast.errors import InvalidInput
from dnd_fast.text.encoder import TextEncoder
from dnd_fast.text.prompt_encoder import PromptEncoder

EncoderChoice = Literal["auto", "packaged", "random"]


def load_encoder(choice: EncoderChoice, prompts: Sequence[str]) -> tuple[PromptEncoder, str]:
    """The packaged encoder, or a random one of its shape; and what it is.

    Args:
        choice: ``"auto"`` takes the packaged one where it is installed.
        prompts: a random encoder's vocabulary is their words.
    """
    if choice == "random":
        return _random_encoder(prompts), "random weights"
    try:
        return TextEncoder.from_pretrained(), "all-MiniLM-L6-v2"
    except InvalidInput:
        if choice == "packaged":
            raise
    return _random_encoder(prompts), "random weights"


def _random_encoder(prompts: Sequence[str]) -> TextEncoder:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.trainers import WordLevelTrainer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = BertPreTokenizer()
    words.train_from_iterator(prompts, WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    )
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    torch.manual_seed(0)
    return TextEncoder(BertModel(config), tokenizer)
