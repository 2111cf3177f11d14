"""The native runtime, built; and generators, exported."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dnd_fast import Generator, TextEncoder
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import LoraModule
from dnd_fast.native import export as export_module
from dnd_fast.native.export import export
from dnd_fast.native.tokenizer import describe_tokenizer
from dnd_fast.recipe import ConditionSpec, DecoderSpec

ROOT = Path(__file__).parents[2]
WORDS = "[PAD] [UNK] [CLS] [SEP] rice tea fig oak re ##verse ##s count echo the in ##r , !".split()


def _build(name, *options):
    if not shutil.which("cmake") or not (shutil.which("c++") or os.environ.get("CXX")):
        pytest.skip("there is no C++ compiler or no cmake; see docs/native.md")
    folder = ROOT / "build" / name
    configure = ["cmake", "-S", ROOT, "-B", folder, *options]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, f"{result.stdout}{result.stderr}\nRun: make native"
    return folder


@pytest.fixture(scope="session")
def native():
    """The folder of what ``make native`` builds, up to date."""
    return _build("native")


@pytest.fixture(scope="session")
def sanitized():
    """The same, under AddressSanitizer and UBSan."""
    return _build("native-sanitized", "-DDND_FAST_SANITIZE=ON")


@pytest.fixture(scope="session")
def dnd_generate(native):
    """Run ``dnd-generate``; its exit code, and what it says on stderr."""

    def run(*arguments, **options):
        command = [native / "dnd-generate", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, **options)

    return run


@pytest.fixture(scope="session")
def demo(native, tmp_path_factory):
    """The shipped demo generator, exported."""
    return export(Generator.from_pretrained("demo"), tmp_path_factory.mktemp("demo") / "exported")


def word_piece(vocabulary, **settings):
    """A tokenizer of BERT's kind."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer(**settings)
    backend.pre_tokenizer = BertPreTokenizer()
    frame = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny_generator(padding="zero", scale="static"):
    """Prompts of 20 tokens, in slices of 8, and two tokens a matrix, with random weights.

    Where padding is zero, embeddings are whitened, which must leave it so.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8}
    bert = BertConfig(vocab_size=len(WORDS), num_hidden_layers=2, num_attention_heads=2, **sizes)
    layout = TokenLayout(
        [LoraModule("proj", 12, 8), LoraModule("other", 8, 16)],
        2,
        lora_alpha=4,
        target_modules=["proj", "other"],
        scale=scale,
        chunk=6,
    )
    shape = (layout.num_tokens, *layout.token_shape)
    generator = Generator(
        GeneratorConfig(
            ConditionSpec(
                "tiny", prompts=3, length=20, padding=padding, whitening=padding == "zero"
            ),
            DecoderSpec([[3, 20, 16], [5, 9, 10], list(shape)], 5),
            layout.to_dict(),
        ),
        encoder=TextEncoder(BertModel(bert), word_piece(WORDS)),
    )
    if generator.whitening is not None:
        generator.whitening.fit(torch.randn(4, 30, 16) * torch.linspace(0.1, 2, 16) + 1)
    if scale == "static":
        generator.layout.set_statistics(torch.randn(shape), torch.rand(shape[0], 1, 1))
    return generator


@pytest.fixture(scope="session", params=["zero", "encoded"])
def tiny(request, native, tmp_path_factory):
    """A tiny generator and its export: two tasks a pass, convolutions in the transform domain."""
    generator = tiny_generator(request.param, "border" if request.param == "encoded" else "static")
    plan = generator.decoder.checked_plan("fft", "cached")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "choose", lambda *_, **__: (plan, "torch", False))
        folder = export(generator, tmp_path_factory.mktemp("tiny") / "exported", batch=2)
    return generator, folder


@pytest.fixture
def unloadable(tmp_path):
    """A function that makes an export whose packages are no packages, with any manifest."""

    def make(name="unloadable", words=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        vocabulary, settings = describe_tokenizer(words or word_piece(WORDS))
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
        for package in ("encoder.pt2", "decoder.pt2"):
            (folder / package).write_bytes(b"no package")
        manifest = {
            "format_version": 1,
            "torch": torch.__version__.partition("+")[0],
            "device": "cpu",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "batch": 1,
            "prompts": 1,
            "length": 1 << 20,
            "width": 1,
            "padding": "zero",
            "slice_length": 8,
            "tokens_per_batch": 16,
            "tokenizer": {**settings, "embeddings": len(words or WORDS)},
            "tensors": [
                {"name": "a", "shape": [2, 3], "offset": 0},
                {"name": "b", "shape": [4, 2], "offset": 6},
            ],
            "adapter_config": {"peft_type": "LORA"},
            "files": {
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in folder.iterdir()
            },
        }
        (folder / "generator.json").write_text(json.dumps(manifest | changes))
        return folder

    return make
