"""The Lium marketplace: rent, reach, watch and return pods."""
