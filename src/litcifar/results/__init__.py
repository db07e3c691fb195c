"""What many runs say together: the leaderboard, and the answers of sweeps."""
