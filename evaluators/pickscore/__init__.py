"""PickScore (arXiv 2305.01569) and any other CLIP."""
