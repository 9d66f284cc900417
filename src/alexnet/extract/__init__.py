"""Features of many images in one file: streamed, resumed where they stopped, for NumPy, HDF5, MATLAB and Zarr."""
