"""Batches of pictures among batches of videos: joint training (Ho et al., "Video Diffusion Models", NeurIPS 2022, section 3)."""

from collections.abc import Mapping
from typing import Any


class Joint:
    """Batches of `videos` (a `pipeline.Loader`), but every `every`-th one of `pictures`, whose clips have one frame.

    The two have shapes of their own, so that a picture costs what a frame costs; a step is compiled once for each.
    """

    def __init__(self, videos: Any, pictures: Any, every: int):
        if every < 2:
            raise ValueError(f"data.pictures.every={every}: of so many batches one is of pictures; at least 2")
        self.videos, self.pictures, self.every, self.count = videos, pictures, every, 0

    @property
    def source(self) -> Any:
        return self.videos.source

    def __iter__(self) -> "Joint":
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next(self.videos if (self.count + 1) % self.every else self.pictures)
        self.count += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"count": self.count, "videos": self.videos.get_state(), "pictures": self.pictures.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises as the loaders do where the state belongs to other data."""
        self.videos.set_state(state["videos"])
        self.pictures.set_state(state["pictures"])
        self.count = int(state["count"])

    def close(self) -> None:
        self.videos.close()
        self.pictures.close()
