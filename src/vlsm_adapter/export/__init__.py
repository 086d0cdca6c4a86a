"""Exported folders: a model with its adapter as two graphs that predict without torch.

Nothing is imported here: :mod:`.runtime` works where only numpy, Pillow, tokenizers and onnxruntime are installed.
"""
