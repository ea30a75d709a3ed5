"""Ray on one pod: start, submit, follow, stop."""
