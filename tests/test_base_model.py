"""Base models of several families, loaded from disk: losses against transformers' under PEFT."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dnd_fast import Adapter, InvalidInput, Recipe
from dnd_fast.base_model import check_fits, load_base, load_config, resolved, write_base
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.adapter import lora_config
from dnd_fast.lora.batched import adapter_losses, collate, encode
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.text.datasets import Example

from .bad_input import contents, disk_full
from .gguf_file import HIDDEN, write_gguf

SIZES = {
    "vocab_size": 350,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # strong enough for an adapter to matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXAMPLES = [Example("copy cord", "cord"), Example("reverse rice now", "ecir")]


def new_base(family):
    torch.manual_seed(0)
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES))
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES))
    if family == "gemma2":  # caps its logits after the head
        return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0))
    text = {**SIZES, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": 32},
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def save_base(family, folder, dtype=torch.float32):
    """Write an untrained base and the demo's tokenizer; returns both folders' names."""
    new_base(family).to(dtype).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "tokenizer")
    return str(folder / "base"), str(folder / "tokenizer")


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "qwen2_5_vl"])
def test_losses_under_an_adapter(family, tmp_path):
    """Guards against logits that a family scales or caps, and against a text part's own names."""
    model, tokenizer = load_base(*save_base(family, tmp_path))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    layout = TokenLayout.for_model(model.config, 2)
    adapters = {key: 0.3 * torch.randn(1, *shape) for key, shape in layout.tensor_shapes().items()}
    batch = collate(encode(tokenizer, EXAMPLES))
    found = adapter_losses(model, adapters, 2.0, batch.view(1, 2))
    config = lora_config(
        rank=2, lora_alpha=4, target_modules=layout.target_modules, base_model=None
    )
    adapted = Adapter({key: value[0] for key, value in adapters.items()}, config).apply(model)
    labels = batch.labels.roll(1, -1)  # transformers shifts them itself
    expected = adapted(batch.input_ids, attention_mask=batch.input_ids != 0, labels=labels).loss
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def test_dtype(tmp_path):
    model, _ = load_base(*save_base("qwen2", tmp_path), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_no_chat_template(tmp_path):
    base, tokenizer = save_base("qwen2", tmp_path)
    (tmp_path / "tokenizer" / "chat_template.jinja").unlink()
    for tried in (tokenizer, base):  # beside the base there is no tokenizer at all
        with pytest.raises(InvalidInput, match=f"'{tried}' has no chat template.*--tokenizer"):
            load_base(base, tried)


def test_unusable_bases(tmp_path):
    base, tokenizer = save_base("qwen2", tmp_path)
    with pytest.raises(OSError, match="nothing"):
        load_base(str(tmp_path / "nothing"))
    with pytest.raises(InvalidInput, match="'nonsense' cannot be used"):
        load_base(base, tokenizer, device="nonsense")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(InvalidInput, match="abacus"):
        load_base(base, tokenizer)


def test_a_base_that_is_not_the_recipes(tmp_path):
    base, _ = save_base("qwen2", tmp_path)
    with pytest.raises(InvalidInput, match=r"q_proj are \[32, 32\], expected \[128, 128\]"):
        check_fits(base, Recipe.load("demo"))
    check_fits(str(DEMO_MODELS / "base"), Recipe.load("demo"))


def test_folders_are_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gguf").touch()
    (tmp_path / "smollm2").mkdir()  # which is given as ./smollm2
    assert resolved("base") == str(tmp_path / "base")
    assert resolved("base.gguf") == str(tmp_path / "base.gguf")
    assert resolved("smollm2") == "smollm2"
    assert resolved("./smollm2") == str(tmp_path / "smollm2")
    assert resolved("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


def test_missing_weights_are_not_made_up(tmp_path):
    """Nor those of another model, whose weights have other names or sizes."""
    base, tokenizer = save_base("llama", tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(InvalidInput, match=f"base' is incomplete: 1 weights are missing, {name}"):
        load_base(base, tokenizer)
    save_file(tensors | {name: torch.zeros(3, 3)}, file)
    with pytest.raises(InvalidInput, match="base' is damaged"):
        load_base(base, tokenizer)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InvalidInput, match="base' is damaged"):
        load_base(base, tokenizer)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen2_5_vl"])
def test_layers_without_end(tmp_path, family):
    """They were built for hours, before any weight was read; also in a file of packed weights."""
    base, tokenizer = save_base(family, tmp_path)
    (file,) = tmp_path.glob("base/config.json")
    file.write_text(file.read_text().replace('hidden_layers": 2', 'hidden_layers": 999999999'))
    packed = write_gguf(tmp_path / "a.gguf")
    old, new = (b"block_count\x04\x00\x00\x00" + bytes([2, 0, 0, high]) for high in (0, 9))
    assert packed.read_bytes().count(old) == 1
    packed.write_bytes(packed.read_bytes().replace(old, new))
    for name in (base, str(packed)):
        message = f"{name}': num_hidden_layers=.* 1000 at most"
        for own in (tokenizer, None):
            with pytest.raises(InvalidInput, match=message):
                load_base(name, own)
        with pytest.raises(InvalidInput, match=message):
            load_config(name)


def test_flipped_bits_of_a_written_base(tmp_path):
    """What another program has written has no checksums to compare with."""
    base, tokenizer = save_base("llama", tmp_path)
    write_base(*load_base(base, tokenizer), tmp_path / "written")
    load_base(str(tmp_path / "written"))
    file = tmp_path / "written" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(InvalidInput, match=r"written' is damaged: model\.safetensors is not"):
        load_base(str(tmp_path / "written"))
    for content in ('{"../base/model.safetensors": "0"}', '{"model.safetensors": {"bytes": 3}}'):
        (tmp_path / "written" / "checksums.json").write_text(content)
        with pytest.raises(InvalidInput, match="is damaged"):
            load_base(str(tmp_path / "written"))
    (tmp_path / "written" / "checksums.json").unlink()
    load_base(str(tmp_path / "written"))


def test_a_folder_of_an_encoder(tmp_path):
    _, tokenizer = save_base("llama", tmp_path)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    BertModel(BertConfig(**sizes, intermediate_size=32)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(InvalidInput, match="encoder' is incomplete"):
        load_base(str(tmp_path / "encoder"), tokenizer)


def test_a_folder_that_brings_code(tmp_path):
    """It is not run, and nobody is asked."""
    base, tokenizer = save_base("llama", tmp_path)
    (tmp_path / "base" / "code.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    (tmp_path / "base" / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}'
    )
    with pytest.raises(InvalidInput, match="custom code"):
        load_base(base, tokenizer)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def gguf(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def test_a_gguf_file(gguf, tmp_path, monkeypatch):
    """As transformers reads it, in any dtype, with its tokenizer, and as a plain model."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_gguf("tiny.gguf", seed=1)  # another one of the same name
    model, tokenizer = load_base(str(gguf))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=str(gguf))
    assert model.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    assert not hasattr(model.config, "quantization_config")
    assert not getattr(model, "is_quantized", False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.name_or_path == load_config(str(gguf)).name_or_path == str(gguf)
    assert TokenLayout.for_model(model.config, 2).base_model == str(gguf)
    assert tokenizer.decode(tokenizer("lake")["input_ids"]) == "lake"
    assert "<end>" in tokenizer.chat_template
    half, _ = load_base(str(gguf), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_gguf_file_in_a_folder(gguf, tmp_path, monkeypatch):
    """Of several; a file that has the mark in its own name is found, too."""
    other = write_gguf(tmp_path / "other.gguf", seed=1)
    marked = write_gguf(tmp_path / "a#b.gguf", seed=2)
    for file, name in (
        (gguf, f"{tmp_path}#tiny.gguf"),
        (other, f"{tmp_path}#other.gguf"),
        (marked, f"{tmp_path}/a#b.gguf"),
    ):
        expected, found = (load_base(each)[0].state_dict() for each in (str(file), name))
        assert all(found[key].equal(value) for key, value in expected.items())
        assert load_config(name).name_or_path == resolved(name) == str(file)
    monkeypatch.chdir(tmp_path)
    assert resolved(".#tiny.gguf") == str(gguf)
    with pytest.raises(FileNotFoundError, match=r"none\.gguf does not exist"):
        load_base(f"{tmp_path}#none.gguf")
    with pytest.raises(OSError, match="nowhere"):
        load_base("nowhere#tiny.gguf")


def test_a_gguf_file_on_the_hub(gguf, tmp_path, monkeypatch):
    """One file of a repository, whatever lies in the current folder."""
    asked = []

    def fetch(name, file, *, revision):
        asked.append((name, file, revision))
        return str(gguf)

    monkeypatch.setattr("dnd_fast.base_model.cached_file", fetch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_gguf("tiny.gguf", seed=1)
    model, _ = load_base("org/name@v1#tiny.gguf")
    assert set(asked) == {("org/name", "tiny.gguf", "v1")}
    assert model.config.name_or_path == resolved("org/name@v1#tiny.gguf") == "org/name@v1#tiny.gguf"
    for key, value in load_base(str(gguf))[0].state_dict().items():
        assert model.state_dict()[key].equal(value)


def test_the_tokenizer_of_a_gguf_file(gguf, tmp_path):
    base, tokenizer = save_base("llama", tmp_path)
    assert load_base(base, str(gguf))[1].name_or_path == str(gguf)
    assert load_base(str(gguf), tokenizer)[1].name_or_path == tokenizer


def test_a_gguf_file_as_a_folder(gguf, tmp_path):
    model, tokenizer = load_base(str(gguf), dtype=torch.bfloat16)
    write_base(model, tokenizer, tmp_path / "folder")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert again.dtype == torch.bfloat16
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(again.state_dict()[key].equal(value) for key, value in model.state_dict().items())
    loaded = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_full_disk_leaves_nothing(gguf, tmp_path):
    model, tokenizer = load_base(str(gguf))
    before = contents(tmp_path)
    with disk_full(), pytest.raises(OSError, match="too large"):
        write_base(model, tokenizer, tmp_path / "folder")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, 0.5, 0.999])
def test_a_truncated_gguf_file(gguf, kept):
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(InvalidInput, match=r"tiny\.gguf' is damaged"):
        load_base(str(gguf))


def test_unusable_gguf_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf does not exist"):
        load_base(str(tmp_path / "none.gguf"))
    file = write_gguf(tmp_path / "plain.gguf", template=None)
    with pytest.raises(InvalidInput, match=r"plain\.gguf' has no chat template.*--tokenizer"):
        load_base(str(file))
    incomplete = write_gguf(tmp_path / "a.gguf", change=lambda t: t.pop("blk.1.ffn_up.weight"))
    with pytest.raises(InvalidInput, match=r"a\.gguf' is incomplete: .*layers\.1\.mlp\.up_proj"):
        load_base(str(incomplete))
    nan = {"output_norm.weight": torch.full((HIDDEN,), float("nan"))}
    damaged = write_gguf(tmp_path / "b.gguf", change=lambda tensors: tensors.update(nan))
    with pytest.raises(InvalidInput, match=r"b\.gguf': model\.norm\.weight holds NaN"):
        load_base(str(damaged))
    monkeypatch.setattr("dnd_fast.base_model.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"needs the package gguf: pip install"):
        load_base(str(damaged))
