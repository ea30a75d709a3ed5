"""Stands in for the router of SGLang; `launch_router.py` says what it knows."""
