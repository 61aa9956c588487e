"""`attfc backbones`: the networks and, later, what is done with trained ones."""

import dataclasses

from rich.table import Table

from attfc.commands.common import JsonOption, out, print_table, write_json

__all__ = ["backbones"]


def backbones(json_file: JsonOption = None) -> None:
    """Print the networks: parameters and multiply-accumulates of one image."""
    from attfc.backbones import list_backbones

    rows = list_backbones()
    table = Table("name", "parameters", "GMACs", "attention GMACs", "input", "source", box=None)
    for column in table.columns[1:5]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.name,
            f"{row.params / 1e6:.2f} M",
            f"{row.gmacs:.3f}",
            f"{row.attention_gmacs:.3f}",
            f"{row.image_size} px",
            row.source,
        )
    print_table(table)
    out.print("timm:NAME takes any timm model (extra attfc[timm])")
    write_json(json_file, {"backbones": [dataclasses.asdict(row) for row in rows]})
