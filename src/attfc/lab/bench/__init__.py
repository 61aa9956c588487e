"""Measurements that a user repeats on a machine of his own: speed and memory of the heads against the number of identities."""
