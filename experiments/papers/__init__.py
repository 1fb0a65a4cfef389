"""What papers claim: exhibits, variants, recipes, runs, sweeps as YAML, and the code that reads them."""
