"""`attfc backbones`: the networks and, later, what is done with trained ones."""

import dataclasses

from attfc.commands.common import JsonOption, Table, out, print_table, write_json

__all__ = ["backbones"]


def backbones(json_file: JsonOption = None) -> None:
    """List the networks: parameters, and multiply-accumulates per image."""
    from attfc.backbones import list_backbones

    rows = list_backbones()
    header = ("name", "parameters", "GMACs", "attention GMACs", "input", "source")
    shown = [
        (
            row.name,
            f"{row.params / 1e6:.2f} M",
            f"{row.gmacs:.3f}",
            f"{row.attention_gmacs:.3f}",
            f"{row.image_size} px",
            row.source,
        )
        for row in rows
    ]
    print_table(Table(header, shown, words=(0, 5)))
    out.print("timm:NAME takes any timm model (extra attfc[timm])")
    write_json(json_file, {"backbones": [dataclasses.asdict(row) for row in rows]})
