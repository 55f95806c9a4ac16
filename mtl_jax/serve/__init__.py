"""HTTP server for a trained network: a web page and an API."""
