"""When a run goes astray: which loss is a spike, and how often the run may go back behind it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

WINDOW, LEAST = 64, 16  # losses that one is compared with: the newest so many, and not before there are so many


class Guard:
    """A loss is a spike where it lies above the median of the last WINDOW ones by more than `spike` of their (scaled) median distances
    from it; 0: none is. `rollbacks`: how many times a run goes back before the next save.
    """

    def __init__(self, rollbacks: int, spike: float):
        self.most, self.spike = rollbacks, spike
        self.losses: dict[str, list[float]] = {}
        self.now = 0  # since the last save
        self.counts = {"guard/rollbacks": 0, "guard/skipped": 0}

    def spikes(self, losses: Mapping[str, float]) -> list[str]:
        """What of {name: loss} is one, said in words; all become part of what the next are compared with, unless one is."""
        found = []
        for name, value in losses.items() if self.spike else ():
            seen = self.losses.get(name, [])
            if len(seen) < LEAST:
                continue
            middle = float(np.median(seen))
            spread = 1.4826 * float(np.median(np.abs(np.asarray(seen) - middle)))  # the standard deviation, of a normal distribution
            if value - middle > self.spike * max(spread, 1e-6 * abs(middle)):
                found.append(f'{name} rose to {value:.4g} from about {middle:.4g}')
        if self.spike and not found:
            self.losses = {name: [*self.losses.get(name, ()), float(value)][-WINDOW:] for name, value in losses.items()}
        return found

    def back(self, state: Mapping[str, Any], skipped: int) -> None:
        """The run goes back to where this was its `get_state`, and skips so many batches."""
        self.set_state(state | {"counts": self.counts})
        self.now += 1
        self.counts = {"guard/rollbacks": self.counts["guard/rollbacks"] + 1, "guard/skipped": self.counts["guard/skipped"] + skipped}

    def saved(self) -> None:
        self.now = 0

    def report(self) -> dict[str, int]:
        """To be logged: how often the run went back and how many batches it skipped, in all; nothing where it never did."""
        return self.counts if self.counts["guard/rollbacks"] else {}

    def get_state(self) -> dict[str, Any]:
        """JSON-able, to be saved with a checkpoint: a run that goes on judges as one that was not interrupted."""
        return {"losses": self.losses, "counts": self.counts}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.losses = {name: list(values) for name, values in state["losses"].items()}
        self.counts = dict(state["counts"])
