"""Cross-validation: train several networks, each without one fold of the images, and predict each image by the other ones."""
