"""hvmlite."""
