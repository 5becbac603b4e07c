"""Architectures of networks: the default, its student, and the published ones."""
