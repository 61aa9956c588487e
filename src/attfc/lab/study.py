"""Grids of a study: a YAML file of variants and seeds, run cell by cell in child processes, one line of JSON a cell, resumed where it stopped.

    world: {kind: vectors, identities: 10000}      # or {kind: faces}
    preset: demo
    overrides: [batch_size=256]                    # of every cell
    reference: full_fc                             # what the others are compared with
    seeds: [0, 1, 2]
    variants:
      full_fc: [head=full_fc]
      attfc: []

A variant may change the world too: `world.images=[2, 4]`. `{seed}` in an override stands for the cell's seed, `{faces}` for the folder given: each
seed can keep other people aside. A line of FOLDER/cells.jsonl has all that a cell is and found. A cell that is there already
is not run again; one that was run with other settings stops the study before anything runs, because a table of two settings would say nothing. A cell
that fails (a loss that is not finite, say) is a result too and stays in the tables.
"""

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from attfc.config import read_preset
from attfc.config.safe_yaml import read_yaml, read_yaml_text
from attfc.errors import UserError, nearest, one_line
from attfc.files import write_text_whole
from attfc.lab.children import children_end_too, lead_group, leave_at_sigterm
from attfc.lab.vectors import VectorWorld
from attfc.training.interruption import Interrupted
from attfc.typing import Json

__all__ = ["Cell", "Study", "read_study", "run_study", "study_records"]

