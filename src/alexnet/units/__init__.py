"""What excites the units of a layer: the images of a set, cropped to what the unit sees."""
