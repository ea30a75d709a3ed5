"""What a person starts: one file, one flow, and the command line."""
