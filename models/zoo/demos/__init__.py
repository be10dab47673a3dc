"""The smallest honest experiment of each system."""
