"""Verification against recorded outputs of the official implementations (`crosslight parity`): one module a kind of recording.

`run.py` says which checker a kind has, `recording.py` what a recording is and what a checker reports.
"""
