"""Results that are known by what was computed, sweeps, rows with provenance, models put together from blocks."""
