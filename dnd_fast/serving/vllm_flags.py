"""What a vLLM server must be started with to take a generator's adapters."""

from __future__ import annotations

# What vLLM takes for --max-lora-rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SETTINGS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


def server_flags(rank: int, *, loras: int, capacity: int) -> list[str]:
    """Return the flags of ``vllm serve``.

    Args:
        rank: the adapters' rank.
        loras: how many adapters answer in one batch.
        capacity: how many are kept in the host's memory; vLLM reads others from their folders.
    """
    largest = next((known for known in RANKS if known >= rank), RANKS[-1])
    flags = {"max-lora-rank": largest, "max-loras": loras, "max-cpu-loras": max(capacity, loras)}
    return ["--enable-lora", *(f"--{name}={value}" for name, value in flags.items())]
