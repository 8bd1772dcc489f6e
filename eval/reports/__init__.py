"""What a person reads of a finished evaluation."""
