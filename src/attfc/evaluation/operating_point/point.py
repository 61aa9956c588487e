"""`operating_point.json` beside a model: a threshold, what it lets through and what it costs, measured by `attfc calibrate`.

The file may come from a stranger: it is opened with bounds and checked whole. It names its model by the SHA-256 of the model's file; that of another
model is refused, for its threshold means nothing here. An ONNX file carries the same text in its metadata (`METADATA`).
"""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from attfc.errors import UserError
from attfc.files import first_fault, read_bounded, write_json_whole
from attfc.typing import Json

__all__ = [
    "FILE",
    "METADATA",
    "Estimate",
    "GroupRates",
    "ModelFile",
    "OperatingPoint",
    "Probability",
    "beside",
    "point_of",
    "read_point",
]

FILE, METADATA = "operating_point.json", "operating_point"
LARGEST, MOST_METADATA = 2**22, 60_000
LONGEST = 1000  # characters of a text

Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1.0001, le=1.0001)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=LONGEST)]

_ROUNDING = 1e-3  # a bound is computed to 1e-4 of itself


def _refuse(*faults: tuple[bool, str]) -> None:
    """Raise ValueError for the first fault that is there; pydantic adds its place in the file."""
    for there, fault in faults:
        if there:
            raise ValueError(fault)


def _is_below(bound: float, rate: float) -> bool:
    return bound < rate * (1 - _ROUNDING)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Estimate(_Part):
    """A rate and its interval."""

    value: Share
    low: Share
    high: Share

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        value, low, high = self.value, self.low, self.high
        _refuse(
            (_is_below(value, low), f"low={low:g} is above value={value:g}"),
            (_is_below(high, value), f"high={high:g} is below value={value:g}"),
        )
        return self


class GroupRates(_Part):
    """What the threshold does within a group of people, or across groups.

    Attributes:
        name: of the group. people: in it.
        comparisons: pairs of its people. false_matches: image pairs above the threshold.
        fmr, fmr_upper: rate and its bound. fnmr: None where nobody of the group has two images.
    """

    name: Text
    people: Count
    comparisons: Count
    false_matches: Count
    fmr: Share
    fmr_upper: Share
    fnmr: Estimate | None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        people, pairs = self.people, self.people * (self.people - 1) // 2
        _refuse(
            (_is_below(self.fmr_upper, self.fmr), f"fmr_upper={self.fmr_upper:g} is below fmr={self.fmr:g}"),
            (self.comparisons > pairs, f"comparisons={self.comparisons}, and people={people} make {pairs} pairs"),
        )
        return self


class Probability(_Part):
    """P(same person | score) = 1 / (1 + exp(-(slope score + offset))) where both are as likely before the score is seen; its Brier score."""

    slope: float
    offset: float
    brier: Share

    def at(self, score: float) -> float:
        """Return P(same person) of a score (cosine)."""
        return 1.0 / (1.0 + math.exp(min(-(self.slope * score + self.offset), 700.0)))


