"""Training and evaluation data: in memory, or image files in any layout."""
