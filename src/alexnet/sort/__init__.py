"""Sort image files into a folder for each predicted label, and undo it."""
