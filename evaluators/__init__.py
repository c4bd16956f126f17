"""GenEval, OCR and PickScore on images, without a diffusion model. They depend on ``star.common`` alone."""
