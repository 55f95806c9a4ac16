"""Folders and files of one's own: what is in them, what to train on it, and the page that says so."""
