"""What Prometheus reads at /metrics. No label holds anything that a client chooses."""

import platform
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

import pixart

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STAGES = {"encode": "text_encode", "denoise": "denoise", "decode": "vae_decode"}


class Metrics:
    """The counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        here: dict[str, Any] = {"registry": registry}
        self.requests = Counter("pixart_requests", "Requests answered", ["endpoint", "code"], **here)
        self.rejected = Counter("pixart_requests_rejected", "Requests not taken, by reason", ["reason"], **here)
        self.cancelled = Counter("pixart_requests_cancelled", "Requests cancelled, by phase", ["phase"], **here)
        self.waiting = Gauge("pixart_requests_waiting", "Requests in the queue", **here)
        self.running = Gauge("pixart_requests_running", "Requests between their first and last step", **here)
        self.duration = Histogram(
            "pixart_request_duration_seconds", "From request to response", ["endpoint"], buckets=SECONDS, **here
        )
        self.queue_wait = Histogram(
            "pixart_queue_wait_seconds", "From request to its first step", buckets=SECONDS, **here
        )
        self.first_preview = Histogram(
            "pixart_time_to_first_preview_seconds", "From request to its first partial image", buckets=SECONDS, **here
        )
        self.stage = Histogram(
            "pixart_stage_duration_seconds", "Time of each stage", ["stage"], buckets=STEP_SECONDS, **here
        )
        self.batch = Histogram("pixart_batch_size", "Images of a denoising pass", buckets=SIZES, **here)
        self.steps = Counter("pixart_denoise_steps", "Denoising steps of images", **here)
        self.images = Counter("pixart_images_generated", "Images generated", **here)
        self.failed = Counter("pixart_requests_failed", "Requests that failed while they ran", **here)
        self.model = Gauge("pixart_model_info", "Loaded models", ["model", "sha256", "dtype", "device"], **here)
        build = Gauge("pixart_build_info", "Versions", ["version", "python"], **here)
        build.labels(pixart.__version__, platform.python_version()).set(1)

    def observe(self, stage: str, seconds: float, count: int) -> None:
        """As `pixart.pipeline.engine.Engine` calls it."""
        self.stage.labels(STAGES[stage]).observe(seconds)
        if stage == "denoise":
            self.batch.observe(count)
            self.steps.inc(count)
        if stage == "decode":
            self.images.inc(count)

    def text(self) -> bytes:
        return generate_latest(self.registry)
