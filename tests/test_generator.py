"""The generator: from prompts to adapters, on disk and back."""

import copy
import dataclasses
import json
import logging
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import dnd_fast
from dnd_fast import Generator, HyperConvDecoder, InvalidInput, TextEncoder
from dnd_fast import generator_config as generator_module
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import LoraModule
from dnd_fast.recipe import ConditionSpec, DecoderSpec

from .bad_input import FEATURES, GONE, NAN, damaged, entries, extra_tensor, fails, tensors

PROMPTS = [f"reverse the word number {i}" for i in range(6)]


def test_same_seed_same_bits(tiny_generator):
    prompts = [f"{prompt} again" for prompt in PROMPTS * 3]
    first = tiny_generator.generate(prompts, seed=3)
    again = tiny_generator.generate(prompts, seed=3)
    other = tiny_generator.generate(prompts, seed=4)
    for key, value in first.tensors.items():
        assert torch.equal(value, again.tensors[key])
    assert any(not torch.equal(v, other.tensors[k]) for k, v in first.tensors.items())


def test_several_tasks_equal_one_at_a_time(tiny_generator):
    """Guards against prompts of one task reaching another's adapter."""
    tasks = [[f"task {t} prompt {i}" for i in range(6)] for t in range(3)]
    together = tiny_generator.generate(tasks)
    assert len(together) == 3
    for task, adapter in zip(tasks, together, strict=True):
        alone = tiny_generator.generate(task)
        for key, value in alone.tensors.items():
            torch.testing.assert_close(adapter.tensors[key], value, rtol=1e-4, atol=1e-5)


def test_files_and_lists_agree(tiny_generator, tmp_path):
    text, lines = tmp_path / "task.txt", tmp_path / "task.jsonl"
    text.write_text("\n".join(PROMPTS))
    lines.write_text("".join(json.dumps({"prompt": p, "response": "x"}) + "\n" for p in PROMPTS))
    expected = tiny_generator.generate(PROMPTS).tensors
    for source in (text, str(lines)):
        found = tiny_generator.generate(source).tensors
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_few_prompts_are_reused_with_a_warning(tiny_generator):
    with pytest.warns(UserWarning, match="takes 4 prompts and got 1"):
        tiny_generator.generate(["reverse rice"])


def test_overlong_prompts_are_counted(tiny_generator):
    with pytest.warns(UserWarning, match="2 of 4 prompts are longer than"):
        tiny_generator.generate(["reverse rice " * 20, "say tea " * 20, "echo", "copy"])


def test_save_and_load(tiny_generator, tmp_path):
    tiny_generator.save_pretrained(tmp_path / "generator")
    assert {file.name for file in (tmp_path / "generator").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    loaded = Generator.from_pretrained(tmp_path / "generator", encoder=tiny_generator.encoder)
    expected = tiny_generator.generate(PROMPTS).tensors
    found = loaded.generate(PROMPTS).tensors
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_bfloat16_on_disk_keeps_the_statistics_in_float32(tiny_generator, tmp_path):
    """Scales in bfloat16 lose a good part of B: they must never be cast."""
    halved = copy.deepcopy(tiny_generator).to(torch.bfloat16)
    halved.save_pretrained(tmp_path / "generator")
    loaded = Generator.from_pretrained(tmp_path / "generator")
    assert torch.equal(loaded.layout.mean, tiny_generator.layout.mean)
    assert torch.equal(loaded.layout.std, tiny_generator.layout.std)
    assert loaded.decoder.dtype == torch.float32
    assert (
        Generator.from_pretrained(tmp_path / "generator", dtype=torch.bfloat16).decoder.dtype
        == torch.bfloat16
    )


def test_embeddings_are_cached(tiny_generator, tmp_path, monkeypatch):
    tasks = [PROMPTS[:4]]
    first = tiny_generator.encode(tasks, cache=tmp_path)
    monkeypatch.setattr(tiny_generator.encoder, "_embed", None)  # must not be called again
    assert torch.equal(tiny_generator.encode(tasks, cache=tmp_path), first)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plan": "direct"},
        {"plan": "fft"},
        {"plan": "fft", "weights": "streamed"},
        {"plan": "direct", "impl": "torch", "compile": True},
    ],
)
def test_prepared_generators_give_the_same_adapters(tiny_generator, options, tmp_path):
    expected = tiny_generator.generate(PROMPTS).tensors
    generator = copy.deepcopy(tiny_generator)
    prepared = generator.prepare(**options)
    assert generator.prepared is prepared
    for key, value in generator.generate(PROMPTS).tensors.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    generator.save_pretrained(tmp_path / "generator")  # its weights are still its own


