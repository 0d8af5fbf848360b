"""Published quantization recipes in PyTorch, written from their papers, for scripts/reference_recipes.py."""
