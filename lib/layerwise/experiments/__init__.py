"""Sweeps over points, the store that makes them resumable, results with provenance, models put together from blocks."""
