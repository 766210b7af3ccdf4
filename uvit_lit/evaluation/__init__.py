"""Measures of generated images against real ones."""
