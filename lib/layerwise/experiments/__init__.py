"""Running experiments: results that are known by what was computed, sweeps, rows with provenance."""
