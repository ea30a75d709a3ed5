"""The doctor's checks, one file for each thing that a run may need. They look and change nothing."""
