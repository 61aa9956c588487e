"""Sections of the schema that have a file of their own."""
