"""What a server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The counters of a server.

    Args:
      queued: gives the tokens that are waiting or computed now.
    """

    def __init__(self, queued: Callable[[], int]):
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("model", "kind")
        self.requests = Counter(
            "clue_requests", "Requests answered", (*labels, "status"), registry=registry
        )
        self.seconds = Histogram(
            "clue_request_seconds", "From the head of a request to its answer", labels,
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.inputs = Counter("clue_inputs", "Inputs answered", labels, registry=registry)
        self.tokens = Counter("clue_tokens", "Tokens computed", labels, registry=registry)
        self.batches = Histogram(
            "clue_batch_inputs", "Inputs that were computed together", labels,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry,
        )  # fmt: skip
        gauge = Gauge("clue_queue_tokens", "Tokens waiting or computed", registry=registry)
        gauge.set_function(queued)
        self.ready = Gauge("clue_model_ready", "Whether it answers", ("model",), registry=registry)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)
