"""Callbacks of Lightning that any run may have."""
