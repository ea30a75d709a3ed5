"""The verbs of the chain, one file each, as Prefect tasks."""
