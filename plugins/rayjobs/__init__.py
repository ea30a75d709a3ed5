"""Ray on the nodes of one pod or cluster: start, submit, follow, stop."""
