"""Import and convert weights from Keras and torchvision."""
