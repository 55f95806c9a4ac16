"""Reports: of a run, of comparisons, and pictures."""
