"""Data: datasets, decoding, preprocessing, augmentation and batches."""
