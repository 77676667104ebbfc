"""Fetches public datasets from their own sites."""
