"""Values that are searched for: the best of a search's trials, and the learning rate of a range test."""
