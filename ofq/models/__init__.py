"""Models by name, weights that fit them, and compiled models; torch and timm alone."""
