"""GenEval, OCR and PickScore on images, without a diffusion model. They stand on ``star.common`` alone."""
