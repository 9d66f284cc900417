"""Find images that look alike."""
