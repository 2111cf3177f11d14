"""Code that comes with models and data never runs, whatever is piped into standard input."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
EVIL = """
open({canary!r}, "w")
from transformers import BertConfig, BertModel
class Config(BertConfig):
    model_type = "evil"
class Model(BertModel):
    config_class = Config
"""
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from dnd_fast import Adapter, Generator, TextEncoder, load_base, load_decoder
from dnd_fast.base_model import load_config

def of_a_generator(folder):
    return Generator.from_pretrained("demo", encoder=TextEncoder.from_pretrained(folder))

def named_by_a_generator(folder):
    generator = Generator.from_pretrained("demo")
    condition = type(generator.config.condition)(folder, 8, 24)
    object.__setattr__(generator.config, "condition", condition)
    return generator.generate(["a"] * 8)

for load, place in (
    (TextEncoder.from_pretrained, "plain"),
    (TextEncoder.from_pretrained, "plain#layer=-1"),
    (TextEncoder.from_pretrained, "sentence"),
    (TextEncoder.from_pretrained, "module"),
    (of_a_generator, "plain"),
    (named_by_a_generator, "plain"),
    (load_base, "plain"),
    (load_config, "plain"),
    (Adapter.load, "adapter"),
    (load_decoder, "decoder.pth"),
):
    try:
        load(place)
    except (ValueError, OSError) as error:
        print(f"{load.__name__} {place}: {type(error).__name__}")
    else:
        print(f"{load.__name__} {place}: loaded")
"""


class Trap:
    """Whoever unpickles it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_folders_is_not_run(tmp_path):
    """Not if it lies in the current folder either, where it could be imported."""
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(EVIL.format(canary=str(canary)))
    config = {
        "model_type": "evil",
        "auto_map": {
            "AutoConfig": "evil.Config",
            "AutoModel": "evil.Model",
            "AutoModelForCausalLM": "evil.Model",
            "AutoTokenizer": ["evil.Tokenizer", None],
        },
    }
    modules = {"idx": 0, "name": "0", "path": ""}
    for name, kind in (("plain", None), ("sentence", "Transformer"), ("module", "evil.Model")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evil.py").write_text((tmp_path / "evil.py").read_text())
        for file in ("config.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_text(json.dumps(config))
        if kind:
            kind = f"sentence_transformers.models.{kind}" if kind == "Transformer" else kind
            (tmp_path / name / "modules.json").write_text(json.dumps([modules | {"type": kind}]))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    torch.save({"a": Trap(canary)}, tmp_path / "adapter" / "adapter_model.bin")
    torch.save({"a": Trap(canary)}, tmp_path / "decoder.pth")
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="y\n" * 99,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    outcomes = [line for line in ended.stdout.splitlines() if ": " in line]
    assert len(outcomes) == 10
    assert all(line.endswith(("InvalidInput", "FileNotFoundError")) for line in outcomes), outcomes
    assert not canary.exists()
    exec((tmp_path / "evil.py").read_text(), {})
    assert canary.exists()  # it would have been


def test_whatever_makes_a_model_says_that_its_code_is_not_to_run():
    """By default transformers asks, and takes a pipe's answer."""
    makers, silent = 0, []
    for folder in ("dnd_fast", "kernels", "train", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                owner, name = ast.unparse(node.func.value), node.func.attr
                if name not in ("from_pretrained", "from_config") or "auto" not in owner.lower():
                    continue
                makers += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                # Or in a dictionary of options, which is tested with the hub's names.
                if given.get("trust_remote_code") != "False" and None not in given:
                    silent.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert makers > 8
    assert silent == []


def test_nothing_is_unpickled_unread():
    """No pickle, no eval, and torch.load of tensors alone, in one place."""
    found = []
    for folder in ("dnd_fast", "kernels", "train", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called in ("torch.load", "pickle.load", "pickle.loads", "eval", "exec"):
                        found.append((str(file.relative_to(ROOT)), ast.unparse(node)))
    ((place, call),) = found
    assert place == "dnd_fast/torch_file.py"
    assert "weights_only=True" in call
