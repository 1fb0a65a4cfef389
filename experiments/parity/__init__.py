"""Verification against recorded outputs of the official implementations (`crosslight parity`): one module a kind of fixture.

`run.py` says which checker a kind has, `fixture.py` what a fixture is and what a checker reports.
"""
