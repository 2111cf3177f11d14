"""A tiny llama in a GGUF file, with a tokenizer of bytes and a chat template."""

import torch
from gguf import GGUFWriter, TokenType
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>' }}{% endfor %}"
HIDDEN, HEADS, KV, FF, LAYERS = 32, 4, 2, 48, 2


def write_gguf(path, *, template=TEMPLATE, seed=0, change=None):
    """Write the file; ``change`` gets the dict of tensors before."""
    tokens = ["<start>", "<end>", *bytes_to_unicode().values(), "ab"]
    tensors = _tensors(len(tokens), torch.Generator().manual_seed(seed))
    if change:
        change(tensors)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FF)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    special, plain = TokenType.CONTROL, TokenType.NORMAL
    writer.add_token_types([special, special] + [plain] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if template:
        writer.add_chat_template(template)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(vocabulary, rng):
    kv = HIDDEN * KV // HEADS
    shapes = {"token_embd": (vocabulary, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k": (kv, HIDDEN),
            f"blk.{layer}.attn_v": (kv, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_up": (FF, HIDDEN),
            f"blk.{layer}.ffn_gate": (FF, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, FF),
        }
    return {
        f"{name}.weight": 0.2 * torch.randn(shape, generator=rng) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
