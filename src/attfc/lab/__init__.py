"""Measurements that a user repeats on a machine of his own: speed and memory of the heads, and studies of heads x options x seeds.

Both are a list of cells: each is measured in a process of its own, and is a line of JSON that is not measured again; tables and figures are
made from the lines alone (`pages`).
"""
