"""What an account looks like as files, from the index alone."""
