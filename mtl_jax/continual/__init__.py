"""Learning one task after another: loss terms and exemplars that keep the old tasks."""
