"""What can be set, by subject; ``settings`` puts it together and alone reads the environment."""
