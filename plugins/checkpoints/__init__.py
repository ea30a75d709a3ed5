"""Sealed checkpoints: manifest, stores, restore."""
