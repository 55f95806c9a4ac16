"""A trained network behind HTTP: a page to look at, and an API."""