def test_generating_prepares_once_and_again_after_a_change(tiny_generator, caplog):
    """Transforms that were kept must not outlive the weights that they were made from."""
    generator = copy.deepcopy(tiny_generator)
    generator.prepare("fft", weights="cached")
    before = generator.generate(PROMPTS).tensors
    prepared = generator.prepared
    assert generator.prepared is prepared
    with torch.no_grad(), caplog.at_level(logging.INFO):
        for parameter in generator.decoder.parameters():
            parameter.add_(0.1)
        assert generator.prepared is not prepared
    assert not generator.prepared.plan.direct  # the options are still those that were chosen
    assert "10 of 10 convolutions in the transform domain" in caplog.text
    after = generator.generate(PROMPTS).tensors
    assert any(not torch.equal(before[key], value) for key, value in after.items())
    direct = copy.deepcopy(generator)
    direct.prepare("direct")
    for key, value in direct.generate(PROMPTS).tensors.items():
        torch.testing.assert_close(value, after[key], rtol=1e-4, atol=1e-5)
    prepared = generator.prepared
    generator.layout.set_statistics(generator.layout.mean + 1, generator.layout.std)
    assert generator.prepared is not prepared


def test_many_threads_prepare_once(tiny_generator, monkeypatch):
    generator = copy.deepcopy(tiny_generator)
    count, prepare = [], HyperConvDecoder.prepare

    def counted(*arguments, **options):
        count.append(1)
        return prepare(*arguments, **options)

    monkeypatch.setattr(HyperConvDecoder, "prepare", counted)
    with ThreadPoolExecutor(8) as pool:
        all_prepared = list(pool.map(lambda _: generator.prepared, range(64)))
    assert len(count) == 1
    assert len(set(map(id, all_prepared))) == 1


def test_many_threads_load_the_encoder_once(tiny_generator, monkeypatch):
    loaded, encoder = [], tiny_generator.encoder

    def load(name):
        loaded.append(name)
        time.sleep(0.05)
        return encoder

    generator = copy.deepcopy(tiny_generator)
    generator._encoder = None
    monkeypatch.setattr(TextEncoder, "from_pretrained", load)
    with ThreadPoolExecutor(8) as pool:
        encoders = list(pool.map(lambda _: generator.encoder, range(32)))
    assert loaded == [generator.config.condition.encoder]
    assert all(each is encoder for each in encoders)


def test_threads_generate_what_one_does(tiny_generator):
    """Long and short tasks at once: once prompts of one were cut by the length of another."""
    tasks = [
        [f"say word number {i}" for i in range(4)],
        [f"in a long request, {'please ' * 40} say word number {i}" for i in range(4)],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [tiny_generator.generate(task) for task in tasks]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(tiny_generator.generate, tasks * 40))
    for index, adapter in enumerate(found):
        for name, tensor in expected[index % 2].tensors.items():
            assert torch.equal(adapter.tensors[name], tensor)


