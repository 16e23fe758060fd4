"""Results and studies as files: netCDF behind a digest, one schema, and tables of them."""
