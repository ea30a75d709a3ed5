"""`make bench`: what our care costs, as ratios against the plain way, measured side by side in one run."""
