"""Frozen features on disk: region features, feature cache."""
