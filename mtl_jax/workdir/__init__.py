"""Files of a work directory."""
