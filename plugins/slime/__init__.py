"""What trainstack knows about slime: command line, checkpoint layout, log lines."""
