"""Where a vLLM server runs on a machine, and what it lets trainers do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """`device`: the CUDA_VISIBLE_DEVICES of a GPU server;
    `share`: of that card's memory, None for vLLM's default. `updates`: its whole model may be changed while
    it runs; `sleeps`: it may give its memory back for a while. Both open unguarded endpoints
    (`vllm_client`)."""

    device: str | None = None
    share: float | None = None
    updates: bool = False
    sleeps: bool = False

    def settings(self) -> list[str]:
        """Arguments of vLLM."""
        share = [] if self.share is None else ["--gpu-memory-utilization", f"{self.share:g}"]
        return [*share, *(["--enable-sleep-mode"] if self.sleeps else [])]

    def environment(self) -> dict[str, str]:
        """Variables of its process."""
        chosen = {} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device}
        return chosen | ({"VLLM_SERVER_DEV_MODE": "1"} if self.updates or self.sleeps else {})


ANYWHERE = Place()
