"""What a run is made of: trainer/, data/, model/ - one YAML a choice, composed with several `-c`."""
