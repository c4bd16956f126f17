"""GenEval (arXiv 2310.11513): prompts, detectors, the rules of the verdict."""
