"""A head on trained features: the last layer, fitted to the codes of a few hundred images in seconds."""
