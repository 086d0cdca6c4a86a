"""Images, masks and prompts: from a folder or a manifest to batches.

``records`` finds the cases, ``checks`` refuses the bad ones, ``splits`` divides them, ``images`` decodes the
pixels, ``prompts`` chooses the words, ``loaders`` makes batches. Nothing here knows a model, an adapter or a
run configuration. The modules are imported by name, so that finding cases does not wait for torch.
"""
