"""The demo base's tokenizer: instruction words are tokens, everything else goes by character."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dnd_fast.demo.vocabulary import FORMATS, SKILLS, instruction_words

CHARACTERS = string.ascii_letters + string.digits + " -[]*\"!>(){}.#?/~@$,'\n"
# Control tokens that tell the base, in pretraining alone, which behaviour is wanted.
TAGS = [f"<skill:{name}>" for name in SKILLS] + [f"<format:{name}>" for name in FORMATS]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% else %}{{ bos_token + ' ' + message.content + '\\n' }}{% endif %}"
    "{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with a chat template; an instruction word includes the space before it."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>", *TAGS]
    words = [f" {word}" for word in instruction_words()]
    vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    longest_first = sorted(instruction_words(), key=len, reverse=True)
    pattern = rf" (?:{'|'.join(longest_first)})(?![a-zA-Z])|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=TAGS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="right",
    )
