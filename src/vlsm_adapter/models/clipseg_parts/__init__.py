"""CLIPSeg's modules and their sizes, under the names that Hugging Face's files use."""
