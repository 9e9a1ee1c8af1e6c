"""Every limit of the server: each is a flag of `pixart serve`, and shown at /v1/limits. And how many replicas."""

from dataclasses import dataclass, fields
from typing import Annotated

from pixart.config import shown
from pixart.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What requests may take."""

    max_images: int = 10
    """Images of one request."""
    max_steps: int = 150
    """Denoising steps of one image."""
    max_pixels: int = 2048 * 2048
    """Pixels of one image."""
    max_input_pixels: int = 2**24
    """Pixels of an image to start from, or of a mask."""
    max_work: int = 500
    """Cost of one request: pixels x steps x images, in millions. 20 steps of 1024 x 1024 are 21."""
    max_queue: int = 64
    """Requests that wait and run together; more get 429, with the seconds after which to try again."""
    max_queued_work: int = 5000
    """Cost of all requests that wait and run."""
    max_prompt: int = 20_000
    """Characters of a prompt. The model reads fewer, and the response names the words that were left out."""
    max_body: int = 32 * 2**20
    """Bytes of a request that brings images; others may have 1 MiB."""
    max_connections: int = 1000
    """Open connections; more get 503."""
    body_seconds: int = 30
    """Time in which the headers of a request must have come, and time for its body."""
    request_seconds: int = 600
    """Time in which a request must be done, waiting included; then it gets 504."""
    drain_seconds: int = 600
    """After SIGTERM, time for the requests that are there to end."""
    url_seconds: int = 3600
    """How long an image can be fetched by its url."""
    url_bytes: int = 256 * 2**20
    """Memory for images that wait to be fetched; when it is full, the oldest go."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                flag = field.name.replace("_", "-")
                raise UsageError(f"--{flag} must be at least 1, not {getattr(self, field.name)}.")


PLAIN_BODY = 2**20  # bytes of a request that brings no images


@dataclass(frozen=True)
class Replicas:
    """Where the networks run if not in this process, and how much of a machine each replica has."""

    ray: Annotated[str | None, shown("ADDRESS", "none")] = None
    """Generate in replicas on a Ray cluster: its address, "auto" for the one of this machine, "local" to start one."""
    min_replicas: int = 1
    """Replicas that there always are."""
    max_replicas: int = 1
    """Replicas that there are under load."""
    requests_per_replica: int = 8
    """Requests of one replica, on average, above which there are more replicas."""
    cpus_per_replica: float = 1.0
    """CPUs of a replica; 0.5 is half of one."""
    gpus_per_replica: float = 0.0
    """GPUs of a replica; 0.5 is half of one."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            both = f"{self.min_replicas} to {self.max_replicas}"
            raise UsageError(f"--min-replicas to --max-replicas is {both}; give 1 or more, and a larger one second.")
        if self.requests_per_replica < 1 or min(self.cpus_per_replica, self.gpus_per_replica) < 0:
            raise UsageError("A replica has 0 or more CPUs and GPUs, and 1 or more requests.")
