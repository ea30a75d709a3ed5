"""Stands in for W&B where slime only imports it: nothing is logged while a command line is parsed."""
