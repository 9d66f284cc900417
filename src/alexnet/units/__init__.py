"""What excites the units of a layer: images of a set, cropped to what the unit sees, or images made up."""
