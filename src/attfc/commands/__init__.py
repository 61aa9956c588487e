"""The commands, a file for each group; `attfc.cli` puts them together. Heavy imports wait until a command runs."""
