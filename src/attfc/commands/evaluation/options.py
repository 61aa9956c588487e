"""The options of `attfc evaluate` and `attfc compare`, described once; both take them as one object."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from attfc.commands.common import (
    CacheOption,
    DeviceOption,
    FileOption,
    FolderOption,
    ModelIsOption,
    NaturalOption,
    PositiveOption,
    ShareOption,
)
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.data.conditions import Condition
    from attfc.evaluation.protocols.protocol import Protocol

__all__ = ["EvaluationOptions", "takes_options"]


@dataclass(frozen=True)
class EvaluationOptions:
    """What the user asked for, beside models, protocol and data.

    Attributes:
        pairs: pairs file in the LFW form; default: generated pairs
        generated_pairs: number of pairs to generate where no pairs are given
        seed: seed for generated pairs, enrolment and intervals
        thresholds: candidate thresholds: grid (those of the published protocol; default for pairs) or exact (every score; default for held-out)
        broken_limit: largest share of unusable images to tolerate; above it the evaluation stops
        batch_size: images per forward pass
        workers: processes that read, decode and align; 0: this one
        mode: variants of ijbb and ijbc, joined by commas, or all; N1 keeps the length of embeddings, N0 does not; D1 weighs by
            detector score; F1 adds the mirror image
        embeddings: folder where ijbb and ijbc keep embeddings for the next run; default: attfc/embeddings in the user's cache
        groups: file with a line per identity, name<TAB>group, for metrics of all-pairs within each group
        attributes: table with a line per image (path, then columns such as camera or age; CSV or tabs). Gives metrics within each
            value; not for .bin files
        far: all-pairs: false accept rates (FAR) at which the true accept rate (TAR) is given; repeatable, or joined by commas;
            default: 1e-6,1e-5,1e-4
        budget_gib: memory that all-pairs may use for embeddings and scores, GiB
        enrolled: identify: share of the identities that are enrolled in the gallery
        enrolled_images: identify: images per enrolled identity
        condition: change the images before they are embedded: lowres=24, jpeg=30, blur=2, grey or covered=0.5.
            Repeatable, or joined by commas; applied in this order
        confidence: confidence level of the intervals, 0.5 to below 1
        look_alikes: seconds for finding evaluation people who look like training people; 0: compare names and files only
    """

    pairs: Path | None = None
    generated_pairs: Annotated[int, Option(min=4)] = 6000
    seed: NaturalOption = 0
    thresholds: str | None = None
    broken_limit: ShareOption = 0.01
    batch_size: PositiveOption = 256
    workers: NaturalOption = 0
    device: DeviceOption = "auto"
    mode: str = "N1D1F1"
    embeddings: FolderOption = None
    groups: FileOption = None
    attributes: FileOption = None
    far: Annotated[list[str] | None, Option(metavar="RATE")] = None
    budget_gib: Annotated[float, Option(min=0)] = 4.0
    enrolled: ShareOption = 0.5
    enrolled_images: PositiveOption = 1
    condition: Annotated[list[str] | None, Option(metavar="KIND=VALUE")] = None
    confidence: float = 0.95
    look_alikes: Annotated[float, Option(min=0)] = 20.0
    model_is: ModelIsOption = None
    cache: CacheOption = None

    @property
    def fars(self) -> tuple[float, ...]:
        """The rates of `far`, rising, each once; none for no texts.

        >>> EvaluationOptions(far=["1e-3,0.0001", "1e-3"]).fars
        (0.0001, 0.001)
        """
        fars = set()
        for text in ",".join(self.far).split(",") if self.far else ():
            try:
                far = float(text)
            except ValueError:
                far = 0.0
            if not 0 < far < 1:
                raise UserError(
                    f"--far {text.strip()!r} is not a false accept rate: give numbers above 0 and below 1, such as --far 1e-5,1e-4"
                )
            fars.add(far)
        return tuple(sorted(fars))

    @property
    def conditions(self) -> "tuple[Condition, ...]":
        """Those of `condition`."""
        from attfc.data.conditions import parse_conditions

        return parse_conditions(self.condition or [])

    def for_protocols(self, keep_scores: bool) -> dict[str, Any]:
        """Return what a protocol may take, checked as far as it can be before a model is opened."""
        fars, _ = self.fars, self.conditions
        if self.thresholds not in (None, "grid", "exact"):
            raise UserError(f"--thresholds {self.thresholds} is unknown: use grid or exact")
        return {**vars(self), "fars": fars, "keep_scores": keep_scores}

    def taken_by(self, protocol: "Protocol", name: str, keep_scores: bool) -> dict[str, Any]:
        """Return the options of a protocol.

        Raises:
            UserError: one is given that only other protocols take.
        """
        from attfc.config.messages import one_of
        from attfc.evaluation.protocols import PROTOCOLS

        taken = protocol.taken(name, self.for_protocols(keep_scores))
        for option in fields(self):
            owners = [each for one in PROTOCOLS if option.name in one.options for each in one.names]
            given = (
                option.name != "seed" and getattr(self, option.name) != option.default
            )  # the intervals have the seed too
            if given and owners and option.name not in protocol.options:
                flag = f"--{option.name.replace('_', '-')}"
                raise UserError(f"{flag} is an option of {one_of(owners, quote='')}: leave it out of {name}")
        return taken


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Show a command's parameter `asked` as the options of `EvaluationOptions`; the command gets them as one."""
    options = inspect.signature(EvaluationOptions).parameters.values()

    @functools.wraps(command)
    def run(**values: Any) -> None:
        asked = EvaluationOptions(**{option.name: values.pop(option.name) for option in options})
        command(asked=asked, **values)

    shown = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, own in inspect.signature(command).parameters.items()
        for each in (options if name == "asked" else [own])
    ]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    described = inspect.cleandoc(EvaluationOptions.__doc__ or "").partition("Attributes:\n")[2]
    run.__doc__ = f"{inspect.cleandoc(command.__doc__ or '')}\n{described}"
    return run
