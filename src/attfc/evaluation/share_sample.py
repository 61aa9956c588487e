"""A share of probes with the identity of each, ready to be weighted: see `samples`."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attfc.evaluation.bootstrap import Draw, Path
from attfc.evaluation.protocols.identification import RankOne

__all__ = ["ShareSample"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ShareSample:
    """A share of probes, by the name of the figure. hits: (M,) bool; probe_identities: (M,) from 0."""

    name: str
    hits: Bools
    probe_identities: Ints

    @staticmethod
    def of_rank_one(found: RankOne) -> "ShareSample":
        """Return the sample of leave-one-out identification."""
        return ShareSample("rank_one", found.hits, np.unique(found.labels, return_inverse=True)[1].astype(np.int64))

    @functools.cached_property
    def identities(self) -> int:
        """How many identities are searched."""
        return int(self.probe_identities.max()) + 1

    @property
    def carriers(self) -> int:
        """The same."""
        return self.identities

    def facts(self) -> dict[str, npt.NDArray[Any]]:
        """Return who is searched."""
        return {"probes": self.probe_identities}

    def figures(self, draw: Draw) -> dict[Path, float]:
        """Return the share under the weights of a draw."""
        weights = draw.of(self.probe_identities)
        return {(self.name,): float(weights[self.hits].sum() / weights.sum()) if weights.sum() else math.nan}
