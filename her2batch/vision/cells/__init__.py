"""Cells of a stained tissue: nuclei, membranes around them, and the likelihood that a cell belongs to the tumour."""
