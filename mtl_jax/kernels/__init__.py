"""Parts of the network that run as C++ on a CPU: their sources, how they are built, and how XLA calls them."""
