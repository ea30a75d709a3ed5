"""The Lium API on this machine, for laptops and tests; the unmodified `lium` SDK and CLI talk to it."""
