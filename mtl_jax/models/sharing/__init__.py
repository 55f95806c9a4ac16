"""The ways to share a network between tasks."""
