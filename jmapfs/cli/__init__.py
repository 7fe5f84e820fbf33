"""The commands: what is asked for, and what is shown. No more than that."""
