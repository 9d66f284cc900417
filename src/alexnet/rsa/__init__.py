"""Compare how layers, runs and given matrices tell images apart: dissimilarities (RDMs) and CKA."""
