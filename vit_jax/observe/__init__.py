"""Metrics, progress, status, versions; what a run shows of itself."""
