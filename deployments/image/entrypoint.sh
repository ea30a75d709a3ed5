#!/bin/bash
# The first process of a pod. Lium starts a container without a terminal and puts sshd into it afterwards, so this must
# not end by itself; it reaps what is orphaned and ends at once when told to. A command given instead is run.
[ $# -eq 0 ] || exec "$@"
trap 'exit 0' TERM INT
while :; do
    sleep infinity &
    wait $!
done
