"""The paper in a few files: sampling with log-probabilities, attention relevance, allocation, the objective."""