@pytest.mark.parametrize("text", ["8e9", "8GB", " 8 gb", "7.5GiB"])
def test_a_budget_from_the_environment(tiny_generator, text, monkeypatch):
    monkeypatch.setenv("DND_FAST_MEMORY", text)
    copy.deepcopy(tiny_generator).generate(PROMPTS)
    for wrong in ("much", "0", "-1", "8TBs"):
        monkeypatch.setenv("DND_FAST_MEMORY", wrong)
        with pytest.raises(InvalidInput, match=f"DND_FAST_MEMORY='{wrong}': expected a positive"):
            copy.deepcopy(tiny_generator).generate(PROMPTS)


def test_a_refused_preparation_changes_nothing(tiny_generator):
    generator = copy.deepcopy(tiny_generator)
    prepared = generator.prepare("fft")
    with pytest.raises(InvalidInput, match="is too little for this decoder"):
        generator.prepare(memory=1000)
    assert generator.prepared is prepared


def test_a_middle_sized_generator_is_planned_by_itself(monkeypatch):
    """Once only a call to prepare made it fast; and one pass alone does not pay for transforms."""
    torch.manual_seed(0)
    shapes = [(8, 64, 384), (32, 32, 128), (64, 8, 128)]
    config = GeneratorConfig(
        ConditionSpec("none", prompts=8, length=64),
        DecoderSpec([list(shape) for shape in shapes], 9),
        layout_of(64, 8, 128).to_dict(),
    )
    generator = Generator(config).requires_grad_(False)
    shape = (*generator.decoder.features[-1],)
    generator.layout.set_statistics(torch.zeros(shape), torch.ones(shape[0], 1, 1))
    embedded = torch.randn(1, *shapes[0])
    monkeypatch.setattr(Generator, "encode", lambda self, tasks: embedded)
    adapter = generator.generate(["a"] * 8)
    assert len(generator.prepared.plan.direct) < 10
    assert generator.prepared.plan.weights == "cached"
    once = dnd_fast.generate(["a"] * 8, generator, impl="torch")
    for key, value in adapter.tensors.items():
        assert (value - once.tensors[key]).norm() <= 1e-5 * value.norm()


