"""What happens around the optimizer's steps of a run."""
