"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dnd_fast.serving.publisher import Publisher

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self, publisher: Publisher) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "dnd_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.stages = Histogram(
            "dnd_adapter_seconds",
            "Seconds from prompts to a live adapter, by stage.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "dnd_first_token_seconds",
            "Seconds from a streamed request to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "dnd_generator_batch", "Adapters generated in one go.", buckets=SIZES, registry=registry
        )
        loaded = Gauge("dnd_adapters_loaded", "Adapters loaded in the engine.", registry=registry)
        loaded.set_function(lambda: len(publisher.loaded))

    def made(self, seconds: dict[str, float]) -> None:
        """Note how long each stage of an adapter took."""
        for stage, value in seconds.items():
            self.stages.labels(stage).observe(value)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