def layout_of(tokens, rank, chunk):
    """A layout with so many tokens of one size."""
    modules = [LoraModule(f"layers.{i}.q_proj", chunk, chunk) for i in range(tokens // 2)]
    return TokenLayout(modules, rank, lora_alpha=8, target_modules=["q_proj"], chunk=chunk)


@pytest.mark.parametrize("options", [{}, {"impl": "torch"}, {"compile": True}, {"memory": 1e9}])
def test_generate_in_one_call(tiny_generator, options):
    """It never changes a generator that the caller keeps."""
    generator = copy.deepcopy(tiny_generator)
    prepared = generator.prepare("fft")
    adapter = dnd_fast.generate(PROMPTS, generator, device="cpu", **options)
    assert adapter.config["r"] == generator.layout.rank
    assert generator.prepared is prepared
    with pytest.raises(InvalidInput, match="device='nowhere' cannot be used"):
        dnd_fast.generate(PROMPTS, generator, device="nowhere")
    assert generator.device.type == "cpu"


def test_adapters_on_a_device(tiny_generator):
    with pytest.raises(InvalidInput, match="device='nowhere' cannot be used"):
        tiny_generator.generate(PROMPTS, device="nowhere")
    adapter = tiny_generator.generate(PROMPTS, device=torch.device("cpu"))
    assert all(tensor.device.type == "cpu" for tensor in adapter.tensors.values())


def test_import_is_lazy():
    """`dnd-fast --help` must not wait for torch."""
    code = (
        "import sys, dnd_fast, dnd_fast.cli\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_an_adapter_for_qwen_0_5b(tmp_path):
    """24 layers in bfloat16: PEFT loads the files, outputs change, merging equals applying."""
    config = AutoConfig.for_model(
        **dnd_fast.Recipe.load("common-sense-0.5b").base.config | {"vocab_size": 512}
    )
    assert isinstance(config, Qwen2Config)
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    layout = TokenLayout.for_model(config, 8)
    assert layout.num_tokens == 4296
    # The recipe's own decoder has 1.1 G parameters; the last shape is what matters here.
    generator = Generator(
        GeneratorConfig(
            ConditionSpec("sentence-transformers/all-MiniLM-L6-v2", prompts=4, length=16),
            DecoderSpec([[4, 16, 384], [8, 8, 16], [4296, 8, 128]], kernel_size=1),
            layout.to_dict(),
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = generator.generate(PROMPTS).to(torch.bfloat16)
    for key in adapter.tensors:  # of a plausible size, so that rounding does not drown in chaos
        adapter.tensors[key].mul_(0.05)
    adapter.save(tmp_path / "adapter")

    ids = torch.arange(1, 40).view(1, -1)
    with torch.no_grad():
        plain = base(ids).logits
        peft_model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        applied = peft_model(ids).logits
        merged = peft_model.merge_and_unload()(ids).logits
    change = (applied - plain).float().norm()
    assert change > 0.02 * plain.float().norm()
    assert (merged - applied).float().norm() < 0.3 * change


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, "device='nonsense' cannot be used"),
        ({"impl": "nonsense"}, "impl='nonsense' is unknown; choose one of"),
        ({"impl": "triton"}, r"impl='triton' cannot run.*Use\s+impl='torch'"),
        ({"seed": [1]}, r"seed=\[1\]: it must be an integer"),
    ],
)
def test_generate(good, options, message):
    dnd_fast.generate(PROMPTS, good.generator, device="cpu", impl="torch", seed=1)
    fails(message, dnd_fast.generate, PROMPTS, good.generator, **options)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("condition", {"prompts": 5}, "takes 4 prompts of length 16, the condition has 5"),
        ("condition", {"length": 9}, "takes 4 .* of length 16, the condition has 4 of length 9"),
        ("condition", {"projected_length": 9}, "projection gives length 9, .* has length 16"),
        ("decoder", {"features": FEATURES}, "takes 3 prompts of length 5, the condition has 4"),
        ("decoder", {"kernel_size": 2}, "kernel_size=2: it must be an odd"),
        ("layout", {}, "layout's description is malformed: .*'modules'"),
    ],
)
def test_generators(good, part, changes, message):
    config = good.generator.config
    Generator(config)
    new = dataclasses.replace(getattr(config, part), **changes) if changes else {}
    fails(message, Generator, dataclasses.replace(config, **{part: new}))


