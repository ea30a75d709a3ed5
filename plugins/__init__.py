"""One room for each outside system; plain Python that knows nothing of Prefect."""
