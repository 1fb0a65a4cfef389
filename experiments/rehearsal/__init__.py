"""A rehearsal: every run that a target would start taken through its whole life in minutes, before anyone pays for it."""
