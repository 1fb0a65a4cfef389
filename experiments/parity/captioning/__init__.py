"""Captioners and caption metrics against the official code."""
