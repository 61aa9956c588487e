"""The options of `attfc evaluate` and `attfc compare`, described once; both take them as one object."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from attfc.commands.common import CacheOption, ModelIsOption
from attfc.errors import UserError

__all__ = ["EvaluationOptions", "takes_options"]


@dataclass(frozen=True)
class EvaluationOptions:
    """What the user asked for, beside models, protocol and data."""

    pairs: Annotated[Path | None, typer.Option(help="pairs file in the LFW form; default: generated pairs")] = None
    generated_pairs: Annotated[
        int, typer.Option(min=4, help="number of pairs to generate where no pairs are given")
    ] = 6000
    seed: Annotated[int, typer.Option(min=0, help="seed for generated pairs, enrolment and intervals")] = 0
    thresholds: Annotated[
        str | None,
        typer.Option(help="thresholds: grid (as published; default for pairs) or exact (default for held-out)"),
    ] = None
    broken_limit: Annotated[
        float, typer.Option(min=0, max=1, help="largest share of unusable images that is counted, not refused")
    ] = 0.01
    batch_size: Annotated[int, typer.Option(min=1, help="images per forward pass")] = 256
    workers: Annotated[int, typer.Option(min=0, help="processes that read, decode and align; 0: this one")] = 0
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto"
    mode: Annotated[
        str,
        typer.Option(
            help="variants of ijbb and ijbc: N1 keeps the embeddings' length, N0 not; D1 weighs by detector score; F1 adds the mirror image; "
            "several joined by commas, or all"
        ),
    ] = "N1D1F1"
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="folder where ijbb and ijbc keep embeddings for the next time; default attfc/embeddings in the user's cache",
            file_okay=False,
        ),
    ] = None
    groups: Annotated[
        Path | None,
        typer.Option(
            help="file with a line per identity, name<TAB>group, for metrics of all-pairs within groups",
            dir_okay=False,
        ),
    ] = None
    far: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATE",
            help="all-pairs: false accept rate at which TAR is given; may be given several times, or with commas; default 1e-6,1e-5,1e-4",
        ),
    ] = None
    budget_gib: Annotated[
        float, typer.Option(min=0, help="memory that all-pairs may take for embeddings and scores, GiB")
    ] = 4.0
    enrolled: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="share of the identities that the protocol identify enrolls; the others are not in the gallery",
        ),
    ] = 0.5
    enrolled_images: Annotated[
        int, typer.Option(min=1, help="images per enrolled identity in the gallery of identify")
    ] = 1
    confidence: Annotated[float, typer.Option(help="confidence level of the intervals, 0.5 to below 1")] = 0.95
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
                    f"--far {text.strip()!r} is no false accept rate: give numbers above 0 and below 1, such as --far 1e-5,1e-4"
                )
            fars.add(far)
        return tuple(sorted(fars))

    def for_protocols(self, keep_scores: bool) -> dict[str, Any]:
        """Return what a protocol may take, checked as far as it can be before a model is opened."""
        fars = self.fars
        if self.thresholds not in (None, "grid", "exact"):
            raise UserError(f"--thresholds {self.thresholds} is unknown: use grid or exact")
        return {**vars(self), "fars": fars, "keep_scores": keep_scores}


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Show a command's parameter `asked` as the options of `EvaluationOptions`; the command gets them as one."""
    fields = dataclasses.fields(EvaluationOptions)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        asked = EvaluationOptions(**{field.name: values.pop(field.name) for field in fields})
        command(asked=asked, **values)

    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields
    ]
    own = inspect.signature(command).parameters
    shown = [
        one
        for name, parameter in own.items()
        for one in (options if name == "asked" else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
    ]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return run
