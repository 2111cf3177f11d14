"""Formats of models: adapters, generators, decoders, experts, encoders, bases, what is cached."""

import dataclasses
import shutil
import sys
from pathlib import Path

import torch
from form import BASE, LAYOUT, PROMPTS, WORDS, Format, have
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2ForCausalLM

from dnd_fast import Adapter, Expert, Generator, HyperConvDecoder, TextEncoder
from dnd_fast.base_model import load_base, write_base
from dnd_fast.convert import RENAMED, load_decoder
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.files import write_json, write_safetensors
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.adapter import lora_config
from dnd_fast.recipe import ConditionSpec, DecoderSpec
from dnd_fast.svf.decomposition import decompose, hash_weight
from dnd_fast.svf.expert import ExpertConfig
from dnd_fast.text.glove import GloveEncoder

sys.path.append(str(Path(__file__).parents[1]))
WEIGHT = torch.arange(6.0).view(2, 3)


def embedder():
    return GloveEncoder(WORDS, torch.arange(3.0 * len(WORDS)).view(-1, 3))


def adapter():
    tensors = {key: torch.randn(shape) for key, shape in LAYOUT.tensor_shapes().items()}
    targets = LAYOUT.target_modules
    return Adapter(
        tensors, lora_config(rank=2, lora_alpha=4, target_modules=targets, base_model="base")
    )


def write_old_adapter(folder):
    """As PEFT did once, with the adapter's name in those of tensors."""
    made = adapter()
    named = {key.replace(".weight", ".default.weight"): t for key, t in made.tensors.items()}
    torch.save(named, folder / "adapter_model.bin")
    write_json(folder / "adapter_config.json", made.config)


def read_adapter(folder):
    found = Adapter.load(folder)
    return found.tensors, found.config, found.scaling


def write_generator(folder):
    spec = ConditionSpec("", prompts=2, length=5)
    shape = [LAYOUT.num_tokens, *LAYOUT.token_shape]
    decoder = DecoderSpec([[2, 5, 3], [4, 4, 4], shape], 3)
    made = Generator(GeneratorConfig(spec, decoder, LAYOUT.to_dict()))
    made.layout.fit(torch.randn(5, *shape))
    made.save_pretrained(folder / "g")
    (folder / "g" / "README.md").unlink()  # the model card, which nobody reads


def read_generator(folder):
    found = Generator.from_pretrained(folder / "g")
    return found.config, found.state_dict(), found.layout.state_dict()


def published():
    theirs, state = {ours: name for name, ours in RENAMED.items()}, {}
    for key, value in HyperConvDecoder([(3, 5, 4), (3, 4, 6), (5, 4, 6)], 3).state_dict().items():
        _, index, name = key.split(".", 2)
        state[f"decoder.module_list.{index}.{theirs[name]}"] = value
    return state


def encoder():
    words = {"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=len(words), intermediate_size=16, **sizes)), tokenizer


def write_encoder(folder):
    for part in encoder():
        part.save_pretrained(folder)


def write_sentence_encoder(folder):
    """As sentence-transformers does, in folders of their own."""
    from sentence_transformers import SentenceTransformer, models

    write_encoder(folder / "raw")
    parts = models.Transformer(str(folder / "raw")), models.Pooling(16)
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "whole"))
    shutil.rmtree(folder / "raw")


def embed_again(folder):
    kept = folder / "cache"
    shutil.rmtree(kept / "none", ignore_errors=True)
    return embedder().encode(PROMPTS, 5, cache=kept)


def decompose_again(folder):
    return decompose(WEIGHT, hash_weight(WEIGHT), folder)


def write_gguf_base(folder):
    from gguf_file import write_gguf

    write_gguf(folder / "a.gguf")


def read_base(place):
    model, tokenizer = load_base(str(place))
    return model.state_dict(), tokenizer.get_vocab()


FORMATS = {
    "adapter": Format(
        lambda folder: adapter().save(folder / "a"), lambda f: read_adapter(f / "a"), 4
    ),
    "old adapter": Format(write_old_adapter, read_adapter, 2),
    "generator": Format(write_generator, read_generator, 4),
    "expert": Format(
        lambda folder: Expert({"a": torch.randn(4)}, ExpertConfig("base", "f")).save(folder / "e"),
        lambda folder: dataclasses.astuple(Expert.load(folder / "e")),
        2,
    ),
    "published": Format(
        lambda folder: torch.save(published(), folder / "decoder.pth"),
        lambda folder: load_decoder(folder / "decoder.pth").state_dict(),
        4,
    ),
    "published without pickles": Format(
        lambda folder: write_safetensors(folder / "decoder.safetensors", published()),
        lambda folder: load_decoder(folder / "decoder.safetensors").state_dict(),
    ),
    "embeddings": Format(embed_again, embed_again, 2),
    "singular values": Format(decompose_again, decompose_again),
    "encoder": Format(
        write_encoder,
        lambda folder: TextEncoder.from_pretrained(folder).encode(PROMPTS, 5),
        0.5,
        foreign=True,
    ),
    "sentence encoder": Format(
        write_sentence_encoder,
        lambda folder: TextEncoder.from_pretrained(folder / "whole").encode(PROMPTS, 5),
        0.3,
        foreign=True,
    ),
    "base": Format(
        lambda folder: write_base(Qwen2ForCausalLM(BASE), build_tokenizer(), folder / "b"),
        lambda folder: read_base(folder / "b"),
        0.5,
        foreign=True,  # of its two checksums one can be removed
    ),
    **have(
        "gguf",
        {
            "packed base": Format(
                write_gguf_base, lambda folder: read_base(folder / "a.gguf"), 0.5, foreign=True
            )
        },
    ),
}
