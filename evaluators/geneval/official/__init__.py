"""GenEval's own evaluator: the Mask2Former of mmdet 2.x finds objects, CLIP ViT-L/14 names their colours (arXiv 2310.11513).

Facts are from djghosh13/geneval af4902f and mmdet 2.28.2. Nothing here needs mmdet, mmcv or a compiled operator, except
the engine ``mmdet``, which runs mmdet's own network for comparison.
"""
