"""`attfc data ...`: look into stores of faces, convert, clean."""

from pathlib import Path
from typing import Annotated

import typer

from attfc.commands.common import CacheOption, JsonOption, out, progress_bar, write_json

__all__ = ["app"]

app = typer.Typer(help="Look into a store of faces.", no_args_is_help=True, rich_markup_mode=None)


@app.command("inspect")
def inspect_data(
    path: Annotated[str, typer.Argument(help="image folder or synthetic: spec")],
    workers: Annotated[int, typer.Option(min=0, help="decoding processes")] = 2,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Identities, images, images per identity, broken files, duplicates."""
    from attfc.data import inspect_store, open_store

    with progress_bar("index") as bar:
        store = open_store(path, cache=cache, progress=bar)
    with progress_bar("inspect") as bar:
        result = inspect_store(store, workers=workers, progress=bar)
    out.print(result.to_text(), markup=False)
    write_json(json_file, result.to_dict())


@app.command("preview")
def preview_data(
    path: Annotated[str, typer.Argument(help="image folder or synthetic: spec")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write", dir_okay=False)] = Path("preview.png"),
    identities: Annotated[int, typer.Option(min=1, max=100)] = 8,
    images: Annotated[int, typer.Option(min=1, max=100, help="per identity")] = 8,
    seed: Annotated[int, typer.Option()] = 0,
    cache: CacheOption = None,
) -> None:
    """Write a contact sheet: one identity a row. A sheet of a real store shows people: handle it as you handle the store."""
    from attfc.data import contact_sheet, open_store

    with progress_bar("index") as bar:
        store = open_store(path, cache=cache, progress=bar)
    contact_sheet(store, identities=identities, images=images, seed=seed).save(output, "PNG")
    out.print(str(output), markup=False)
