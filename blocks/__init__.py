"""Settings and credentials: the recipe, and what is saved in the Prefect UI."""
