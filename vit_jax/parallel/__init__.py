"""Mesh and sharding rules.  Knows parameter paths and shapes, not layers."""