def test_calls_of_a_generator(good, tmp_path):
    config, folder = good.generator.config, good.folder / "generator"
    fails("encoder is a str; load one by Text", Generator, config, encoder="all-MiniLM-L6-v2")
    narrow = Generator(config, encoder=TextEncoder.from_pretrained(good.folder / "encoder"))
    fails("embeddings of width 16, the decoder takes 384", narrow.generate, PROMPTS)
    fails(r"\[B, 4, 16, 384\], got \[1, 4, 9, 384\]", good.generator, torch.ones(1, 4, 9, 384))
    fails("a task has 3 prompts, the condition takes 4", good.generator.encode, [PROMPTS[:3]])
    fails("dtype=torch.int8: it must be a f", Generator.from_pretrained, folder, dtype=torch.int8)
    fails("no mean and std: call layout.fit", Generator(config).save_pretrained, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    device = {"device": "nonsense"}
    fails("device='nonsense'", TextEncoder.from_pretrained, good.folder / "encoder", **device)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "news": 1}, "format version 2; this dnd-fast reads 1. Update"),
        ({"format_version": "1"}, "format version '1'; this dnd-fast reads 1"),
        ({"conditon": {}}, "unknown entry 'conditon'; known are condition, decoder, layout"),
        ({"condition__prompt": 4}, "condition: unknown entry 'prompt'; known are encoder, prompts"),
        ({"decoder": ...}, "entry 'decoder' is missing"),
        ({"condition__length": ...}, "condition: entry 'length' is missing"),
        ({"condition": None}, "condition: expected a table of settings, found None"),
        ({"condition__prompts": "4"}, "condition: prompts: found '4', expected int"),
        ({"condition__prompts": 0}, "condition: prompts: found 0, expected a positive integer"),
        ({"condition__padding": "left"}, "padding: found 'left', expected one of"),
        ({"condition__encoder": 3}, "encoder: found 3, expected str"),
        ({"condition__prompts": 5}, "takes 4 prompts of length 16, the condition has 5"),
        (
            {"condition__projected_length": 5},
            r"projection gives length 5, features\[0\] has length 16",
        ),
        ({"decoder__kernel_size": 2}, "kernel_size=2: it must be an odd"),
        ({"decoder__features": []}, "features needs at least two shapes"),
        ({"decoder__features": [4, 16]}, r"features\[0\]: found 4, expected a list"),
        ({"layout": []}, r"layout: found \[\], expected dict"),
        ({"layout__rank": ...}, "malformed: .*'rank'"),
        ({"layout__rank": 3}, r"tokens \(58, 2, 16\), the layout needs \(58, 3, 16\)"),
        ({"layout__scale": "log"}, "scale='log' is unknown"),
        ({"layout__modules": {}}, "no modules to adapt"),
    ],
)
def test_a_generators_config(good, tmp_path, changes, message):
    source = good.folder / "generator"
    folder = damaged(source, tmp_path / "g", "config.json", entries(**changes))
    found = fails(message, Generator.from_pretrained, folder)
    assert str(folder / "config.json") in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extra_tensor, r"extra has shape \(2,\), expected nothing"),
        (tensors("0.a_width", GONE), r"blocks.0.a_width.weight has shape missing, expected \(8"),
        (tensors("0.a_width", lambda x: x[:1].clone()), r"a_width.weight has shape \(1, 384, 3, 3"),
        (tensors("0.a_width", lambda x: x * NAN), "blocks.0.a_width.weight holds NaN or infinity"),
        (tensors("0.a_width", lambda x: x / 0), "blocks.0.a_width.weight holds NaN or infinity"),
        (tensors("0.a_width", lambda x: x.int()), "blocks.0.a_width.weight is torch.int32"),
        (tensors("0.a_width", lambda x: x.to(torch.float8_e5m2)), "a_width.weight is torch.float8"),
        (tensors("layout.mean", GONE), "the layout's mean or std is missing"),
        (tensors("layout.mean", lambda x: x * NAN), "layout.mean holds NaN or infinity"),
        (tensors("layout.std", lambda x: -x), "the layout's std holds negative values"),
        (tensors("layout.std", lambda x: x[1:].clone()), r"std has shape \[57, 1, 1\], expected"),
    ],
)
def test_a_generators_weights(good, tmp_path, change, message):
    source = good.folder / "generator"
    folder = damaged(source, tmp_path / "g", "model.safetensors", change)
    fails(message, Generator.from_pretrained, folder)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("demo", "install dnd-fast again, or rebuild it: dnd-fast demo --tiny --retrain"),
        ("smollm2", "install dnd-fast again, or train it as docs/real-model.md says"),
    ],
)
def test_an_embedded_generator_may_be_missing(monkeypatch, tmp_path, name, remedy):
    """Asking the hub for a model of that name, or a folder here, would explain nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    message = f"embedded generator '{name}' is missing at {tmp_path}/gone: .*{remedy}"
    shipped = generator_module.SHIPPED
    monkeypatch.setitem(shipped, name, (tmp_path / "gone", shipped[name][1]))
    fails(message, Generator.from_pretrained, name, error=FileNotFoundError)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "config.json").write_text("{}")  # … and without its weights
    fails(message, Generator.from_pretrained, name, error=FileNotFoundError)