class OperatingPoint(_Part):
    """A model's operating point.

    Attributes:
        format: of the file. attfc: version that wrote it. created: UTC.
        network, digest: of the model: SHA-256 of its file.
        store: what it was measured on. people, images: compared there. mated_people: those with two images or more.
        flip, aligned: whether mirror images were added, whether faces were found in photos.
        asked_fmr: for which the threshold was chosen.
        threshold: accepted is a score above it; the interval is where other people of the kind would have put it.
        fmr, fmr_upper: false match rate of people who did not choose the threshold, and the bound that it stays under.
        fnmr: false non-match rate of the same people.
        comparisons: pairs of people. false_matches: image pairs above the threshold. worth: as many independent comparisons.
        failures, failures_counted: images that gave no embedding, and whether they count as non-matches.
        probability: of the same person.
        groups, across, worst_over_geometric_mean: rates within groups, across them, and the worst FMR over the geometric mean.
        splits, seed, confidence: how it was measured.
        people_needed: (FMR, people) that would support it.
        notes: what a reader should know.
    """

    format: Literal[1] = 1
    attfc: Text
    created: Text
    network: Text
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    store: Text
    people: Count
    images: Count
    mated_people: Count
    flip: bool
    aligned: bool
    asked_fmr: float = Field(gt=0, le=1)
    threshold: Cosine
    threshold_interval: tuple[Cosine | None, Cosine | None]
    fmr: Share
    fmr_upper: Share
    fnmr: Estimate
    comparisons: Count
    false_matches: Count
    worth: float = Field(gt=0)
    failures: Count
    failures_counted: bool
    probability: Probability
    groups: tuple[GroupRates, ...] = Field(default=(), max_length=10_000)
    across: GroupRates | None = None
    worst_over_geometric_mean: float | None = Field(default=None, ge=1 - _ROUNDING)
    splits: int = Field(ge=1, le=2**53)
    seed: Count
    confidence: float = Field(gt=0, lt=1)
    people_needed: tuple[tuple[Share, Count], ...] = Field(default=(), max_length=100)
    notes: tuple[Text, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        people, images, mated, failures = self.people, self.images, self.mated_people, self.failures
        pairs, used = people * (people - 1) // 2, images if self.failures_counted else images - failures
        grouped, across = sum(group.people for group in self.groups), self.across.people if self.across else 0
        low, high = self.threshold_interval
        needed = f"people={people} with mated_people={mated} need {people + mated} images"
        _refuse(
            (self.comparisons != pairs, f"comparisons={self.comparisons}, and people={people} make {pairs} pairs"),
            (failures > images, f"failures={failures} are more than images={images}"),
            (mated > people, f"mated_people={mated} are more than people={people}"),
            (people + mated > used, f"{needed}, and images={images} with failures={failures} leave {used}"),
            (
                self.false_matches > images**2 // 2,
                f"false_matches={self.false_matches} are more than the pairs of images={images}",
            ),
            (_is_below(self.fmr_upper, self.fmr), f"fmr_upper={self.fmr_upper:g} is below fmr={self.fmr:g}"),
            (
                low is not None and high is not None and low > high,
                f"threshold_interval={low}, {high}: its lower end comes first",
            ),
            (grouped > people, f"groups have {grouped} people, and people={people}"),
            (across > people, f"across.people={across} are more than people={people}"),
        )
        return self

    @property
    def sentence(self) -> str:
        """What it is, in one line."""
        return (
            f"FMR (two people taken for one) {self.asked_fmr:g}, 95 % sure below {self.fmr_upper:.2g}; "
            f"FNMR (one person not recognised) {100 * self.fnmr.value:.2f} %; on {self.people:,} people of {self.store}"
            + "".join(f"; {note}" for note in self.notes if "were trained on" in note)
        )

    def summary(self) -> Json:
        """Return what stands beside other figures of the model, as plain JSON types."""
        return self.model_dump(
            mode="json", include={"threshold", "asked_fmr", "fmr", "fmr_upper", "fnmr", "people", "store"}
        )

    def text(self) -> str:
        """Return it as JSON on one line, for metadata; without its groups where they would take more than 60,000 characters."""
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
        return text if len(text) <= MOST_METADATA else self.model_copy(update={"groups": (), "notes": ()}).text()

    def check(self, digest: str, where: object) -> "OperatingPoint":
        """Return it if it is of the model of this digest.

        Raises:
            UserError: it is of another.
        """
        if self.digest != digest:
            raise UserError(
                f"{where} is the operating point of another model: of digest {self.digest[:12]}, and this model's is {digest[:12]}; "
                "run attfc calibrate for this one, or remove the file"
            )
        return self

    def write(self, path: Path) -> None:
        """Write it as a file: the old content or the new."""
        write_json_whole(path, self.model_dump(mode="json"))


class ModelFile(Protocol):
    """What is asked of a model: `ModelFacts` has it."""

    @property
    def path(self) -> Path:
        """Its folder or file."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights."""

    @property
    def operating_point(self) -> str:
        """The point in the metadata of an ONNX file, or nothing."""


def beside(model: Path) -> Path:
    """Return where the operating point of a model lies: in its folder, or beside its file.

    >>> beside(Path("nets/face.onnx")).as_posix()
    'nets/face.operating_point.json'
    """
    return model / FILE if model.is_dir() else model.with_name(f"{model.stem}.{FILE}")


def read_point(text: str | bytes, where: Path | str) -> OperatingPoint:
    """Return an operating point from its JSON.

    Raises:
        UserError: it is none, or damaged.
    """
    try:
        return OperatingPoint.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{where} is not an operating point: {first_fault(error)}; make it with attfc calibrate"
        ) from None


def point_of(model: ModelFile) -> OperatingPoint | None:
    """Return a model's operating point, of the file beside it or else of its metadata; None: it has none.

    Raises:
        UserError: damaged, too large, or of another model.
    """
    path, stated = beside(model.path), model.operating_point
    if not os.path.lexists(path):
        return read_point(stated, f"{model.path}, its metadata") if stated else None
    text = read_bounded(path, LARGEST, "no operating point has that")
    return read_point(text, path).check(model.digest, path)
