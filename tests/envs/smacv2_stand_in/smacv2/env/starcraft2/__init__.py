"""The game, its features, and distributions of teams."""