CELLS = "cells.jsonl"
MEASURES = ("steps", "seconds", "samples_per_second")
"""What a cell has, beside its figures, if it did not fail."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Vectors(_Strict):
    kind: Literal["vectors"]
    width: Annotated[int, Field(ge=1)] = 256

    def made(self) -> VectorWorld:
        """Return the world."""
        return VectorWorld(**self.model_dump(exclude={"kind", "width"}))


VectorsSection = create_model(
    "VectorsSection",
    __base__=_Vectors,
    __doc__="The vector world: arguments of `VectorWorld`, and the encoder's width.",
    **{option.name: (option.type, option.default) for option in fields(VectorWorld)},  # type: ignore[call-overload]
)


class FacesSection(_Strict):
    """Images, real or synthetic: `attfc train` itself; where they are stands in the overrides, `{faces}` for the folder given."""

    kind: Literal["faces"]


class Study(_Strict):
    """A study as its file says it; see the module."""

    name: str
    world: Annotated[VectorsSection | FacesSection, Field(discriminator="kind")]
    preset: str = "demo"
    overrides: list[str] = []
    reference: str | None = None
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    variants: Annotated[dict[str, list[str]], Field(min_length=1)]


class Cell(_Strict):
    """One training: a variant with a seed."""

    study: str
    variant: str
    seed: int
    world: Json
    preset: str
    overrides: list[str]


def read_study(path: Path) -> Study:
    """Read and check a study's file.

    Raises:
        UserError: no such file, not YAML, unknown keys or wrong values, an unknown reference.
    """
    try:
        values = read_yaml(read_yaml_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give a study's YAML file") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, expected a mapping with world, seeds and variants")
    try:
        study = Study.model_validate({"name": path.stem, **values})
        _cells(study)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_fault(fault) for fault in error.errors())}") from None
    if study.reference is not None and study.reference not in study.variants:
        raise UserError(f"{path}: reference {study.reference!r} is none of the variants: {', '.join(study.variants)}")
    return study


def _fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = {*Study.model_fields, *VectorsSection.model_fields}
        return f"unknown key {place!r}{nearest(str(fault['loc'][-1]), known)}"
    return f"{place}={fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _cells(study: Study) -> list[Cell]:
    settled = {variant: _settled(study, variant) for variant in study.variants}
    return [
        Cell(study=study.name, variant=variant, seed=seed, world=world, preset=study.preset, overrides=overrides)
        for seed in study.seeds
        for variant, (world, overrides) in settled.items()
    ]


def _settled(study: Study, variant: str) -> tuple[Json, list[str]]:
    """The world of a variant, and the overrides that are for `attfc train`."""
    world, overrides = study.world.model_dump(mode="json"), list(study.overrides)
    for override in study.variants[variant]:
        name, _, value = override.removeprefix("world.").partition("=")
        if override.startswith("world."):
            world[name] = read_yaml(value)
        else:
            overrides.append(override)
    return type(study.world).model_validate(world).model_dump(mode="json"), overrides


def run_study(
    study: Study,
    folder: Path,
    *,
    faces: Path | None = None,
    only: Sequence[str] = (),
    parallel: int = 1,
    threads: int = 1,
    said: Callable[[str], object] = print,
) -> list[Json]:
    """Run what is missing of a study, cell by cell, and return all records, those of earlier calls included.

    Args:
        study: of `read_study`.
        folder: where the study's cells.jsonl is.
        faces: what `{faces}` in overrides stands for.
        only: variants to run; none: all.
        parallel: cells at a time, each in a process of its own.
        threads: processor threads of a cell. With more cells and threads than cores the seconds mean nothing.
        said: takes a line a cell.

    Raises:
        UserError: an override that `attfc train` would refuse, a cell with other settings, `{faces}` without `faces`, an unknown `only`.
    """
    unknown = [name for name in only if name not in study.variants]
    if unknown:
        raise UserError(f"{study.name} has no variant {unknown[0]!r}: it has {', '.join(study.variants)}")
    cells = [cell for cell in _cells(study) if not only or cell.variant in only]
    notes: list[str] = []
    for cell in cells:
        asked = read_preset(cell.preset, cell.overrides)
        asked.resolve()
        notes += asked.notes
        if faces is None and any("{faces}" in override for override in cell.overrides):
            raise UserError(f"{study.name}, {cell.variant}: an override names {{faces}}: say where with --faces FOLDER")
    for note in dict.fromkeys(notes):
        said(f"note: {note}")
    done = {(record["variant"], record["seed"]) for record in _records(folder, cells)}
    missing = [cell for cell in cells if (cell.variant, cell.seed) not in done]
    said(f"{study.name}: {len(cells)} cells, {len(done)} there, {len(missing)} to run")
    folder.mkdir(parents=True, exist_ok=True)
    kept = [record for _, record in _kept(folder)]
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(parallel, mp_context=context, max_tasks_per_child=1, initializer=lead_group) as pool,
        children_end_too(),
    ):
        running = {
            pool.submit(_run_cell, cell, None if faces is None else str(faces), threads): cell for cell in missing
        }
        try:
            for number, future in enumerate(as_completed(running), 1):
                cell = running[future]
                record = future.result()
                kept.append(record)
                lines = (json.dumps(each, separators=(",", ":")) for each in kept)
                write_text_whole(folder / CELLS, "\n".join(lines) + "\n")
                said(f"{number}/{len(missing)}  {cell.variant}, seed {cell.seed}: {_summary(record)}")
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                there = len(_records(folder, cells))
                said(f"ended with {there} of {len(cells)} cells there; the same command goes on with the others")
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "the process of a cell was ended from outside, for want of memory perhaps: the same command goes on, with a smaller --parallel"
                ) from None
            raise
    return _records(folder, cells)


def study_records(study: Study, folder: Path) -> list[Json]:
    """Return the records of a study's cells that are there, by variant and seed.

    Raises:
        UserError: a damaged file, or a cell run with other settings.
    """
    order = {variant: number for number, variant in enumerate(study.variants)}
    return sorted(_records(folder, _cells(study)), key=lambda record: (order[record["variant"]], record["seed"]))


def _records(folder: Path, cells: Sequence[Cell]) -> list[Json]:
    there = {(record["variant"], record["seed"]): (where, record) for where, record in _kept(folder)}
    records = []
    for cell in cells:
        if (cell.variant, cell.seed) not in there:
            continue
        where, record = there[cell.variant, cell.seed]
        for key, value in cell.model_dump(mode="json").items():
            if record.get(key) != value:
                raise UserError(
                    f"{where}: was run with another {key} ({json.dumps(record.get(key))[:200]}): delete it, or give the study another --output"
                )
        records.append(record)
    return records


def _kept(folder: Path) -> Iterator[tuple[str, Json]]:
    """Yield the cells of a folder, each with its place: the files of attfc 0.1, one a cell, then the lines of cells.jsonl."""
    places = [(str(path), path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.seed*.json"))]
    if (folder / CELLS).exists():
        lines = (folder / CELLS).read_text(encoding="utf-8").splitlines()
        places += [(f"{folder / CELLS} line {number}", line) for number, line in enumerate(lines, 1)]
    for where, text in places:
        try:
            record = json.loads(text)
            if not isinstance(record, dict) or not {"variant", "seed"} <= set(record):
                raise ValueError("no cell of a study")
            if "failed" not in record:
                figures = record["figures"]["test"], *record["figures"].values(), {key: record[key] for key in MEASURES}
                sum(float(value) for each in figures for value in each.values())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}: damaged ({one_line(error)[:100]}): delete it and run the study again") from None
        yield where, record


def _run_cell(cell: Cell, faces: str | None, threads: int) -> Json:
    """In a child process: train one cell. One that is stopped ends its process: in place of one that answers, a pool would start the next cell."""
    leave_at_sigterm()
    try:
        found = _found(cell, faces, threads)
    except (SystemExit, Interrupted):
        os._exit(128 + signal.SIGTERM)
    return {
        **cell.model_dump(mode="json"),
        "threads": threads,
        **_commit(),
        "load_average": os.getloadavg()[0],
        **found,
    }


def _found(cell: Cell, faces: str | None, threads: int) -> Json:
    import torch

    from attfc.lab.study_cells import run_faces, run_vectors

    torch.set_num_threads(threads)
    seed = str(cell.seed)
    overrides = [override.replace("{faces}", faces or "").replace("{seed}", seed) for override in cell.overrides]
    if cell.world["kind"] == "vectors":
        section = VectorsSection.model_validate(cell.world)
        return run_vectors(section.made(), cell.preset, overrides, cell.seed, section.width)
    return run_faces(cell.preset, overrides, cell.seed, threads)


def _commit() -> Json:
    """The commit of the source at hand, if it is a checkout."""
    try:
        asked = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True, "timeout": 30}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **asked).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "--", ".."], **asked).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return {"commit": None}
    return {"commit": commit, "commit_dirty": bool(dirty)}


def _summary(record: Json) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    figures = record["figures"]["test"]
    shown = [f"{name} {figures[name]:.4f}" for name in _HEADLINES if name in figures]
    return f"{', '.join(shown)}; {record['seconds']:.0f} s, {record['samples_per_second']:,.0f} samples/s"


_HEADLINES = ("tar_at_far/0.01", "tar_at_far/0.0001", "rank_one")
