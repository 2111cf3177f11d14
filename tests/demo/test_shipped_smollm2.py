"""The shipped generator for SmolLM2-135M-Instruct: its files, and its adapters in PEFT."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dnd_fast import Generator, load_base, smollm2
from dnd_fast.cli import app
from dnd_fast.generator_config import SHIPPED
from dnd_fast.lora.batched import collate, encode, generate_responses
from dnd_fast.train.demo import real

FOLDER, _ = SHIPPED["smollm2"]
shipped = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(), reason=f"no generator in {FOLDER}"
)
installed = pytest.mark.skipif(
    smollm2.packaged_file() is None, reason=f"needs the package: {smollm2.INSTALL}"
)
TASK = real.read_tasks()[0]
QUESTIONS = [example for examples in TASK.questions.values() for example in examples[:2]]


@shipped
def test_the_files():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 10_000_000
    tensors = load_file(FOLDER / "model.safetensors")
    halves = {name: value.dtype for name, value in tensors.items() if name.startswith("decoder.")}
    assert set(halves.values()) == {torch.bfloat16}
    generator = Generator.from_pretrained("smollm2")
    assert generator.layout.base_model == smollm2.HUB_ID
    assert generator.config.condition.prompts == len(TASK.prompts)


@shipped
@installed
def test_an_adapter_works_in_peft(tmp_path):
    """As on the folder that `dnd-fast base` writes, so on what `load_base` gives, and merged."""
    adapter = Generator.from_pretrained("smollm2").generate(TASK.prompts)
    adapter.save(tmp_path / "adapter")
    result = CliRunner().invoke(app, ["base", "smollm2", "--out", str(tmp_path / "base")])
    assert result.exit_code == 0, result.output
    base, tokenizer = load_base("smollm2")
    batch = collate(encode(tokenizer, QUESTIONS))

    def answers(model):
        prompts = [[example.prompt for example in QUESTIONS]]
        return generate_responses(model, tokenizer, prompts, system=real.SYSTEM, max_new_tokens=12)

    @torch.no_grad()
    def logits(model):
        return model(batch.input_ids).logits

    plain = logits(base)
    applied = adapter.apply(base)
    expected, responses = logits(applied), answers(applied)
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    in_peft = PeftModel.from_pretrained(folder, tmp_path / "adapter").eval()
    assert torch.equal(logits(in_peft), expected)
    assert answers(in_peft) == responses
    effect = (expected - plain).norm()
    merged = in_peft.merge_and_unload()
    assert (logits(merged) - expected).norm() < 1e-5 * effect
    assert answers(merged) == responses
