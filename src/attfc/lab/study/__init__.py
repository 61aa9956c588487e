"""The study's bench: grids of heads x options x seeds in three worlds, one line of JSON a cell, tables and figures made from those."""
