"""Datasets by format: one small random-access class for each."""
