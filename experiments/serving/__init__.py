"""Trained models in use: a folder of images indexed and searched, embedded, captioned."""
