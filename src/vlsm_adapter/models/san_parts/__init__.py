"""The parts of a SAN: its sizes, its CLIP, the side network with the mask decoder."""
