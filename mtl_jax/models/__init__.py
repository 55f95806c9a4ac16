"""The network: backbone, neck, head, and the functions that build and apply them."""
